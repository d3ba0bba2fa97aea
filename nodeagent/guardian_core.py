"""What the guardian knows and does, without its socket: runs, their highest epochs, requests and what is due."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping

from failover.executors import guardian_state
from failover.executors.guardian_state import boot_id
from failover.executors.protocol import (
    TREE_VARIABLE,
    BadMessage,
    Checkpoint,
    Extend,
    Forget,
    ListRuns,
    Ping,
    Reply,
    Request,
    RunState,
    Start,
    Stop,
    decode_request,
    epoch_number,
)
from nodeagent.guardian_runs import LOOK_MS, Key, Run, look_for_lost
from nodeagent.keeper import spawn
from nodeagent.linux import birth, boot_ms, children, send_signal

IDLE_MS = 60_000
SHUTDOWN_GRACE_MS = 10_000


def say(run: Run, words: str) -> None:
    """One line in guardian.log."""
    with contextlib.suppress(OSError):  # a full disk must not end the guardian
        print(f"{time.strftime('%FT%T')} job {run.job} epoch {run.epoch}: {words}", file=sys.stderr, flush=True)


class Refused(Exception):
    """The request cannot be done; names job, epoch and why."""


class Guardian:
    """``once``: it goes as soon as a run that it had is gone. ``inherited``: variables that its runs get beside those
    of their request, which come first."""

    def __init__(
        self, directory: str, idle_ms: int, once: bool = False, inherited: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._idle_ms = idle_ms
        self._once = once
        self._inherited = dict(inherited or {})
        self._spoken_ms = boot_ms()
        self._stopping = False
        self._runs: dict[Key, Run] = {}
        found = guardian_state.load(directory)
        self._state = found or guardian_state.State(os.urandom(8).hex(), boot_id())
        for old in self._state.runs:
            self._runs[old.job, old.epoch] = self._returned(old)
        self._state.boot_id = boot_id()
        # Nothing new is started before it can be saved (``_start``); but on a full disk too somebody must be there who
        # tells what runs, and ends what an earlier guardian left.
        self._save_if_possible()

    def _returned(self, old: RunState) -> Run:
        """A run of an earlier guardian: its keeper ended with that one, or with the host."""
        now = boot_ms()
        run = Run(old.job, old.epoch, self._tag(old.job, old.epoch), old.started_ms, old.deadline_ms, 0, 0)
        run.exit_code, run.exit_signal = old.exit_code, old.exit_signal
        run.ended_ms, run.tree_gone = old.ended_ms, old.tree_gone
        run.fenced, run.stop_asked, run.reason = old.fenced, old.stop_asked, old.reason
        run.born = old.keeper
        if not old.tree_gone:
            run.keeper_ended(clean=self._state.boot_id != boot_id(), now=now)
            run.left = {(run.born[0], run.born[1])} if len(run.born) == 2 else set()
        return run

    def _tag(self, job: str, epoch: str) -> str:
        return f"{self._state.tag}/{job}@{epoch}"

    def _save(self) -> None:
        self._state.runs = [run.state(with_pids=False) for run in self._runs.values()]
        guardian_state.save(self._directory, self._state)

    def _save_if_possible(self) -> None:
        """For what a restarted guardian would find out anyway: a full disk must not end this one, and with it all
        jobs. The next change saves it too."""
        with contextlib.suppress(OSError):
            self._save()

    # Requests

    def answer(self, line: bytes) -> Reply:
        try:
            return self._do(decode_request(line))
        except (BadMessage, Refused) as error:
            return Reply(str(error), os.getpid())
        except OSError as error:
            return Reply(f"guardian: {error}", os.getpid())

    def _do(self, request: Request) -> Reply:
        self._spoken_ms = now = boot_ms()
        match request:
            case Ping():
                pass
            case ListRuns():
                return Reply("", os.getpid(), tuple(run.state(with_pids=True) for run in self._runs.values()))
            case Start():
                self._start(request, now)
            case Extend():
                self._known(request.job, request.epoch).extend(
                    request.deadline_ms, request.term_before_ms, request.kill_before_ms
                )
            case Stop():
                self._known(request.job, request.epoch).stop(now, request.grace_ms)
            case Checkpoint():
                run = self._known(request.job, request.epoch)
                if not run.alive or not run.leader:
                    how = "is still starting" if run.alive else "has ended"
                    raise Refused(f"job {request.job} epoch {request.epoch} {how}; nothing to checkpoint")
                send_signal(run.leader, signal.SIGUSR1)
            case Forget():
                self._forget(request.job, request.epoch)
        return Reply("", os.getpid())

    def _known(self, job: str, epoch: str) -> Run:
        run = self._runs.get((job, epoch))
        if run is None:
            raise Refused(f"job {job} epoch {epoch} is not known to this guardian; list tells what is")
        return run

    def _forget(self, job: str, epoch: str) -> None:
        run = self._runs.get((job, epoch))
        if run is None:
            return
        if not run.tree_gone:
            raise Refused(f"job {job} epoch {epoch} still has processes; stop it first")
        del self._runs[job, epoch]
        self._save()

    def _start(self, request: Start, now: int) -> None:
        if (request.job, request.epoch) in self._runs:
            return
        what = f"job {request.job} epoch {request.epoch}"
        highest = self._state.highest.get(request.job)
        if highest is not None and epoch_number(request.epoch) <= epoch_number(highest):
            raise Refused(f"{what} is not higher than {highest}, which was started before; use a higher epoch")
        for other in self._runs.values():
            if other.job == request.job and not other.tree_gone:
                raise Refused(f"{what}: epoch {other.epoch} still has processes; stop it first")
        if self._stopping:
            raise Refused(f"{what}: the guardian is shutting down; try again")
        if request.deadline_ms - request.term_before_ms <= now:
            raise Refused(f"{what}: its deadline has come already; renew first")
        if not request.argv:
            raise Refused(f"{what}: command is empty")
        tag = self._tag(request.job, request.epoch)
        run = Run(
            request.job, request.epoch, tag, now, request.deadline_ms, request.term_before_ms, request.kill_before_ms
        )
        self._state.highest[request.job] = request.epoch
        self._runs[run.key] = run
        try:
            env = {**self._inherited, **dict(request.env), TREE_VARIABLE: tag}
            run.keeper, run.pipe, leave = spawn(request.argv, env, request.cwd, request.log)
        except OSError:
            del self._runs[run.key]
            raise
        try:
            run.born = (run.keeper, birth(run.keeper))
            # Before the job exists: whatever happens next, this epoch is used up, and a new guardian knows its keeper.
            self._save()
            os.write(leave, b"+")
        except OSError:
            send_signal(run.keeper, signal.SIGKILL)
            os.waitpid(run.keeper, 0)
            os.close(run.pipe)
            del self._runs[run.key]
            raise
        finally:
            os.close(leave)
        # Not waited for: a working directory on a hung file system would hold up all deadlines.
        say(run, f"starting, keeper {run.keeper}")

    # Time and processes

    def due_ms(self) -> int | None:
        """When to wake by itself."""
        times = [due for run in self._runs.values() if (due := run.due_ms()) is not None]
        if not times:
            times.append(self._spoken_ms + self._idle_ms)
        return min(times)

    @property
    def finished(self) -> bool:
        over = self._stopping or (self._once and bool(self._runs))
        idle = over or boot_ms() >= self._spoken_ms + self._idle_ms
        return idle and all(run.tree_gone for run in self._runs.values())

    @property
    def status(self) -> int:
        """Exit status for whoever started it: as a shell would have given its newest run's."""
        run = next(reversed(self._runs.values()), None)
        if run is None or not self._once:
            return 0
        return 128 + run.exit_signal if run.exit_signal else max(0, run.exit_code)

    def stop_all(self) -> None:
        self._stopping = True
        for run in self._runs.values():
            if run.alive:
                run.stop(boot_ms(), SHUTDOWN_GRACE_MS)

    def tick(self) -> None:
        """Everything that is due now. Called after each wake-up."""
        now = boot_ms()
        for run in list(self._runs.values()):
            self._hear(run, now)
            fenced = run.fenced
            run.act(now)
            if run.fenced and not fenced:
                say(run, "no renewal came in time: SIGTERM")
        lost = [run for run in self._runs.values() if run.lost and run.look_ms <= now]
        if lost:
            keepers = {run.keeper for run in self._runs.values() if run.keeper}
            try:
                look_for_lost(lost, keepers, now)
                self._reap_adopted(keepers)
            except OSError as error:  # nothing is concluded from a look that failed
                for run in lost:
                    run.unseen, run.look_ms = 0, now + LOOK_MS
                    say(run, f"cannot look for what is left of it: {error}")
                return
            if any(run.tree_gone for run in lost):
                self._save_if_possible()

    def _hear(self, run: Run, now: int) -> None:
        if run.pipe < 0:
            return
        try:
            while data := os.read(run.pipe, 4096):
                run.hear(data, now)
        except BlockingIOError:
            return
        os.close(run.pipe)
        run.pipe = -1
        _, status = os.waitpid(run.keeper, 0)
        run.keeper_ended(clean=status == 0, now=now)
        how = f"signal {run.exit_signal}" if run.exit_signal else f"code {run.exit_code}"
        how = f"{how} ({run.reason})" if run.reason else how
        say(
            run,
            f"ended with {how}; " + ("its tree is gone" if run.tree_gone else "its keeper was killed"),
        )
        self._save_if_possible()

    def _reap_adopted(self, keepers: set[int]) -> None:
        for pid in children(os.getpid()):
            if pid not in keepers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def pipes(self) -> set[tuple[int, int]]:
        """(file descriptor, keeper): a number alone may have been used anew."""
        return {(run.pipe, run.keeper) for run in self._runs.values() if run.pipe >= 0}
