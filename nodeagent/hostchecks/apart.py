"""Each check in a thread of its own: one that hangs (with a disk that answers neither smartctl nor statvfs, or a driver
that does not let go of its files) is waited for by nobody, and the others go on. Until it is back nothing new is known
of what it looks at; it is not asked again meanwhile, so threads and processes do not pile up."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from gridkeeper.ports.devices import BackendError, Sighting
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import Check

log = logging.getLogger("gridkeeper.agent.hostchecks")

OVERDUE_MS = 30_000
"""A look that is not back by then is told of in the log, once."""


class Apart:
    """``tell`` is called in the check's thread, with what it saw. All else is for one other thread."""

    def __init__(self, check: Check, seen: Conditions, tell: Callable[[tuple[Sighting, ...]], None]) -> None:
        self._check = check
        self._seen = seen  # of this check alone: only its thread touches it
        self._tell = tell
        self._due: queue.SimpleQueue[int | None] | None = None
        self._back = threading.Event()
        self._back.set()
        self._began_ms: int | None = None
        self._said = False
        self._error: Exception | None = None

    def look(self, now_ms: int) -> bool:
        """Have it look if that is due; whether it does. ``now_ms``: boot-time clock. Raises ``BackendError`` if there
        can be no thread, and what the last look did raise."""
        if not self._back.is_set():
            self._overdue(now_ms)
            return False
        if self._said:
            self._said = False
            log.warning("The check %s came back after all.", self._name)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._began_ms is not None and now_ms - self._began_ms < self._check.period_ms:
            return False
        self._began_ms = now_ms
        if self._due is None:
            self._due = self._start()
        self._back.clear()
        self._due.put(now_ms)
        return True

    def wait(self, seconds: float) -> None:
        """Until it is back, or the time is over."""
        self._back.wait(max(0.0, seconds))

    def close(self) -> None:
        """Its thread ends once it is back. Does not wait for that."""
        if self._due is not None:
            self._due.put(None)
            self._due = None

    @property
    def _name(self) -> str:
        return type(self._check).__name__

    def _overdue(self, now_ms: int) -> None:
        late_ms = now_ms - (self._began_ms or 0)
        if late_ms >= OVERDUE_MS and not self._said:
            self._said = True
            log.error(
                "The check %s has not come back for %d s: what it looks at (a disk, a driver) hangs. The others go on.",
                self._name, late_ms // 1_000,
            )  # fmt: skip

    def _start(self) -> queue.SimpleQueue[int | None]:
        due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        try:
            threading.Thread(target=self._run, args=(due,), name=f"gridkeeper-{self._name}", daemon=True).start()
        except RuntimeError as error:
            raise BackendError(f"the host's checks need a thread each, and there is none: {error}") from error
        return due

    def _run(self, due: queue.SimpleQueue[int | None]) -> None:
        while (now_ms := due.get()) is not None:
            try:
                self._check.look(self._seen, now_ms)
                self._tell(self._seen.take())
            except Exception as caught:  # noqa: BLE001 - handed to whoever samples next, of whatever kind it is
                self._error = caught
            finally:
                self._back.set()
