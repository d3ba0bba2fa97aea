"""Parts of the small grid in memory: both stores, a process's view of them, hosts and processes as they really are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gridkeeper.decision import ABSENT, Decision, Put, Versioned
from gridkeeper.ids import (
    DeviceId,
    Epoch,
    JobId,
    NodeId,
    RegionId,
    Revision,
)
from gridkeeper.keys import GLOBAL, KEYS, RegionKeys
from gridkeeper.records.jobs import (
    JobSpec,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.timings import Timings

TIGHT = Timings(stale_ms=1_000, fence_ms=5_000, takeover_ms=6_300, renewal_ms=300, unreachable_ms=500, settle_ms=1_000)
"""R at the least that the rule allows, so that a wait cut short shows, and hasty suspicion."""

SETTINGS = Settings(TIGHT)
GLOBAL_FIELDS = {
    "jobs": "jobs", "ownership": "ownership", "runs": "runs", "heads": "heads", "checkpoints": "checkpoints",
    "migrations": "migrations", "offers": "offers", "grants": "grants", "regions": "regions",
    "losses": "losses",
}  # fmt: skip
REGION_FIELDS = {
    "nodes": "nodes", "devices": "devices", "liveness": "liveness", "health": "health", "cordons": "cordons",
    "incidents": "incidents", "drains": "drains", "reservations": "reservations", "findings": "findings",
    "sessions": "sessions", "replicas": "replicas",
}  # fmt: skip


def spec_of(name: str, **changes: Any) -> JobSpec:
    """A two-device job that may run anywhere."""
    base = JobSpec(
        name=JobId(name), namespace="default", command=("train",), env=(), workdir="", devices=2, model="",
        regions=(), prefer_other_region=True, handles_sigusr1=True, grace_ms=1_000, max_restarts=2,
    )  # fmt: skip
    return replace(base, **changes)


class Memory:
    """Both stores in one map: keys never clash, and each decision touches one of them."""

    def __init__(self) -> None:
        self.revision = 0
        self.items: dict[str, tuple[Any, int, int]] = {}

    def record(self, key: str) -> Any:
        return self.items[key][0] if key in self.items else None

    def put(self, key: str, record: Any) -> None:
        """A write that compares nothing (facts of the outside world)."""
        self.revision += 1
        created = self.items[key][2] if key in self.items else self.revision
        self.items[key] = (record, self.revision, created)

    def holds(self, key: str, expected: int) -> bool:
        return (self.items[key][1] if key in self.items else ABSENT) == expected

    def apply(self, decision: Decision) -> bool:
        """Compare and swap; False: conflict."""
        roots = {w.key.startswith(GLOBAL) for w in (*decision.writes, *decision.guards)}
        assert len(roots) == 1, f"{decision.step} spans both stores"
        keys = [w.key for w in decision.writes]
        assert len(set(keys)) == len(keys), f"{decision.step} writes a key twice"
        if not all(self.holds(w.key, w.expected) for w in (*decision.writes, *decision.guards)):
            return False
        self.revision += 1
        for write in decision.writes:
            if isinstance(write, Put):
                created = self.items[write.key][2] if write.key in self.items else self.revision
                self.items[write.key] = (write.record, self.revision, created)
            else:
                del self.items[write.key]
        return True


class View:
    """One process's mirror: ``look`` catches up; between looks it is stale. ``offset``: its boot clock's origin."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self.memory = memory
        self.offset = offset
        self.seen: dict[str, tuple[int, int]] = {}
        self.copy: dict[str, tuple[Any, int, int]] = {}
        self.revision = 0

    def look(self, time_ms: int) -> None:
        self.copy, self.revision = dict(self.memory.items), self.memory.revision
        mono = time_ms + self.offset
        for key, (_, revision, _) in self.copy.items():
            if self.seen.get(key, (0, 0))[0] != revision:
                self.seen[key] = (revision, mono)

    def _kind(self, prefix: str) -> dict[Any, Versioned[Any]]:
        return {
            key.removeprefix(prefix): Versioned(record, Revision(mod), Revision(create), self.seen[key][1])
            for key, (record, mod, create) in self.copy.items()
            if key.startswith(prefix)
        }

    def world(self) -> GlobalState:
        kinds: dict[str, Any] = {field: self._kind(KEYS.prefix(kind)) for kind, field in GLOBAL_FIELDS.items()}
        return GlobalState(revision=Revision(self.revision), **kinds)

    def region(self, region: RegionId) -> RegionState:
        keys = RegionKeys(region)
        kinds: dict[str, Any] = {field: self._kind(keys.prefix(kind)) for kind, field in REGION_FIELDS.items()}
        return RegionState(region=region, revision=Revision(self.revision), **kinds)


@dataclass
class Proc:
    """One epoch of a job on a node, as it really is."""

    job: JobId
    epoch: Epoch
    devices: tuple[DeviceId, ...]
    deadline_ms: int
    resume_step: int
    started_ms: int
    alive: bool = True
    last_step: int = -1
    first_step: int = -1
    first_step_ms: int = 0
    last_step_ms: int = 0
    ended_ms: int = 0
    exit_code: int = 0
    exit_signal: int = 0
    by_us: bool = False
    reason: str = ""


@dataclass
class Host:
    """A node: its processes, and whether it is powered and connected. ``slow``: its clock's rate (F lasts longer).
    ``deaf``: it renews and reports, but commands do not arrive."""

    node: NodeId
    region: RegionId
    slow: float = 1.0
    up: bool = True
    connected: bool = True
    deaf: bool = False
    silent_since: int = -1
    procs: dict[tuple[JobId, Epoch], Proc] = field(default_factory=dict)
    highest: dict[JobId, Epoch] = field(default_factory=dict)
