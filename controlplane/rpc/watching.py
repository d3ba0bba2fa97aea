"""Watch: everything that exists, then every change, coalesced. A slow reader costs what it holds, not a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field

import grpc

from controlplane.rpc import partial
from controlplane.rpc.listing import checked_kind, checked_selector, scene_of
from controlplane.rpc.live import with_live
from controlplane.rpc.objects import SPECS, ObjectCache, Table
from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.sources import StoreName, Views
from controlplane.rpc.trail import AuditTrail
from gridkeeper.ports.clock import Clock
from gridkeeper.selector import Selector
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object, ObjectName, WatchEvent, WatchRequest

MAX_WATCHES = 512
ALIVE_MS = 1_000
PACE_MS = 100
"""At most ten looks a second; and at most a quarter of the time is spent on looking (``COST_SHARE``)."""

COST_SHARE = 4


@dataclass(slots=True)
class _Sent:
    """What one watcher has been told."""

    versions: dict[int, int] = field(default_factory=dict)  # kind -> version of the table
    names: dict[int, set[str]] = field(default_factory=dict)  # kind -> what the watcher holds
    audit: dict[StoreName, int] | None = None
    partial: str = ""


class Watches:
    """All watches of one replica; they share one ``ObjectCache``."""

    def __init__(self, views: Views, cache: ObjectCache, trail: AuditTrail, clock: Clock) -> None:
        self._views = views
        self._cache = cache
        self._trail = trail
        self._clock = clock
        self._running = 0

    async def watch(self, request: WatchRequest) -> AsyncGenerator[WatchEvent, None]:
        """The stream of one watcher, for ever. Raises ``Refusal`` before the first event."""
        if not request.kinds:
            raise invalid("kinds: none is named; name at least one")
        kinds = tuple(dict.fromkeys(checked_kind(kind, "kinds") for kind in request.kinds))
        selector = checked_selector(request.selector, kinds, scene_of(self._views))
        if self._running >= MAX_WATCHES:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this replica already serves {MAX_WATCHES} watches; close some or ask another replica",
            )
        self._running += 1
        try:
            async for event in self._follow(kinds, selector):
                event.as_of_wall_ms = self._views.info().wall_ms
                yield event
        finally:
            self._running -= 1

    async def _follow(self, kinds: tuple[int, ...], selector: Selector) -> AsyncGenerator[WatchEvent, None]:
        sent, synced = _Sent(), False
        version = await self._views.changed(-1)
        told_ms = self._clock.mono_ms()
        while True:
            started = self._clock.mono_ms()
            events = self._look(kinds, selector, sent)
            cost = self._clock.mono_ms() - started
            if api_pb2.KIND_AUDIT in kinds:
                events += await self._look_at_trail(selector, sent)
            events += self._completeness(kinds, sent)
            if not synced:
                events.append(WatchEvent(synced=True))
                synced = True
            if not events and self._clock.mono_ms() - told_ms >= ALIVE_MS - PACE_MS:
                events.append(self._sign_of_life(kinds, sent))
            for event in events:
                yield WatchEvent(put=with_live(event, self._views)) if isinstance(event, Object) else event
            if events:
                told_ms = self._clock.mono_ms()
            await self._clock.sleep(max(PACE_MS, COST_SHARE * cost))
            version = await self._next(version)

    async def _next(self, version: int) -> int:
        try:
            async with asyncio.timeout(ALIVE_MS / 1000):
                return await self._views.changed(version)
        except TimeoutError:
            return version

    def _look(self, kinds: tuple[int, ...], selector: Selector, sent: _Sent) -> list[Object | WatchEvent]:
        """What differs from what was sent."""
        scene = scene_of(self._views)
        events: list[Object | WatchEvent] = []
        for kind in kinds:
            if kind == api_pb2.KIND_AUDIT:
                continue
            table, told = self._cache.table(kind, scene), sent.versions.get(kind)
            if told != table.version:
                sent.versions[kind] = table.version
                events += self._difference(table, told, selector, sent.names.setdefault(kind, set()))
        return events

    def _difference(
        self, table: Table, told: int | None, selector: Selector, names: set[str]
    ) -> Iterator[Object | WatchEvent]:
        """What a watcher who holds ``names`` of the table of version ``told`` has to be told. Updates ``names``."""
        deltas = self._cache.since(table.kind, told) if told is not None else None
        if deltas is None:
            put: Iterable[str] = table.objects.keys()
            gone: Iterable[str] = names - table.objects.keys()
        else:
            changed = dict.fromkeys(name for delta in deltas for name in (*delta.put, *delta.gone))
            put = [name for name in changed if name in table.objects]
            gone = [name for name in changed if name not in table.objects]
        for name in put:
            item = table.objects[name]
            if selector.matches(item.labels):
                names.add(name)
                yield item
            elif name in names:
                names.discard(name)
                yield WatchEvent(deleted=ObjectName(kind=item.kind, name=name))
        for name in gone:
            if name in names:
                names.discard(name)
                yield WatchEvent(deleted=ObjectName(kind=SPECS[table.kind].kind, name=name))

    async def _look_at_trail(self, selector: Selector, sent: _Sent) -> list[Object]:
        if sent.audit is None:
            entries, sent.audit = await self._trail.tail()
        else:
            entries, sent.audit = await self._trail.since(sent.audit)
        return [item for item in entries if selector.matches(item.labels)]

    def _completeness(self, kinds: tuple[int, ...], sent: _Sent) -> list[WatchEvent]:
        now = "; ".join(partial.sentences(kinds, scene_of(self._views), self._views.info()))
        if now == sent.partial:
            return []
        sent.partial = now
        return [WatchEvent(partial=now)]

    def _sign_of_life(self, kinds: tuple[int, ...], sent: _Sent) -> WatchEvent:
        """``alive`` promises a current view; without one, say again what is missing."""
        if partial.current(kinds, self._views.info()):
            return WatchEvent(alive=True)
        return WatchEvent(partial=sent.partial)
