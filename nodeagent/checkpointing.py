"""Finished checkpoint directories of running jobs, brought into the region's object store and announced."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore
from gridkeeper.v1.agent_pb2 import CheckpointAck, CheckpointReady
from nodeagent.orders import Key, epoch_message, epoch_of

log = logging.getLogger("gridkeeper.agent.checkpoints")

KEEP = 2
"""Finished directories left on the host: the newest may be in use by nobody, the one before is its spare."""
RETRY_MS = 1_000
GIVE_UP_MS = 60_000
"""After the job has ended its last checkpoint is tried this long; then the report says that it is lost."""

_STEP = re.compile(r"^step-(0|[1-9][0-9]{0,15})$")


class CheckpointDirs(Protocol):
    """Where jobs write and read checkpoints."""

    def steps(self, directory: Path) -> tuple[int, ...]:
        """Numbers of the finished ``step-<n>`` directories in it, ascending."""
        ...

    def has(self, directory: Path) -> bool: ...

    async def remove(self, directory: Path) -> None:
        """Idempotent."""
        ...


class FileCheckpointDirs:
    """``CheckpointDirs`` on the file system."""

    def steps(self, directory: Path) -> tuple[int, ...]:
        try:
            names = [entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()]
        except OSError:
            return ()
        return tuple(sorted(int(match.group(1)) for name in names if (match := _STEP.match(name))))

    def has(self, directory: Path) -> bool:
        return directory.is_dir()

    async def remove(self, directory: Path) -> None:
        await asyncio.to_thread(shutil.rmtree, directory, True)


@dataclass(slots=True)
class _Epoch:
    """``settled``: this step and lower ones need nothing more. ``ready``: stored, not acknowledged yet.
    ``unverified_since_ms``: when the control plane first could not verify what was stored; 0: it could. ``rank``,
    ``gang_step``: see ``member``; −1: a job on one node. ``ended``: no process of it is left."""

    rank: int = -1
    gang_step: int = -1
    ended: bool = False
    settled: int = -1
    stored: int = -1
    ready: CheckpointReady | None = None
    working: bool = False
    retry_ms: int = 0
    failing_since_ms: int = 0
    unverified_since_ms: int = 0
    trouble: str = ""


class Checkpoints:
    """``spawn`` runs background work for as long as the agent lives."""

    def __init__(
        self,
        store: CheckpointStore,
        dirs: CheckpointDirs,
        directory_of: Callable[[JobId, Epoch], Path],
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._dirs = dirs
        self._directory_of = directory_of
        self._clock = clock
        self._spawn = spawn
        self._changed = changed
        self._epochs: dict[Key, _Epoch] = {}

    def look(self, key: Key, ended: bool) -> None:
        """Find what is finished and see to it. ``ended``: no process of the epoch is left."""
        state = self._epochs.setdefault(key, _Epoch())
        state.ended = ended
        newest = self._next(key, state)
        self._give_way(key, state)
        if newest < 0 or state.working:
            return
        now = self._clock.mono_ms()
        failing = [since for since in (state.failing_since_ms, state.unverified_since_ms) if since]
        if ended and failing and now - min(failing) > GIVE_UP_MS:
            state.settled = newest
            state.trouble = f"step {newest} could not be stored: {state.trouble}"
            return
        if now >= state.retry_ms:
            state.working = True
            self._spawn(self._put(key, newest, state))

    def member(self, key: Key, rank: int, gang_step: int) -> None:
        """The epoch is of a gang, and this is what the control plane says of it: the step of which all members are to
        store their parts; −1: none is chosen."""
        state = self._epochs.setdefault(key, _Epoch())
        state.rank, state.gang_step = rank, gang_step

    def _next(self, key: Key, state: _Epoch) -> int:
        """The step that is to be stored now; −1: none. Of a job on one node the newest. Of a gang the one that is
        chosen; while none is, rank 0 chooses its newest, and so does a member that has ended: it makes no more."""
        steps = [step for step in self._dirs.steps(self._directory_of(*key)) if step > state.settled]
        if state.rank < 0:
            newest = steps[-1] if steps else -1
            return newest if newest > state.stored else -1
        if state.gang_step > state.settled:
            upto = [step for step in steps if step <= state.gang_step]
            step = upto[-1] if upto and (state.ended or upto[-1] == state.gang_step) else -1
        else:
            step = steps[-1] if steps and (state.rank == 0 or state.ended) and state.ready is None else -1
        return -1 if step == state.stored else step

    def _give_way(self, key: Key, state: _Epoch) -> None:
        """What an ended member has stored is no use if another one has only older steps, of which none is here."""
        if state.ready is None or not state.ended or not state.settled < state.gang_step < state.ready.step:
            return
        steps = self._dirs.steps(self._directory_of(*key))
        if not any(state.settled < step <= state.gang_step for step in steps):
            state.trouble = f"checkpoint {state.ready.step}: another member has none after step {state.gang_step}"
            state.ready = None
            self._changed()

    async def _put(self, key: Key, step: int, state: _Epoch) -> None:
        job, epoch = key
        directory = self._directory_of(job, epoch) / f"step-{step}"
        try:
            digest, manifest = await self._store.put(job, step, epoch, directory, part=state.rank >= 0)
        except (CheckpointError, OSError) as error:
            now = self._clock.mono_ms()
            state.failing_since_ms = state.failing_since_ms or now
            state.retry_ms = now + RETRY_MS
            state.trouble = str(error)
            log.warning("Checkpoint %d of %s epoch %s is not stored yet: %s", step, job, epoch, error)
            return
        finally:
            state.working = False
        state.failing_since_ms = 0
        if not state.unverified_since_ms:
            state.trouble = ""
        state.stored = step
        state.ready = CheckpointReady(
            job=job, epoch=epoch_message(epoch), step=step, digest=digest, size_bytes=manifest.size_bytes
        )
        log.info("Checkpoint %d of %s epoch %s is stored.", step, job, epoch)
        self._changed()
        await self._prune(key)

    async def _prune(self, key: Key) -> None:
        directory = self._directory_of(*key)
        state = self._epochs.get(key)
        upto = state.settled if state and state.rank >= 0 else 1 << 62  # of a gang, any later one may be chosen yet
        done = [step for step in self._dirs.steps(directory) if step <= upto]
        for step in done[:-KEEP]:
            await self._dirs.remove(directory / f"step-{step}")

    def acknowledge(self, ack: CheckpointAck) -> None:
        """Committed, or refused for good: either way there is nothing more to do for that step. Or not verified: then
        it is stored again from its directory."""
        state = self._epochs.get((JobId(ack.job), epoch_of(ack.epoch)))
        if state is None:
            return
        if ack.retry and not ack.committed:
            self._again(state, ack)
            return
        if state.unverified_since_ms:
            state.unverified_since_ms, state.trouble = 0, ""
        if not ack.committed:
            state.trouble = f"checkpoint {ack.step} was refused: {ack.refusal}"
            log.warning("Checkpoint %d of %s was refused: %s", ack.step, ack.job, ack.refusal)
        state.settled = max(state.settled, ack.step)
        if state.ready is not None and state.ready.step <= state.settled:
            state.ready = None
        self._changed()

    def _again(self, state: _Epoch, ack: CheckpointAck) -> None:
        if state.ready is None or state.ready.step != ack.step:
            return  # said of an announcement before the last
        now = self._clock.mono_ms()
        state.unverified_since_ms = state.unverified_since_ms or now
        state.ready, state.stored, state.retry_ms = None, state.settled, now + RETRY_MS
        state.trouble = f"checkpoint {ack.step} could not be verified: {ack.refusal}"
        log.warning("Checkpoint %d of %s is stored again: %s", ack.step, ack.job, ack.refusal)
        self._changed()

    def announcements(self) -> tuple[CheckpointReady, ...]:
        """Stored and not acknowledged: to be repeated."""
        return tuple(state.ready for state in self._epochs.values() if state.ready is not None)

    def busy(self, key: Key) -> bool:
        """A finished checkpoint is still to be stored or announced."""
        state = self._epochs.get(key)
        if state is None:
            return False
        return state.working or state.ready is not None or self._next(key, state) >= 0

    def stored(self) -> dict[Key, int]:
        return {key: state.stored for key, state in self._epochs.items() if state.stored >= 0}

    def trouble(self, key: Key) -> str:
        state = self._epochs.get(key)
        return state.trouble if state else ""

    def forget(self, key: Key) -> None:
        self._epochs.pop(key, None)
