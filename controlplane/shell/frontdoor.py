"""What the API server reads and writes through: the replica's mirrors, fleet table and appliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

import gridkeeper
from controlplane.domain.fleet import NEVER_MS, FleetTable
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.sources import (
    DeviceTelemetry,
    HistoryItem,
    HistoryKind,
    HistoryPage,
    JobLogUnavailable,
    MetricSample,
    Newest,
    ReplicaInfo,
    Samples,
    StoreName,
)
from controlplane.shell.apply import Applier
from controlplane.shell.ingest import Ingest
from controlplane.shell.leader import wait_any
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.states import global_state, region_state
from gridkeeper import codec
from gridkeeper.decision import Decision, Now, Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, ReplicaId, Revision
from gridkeeper.keys import GLOBAL_KINDS, KEYS, RegionKeys
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.ports.store import PutOp, Store
from gridkeeper.records.books import AuditRecord
from gridkeeper.records.identity import RevocationRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.telemetry import METRICS

CHANGE_POLL_MS = 1_000


class FrontDoor:
    """``Views`` and ``Acts`` of ``controlplane.rpc.sources``."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        local: Mirror,
        world: Mirror,
        local_applier: Applier,
        world_applier: Applier,
        stores: dict[StoreName, Store],
        table: FleetTable,
        ingest: Ingest,
        policies: PolicyInForce,
        clock: Clock,
    ) -> None:
        self._region = region
        self._replica = replica
        self._local = local
        self._world = world
        self._local_applier = local_applier
        self._world_applier = world_applier
        self._stores = stores
        self._table = table
        self._ingest = ingest
        self._policies = policies
        self._clock = clock
        self._time = LedgerTime(clock)
        self._fresh = (False, False)
        self._flips = 0

    def region(self) -> RegionState:
        return region_state(self._region, self._local)

    def world(self) -> GlobalState:
        return global_state(self._world)

    def _version(self) -> int:
        fresh = (self._local.fresh, self._world.fresh)
        if fresh != self._fresh:
            self._fresh = fresh
            self._flips += 1
        return self._local.version + self._world.version + self._flips

    async def changed(self, after: int) -> int:
        while (version := self._version()) <= after:
            await wait_any((self._local, self._world), CHANGE_POLL_MS)
        return version

    def telemetry(self, device: DeviceId, recent: bool) -> DeviceTelemetry | None:
        row = self._table.row(device)
        if row is None:
            return None
        seen = self._table.seen(device)
        if seen is None:
            return None
        value = self._table.value
        ring = self._recent if recent else (lambda device, metric: ())
        metrics = tuple(MetricSample(m.name, m.unit, value(device, m.name), ring(device, m.name)) for m in METRICS)
        return DeviceTelemetry(metrics, max(0, self._clock.mono_ms() - seen))

    def _recent(self, device: DeviceId, metric: str) -> tuple[float, ...]:
        return tuple(float(v) if math.isfinite(v) else math.nan for v in self._table.recent(device, metric))

    def samples(self, after: int) -> Samples:
        found = self._table.newer(after or NEVER_MS)
        offset = self._clock.wall_ms() - self._clock.mono_ms()
        return Samples(found.devices, found.seen_ms + offset, found.values, found.newest_ms)

    def newest(self, metrics: Sequence[str], devices: Sequence[DeviceId]) -> Newest:
        rows = np.array([-1 if (row := self._table.row(device)) is None else row for device in devices], np.int64)
        seen = np.where(rows >= 0, self._table.seen_ms[rows], NEVER_MS)
        age_ms = np.where(seen == NEVER_MS, -1, np.maximum(0, self._clock.mono_ms() - seen))
        return Newest({metric: self._table.column(metric)[rows] for metric in metrics}, age_ms)

    def heard_age_ms(self, node: NodeId) -> int:
        return self._ingest.heard_age_ms(node)

    def info(self) -> ReplicaInfo:
        local, world = self._local.one("leader"), self._world.one("leader")
        return ReplicaInfo(
            replica=self._replica,
            region=self._region,
            version=gridkeeper.__version__,
            region_leader=local.record.replica if local else "",
            global_leader=world.record.replica if world else "",
            wall_ms=self._clock.wall_ms(),
            region_store_reachable=self._local.fresh,
            global_store_reachable=self._world.fresh,
            policy_version=self._policies.settings().policy.version,
            policy_problem=self._policies.problem,
        )

    def now(self) -> Now:
        return self._time.now()

    async def apply_region(self, decision: Decision, actor: str) -> int:
        revision = await self._local_applier.apply(decision, actor, None)
        await self._local_applier.caught_up(revision)
        return revision

    async def apply_global(self, decision: Decision, actor: str) -> int:
        revision = await self._world_applier.apply(decision, actor, None)
        await self._world_applier.caught_up(revision)
        return revision

    async def record(self, entries: Sequence[AuditRecord]) -> None:
        """Entries of the audit trail of which nothing else is written. Raises the store's errors."""
        keys = RegionKeys(self._region)
        puts = [PutOp(keys.audit(entry.id), codec.encode(entry)) for entry in entries]
        await self._stores["region"].txn([], puts)

    def revoked(self, target: str) -> str:
        """Why ``target`` may not come in; "": nothing is known against it. Raises ``Refusal`` while that cannot be
        known."""
        if not self._local.loaded:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "this replica has not read its region's store yet; try again")
        suspect = self._local.suspect
        if suspect and RegionKeys(self._region).revocation(target) in suspect:
            return "the record of it does not decode; revoke or reinstate it again"
        held: Versioned[RevocationRecord] | None = self._local.newest("revocations", target)
        return held.record.reason if held else ""

    async def job_log(self, job: JobId, tail_bytes: int) -> tuple[NodeId, bytes]:
        owner = self.world().ownership.get(job)
        if owner is None:
            raise JobLogUnavailable(f"job {job} has not run yet")
        node = owner.record.node
        try:
            chunk = await self._ingest.job_log(node, job, tail_bytes)
        except (LinkClosed, TimeoutError) as error:
            why = str(error) or f"{node} did not answer"
            raise JobLogUnavailable(f"the log of {job} is on {node}: {why}") from error
        if chunk.error:
            raise JobLogUnavailable(f"{node}: {chunk.error}")
        return node, chunk.text

    def settings(self) -> Settings:
        return self._policies.settings()

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
        root = RegionKeys(self._region).prefix(kind) if store == "region" else KEYS.prefix(kind)
        page = await self._stores[store].range(
            root + prefix,
            after=root + after if after else "",
            limit=limit,
            revision=Revision(revision),
            min_mod_revision=Revision(min_revision),
        )
        items, suspect = [], []
        for kv in page.items:
            name = kv.key.removeprefix(root)
            try:
                record: Any = codec.decode(GLOBAL_KINDS[kind], kv.value)
            except codec.CorruptRecord:
                suspect.append(name)
                continue
            items.append(HistoryItem(name, record, kv.mod_revision))
        return HistoryPage(tuple(items), page.revision, page.more, tuple(suspect))
