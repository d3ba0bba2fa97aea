"""Streams between simulated agents and replicas: in memory, delayed by a seeded latency, cut on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chaos.simulate.clock import SimRng
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed, LinkRefused
from gridkeeper.ports.peers import Answer, Ask, NoAnswer
from gridkeeper.ports.probe import Probed
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame

UP, DOWN, BOTH = "up", "down", "both"
Handler = Callable[["SimControlSession"], Awaitable[None]]
Witness = Callable[["SimControlSession", ControlFrame], None]
"""Told of every frame that a replica sends, when it sends it."""


class _Pipe:
    """One direction: in order, each message after its latency. Bytes, so that nobody shares an object."""

    def __init__(self, clock: Clock, rng: SimRng, cut: Callable[[], bool]) -> None:
        self._clock = clock
        self._rng = rng
        self._cut = cut
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._last_ms = 0
        self._deaf = False
        self.closed = ""

    def send(self, data: bytes) -> None:
        if self.closed:
            raise LinkClosed(self.closed)
        arrival = self._clock.mono_ms() + round(self._rng.uniform(0, 3))
        self._last_ms = max(self._last_ms, arrival)
        self._queue.put_nowait((self._last_ms, data))

    async def receive(self) -> bytes:
        item = await self._queue.get()
        if item is None:
            self._queue.put_nowait(None)
            await self._travel()
            raise LinkClosed(self.closed)
        arrival, data = item
        wait = arrival - self._clock.mono_ms()
        if wait > 0:
            await self._clock.sleep(wait)
        await self._travel()
        return data

    async def _travel(self) -> None:
        """A cut network does not say so: bytes, and the news that the other end closed, wait until it heals."""
        while self._cut():
            if self._deaf:
                raise LinkClosed(self.closed)
            await self._clock.sleep(50)

    def close(self, why: str, receiver: bool = False) -> None:
        """``receiver``: it is the receiving end that closes, which no cut hides from it."""
        self._deaf = self._deaf or receiver
        if not self.closed:
            self.closed = why
            self._queue.put_nowait(None)


class SimAgentSession:
    def __init__(self, up: _Pipe, down: _Pipe) -> None:
        self._up = up
        self._down = down
        self.refusal = ""

    async def send(self, frame: AgentFrame) -> None:
        self._up.send(frame.SerializeToString())

    async def receive(self) -> ControlFrame:
        try:
            return ControlFrame.FromString(await self._down.receive())
        except LinkClosed as error:
            if self.refusal:
                raise LinkRefused(self.refusal) from error
            raise

    async def close(self) -> None:
        self._up.close("the agent closed the stream")
        self._down.close("the agent closed the stream", receiver=True)


class SimControlSession:
    """``address``: of the replica. ``spool``: of the agent's hello."""

    def __init__(
        self,
        node: str,
        region: str,
        address: str,
        up: _Pipe,
        down: _Pipe,
        peer: SimAgentSession,
        witness: Witness | None = None,
    ) -> None:
        self.address = address
        self.spool = ""
        self._witness = witness
        self._node = node
        self._region = region
        self._up = up
        self._down = down
        self._peer = peer

    @property
    def node(self) -> str:
        return self._node

    @property
    def region(self) -> str:
        return self._region

    async def send(self, frame: ControlFrame) -> None:
        self._down.send(frame.SerializeToString())
        if self._witness:
            self._witness(self, frame)

    async def receive(self) -> AgentFrame:
        frame = AgentFrame.FromString(await self._up.receive())
        if frame.WhichOneof("frame") == "hello":
            self.spool = frame.hello.spool
        return frame

    async def refuse(self, reason: str) -> None:
        self._peer.refusal = reason


class SimNetwork:
    """Addresses -> handlers, and which pairs cannot reach each other."""

    def __init__(self, clock: Clock, rng: SimRng, witness: Witness | None = None) -> None:
        self._witness = witness
        self._clock = clock
        self._rng = rng
        self._handlers: dict[str, Handler] = {}
        self._serving: dict[str, set[asyncio.Task[None]]] = {}
        self._cuts: set[tuple[str, str, str]] = set()
        self._promising: dict[str, tuple[RegionId, Callable[[Ask], Awaitable[str]]]] = {}
        self._answering: dict[str, Callable[[], Awaitable[str | None]]] = {}

    def answer_regions(self, address: str, region: RegionId, answer: Callable[[Ask], Awaitable[str]]) -> None:
        """What the replica at an address says to replicas of other regions, for as long as it listens there."""
        self._promising[address] = region, answer

    async def ask(self, asker: str, address: str, ask: Ask, timeout_ms: int) -> Answer:
        """One question between replicas. A cut from the asker loses it, a cut to it the answer: what was promised is
        promised all the same."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._clock.sleep(round(self._rng.uniform(1, 5)))
                promiser = self._promising.get(address) if address in self._handlers else None
                while promiser is None or self.is_cut(asker, address, UP):
                    await self._clock.sleep(timeout_ms)
                answer = Answer(promiser[0], await promiser[1](ask))
                await self._clock.sleep(round(self._rng.uniform(1, 5)))
                while self.is_cut(asker, address, DOWN):
                    await self._clock.sleep(timeout_ms)
                return answer
        except TimeoutError:
            raise NoAnswer(f"{address}: no answer within {timeout_ms} ms") from None

    def regions(self, asker: str) -> SimRegions:
        return SimRegions(self, asker)

    def listen(self, address: str, handler: Handler) -> None:
        self._handlers[address] = handler
        self._serving.setdefault(address, set())

    def silence(self, address: str) -> None:
        """The process behind an address is gone: its streams break."""
        self._handlers.pop(address, None)
        for task in list(self._serving.get(address, ())):
            task.cancel()

    async def ended(self, address: str) -> None:
        """The streams that ``silence`` broke are over."""
        await asyncio.gather(*self._serving.get(address, ()), return_exceptions=True)

    def answer_probes(self, node: str, boot_id: Callable[[], Awaitable[str | None]]) -> None:
        """``boot_id``: of the agent on that host; None: the host is there, its agent is not. It may never come back."""
        self._answering[node] = boot_id

    def cut(self, node: str, address: str, direction: str = BOTH) -> None:
        """Between a node and a replica, or another node. ``direction``: ``UP`` is from the node."""
        for way in (UP, DOWN) if direction == BOTH else (direction,):
            self._cuts.add((node, address, way))

    def is_cut(self, node: str, address: str, way: str) -> bool:
        return (node, address, way) in self._cuts

    async def probe(self, prober: str, node: str, timeout_ms: int) -> Probed:
        """One attempt of a peer. What a cut or dead network swallows shows only as time."""
        took = round(self._rng.uniform(1, 5))
        answer = self._answering.get(node)

        async def silent() -> Probed:
            await self._clock.sleep(max(0, timeout_ms - took))
            return Probed(False, f"no answer within {timeout_ms} ms")

        await self._clock.sleep(min(took, timeout_ms))
        if answer is None or any((a, b) in {(prober, node), (node, prober)} for a, b, _ in self._cuts):
            return await silent()
        try:
            async with asyncio.timeout(max(0, timeout_ms - took) / 1000):
                boot_id = await answer()
        except TimeoutError:
            return Probed(False, f"no answer within {timeout_ms} ms")
        if boot_id is None:
            return Probed(False, "connection refused", refused=True)
        return Probed(True, "", 1000 * took, boot_id=boot_id)

    def prober(self, node: str) -> SimProber:
        return SimProber(self, node)

    def heal(self, node: str = "") -> None:
        """All cuts, or those of one node."""
        self._cuts = {cut for cut in self._cuts if node and node not in cut[:2]}

    def transport(self, node: str, region: str) -> SimTransport:
        return SimTransport(self, node, region)

    async def connect(self, node: str, region: str, address: str) -> SimAgentSession:
        await self._clock.sleep(round(self._rng.uniform(1, 5)))
        handler = self._handlers.get(address)
        if handler is None or self.is_cut(node, address, UP) or self.is_cut(node, address, DOWN):
            raise LinkClosed(f"{address} does not answer")
        rng = self._rng.child(f"{node}-{address}-{self._clock.mono_ms()}")

        up = _Pipe(self._clock, rng.child("up"), lambda: self.is_cut(node, address, UP))
        down = _Pipe(self._clock, rng.child("down"), lambda: self.is_cut(node, address, DOWN))
        agent = SimAgentSession(up, down)
        task = asyncio.get_running_loop().create_task(
            self._serve(handler, SimControlSession(node, region, address, up, down, agent, self._witness), up, down)
        )
        self._serving[address].add(task)
        task.add_done_callback(self._serving[address].discard)
        return agent

    async def _serve(self, handler: Handler, session: SimControlSession, up: _Pipe, down: _Pipe) -> None:
        try:
            await handler(session)
        finally:
            up.close("the replica closed the stream", receiver=True)
            down.close("the replica closed the stream")


class SimRegions:
    """``OtherRegions`` of one replica."""

    def __init__(self, network: SimNetwork, asker: str) -> None:
        self._network = network
        self._asker = asker

    async def ask(self, region: RegionId, address: str, ask: Ask, timeout_ms: int) -> Answer:
        return await self._network.ask(self._asker, address, ask, timeout_ms)


class SimProber:
    """``Prober`` of one node."""

    def __init__(self, network: SimNetwork, node: str) -> None:
        self._network = network
        self._node = node

    async def probe(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        return await self._network.probe(self._node, address, timeout_ms)


class SimTransport:
    """``Transport`` of one node."""

    def __init__(self, network: SimNetwork, node: str, region: str) -> None:
        self._network = network
        self._node = node
        self._region = region

    async def connect(self, address: str) -> SimAgentSession:
        return await self._network.connect(self._node, self._region, address)
