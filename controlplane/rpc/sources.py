"""What the API server needs from the rest of the control plane: two narrow ports, implemented by the shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from controlplane.shell.apply import Conflict
from gridkeeper.decision import Decision, Now
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, ReplicaId, Revision
from gridkeeper.records.books import AuditRecord, EntryRecord
from gridkeeper.records.settlement import AdjustmentRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings

__all__ = [
    "Acts",
    "Conflict",
    "DeviceTelemetry",
    "HistoryItem",
    "HistoryKind",
    "HistoryPage",
    "JobLogUnavailable",
    "MetricSample",
    "Newest",
    "ReplicaInfo",
    "Samples",
    "StoreName",
    "Views",
]

HistoryKind = Literal["audit", "entries", "adjustments"]
StoreName = Literal["region", "global"]


@dataclass(frozen=True, slots=True)
class MetricSample:
    """``value`` is NaN when not known. ``recent``: the short ring, oldest first, NaN where not known."""

    name: str
    unit: str
    value: float
    recent: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceTelemetry:
    """One row of the fleet table. ``age_ms``: since the sample was taken."""

    metrics: tuple[MetricSample, ...]
    age_ms: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of the fleet table. ``values``: one row per device, one column per metric of ``gridkeeper.telemetry``.
    ``at_ms``: when each was sampled, wall time. ``newest``: what to ask for next (``Views.samples``)."""

    devices: tuple[DeviceId, ...]
    at_ms: NDArray[np.int64]
    values: NDArray[np.float32]
    newest: int


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest samples of some devices, copied. ``values``: metric -> one value per device, NaN where not known.
    ``age_ms``: since each was taken; -1: this replica has none."""

    values: Mapping[str, NDArray[np.float32]]
    age_ms: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """This replica. Leaders are "" when there is none. ``*_reachable``: the mirror of that store is fresh."""

    replica: ReplicaId
    region: RegionId
    version: str
    region_leader: str
    global_leader: str
    wall_ms: int
    region_store_reachable: bool
    global_store_reachable: bool
    policy_version: int = 0
    policy_problem: str = ""  # why the newest policy is not in force here


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """``name``: the key after its kind, e.g. the audit id, or ``<scope>/<sequence, 20 digits>``."""

    name: str
    record: AuditRecord | EntryRecord | AdjustmentRecord
    revision: Revision


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """``suspect``: names whose value did not decode (they are named, never passed over). ``revision``: of the store
    when it was read. ``more``: names follow after the last one."""

    items: tuple[HistoryItem, ...]
    revision: Revision
    more: bool
    suspect: tuple[str, ...] = ()


class JobLogUnavailable(Exception):
    """The log cannot be read now: its node is silent, or the job has not run. The message says which."""


class Views(Protocol):
    """Reading: the mirrors of both stores and what this replica holds in memory. Everything but ``changed`` answers at
    once; what it hands out never changes afterwards."""

    def region(self) -> RegionState: ...

    def world(self) -> GlobalState: ...

    async def changed(self, after: int) -> int:
        """Wait until the mirrors' combined version is greater than ``after``; returns it. ``changed(-1)`` answers at
        once. Freshness lost or regained counts as a change."""
        ...

    def telemetry(self, device: DeviceId, recent: bool) -> DeviceTelemetry | None:
        """The newest sample, with its ring if ``recent``; None: this replica has none."""
        ...

    def samples(self, after: int) -> Samples:
        """Rows that this replica holds and that are newer than ``Samples.newest`` of the answer before; 0: all."""
        ...

    def newest(self, metrics: Sequence[str], devices: Sequence[DeviceId]) -> Newest:
        """The newest samples of all ``devices`` at once."""
        ...

    def heard_age_ms(self, node: NodeId) -> int:
        """Since the node's stream to *this* replica said anything; -1: it has none."""
        ...

    def info(self) -> ReplicaInfo: ...

    def now(self) -> Now: ...


class Acts(Protocol):
    """Writing, and what is not in memory. Raises the store's errors (``gridkeeper.ports.store``)."""

    async def apply_region(self, decision: Decision, actor: str) -> int:
        """One transaction in the region's store with its audit entry. Returns the revision. Raises ``Conflict``."""
        ...

    async def apply_global(self, decision: Decision, actor: str) -> int:
        """The same in the global store."""
        ...

    async def job_log(self, job: JobId, tail_bytes: int) -> tuple[NodeId, bytes]:
        """The end of the newest epoch's output, from the agent that runs or ran it. Raises ``JobLogUnavailable``."""
        ...

    def settings(self) -> Settings: ...

    async def history(
        self,
        kind: HistoryKind,
        store: StoreName,
        prefix: str,
        *,
        after: str = "",
        limit: int = 500,
        revision: int = 0,
        min_revision: int = 0,
    ) -> HistoryPage:
        """Names of ``kind`` that begin with ``prefix``, in key order, greater than ``after``; at most ``limit``. At
        store revision ``revision`` (0: newest); only those changed at or after ``min_revision``. Raises
        ``RevisionCompacted``."""
        ...
