"""A ``Feed`` whose content is told by its owner: for tests, for the README's picture, for a look at the screens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from gridkeeper import selector as selectors
from gridkeeper.client import Alive, Change, Gone, Listing, NotFound, Put, Synced, Unreachable
from gridkeeper.client.answers import Act, Explained, ReplicaStatus
from gridkeeper.ids import RegionId
from gridkeeper.kinds import reference
from gridkeeper.v1.api_pb2 import InfoResponse, Kind, Link, Object


class CannedFeed:
    """``push`` changes at any time; ``cut`` ends all streams and refuses calls until ``mend``. ``acts`` records
    what was asked for."""

    def __init__(
        self, objects: Iterable[Object], wall_ms: int, chain: Sequence[Link] = (), regions: Sequence[str] = ()
    ) -> None:
        self.objects = {(int(o.kind), o.name): o for o in objects}
        self.regions = tuple(regions) or tuple(sorted({o.region for o in self.objects.values() if o.region}))
        self.wall_ms = wall_ms
        self.chain = tuple(chain)
        self.acts: list[tuple[str, str, str]] = []
        self.opened = 0
        self.hold: asyncio.Event | None = None  # when set, calls wait for it: a control plane that hangs
        self._down = ""
        self._streams: set[asyncio.Queue[Change | None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[CannedFeed]:
        """As ``OpenFeed``."""
        self.opened += 1
        yield self

    def push(self, *changes: Change) -> None:
        """Tell every stream."""
        for change in changes:
            match change:
                case Put(item):
                    self.objects[(int(item.kind), item.name)] = item
                case Gone(kind, name):
                    self.objects.pop((int(kind), name), None)
                case _:
                    pass
            for stream in self._streams:
                stream.put_nowait(change)

    def alive(self, *regions: str) -> None:
        """These regions (all by default) say that their view is current."""
        self.push(*(Alive(RegionId(r), self.wall_ms) for r in regions or self.regions))

    def cut(self, sentence: str) -> None:
        """The grid does not answer any more."""
        self._down = sentence
        for stream in self._streams:
            stream.put_nowait(None)

    def mend(self) -> None:
        self._down = ""

    async def _reachable(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self._down:
            raise Unreachable(self._down)

    async def watch(self, kinds: Sequence[Kind.ValueType], selector: str = "") -> AsyncGenerator[Change, None]:
        await self._reachable()
        stream: asyncio.Queue[Change | None] = asyncio.Queue()
        self._streams.add(stream)
        try:
            for (kind, _), item in list(self.objects.items()):
                if kind in kinds:
                    yield Put(item)
            for region in self.regions:
                yield Alive(RegionId(region), self.wall_ms)
            yield Synced()
            while (change := await stream.get()) is not None:
                yield change
            raise Unreachable(self._down)
        finally:
            self._streams.discard(stream)

    async def list(self, kind: Kind.ValueType, selector: str = "") -> Listing:
        await self._reachable()
        chosen = selectors.parse(selector)
        found = tuple(o for (k, _), o in self.objects.items() if k == kind and chosen.matches(o.labels))
        return Listing(kind, found, (), self.wall_ms)

    async def get(self, kind: Kind.ValueType, name: str) -> Object:
        await self._reachable()
        try:
            return self.objects[(int(kind), name)]
        except KeyError:
            raise NotFound(f"{reference(kind, name)} does not exist") from None

    async def explain(self, kind: Kind.ValueType, name: str) -> Explained:
        await self._reachable()
        return Explained(self.chain, ())

    async def info(self) -> tuple[ReplicaStatus, ...]:
        await self._reachable()
        return tuple(
            ReplicaStatus(
                RegionId(region),
                f"cp-{region}-1:7443",
                InfoResponse(
                    replica=f"cp-{region}-1",
                    region=region,
                    version="0.1.0",
                    region_leader=True,
                    identity="mara",
                    role="operator",
                    region_store_reachable=True,
                    global_store_reachable=True,
                ),
                "",
            )
            for region in self.regions
        )

    async def job_logs(self, job: str, tail_bytes: int = 16_384) -> tuple[str, bytes]:
        await self._reachable()
        return "k1-n3", b"step 48390 loss 2.3107\nstep 48391 loss 2.3101\n"

    async def _act(self, verb: str, target: str, reason: str) -> Act:
        await self._reachable()
        self.acts.append((verb, target, reason))
        return Act(f"{verb} of {target} is under way", (), 1, RegionId(""))

    async def cordon(self, target: str, reason: str, ttl_ms: int = 0) -> Act:
        return await self._act("cordon", target, reason)

    async def uncordon(self, target: str, reason: str = "") -> Act:
        return await self._act("uncordon", target, reason)

    async def drain(self, target: str, reason: str) -> Act:
        return await self._act("drain", target, reason)

    async def cancel_drain(self, drain: str, reason: str) -> Act:
        return await self._act("cancel drain", drain, reason)

    async def ack_incident(self, incident: str, reason: str = "") -> Act:
        return await self._act("acknowledge", incident, reason)

    async def stop_job(self, job: str, reason: str = "") -> Act:
        return await self._act("stop", job, reason)

    async def migrate_job(self, job: str, to_region: str = "", reason: str = "") -> Act:
        return await self._act("migrate", job, reason)
