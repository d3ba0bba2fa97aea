"""Follows a grid through its watch API: the objects as they are now, told as they change, waited for by condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from gridkeeper import codec
from gridkeeper.cli.narrate import KINDS, Narrator
from gridkeeper.client import Gone, GridClient, Put, Synced
from gridkeeper.records.faults import DrainRecord, IncidentRecord
from gridkeeper.records.jobs import TERMINAL_JOB, HeadRecord, JobRecord, MigrationRecord, OwnershipRecord, RunRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

T = TypeVar("T")


class NotSeen(TimeoutError):
    """What was waited for did not come in time."""


class World:
    """Everything the watch has told so far, as records."""

    def __init__(self) -> None:
        self.objects: dict[tuple[int, str], Object] = {}

    def _view(self, kind: int, name: str, view: str, field: str, record: type[T]) -> T | None:
        item = self.objects.get((kind, name))
        message: Any = getattr(item, view) if item is not None else None
        return codec.from_message(record, getattr(message, field)) if message and message.HasField(field) else None

    def job(self, name: str) -> JobRecord | None:
        return self._view(api_pb2.KIND_JOB, name, "job", "record", JobRecord)

    def owner(self, name: str) -> OwnershipRecord | None:
        return self._view(api_pb2.KIND_JOB, name, "job", "ownership", OwnershipRecord)

    def run(self, name: str) -> RunRecord | None:
        return self._view(api_pb2.KIND_JOB, name, "job", "run", RunRecord)

    def head(self, name: str) -> HeadRecord | None:
        return self._view(api_pb2.KIND_JOB, name, "job", "head", HeadRecord)

    def _all(self, kind: int) -> Iterator[Object]:
        return (item for (number, _), item in self.objects.items() if number == kind)

    def migrations(self, job: str) -> tuple[MigrationRecord, ...]:
        """Of one job, oldest first."""
        found = (codec.from_message(MigrationRecord, item.migration) for item in self._all(api_pb2.KIND_MIGRATION))
        return tuple(sorted((m for m in found if m.job == job), key=lambda m: m.requested_ms))

    def drains(self, device: str) -> tuple[DrainRecord, ...]:
        found = (codec.from_message(DrainRecord, item.drain) for item in self._all(api_pb2.KIND_DRAIN))
        return tuple(sorted((d for d in found if d.device == device), key=lambda d: d.planned_ms))

    def incidents(self, subject: str) -> tuple[IncidentRecord, ...]:
        found = (codec.from_message(IncidentRecord, item.incident) for item in self._all(api_pb2.KIND_INCIDENT))
        return tuple(sorted((i for i in found if i.subject == subject), key=lambda i: i.opened_ms))

    def devices_in_use(self) -> frozenset[str]:
        """Devices that jobs hold which have not ended."""
        used: set[str] = set()
        for item in self._all(api_pb2.KIND_JOB):
            job, owner = self.job(item.name), self.owner(item.name)
            if job is not None and owner is not None and job.state not in TERMINAL_JOB:
                used.update(owner.devices)
        return frozenset(used)


class Follower:
    """``say`` hears each sentence from the first moment that everything was known. Run ``follow`` as a task."""

    def __init__(self, client: GridClient, say: Callable[[str], None]) -> None:
        self.world = World()
        self._client = client
        self._say = say
        self._changed = asyncio.Condition()
        self._synced = False

    async def follow(self) -> None:
        """For ever. Raises ``ClientError`` for what no replica would accept."""
        narrator = Narrator()
        async with aclosing(self._client.watch(KINDS)) as changes:
            async for change in changes:
                match change:
                    case Put(item):
                        self.world.objects[int(item.kind), item.name] = item
                    case Gone(kind, name):
                        self.world.objects.pop((int(kind), name), None)
                    case Synced():
                        self._synced = True
                for sentence in narrator.tell(change):
                    if self._synced:
                        self._say(sentence)
                async with self._changed:
                    self._changed.notify_all()

    async def wait(self, what: str, found: Callable[[World], T | None], limit_s: float) -> T:
        """Until ``found`` returns something that is true. Raises ``NotSeen`` with ``what``."""
        try:
            async with asyncio.timeout(limit_s), self._changed:
                while not (value := found(self.world) if self._synced else None):
                    await self._changed.wait()
        except TimeoutError:
            raise NotSeen(f"after {limit_s:.0f} s still waiting for {what}") from None
        return value
