"""Who was turned away, in the audit trail: counted and slowed down, so that nobody fills the store by being refused.

What is alike (who, from where, what) becomes one entry with a count; entries are written at a bounded rate, and of
those that wait only so many are told apart, the others are counted. At its worst a replica writes ``RATE`` entries a
second, about 4 MB a day, whatever is thrown at it. What waits is lost with the process; the log has it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from controlplane.security.rates import Buckets, Rate
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import StoreError
from gridkeeper.records.books import AuditRecord

log = logging.getLogger("gridkeeper.refusals")

RATE = Rate(per_s=0.1, burst=60)
MOST_WAITING = 64
QUIET_MS = 60_000
"""What is like an entry that was written less than this ago waits, and is counted meanwhile."""
MOST_REMEMBERED = 1_024
LOOK_MS = 1_000
MOST_SENTENCE = 400
_Alike = tuple[str, str, str]


@dataclass(slots=True)
class _Waiting:
    object: str
    sentence: str
    trace: str
    at_ms: int
    count: int = 1


class RefusalBook:
    """``write`` puts entries into the store: all or none, and the same ones again without harm."""

    def __init__(self, write: Callable[[Sequence[AuditRecord]], Awaitable[None]], clock: Clock, rng: Rng) -> None:
        self._write = write
        self._clock = clock
        self._rng = rng
        self._waiting: OrderedDict[_Alike, _Waiting] = OrderedDict()
        self._written_ms: OrderedDict[_Alike, int] = OrderedDict()
        self._others = 0
        self._budget = Buckets(RATE, clock)
        self.total = 0
        """All refusals so far: a metric."""

    def note(self, who: str, origin: str, verb: str, subject: str, sentence: str) -> str:
        """Somebody was refused. Costs next to nothing and never fails. Returns the trace id for the log."""
        self.total += 1
        alike = (who, origin, verb)
        held = self._waiting.get(alike)
        if held is not None:
            held.count += 1
            held.object, held.sentence = subject, sentence[:MOST_SENTENCE]
            return held.trace
        trace = f"00-{self._rng.token(16)}-{self._rng.token(8)}-01"
        if len(self._waiting) >= MOST_WAITING:
            self._others += 1
            return trace
        self._waiting[alike] = _Waiting(subject, sentence[:MOST_SENTENCE], trace, self._clock.wall_ms())
        return trace

    async def run(self) -> None:
        """Write what waits, for ever. A store that is away is waited for; what waits is bounded."""
        while True:
            await self._clock.sleep(LOOK_MS)
            await self.flush()

    async def flush(self) -> None:
        """Write what may be written now. What cannot be written now stays."""
        due = [alike for alike in self._waiting if self._rested(alike)]
        chosen: list[_Alike] = []
        while due and self._budget.admit("") == 0:
            chosen.append(due.pop(0))
        entries = [self._entry(alike, self._waiting[alike]) for alike in chosen]
        others = self._others
        if others and self._budget.admit("") == 0:
            entries.append(self._overflow(others))
        else:
            others = 0
        if not entries:
            return
        taken = [(alike, self._waiting.pop(alike)) for alike in chosen]
        self._others -= others
        while True:  # the same entries, until it is certain that they are there
            try:
                await self._write(entries)
                break
            except StoreError as error:
                log.warning("%d refusals cannot be recorded yet: %s", len(entries), error)
                await self._clock.sleep(LOOK_MS)
        for alike, _ in taken:
            self._written_ms[alike] = self._clock.mono_ms()
            self._written_ms.move_to_end(alike)
        while len(self._written_ms) > MOST_REMEMBERED:
            self._written_ms.popitem(last=False)

    def _rested(self, alike: _Alike) -> bool:
        written = self._written_ms.get(alike)
        return written is None or self._clock.mono_ms() - written >= QUIET_MS

    def _entry(self, alike: _Alike, held: _Waiting) -> AuditRecord:
        who, origin, verb = alike
        times = f" ({held.count} times since)" if held.count > 1 else ""
        return self._record(held.at_ms, who, verb, held.object, f"{held.sentence}{times}", held.trace, origin)

    def _overflow(self, count: int) -> AuditRecord:
        sentence = f"{count} more refusals were too many to be recorded one by one; the log of this replica has them"
        return self._record(self._clock.wall_ms(), "machine", "api.refusals", "", sentence, "", "")

    def _record(
        self, at_ms: int, who: str, verb: str, subject: str, sentence: str, trace: str, origin: str
    ) -> AuditRecord:
        name = f"{at_ms:013d}-{self._rng.token(6)}"
        return AuditRecord(name, at_ms, who, verb, subject, sentence, "refused", 0, (), trace, origin)
