"""The guardian's runs: when each must be signalled, and what its keeper has told. No sockets here."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, field

from failover.executors.protocol import TREE_VARIABLE, RunState
from nodeagent.linux import birth, children, descendants, send_signal, tagged

AGAIN_MS = 100
"""Between two SIGKILLs to a tree that is still there."""
LINGER_MS = 1_000
"""What a leading process leaves behind is killed this long after its exit."""
UNSEEN = 2
"""Looks in a row that must find nothing: a process that forks and ends during one look hides its child from it."""
NOT_RUN = 127
"""Exit code of a job whose command could not be run, as shells have it."""
MAX_REASON = 400
MAX_PIDS = 1_024
LOOK_MS = 1_000
"""Longest wait between two looks for the processes of a dead keeper."""

Key = tuple[str, str]


@dataclass(slots=True)
class Run:
    """One (job, epoch). ``keeper`` 0: its keeper is dead. ``lost``: the keeper was killed, so processes may remain that
    only the search by tag and by adoption finds. ``leader`` 0: not known yet, the command is still to be run.
    ``reason``: why it could not be. ``born``: pid and birth of its keeper. ``left``: pids and births of what was seen
    of a lost run, so that it need not be found again by its tag. Times are boot-time ms, 0 = not."""

    job: str
    epoch: str
    tag: str
    started_ms: int
    deadline_ms: int
    term_before_ms: int
    kill_before_ms: int
    keeper: int = 0
    leader: int = 0
    pipe: int = -1
    heard: bytes = b""
    reason: str = ""
    exit_code: int = -1
    exit_signal: int = 0
    ended_ms: int = 0
    tree_gone: bool = False
    lost: bool = False
    fenced: bool = False
    stop_asked: bool = False
    stop_kill_ms: int = 0
    next_kill_ms: int = 0
    look_ms: int = 0
    unseen: int = 0
    born: tuple[int, ...] = ()
    left: set[tuple[int, int]] = field(default_factory=set)

    @property
    def key(self) -> Key:
        return (self.job, self.epoch)

    @property
    def alive(self) -> bool:
        return self.ended_ms == 0

    def state(self, with_pids: bool) -> RunState:
        """``with_pids``: walk /proc for them; at most ``MAX_PIDS``, parents first."""
        pids: tuple[int, ...] = ()
        with contextlib.suppress(OSError):  # no descriptors left: the rest is told all the same
            pids = tuple(descendants(self.keeper)[:MAX_PIDS]) if with_pids and self.keeper else ()
        return RunState(
            self.job,
            self.epoch,
            self.alive,
            self.exit_code,
            self.exit_signal,
            self.tree_gone,
            self.fenced,
            self.stop_asked,
            self.started_ms,
            self.ended_ms,
            self.deadline_ms,
            pids,
            self.reason,
            self.born,
        )

    def extend(self, deadline_ms: int, term_before_ms: int, kill_before_ms: int) -> None:
        """Never backwards, and not once the end has begun."""
        if not self.fenced and deadline_ms > self.deadline_ms:
            self.deadline_ms = deadline_ms
            self.term_before_ms = term_before_ms
            self.kill_before_ms = kill_before_ms

    def stop(self, now: int, grace_ms: int) -> None:
        """Ask once; asking again may only shorten the grace."""
        kill_at = now + max(0, grace_ms)
        self.stop_kill_ms = min(self.stop_kill_ms, kill_at) if self.stop_asked else kill_at
        if not self.stop_asked:
            self.stop_asked = True
            self._terminate()

    def _terminate(self) -> None:
        """SIGTERM to the leading process, and let it run if it was stopped."""
        if self.leader and self.alive:
            send_signal(self.leader, signal.SIGTERM)
            send_signal(self.leader, signal.SIGCONT)

    def _term_at(self) -> int:
        return self.deadline_ms - self.term_before_ms

    def _kill_at(self) -> int:
        times = [self.deadline_ms - self.kill_before_ms]
        if self.stop_asked:
            times.append(self.stop_kill_ms)
        if not self.alive:
            times.append(self.ended_ms + (0 if self.fenced or self.stop_asked else LINGER_MS))
        return min(times)

    def due_ms(self) -> int | None:
        """When ``act`` has something to do next; None: never."""
        if self.tree_gone:
            return None
        if self.lost:
            return self.look_ms
        kill_at = max(self._kill_at(), self.next_kill_ms)
        return kill_at if self.fenced or not self.alive else min(kill_at, self._term_at())

    def act(self, now: int) -> None:
        """Send the signals that are due."""
        if self.tree_gone or self.lost:
            return
        if self.alive and not self.fenced and now >= self._term_at():
            self.fenced = True
            if not self.stop_asked:
                self._terminate()
        if now >= max(self._kill_at(), self.next_kill_ms):
            self.next_kill_ms = now + AGAIN_MS
            if self.leader and self.alive:
                send_signal(self.leader, signal.SIGKILL)
            with contextlib.suppress(OSError):  # no descriptors left: the next look sees them
                for pid in descendants(self.keeper) if self.keeper else ():
                    send_signal(pid, signal.SIGKILL)

    def hear(self, data: bytes, now: int) -> None:
        """What the keeper wrote."""
        self.heard += data
        while b"\n" in self.heard:
            line, _, self.heard = self.heard.partition(b"\n")
            word, _, rest = line.partition(b" ")
            if word == b"started":
                self.leader = int(rest)
                if self.stop_asked or self.fenced:
                    self._terminate()
            elif word == b"failed":
                self.exit_code, self.reason, self.ended_ms = NOT_RUN, rest.decode(errors="replace")[:MAX_REASON], now
            elif word == b"exit":
                code, number = rest.split()
                self.exit_code, self.exit_signal, self.ended_ms = int(code), int(number), now

    def keeper_ended(self, clean: bool, now: int) -> None:
        """``clean``: it said that it has no children left. Else look for what it left behind."""
        self.keeper = 0
        if self.alive:
            self.ended_ms = now
            self.exit_signal = signal.SIGKILL
        self.tree_gone = clean
        self.lost = not clean
        self.look_ms = now


def look_for_lost(runs: list[Run], keepers: set[int], now: int) -> None:
    """Kill what dead keepers left: orphans that the kernel gave to the guardian, what is below a keeper of an earlier
    guardian, and whatever carries their tags. A run of which two looks in a row find nothing is gone. A process that
    does not die (uninterruptible sleep) has perhaps wiped its environment and may lose its keeper: what was seen once
    is looked for until it has ended."""
    adopted = [pid for pid in children(os.getpid()) if pid not in keepers]
    for pid in adopted:
        for below in (*descendants(pid), pid):
            send_signal(below, signal.SIGKILL)
    found = tagged(TREE_VARIABLE, {run.tag for run in runs})
    for run in runs:
        _kill_left(run)
        for pid in found[run.tag]:
            send_signal(pid, signal.SIGKILL)
        run.unseen = 0 if adopted or run.left or found[run.tag] else run.unseen + 1
        if run.unseen >= UNSEEN:
            run.lost = False
            run.tree_gone = True
        elif run.unseen:
            run.look_ms = now + AGAIN_MS
        else:
            run.look_ms = now + min(LOOK_MS, max(AGAIN_MS // 5, (now - run.ended_ms) // 4))


def _kill_left(run: Run) -> None:
    """SIGKILL what is left of the run as far as it is known, but not to its old keeper: that one catches all that the
    tree forks meanwhile, and ends by itself once nothing is left."""
    run.left = {(pid, born) for pid, born in run.left if birth(pid) == born}
    for pid, _ in tuple(run.left):
        run.left.update((below, born) for below in descendants(pid) if (born := birth(below)))
    for pid, born in run.left:
        if (pid, born) != run.born:
            send_signal(pid, signal.SIGKILL)
        else:
            send_signal(pid, signal.SIGCONT)  # it cannot hear of its guardian's death while it is stopped
