"""A process that is stopped (``SIGSTOP``) without ending: whatever it is about to do to the world waits.

A frozen asyncio program still computes, since all simulated hosts share one thread; but each of its ports leads
through its ``Gate``, so nothing of that gets out, and nothing new gets in, until it is thawed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gridkeeper.ids import Epoch, JobId, RegionId, Revision
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import Executor, Launch, Process
from gridkeeper.ports.link import AgentSession, ControlSession, Transport
from gridkeeper.ports.peers import Answer, Ask, OtherRegions
from gridkeeper.ports.store import ANY, Compare, KeyValue, Op, Page, Store, TxnResult, Watch, WatchBatch
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame

T = TypeVar("T")


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


class _GatedWatch:
    def __init__(self, watch: Watch, gate: Gate) -> None:
        self._watch = watch
        self._gate = gate
        self._held: WatchBatch | None = None  # while frozen: whoever stops waiting may ask again

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        if self._held is None:
            self._held = await anext(self._watch)
        await self._gate.passing()
        batch, self._held = self._held, None
        return batch

    async def aclose(self) -> None:
        await self._watch.aclose()


class GatedStore:
    """``Store``: what was asked for before the process was stopped arrives, its answer is read when it goes on."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    async def _through(self, call: Callable[[], Awaitable[T]]) -> T:
        await self._gate.passing()
        result = await call()
        await self._gate.passing()
        return result

    async def get(self, key: str) -> tuple[KeyValue | None, Revision]:
        return await self._through(lambda: self._store.get(key))

    async def range(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int = 0,
        revision: Revision = ANY,
        min_mod_revision: Revision = ANY,
    ) -> Page:
        return await self._through(
            lambda: self._store.range(
                prefix, after=after, limit=limit, revision=revision, min_mod_revision=min_mod_revision
            )
        )

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        return await self._through(lambda: self._store.txn(compares, success, failure))

    async def lease_grant(self, ttl_s: int) -> int:
        return await self._through(lambda: self._store.lease_grant(ttl_s))

    async def lease_keepalive(self, lease: int) -> int:
        return await self._through(lambda: self._store.lease_keepalive(lease))

    async def lease_revoke(self, lease: int) -> None:
        await self._through(lambda: self._store.lease_revoke(lease))

    def watch(self, prefix: str, start: Revision) -> Watch:
        return _GatedWatch(self._store.watch(prefix, start), self._gate)

    async def close(self) -> None:
        await self._store.close()


class GatedControlSession:
    """``ControlSession``: of a replica with an agent."""

    def __init__(self, session: ControlSession, gate: Gate) -> None:
        self._session = session
        self._gate = gate

    @property
    def node(self) -> str:
        return self._session.node

    @property
    def region(self) -> str:
        return self._session.region

    async def send(self, frame: ControlFrame) -> None:
        await self._gate.passing()
        await self._session.send(frame)

    async def receive(self) -> AgentFrame:
        frame = await self._session.receive()
        await self._gate.passing()
        return frame

    async def refuse(self, reason: str) -> None:
        await self._gate.passing()
        await self._session.refuse(reason)


class GatedRegions:
    """``OtherRegions``."""

    def __init__(self, others: OtherRegions, gate: Gate) -> None:
        self._others = others
        self._gate = gate

    async def ask(self, region: RegionId, address: str, ask: Ask, timeout_ms: int) -> Answer:
        await self._gate.passing()
        answer = await self._others.ask(region, address, ask, timeout_ms)
        await self._gate.passing()
        return answer
