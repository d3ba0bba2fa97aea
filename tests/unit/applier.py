"""A region's store in memory for tests of the pure core: applies decisions as one transaction each, comparing revisions
as etcd would, and hands out the state as a mirror would."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from controlplane.domain.region import decide_region
from gridkeeper import codec, keys
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import DeviceId, NodeId, RegionId, ReplicaId, Revision, SpoolId
from gridkeeper.keys import RegionKeys, event_id
from gridkeeper.policy.model import Policy
from gridkeeper.records.books import EntryRecord
from gridkeeper.records.faults import ReplicaRecord
from gridkeeper.records.fleet import (
    DeviceRecord,
    EventKind,
    EventRecord,
    NodeRecord,
    SessionRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.timings import Timings

EAST = RegionId("east")
NOON = 1_795_000_000_000
"""Ledger time at which the tests begin."""

MAX_OPS = 100
_FIELDS = {"drain-requests": "drain_requests"}


class RegionStore:
    """``mono`` and ``ledger`` stand still unless ``wait`` moves them. ``steady``: since when the leader keeps time."""

    def __init__(self, settings: Settings | None = None, region: RegionId = EAST) -> None:
        self.settings = settings or Settings()
        self.region = region
        self.keys = RegionKeys(region)
        self.items: dict[str, Versioned[Any]] = {}
        self.suspect: set[str] = set()
        self.revision = 100
        self.mono = 1_000_000
        self.ledger = NOON
        self.steady = 0
        self.applied: list[Decision] = []
        self.entries: list[EntryRecord] = []
        self._sequence: dict[NodeId, int] = {}

    # -- as a store --

    def write(self, *pairs: tuple[str, Any]) -> None:
        """Somebody else's transaction: ingest, the API, another replica. ``None`` deletes."""
        self.revision += 1
        for key, record in pairs:
            self._set(key, record)

    def _set(self, key: str, record: Any) -> None:
        self.suspect.discard(key)
        if record is None:
            self.items.pop(key, None)
            return
        kind = keys.kind_of(key)
        assert kind is not None, f"{key} is no key of ours"
        assert codec.decode(kind, codec.encode(record)) == record, f"{key} does not survive the store"
        old = self.items.get(key)
        created = old.created if old else Revision(self.revision)
        self.items[key] = Versioned(record, Revision(self.revision), created, self.mono)

    def corrupt(self, key: str) -> None:
        """As the mirror sees bytes that do not decode."""
        self.revision += 1
        self.items.pop(key, None)
        self.suspect.add(key)

    def revision_of(self, key: str) -> Revision:
        held = self.items.get(key)
        return held.revision if held else ABSENT

    def apply(self, decision: Decision) -> bool:
        """One transaction, all or nothing. False: a compare failed."""
        assert len(decision.writes) <= MAX_OPS, f"{decision.step}: {len(decision.writes)} writes"
        assert len({w.key for w in decision.writes}) == len(decision.writes), "a key is written twice"
        assert decision.sentence, "a decision says why"
        for compare in (*decision.guards, *decision.writes):
            if compare.key in self.suspect or self.revision_of(compare.key) != compare.expected:
                return False
        self.revision += 1
        for write in decision.writes:
            if isinstance(write, Put) and isinstance(write.record, EntryRecord):
                self.entries.append(write.record)
            self._set(write.key, write.record if isinstance(write, Put) else None)
        self.applied.append(decision)
        return True

    def state(self) -> RegionState:
        kinds: dict[str, dict[str, Versioned[Any]]] = {}
        for key, value in self.items.items():
            kind, _, name = key[len(self.keys.root) :].partition("/")
            kinds.setdefault(_FIELDS.get(kind, kind), {})[name] = value
        detector = kinds.pop("detector", {}).get("")
        kinds.pop("entries", None)
        kinds.pop("audit", None)
        return RegionState(
            self.region, Revision(self.revision), detector=detector, suspect_keys=frozenset(self.suspect), **kinds
        )

    # -- time and the leader --

    @property
    def now(self) -> Now:
        return Now(self.mono, self.ledger, self.steady)

    def wait(self, ms: int) -> None:
        self.mono += ms
        self.ledger += ms

    def tick(self, world: GlobalState | None = None) -> int:
        """One tick of the leader; how many decisions were applied. With nobody else writing, none may conflict."""
        decisions = decide_region(self.state(), world or GlobalState(), self.settings, self.now)
        for decision in decisions:
            assert self.apply(decision), f"conflicts with another decision of its tick: {decision.sentence}"
        return len(decisions)

    def settle(self, world: GlobalState | None = None, most: int = 60) -> int:
        """Tick until nothing is left to decide; how many ticks that took."""
        for count in range(most):
            if not self.tick(world):
                return count
        left = decide_region(self.state(), world or GlobalState(), self.settings, self.now)
        raise AssertionError(f"still deciding after {most} ticks: {[d.sentence for d in left]}")

    def run(self, ms: int, world: GlobalState | None = None, step: int = 1_000) -> None:
        """Let time pass, the leader ticking."""
        for _ in range(0, ms, step):
            self.wait(step)
            self.settle(world)

    def copy(self) -> RegionStore:
        return copy.deepcopy(self)

    # -- a fleet --

    def fleet(self, nodes: int = 2, gpus: int = 8, racks: int = 1, vendor: str = "nvidia") -> list[DeviceId]:
        """``n1``, ``n2`` … with devices ``gpu0`` …, all heard by replica ``a``."""
        self.replica("a")
        return [
            device
            for number in range(nodes)
            for device in self.node(f"n{number + 1}", gpus, f"rack-{number % racks}", vendor)
        ]

    def replica(self, name: str, present: bool = True) -> None:
        record = ReplicaRecord(ReplicaId(name), self.region, "a:1", "a:2", "0", self.ledger)
        self.write((self.keys.replica(ReplicaId(name)), record if present else None))

    def node(self, name: str, gpus: int = 8, rack: str = "rack-0", vendor: str = "nvidia") -> list[DeviceId]:
        """A hello of the node: itself, its devices and a session, in one transaction."""
        node = NodeId(name)
        devices = [DeviceId(f"{name}/gpu{slot}") for slot in range(gpus)]
        pairs: list[tuple[str, Any]] = [(self.keys.device(d), self.device(d, rack, vendor)) for d in devices]
        record = NodeRecord(node, self.region, rack, (), "boot", "0", ("nvml",), tuple(devices), self.ledger)
        pairs.append((self.keys.node(node), record))
        self.write(*pairs)
        self.session(name, True)
        return devices

    def device(self, device: DeviceId, rack: str = "rack-0", vendor: str = "nvidia", uuid: str = "") -> DeviceRecord:
        node, _, slot = device.partition("/")
        return DeviceRecord(
            device, NodeId(node), slot, uuid or f"GPU-{node}-{slot}", vendor, "H100", "hopper", "0000:91:00.0", "1",
            81_559, "570", rack, self.region, True,
        )  # fmt: skip

    def session(
        self, node: str, is_open: bool, replica: str = "a", silent_ms: int = 0, wall_ms: int | None = None
    ) -> None:
        at_ms = self.ledger if wall_ms is None else wall_ms
        record = SessionRecord(NodeId(node), ReplicaId(replica), "s", is_open, at_ms, silent_ms)
        self.write((self.keys.session(NodeId(node)), record))

    def event(
        self,
        device: str,
        code: int = 0,
        kind: EventKind = EventKind.XID,
        message: str = "",
        age_ms: int = 400,
        count: int = 1,
        trace: str = "",
        **more: Any,
    ) -> EventRecord:
        """What an agent saw, not durable yet; ``device`` may be a node."""
        node = NodeId(device.partition("/")[0])
        sequence = self._sequence[node] = self._sequence.get(node, 0) + 1
        record = EventRecord(
            event_id(node, SpoolId("spool"), sequence), node, SpoolId("spool"), sequence,
            DeviceId(device if "/" in device else ""), kind, code, message or f"XID {code}", ("nvml",), count, 0, "",
            age_ms, self.ledger - age_ms, trace or f"00-{sequence:032x}-{1:016x}-01",
        )  # fmt: skip
        return replace(record, **more)

    def commit(self, *events: EventRecord) -> None:
        """Ingest: all in one transaction."""
        self.write(*((self.keys.event(e.id), e) for e in events))

    def xid(self, device: str, code: int, **more: Any) -> EventRecord:
        record = self.event(device, code, **more)
        self.commit(record)
        return record

    # -- looking --

    def records(self, kind: str) -> list[Any]:
        prefix = self.keys.prefix(kind)
        return [value.record for key, value in sorted(self.items.items()) if key.startswith(prefix)]

    def health(self, device: str) -> Any:
        return self.items[self.keys.health(DeviceId(device))].record

    def out(self) -> set[str]:
        """Devices with a drain that was admitted and whose device is not back in service."""
        back = {"healthy", "suspect"}
        held = {"admitted", "evacuating", "drained", "expired"}
        return {
            d.device
            for d in self.records("drains")
            if d.state.value in held
            and self.health(d.device).drain == d.id
            and self.health(d.device).state.value not in back
        }


def quick(**policy: Any) -> Settings:
    """Settings with short holds, so that tests need few ticks."""
    return Settings(Timings(), Policy(**{"probation_ms": 60_000, "repair_hold_ms": 10_000} | policy))


def sentences(decisions: Iterable[Decision]) -> list[str]:
    return [decision.sentence for decision in decisions]
