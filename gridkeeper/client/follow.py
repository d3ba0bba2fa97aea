"""Watching all regions at once: one task per region feeds the pure ``Merger``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from gridkeeper.client.changes import Alive, Change, Merger, Put
from gridkeeper.client.errors import ClientError
from gridkeeper.client.replicas import Replicas, WatchStalled
from gridkeeper.ids import RegionId
from gridkeeper.ports.clock import Clock
from gridkeeper.v1 import api_pb2

QUEUE = 1_024
"""Events waiting for a slow consumer; beyond it the streams are held back (and the servers coalesce)."""

BACKOFF_MS = (100, 200, 400, 800, 1_500)


@dataclass(frozen=True, slots=True)
class _Connecting:
    region: RegionId


@dataclass(frozen=True, slots=True)
class _Event:
    region: RegionId
    event: api_pb2.WatchEvent


@dataclass(frozen=True, slots=True)
class _Lost:
    region: RegionId
    sentence: str


@dataclass(frozen=True, slots=True)
class _Fatal:
    error: BaseException


_Told = _Connecting | _Event | _Lost | _Fatal


async def watch(
    regions: tuple[Replicas, ...], request: api_pb2.WatchRequest, clock: Clock
) -> AsyncGenerator[Change, None]:
    """Merged changes, for ever. Raises ``ClientError`` for what no replica would accept (selector, role)."""
    merger = Merger(tuple(replicas.region for replicas in regions))
    queue: asyncio.Queue[_Told] = asyncio.Queue(QUEUE)
    tasks = [asyncio.create_task(_feed(replicas, request, queue, clock)) for replicas in regions]
    try:
        while True:
            for change in _merge(merger, await queue.get()):
                yield change
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _merge(merger: Merger, told: _Told) -> list[Change]:
    match told:
        case _Connecting(region):
            merger.connecting(region)
            return []
        case _Lost(region, sentence):
            return merger.lost(region, sentence)
        case _Fatal(error):
            raise error
        case _Event(region, event):
            which = event.WhichOneof("event")
            if which == "put":
                changes = merger.put(region, event.put)
                return [replace(c, as_of_wall_ms=event.as_of_wall_ms) if isinstance(c, Put) else c for c in changes]
            if which == "deleted":
                return merger.deleted(region, event.deleted.kind, event.deleted.name)
            if which == "synced":
                return [*merger.synced(region), Alive(region, event.as_of_wall_ms)]
            if which == "partial":
                return merger.reports(region, event.partial)
            return [Alive(region, event.as_of_wall_ms)]


async def _feed(replicas: Replicas, request: api_pb2.WatchRequest, queue: asyncio.Queue[_Told], clock: Clock) -> None:
    failures = 0
    while True:
        await queue.put(_Connecting(replicas.region))
        try:
            async with aclosing(replicas.watch(request)) as events:
                async for event in events:
                    failures = 0
                    await queue.put(_Event(replicas.region, event))
        except WatchStalled as stalled:
            failures += 1
            # One replica of several that dies is no news: the next one is asked before the region counts as lost.
            if failures >= len(replicas.addresses):
                await queue.put(_Lost(replicas.region, replicas.unreachable(str(stalled))))
        except ClientError as error:
            await queue.put(_Fatal(error))
            return
        except Exception as error:  # a bug must reach the consumer, not die with the task
            await queue.put(_Fatal(error))
            raise
        await clock.sleep(BACKOFF_MS[min(failures, len(BACKOFF_MS)) - 1])
