"""Simulated jobs behind the ``Executor`` port: guardian, process and training loop in one, on virtual time.

A job's state after step n is a hash chain over its steps, so two runs that end in the same state did the same steps,
each once, whatever happened to them in between. ``history`` holds every step done by anyone, for the invariants.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from chaos.simulate.ensemble import Ensemble
from chaos.simulate.files import SimFiles
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorError, ExecutorWaiting, Launch, Process, Progress
from gridkeeper.timings import Timings

Key = tuple[JobId, Epoch]
STATE_FILE = "state"
WAIT_MS = 5
"""A rank that waits for the others looks again so soon."""
WITHDRAWN_MS = 5_000
"""Who does not ask for room again for so long has lost its place in the queue."""
NO_PROGRESS = Progress(-1, -1, 0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class SimJob:
    """How a job behaves. ``steps`` 0: for ever. ``crash_at``: dies by SIGSEGV instead of doing this step; -1: never."""

    step_ms: int = 100
    checkpoint_every: int = 5
    steps: int = 0
    start_ms: int = 20
    checkpoint_ms: int = 10
    ignores_sigterm: bool = False
    crash_at: int = -1
    stall_at: int = -1  # after this step it makes none for ``stall_ms``; -1: never
    stall_ms: int = 0
    queue_ms: int = 0  # a batch system gives it room only so long after it was first asked for
    linger_ms: int = 0  # a child in uninterruptible sleep outlives the leading process by this long


@dataclass(frozen=True, slots=True)
class Step:
    """One step that some epoch did somewhere."""

    at_ms: int
    node: str
    job: JobId
    epoch: Epoch
    step: int


class Witness(Protocol):
    """Sees the lives of jobs' processes."""

    def started(self, node: str, launch: Launch) -> None: ...

    def stepped(self, node: str, launch: Launch, step: int) -> None: ...

    def gone(self, node: str, launch: Launch, exit_code: int, exit_signal: int) -> None:
        """No process of it is left."""
        ...


def state_file(launch: Launch) -> str:
    """Each rank of a gang writes, and resumes from, a file of its own."""
    return f"{STATE_FILE}-{launch.rank}" if launch.rank else STATE_FILE


def state_after(job: JobId, step: int) -> bytes:
    """The state of a job that did steps 0 to ``step``, each once, in order."""
    state = b""
    for number in range(step + 1):
        state = next_state(job, state, number)
    return state


def next_state(job: JobId, state: bytes, step: int) -> bytes:
    return hashlib.blake2b(state + f"{job}/{step}".encode(), digest_size=16).digest()


def loss_of(state: bytes) -> float:
    """A loss that is a function of the state alone."""
    return int.from_bytes(state[:4], "big") / 2**32


@dataclass(slots=True)
class _Run:
    launch: Launch
    job: SimJob
    deadline_ms: int
    started_ms: int
    state: bytes
    step: int  # last one done
    pid: int
    alive: bool = True
    exit_code: int = -1
    exit_signal: int = 0
    tree_gone: bool = False
    fenced: bool = False
    stop_asked: bool = False
    terminated: bool = False  # SIGTERM was sent
    kill_ms: int | None = None
    wants_checkpoint: bool = False
    ended_ms: int = 0
    progress: Progress = NO_PROGRESS
    poke: asyncio.Event = field(default_factory=asyncio.Event)


class SimExecutor:
    """Lives as long as its simulated host, longer than the agents on it. ``script``: the job for a launch.
    ``witness``: told of what processes do."""

    def __init__(
        self,
        node: str,
        clock: Clock,
        files: SimFiles,
        script: Callable[[Launch], SimJob] = lambda launch: SimJob(),
        root: Path = Path("/sim"),
        history: list[Step] | None = None,
        witness: Witness | None = None,
        ensemble: Ensemble | None = None,
    ) -> None:
        self._node = node
        self._clock = clock
        self._files = files
        self._script = script
        self._root = root / node
        self._runs: dict[Key, _Run] = {}
        self._highest: dict[JobId, Epoch] = {}
        self._queue: dict[Key, tuple[int, int]] = {}  # waits for room: since when, when last asked
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_pid = 1_000
        self._witness = witness
        self._ensemble = ensemble or Ensemble()
        self.history: list[Step] = [] if history is None else history
        self.margins(Timings().term_before_ms, Timings().kill_before_ms)

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        self._term_before_ms = term_before_ms
        self._kill_before_ms = kill_before_ms

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self._root / "jobs" / job / str(epoch) / "checkpoints"

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        key = (launch.job, launch.epoch)
        if key in self._runs:
            return
        what = f"job {launch.job} epoch {launch.epoch}"
        highest = self._highest.get(launch.job)
        if highest is not None and launch.epoch <= highest:
            raise ExecutorError(f"{what} is not higher than {highest}, which was started before; use a higher epoch")
        if any(job == launch.job and not run.tree_gone for (job, _), run in self._runs.items()):
            raise ExecutorError(f"{what}: an earlier epoch still has processes; stop it first")
        now = self._clock.mono_ms()
        if deadline_ms - self._term_before_ms <= now:
            raise ExecutorError(f"{what}: its deadline has come already; renew first")
        self._wait_for_room(launch, now)
        state, step = b"", -1
        if launch.resume_from:
            found = self._files.get(Path(launch.resume_from), state_file(launch))
            if found is None:
                raise ExecutorError(f"{what}: {launch.resume_from} is no checkpoint")
            state, step = found, launch.resume_step
        self._highest[launch.job] = launch.epoch
        self._next_pid += 1
        run = _Run(launch, self._script(launch), deadline_ms, now, state, step, self._next_pid)
        self._runs[key] = run
        if self._witness:
            self._witness.started(self._node, launch)
        task = asyncio.get_running_loop().create_task(self._live(run), name=f"{self._node}/{what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wait_for_room(self, launch: Launch, now: int) -> None:
        queue_ms = self._script(launch).queue_ms
        since, asked = self._queue.get((launch.job, launch.epoch), (now, now))
        since = since if now - asked <= WITHDRAWN_MS else now  # who does not ask again has lost its place
        self._queue[launch.job, launch.epoch] = (since, now)
        if now - since < queue_ms:
            raise ExecutorWaiting(f"there is no room on {self._node} yet")
        del self._queue[launch.job, launch.epoch]

    async def extend(self, deadlines: dict[Key, int]) -> None:
        for key, deadline_ms in deadlines.items():
            run = self._known(*key)
            if not run.fenced:
                run.deadline_ms = max(run.deadline_ms, deadline_ms)
                run.poke.set()

    def _known(self, job: JobId, epoch: Epoch) -> _Run:
        run = self._runs.get((job, epoch))
        if run is None:
            raise ExecutorError(f"job {job} epoch {epoch} is not known on {self._node}; list tells what is")
        return run

    async def request_checkpoint(self, job: JobId, epoch: Epoch) -> None:
        run = self._known(job, epoch)
        if not run.alive:
            raise ExecutorError(f"job {job} epoch {epoch} has ended; nothing to checkpoint")
        run.wants_checkpoint = True
        run.poke.set()

    async def stop(self, job: JobId, epoch: Epoch, grace_ms: int) -> None:
        run = self._known(job, epoch)
        kill_ms = self._clock.mono_ms() + max(0, grace_ms)
        run.kill_ms = kill_ms if run.kill_ms is None else min(kill_ms, run.kill_ms)
        run.stop_asked = run.terminated = True
        run.poke.set()

    async def list(self) -> tuple[Process, ...]:
        return tuple(self._process(run) for run in self._runs.values())

    def _process(self, run: _Run) -> Process:
        return Process(
            job=run.launch.job,
            epoch=run.launch.epoch,
            alive=run.alive,
            exit_code=run.exit_code,
            exit_signal=run.exit_signal,
            tree_gone=run.tree_gone,
            fenced=run.fenced,
            stop_asked=run.stop_asked,
            started_ms=run.started_ms,
            ended_ms=run.ended_ms,
            progress=run.progress,
            pids=() if run.tree_gone else (run.pid,),
        )

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        run = self._runs.get((job, epoch))
        if run is None:
            return
        if not run.tree_gone:
            raise ExecutorError(f"job {job} epoch {epoch} still has processes; stop it first")
        del self._runs[job, epoch]
        await self._files.remove(self.checkpoint_dir(job, epoch))

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        runs = sorted(run.launch.epoch for run in self._runs.values() if run.launch.job == job)
        if not runs:
            raise ExecutorError(f"job {job} has no output on {self._node}")
        run = self._runs[job, runs[-1]]
        return f"step {run.step}\n".encode()[-tail_bytes:] if tail_bytes > 0 else b""

    # Faults on order

    def crash(self, job: JobId, number: int = signal.SIGKILL) -> None:
        """The job's processes die of a signal, at once."""
        for run in self._runs.values():
            if run.launch.job == job and run.alive:
                self._end(run, -1, number)

    def lose_power(self) -> None:
        """Everything on the host is gone; what was started stays known, as after a reboot."""
        for run in self._runs.values():
            if run.alive:
                self._end(run, -1, signal.SIGKILL)
            self._gone(run)
        for task in sorted(self._tasks, key=lambda t: t.get_name()):
            task.cancel()

    # The life of a job

    def _end(self, run: _Run, code: int, number: int) -> None:
        run.alive, run.exit_code, run.exit_signal = False, code, number
        run.ended_ms = self._clock.mono_ms()
        if not run.job.linger_ms:
            self._gone(run)
        run.poke.set()

    def _gone(self, run: _Run) -> None:
        if not run.tree_gone:
            run.tree_gone = True
            if self._witness:
                self._witness.gone(self._node, run.launch, run.exit_code, run.exit_signal)

    async def _live(self, run: _Run) -> None:
        """Steps, signals and deadlines in the order of time."""
        next_step = self._clock.mono_ms() + run.job.start_ms
        while run.alive:
            now = self._clock.mono_ms()
            if now >= run.deadline_ms - self._kill_before_ms or (run.kill_ms is not None and now >= run.kill_ms):
                run.fenced = run.fenced or run.kill_ms is None
                self._end(run, -1, signal.SIGKILL)
                break
            if not run.fenced and now >= run.deadline_ms - self._term_before_ms:
                run.fenced = run.terminated = True
            if run.terminated and not run.job.ignores_sigterm:
                self._ensemble.stop(run.launch, run.step)
            if self._ensemble.over(run.launch, run.step) and not run.job.ignores_sigterm:
                await self._finish(run)
                break
            if now >= next_step and not self._ensemble.together(run.launch, run.step + 1):
                next_step = now + WAIT_MS
                continue
            if now >= next_step:
                if run.job.steps and run.step + 1 >= run.job.steps:
                    self._end(run, 0, 0)  # resumed from its last checkpoint: nothing is left to do
                    break
                self._step(run)
                next_step = now + run.job.step_ms + (run.job.stall_ms if run.step == run.job.stall_at else 0)
                continue
            await self._until(run, min(next_step, *self._dues(run)))
        if not run.tree_gone:
            await self._clock.sleep(run.job.linger_ms)
            self._gone(run)

    def _dues(self, run: _Run) -> tuple[int, ...]:
        term = run.deadline_ms - (self._kill_before_ms if run.fenced else self._term_before_ms)
        return (term,) if run.kill_ms is None else (term, run.kill_ms)

    async def _until(self, run: _Run, at_ms: int) -> None:
        run.poke.clear()
        try:
            async with asyncio.timeout(max(1, at_ms - self._clock.mono_ms()) / 1000):
                await run.poke.wait()
        except TimeoutError:
            return

    def _step(self, run: _Run) -> None:
        number = run.step + 1
        if number == run.job.crash_at:
            self._end(run, -1, signal.SIGSEGV)
            return
        job, now = run.launch.job, self._clock.mono_ms()
        run.state = next_state(job, run.state, number)
        run.step = number
        self.history.append(Step(now, self._node, job, run.launch.epoch, number))
        if self._witness:
            self._witness.stepped(self._node, run.launch, number)
        loss = loss_of(run.state)
        if run.progress.first_step < 0:
            run.progress = Progress(number, number, now, now, loss)
        else:
            run.progress = replace(run.progress, last_step=number, last_step_at_ms=now, last_loss=loss)
        if (number + 1) % run.job.checkpoint_every == 0 or run.wants_checkpoint:
            self._checkpoint(run)
        if run.job.steps and number + 1 >= run.job.steps:
            self._checkpoint(run)
            self._end(run, 0, 0)

    def _checkpoint(self, run: _Run) -> None:
        run.wants_checkpoint = False
        directory = self.checkpoint_dir(run.launch.job, run.launch.epoch) / f"step-{run.step}"
        self._files.put(directory, state_file(run.launch), run.state)

    async def _finish(self, run: _Run) -> None:
        """SIGTERM: checkpoint, then exit 0; unless the kill comes first."""
        done = self._clock.mono_ms() + run.job.checkpoint_ms
        kill = min(run.deadline_ms - self._kill_before_ms, *(() if run.kill_ms is None else (run.kill_ms,)), 1 << 62)
        await self._clock.sleep(max(0, min(done, kill) - self._clock.mono_ms()))
        if not run.alive:
            return
        if kill < done:
            self._end(run, -1, signal.SIGKILL)
            return
        if run.step >= 0:
            self._checkpoint(run)
        self._end(run, 0, 0)
