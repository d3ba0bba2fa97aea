"""Histories written by hand, for the tests of the checkers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chaos.simulate.history import (
    GLOBAL_STORE,
    Commit,
    Entry,
    Held,
    Write,
)
from chaos.simulate.invariants import check
from gridkeeper import codec
from gridkeeper.ids import (
    DeviceId,
    Epoch,
    JobId,
    MigrationId,
    NodeId,
    RegionId,
    ReplicaId,
)
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Desired
from gridkeeper.records.faults import (
    LeaderRecord,
)
from gridkeeper.records.jobs import (
    JobSpec,
    OwnershipRecord,
    Revoke,
)
from gridkeeper.snapshot import Settings
from gridkeeper.timings import SHORT

EAST = RegionId("east")
LOCAL = RegionKeys(EAST)
JOB = JobId("train")
N1, N2 = NodeId("east-1"), NodeId("east-2")
E1, E2 = Epoch(1, 1), Epoch(1, 2)
SETTINGS = Settings(timings=SHORT)
R, S = SHORT.takeover_ms, SHORT.stale_ms
SPEC = JobSpec(JOB, "default", ("train",), (), "", 1, "", (), True, True, 1_000, 3)
GPU0, GPU1 = DeviceId("east-1/gpu0"), DeviceId("east-1/gpu1")


class Book:
    """Writes a history by hand: stores number their revisions, and guard what they are told to."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.revisions = {GLOBAL_STORE: 1, "east": 1}
        self.mod: dict[str, int] = {}
        self.created: dict[str, int] = {}

    def commit(self, at_ms: int, store: str, records: dict[str, Any], guards: Sequence[Held] = ()) -> int:
        """``records``: key -> record, None: deleted. What is written is compared as the appliers do."""
        held = (*guards, *(Held(key, self.mod.get(key, 0), False) for key in records))
        self.revisions[store] += 1
        revision = self.revisions[store]
        writes = tuple(Write(k, None if r is None else codec.encode(r)) for k, r in records.items())
        self.entries.append(Commit(at_ms, store, revision, writes, held))
        for key, record in records.items():
            if record is None:
                self.mod.pop(key, None)
                self.created.pop(key, None)
            else:
                self.mod[key] = revision
                self.created.setdefault(key, revision)
        return revision

    def lead(self, at_ms: int = 0) -> None:
        """Someone leads both stores."""
        for store, key in ((GLOBAL_STORE, KEYS.leader), ("east", LOCAL.leader)):
            self.commit(at_ms, store, {key: LeaderRecord(ReplicaId("cp1"), "cp1", at_ms)})

    def led(self, at_ms: int, store: str, records: dict[str, Any], guards: Sequence[Held] = ()) -> int:
        """A leader's write."""
        key = KEYS.leader if store == GLOBAL_STORE else LOCAL.leader
        return self.commit(at_ms, store, records, (*guards, Held(key, self.created[key], True)))

    def add(self, *entries: Entry) -> None:
        self.entries.extend(entries)

    def wrong(self) -> list[str]:
        return [f"{violation.invariant}: {violation.sentence}" for violation in check(self.entries, SETTINGS)]


def begun() -> Book:
    book = Book()
    book.lead()
    return book


def only(book: Book, *parts: str) -> None:
    """Exactly one violation, whose sentence has the parts."""
    found = book.wrong()
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


OWNER = KEYS.ownership(JOB)


def owner(epoch: Epoch = E1, node: NodeId = N1, revoked: bool = False, **changes: Any) -> OwnershipRecord:
    revoke = Revoke(MigrationId("m"), "why", 0) if revoked else None
    record = OwnershipRecord(
        JOB, epoch, EAST, node, (GPU0,), Desired.RUN, 0, revoke, -1, "", MigrationId("m"), SPEC, ""
    )
    return replace(record, **changes)
