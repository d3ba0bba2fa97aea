"""A process that is stopped (``SIGSTOP``) without ending: whatever it is about to do to the world waits.

A frozen asyncio program still computes, since all simulated hosts share one thread; but each of its ports leads
through its ``Gate``, so nothing of that gets out, and nothing new gets in, until it is thawed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import Executor, Launch, Process
from gridkeeper.ports.link import AgentSession, Transport
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame


class Gate:
    """Open at first. ``killed``: it never opens again; the kernel then closes what was open."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.killed = False

    @property
    def frozen(self) -> bool:
        return not self._open.is_set()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        if not self.killed:
            self._open.set()

    def kill(self) -> None:
        """``SIGKILL``: nothing that is under way gets out any more. Cancel the tasks behind it next."""
        self.killed = True
        self._open.clear()

    async def passing(self) -> None:
        """Wait while frozen."""
        while self.frozen:
            await self._open.wait()


class GatedClock:
    """``Clock``: sleeps do not end while frozen."""

    def __init__(self, clock: Clock, gate: Gate) -> None:
        self._clock = clock
        self._gate = gate

    def mono_ms(self) -> int:
        return self._clock.mono_ms()

    def wall_ms(self) -> int:
        return self._clock.wall_ms()

    async def sleep(self, ms: int) -> None:
        await self._clock.sleep(ms)
        await self._gate.passing()


class _GatedSession:
    def __init__(self, session: AgentSession, gate: Gate) -> None:
        self._session = session
        self._gate = gate

    async def send(self, frame: AgentFrame) -> None:
        await self._gate.passing()
        await self._session.send(frame)

    async def receive(self) -> ControlFrame:
        frame = await self._session.receive()
        await self._gate.passing()
        return frame

    async def close(self) -> None:
        if not self._gate.killed:
            await self._gate.passing()
        await self._session.close()


class GatedTransport:
    """``Transport``."""

    def __init__(self, transport: Transport, gate: Gate) -> None:
        self._transport = transport
        self._gate = gate

    async def connect(self, address: str) -> AgentSession:
        await self._gate.passing()
        session = await self._transport.connect(address)
        return _GatedSession(session, self._gate)


class GatedExecutor:
    """``Executor``: what is behind it (guardian and jobs) is not frozen."""

    def __init__(self, executor: Executor, gate: Gate) -> None:
        self._executor = executor
        self._gate = gate

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        self._executor.margins(term_before_ms, kill_before_ms)

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        await self._gate.passing()
        await self._executor.start(launch, deadline_ms)

    async def extend(self, deadlines: dict[tuple[JobId, Epoch], int]) -> None:
        await self._gate.passing()
        await self._executor.extend(deadlines)

    async def request_checkpoint(self, job: JobId, epoch: Epoch) -> None:
        await self._gate.passing()
        await self._executor.request_checkpoint(job, epoch)

    async def stop(self, job: JobId, epoch: Epoch, grace_ms: int) -> None:
        await self._gate.passing()
        await self._executor.stop(job, epoch, grace_ms)

    async def list(self) -> tuple[Process, ...]:
        await self._gate.passing()
        return await self._executor.list()

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        await self._gate.passing()
        await self._executor.forget(job, epoch)

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self._executor.checkpoint_dir(job, epoch)

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        await self._gate.passing()
        return await self._executor.log_tail(job, tail_bytes)
