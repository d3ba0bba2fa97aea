"""The keys of both stores: one place that knows the layout.

Region store keys live under ``/gridkeeper/v1/region/<region>/``, global ones under ``/gridkeeper/v1/global/``, so that
both may be one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from gridkeeper.ids import DeviceId, EventId, JobId, MigrationId, NodeId, RegionId, ReplicaId, SpoolId
from gridkeeper.records import (
    books,
    care,
    documents,
    faults,
    fleet,
    identity,
    jobs,
    limits,
    objectives,
    policy,
    regions,
    settlement,
)

ROOT = "/gridkeeper/v1"
GLOBAL = f"{ROOT}/global/"


@lru_cache(maxsize=64)
def region_root(region: RegionId) -> str:
    """Prefix of everything in a region's store."""
    return f"{ROOT}/region/{region}/"


REGION_KINDS: dict[str, type] = {
    "nodes": fleet.NodeRecord,
    "devices": fleet.DeviceRecord,
    "cursors": fleet.CursorRecord,
    "sessions": fleet.SessionRecord,
    "liveness": fleet.LivenessRecord,
    "health": fleet.HealthRecord,
    "cordons": fleet.CordonRecord,
    "events": fleet.EventRecord,
    "findings": faults.FindingRecord,
    "incidents": faults.IncidentRecord,
    "drains": faults.DrainRecord,
    "drain-requests": faults.DrainRequestRecord,
    "budgets": faults.BudgetRecord,
    "detector": faults.DetectorRecord,
    "replicas": faults.ReplicaRecord,
    "leader": faults.LeaderRecord,
    "reservations": jobs.ReservationRecord,
    "accounts": books.AccountRecord,
    "breakers": limits.BreakerRecord,
    "shares": limits.ShareRecord,
    "repeats": limits.RepeatRecord,
    "repairs": care.RepairRecord,
    "maintenance": care.MaintenanceRecord,
    "probes": care.ProbeRecord,
    "witnesses": care.WitnessRecord,
    "fences": regions.FenceRecord,
    "promises": regions.PromiseRecord,
    "policy": policy.PolicyRecord,
    "closings": settlement.ClosingRecord,
    "adjustments": settlement.AdjustmentRecord,
    "ledger-heads": settlement.LedgerHeadRecord,
    "slo-hours": objectives.SloHourRecord,
    "slo-alerts": objectives.SloAlertRecord,
    "entries": books.EntryRecord,
    "audit": books.AuditRecord,
    "meta": books.MetaRecord,
    "revocations": identity.RevocationRecord,
    "tokens": identity.JoinTokenRecord,
}
"""First path element under the region's root -> record class."""

GLOBAL_KINDS: dict[str, type] = {
    "jobs": jobs.JobRecord,
    "ownership": jobs.OwnershipRecord,
    "runs": jobs.RunRecord,
    "heads": jobs.HeadRecord,
    "checkpoints": jobs.CheckpointRecord,
    "migrations": jobs.MigrationRecord,
    "offers": jobs.OfferRecord,
    "grants": jobs.GrantRecord,
    "losses": regions.LossRecord,
    "regions": jobs.RegionRecord,
    "leader": faults.LeaderRecord,
    "accounts": books.AccountRecord,
    "escrow": limits.EscrowRecord,
    "share-acks": limits.ShareRecord,
    "policy": policy.PolicyRecord,
    "policies": policy.PolicyRecord,
    "documents": documents.DocumentRecord,
    "exclusions": settlement.ExclusionRecord,
    "closings": settlement.ClosingRecord,
    "adjustments": settlement.AdjustmentRecord,
    "ledger-heads": settlement.LedgerHeadRecord,
    "slo-hours": objectives.SloHourRecord,
    "slo-alerts": objectives.SloAlertRecord,
    "entries": books.EntryRecord,
    "audit": books.AuditRecord,
    "meta": books.MetaRecord,
}


def kind_of(key: str) -> type | None:
    """The record class that a key holds, or None for a key that is none of ours."""
    if key.startswith(GLOBAL):
        return GLOBAL_KINDS.get(key[len(GLOBAL) :].split("/", 1)[0])
    prefix = f"{ROOT}/region/"
    if key.startswith(prefix):
        _, _, rest = key[len(prefix) :].partition("/")
        return REGION_KINDS.get(rest.split("/", 1)[0])
    return None


@dataclass(frozen=True, slots=True)
class RegionKeys:
    """Keys of one region's store."""

    region: RegionId

    @property
    def root(self) -> str:
        return region_root(self.region)

    def _(self, *parts: str) -> str:
        return self.root + "/".join(parts)

    def prefix(self, kind: str) -> str:
        return f"{self.root}{kind}/"

    @property
    def leader(self) -> str:
        return self._("leader")

    @property
    def meta(self) -> str:
        return self._("meta")

    @property
    def detector(self) -> str:
        return self._("detector")

    def node(self, node: NodeId) -> str:
        return self._("nodes", node)

    def device(self, device: DeviceId) -> str:
        return self._("devices", device)

    def cursor(self, node: NodeId) -> str:
        return self._("cursors", node)

    def session(self, node: NodeId) -> str:
        return self._("sessions", node)

    def liveness(self, node: NodeId) -> str:
        return self._("liveness", node)

    def health(self, device: DeviceId) -> str:
        return self._("health", device)

    def cordon(self, target: str) -> str:
        return self._("cordons", target)

    def event(self, event: EventId) -> str:
        return self._("events", event)

    def finding(self, finding: str) -> str:
        return self._("findings", finding)

    def incident(self, incident: str) -> str:
        return self._("incidents", incident)

    def drain(self, drain: str) -> str:
        return self._("drains", drain)

    def drain_request(self, device: DeviceId) -> str:
        return self._("drain-requests", device)

    def budget(self, name: str) -> str:
        return self._("budgets", name)

    def reservation(self, job: JobId) -> str:
        return self._("reservations", job)

    def replica(self, replica: ReplicaId) -> str:
        return self._("replicas", replica)

    def account(self, scope: str) -> str:
        return self._("accounts", scope)

    def entry(self, scope: str, sequence: int) -> str:
        return self._("entries", scope, f"{sequence:020d}")

    def audit(self, audit: str) -> str:
        return self._("audit", audit)

    @property
    def policy(self) -> str:
        return self._("policy")

    def breaker(self, name: str) -> str:
        return self._("breakers", name)

    def share(self, budget: str) -> str:
        return self._("shares", budget)

    def repeat(self, rule: str, subject: str) -> str:
        return self._("repeats", f"{rule}:{subject}")

    def repair(self, repair: str) -> str:
        return self._("repairs", repair)

    def maintenance(self, window: str) -> str:
        return self._("maintenance", window)

    def probe(self, node: NodeId) -> str:
        return self._("probes", node)

    def witness(self, node: NodeId, peer: NodeId) -> str:
        return self._("witnesses", node, peer)

    def closing(self, zone: str, month: str) -> str:
        return self._("closings", zone, month)

    def adjustment(self, zone: str, month: str, sequence: int) -> str:
        return self._("adjustments", zone, month, f"{sequence:010d}")

    def ledger_head(self, day: str) -> str:
        return self._("ledger-heads", day)

    def fence(self, other: RegionId) -> str:
        """Of this region, against another one (or itself)."""
        return self._("fences", other)

    def promise(self, other: RegionId) -> str:
        """Of this region, to another one."""
        return self._("promises", other)

    def slo_hour(self, slo: str, objective: int, hour: int) -> str:
        return self._("slo-hours", slo, str(objective), f"{hour:010d}")

    def slo_alert(self, slo: str, objective: int, name: str) -> str:
        return self._("slo-alerts", slo, str(objective), name)

    def revocation(self, target: str) -> str:
        return self._("revocations", target)

    def token(self, token: str) -> str:
        return self._("tokens", token)


@dataclass(frozen=True, slots=True)
class GlobalKeys:
    """Keys of the global store."""

    @property
    def root(self) -> str:
        return GLOBAL

    def prefix(self, kind: str) -> str:
        return f"{GLOBAL}{kind}/"

    @property
    def leader(self) -> str:
        return GLOBAL + "leader"

    @property
    def meta(self) -> str:
        return GLOBAL + "meta"

    def job(self, job: JobId) -> str:
        return f"{GLOBAL}jobs/{job}"

    def ownership(self, job: JobId) -> str:
        return f"{GLOBAL}ownership/{job}"

    def run(self, job: JobId, generation: int, number: int) -> str:
        return f"{GLOBAL}runs/{self.run_name(job, generation, number)}"

    @staticmethod
    def run_name(job: JobId, generation: int, number: int) -> str:
        """The key of a run without its prefix, as mirrors and snapshots hold it."""
        return f"{job}/{generation:06d}.{number:010d}"

    def head(self, job: JobId) -> str:
        return f"{GLOBAL}heads/{job}"

    def checkpoint(self, job: JobId, step: int) -> str:
        return f"{GLOBAL}checkpoints/{self.checkpoint_name(job, step)}"

    @staticmethod
    def checkpoint_name(job: JobId, step: int) -> str:
        """The key of a checkpoint without its prefix, as mirrors and snapshots hold it."""
        return f"{job}/{step:020d}"

    def migration(self, migration: MigrationId) -> str:
        return f"{GLOBAL}migrations/{migration}"

    def offer(self, migration: MigrationId) -> str:
        return f"{GLOBAL}offers/{migration}"

    def grant(self, region: RegionId) -> str:
        return f"{GLOBAL}grants/{region}"

    def region(self, region: RegionId) -> str:
        return f"{GLOBAL}regions/{region}"

    def loss(self, region: RegionId) -> str:
        return f"{GLOBAL}losses/{region}"

    def account(self, scope: str) -> str:
        return f"{GLOBAL}accounts/{scope}"

    def entry(self, scope: str, sequence: int) -> str:
        return f"{GLOBAL}entries/{scope}/{sequence:020d}"

    def audit(self, audit: str) -> str:
        return f"{GLOBAL}audit/{audit}"

    @property
    def policy(self) -> str:
        return GLOBAL + "policy"

    def policy_version(self, version: int) -> str:
        return f"{GLOBAL}policies/{version:010d}"

    def document(self, kind: str, name: str) -> str:
        return f"{GLOBAL}documents/{kind}/{name}"

    def exclusion(self, sequence: int) -> str:
        return f"{GLOBAL}exclusions/{sequence:020d}"

    def closing(self, zone: str, month: str) -> str:
        return f"{GLOBAL}closings/{zone}/{month}"

    def adjustment(self, zone: str, month: str, sequence: int) -> str:
        return f"{GLOBAL}adjustments/{zone}/{month}/{sequence:010d}"

    def ledger_head(self, day: str) -> str:
        return f"{GLOBAL}ledger-heads/{day}"

    def slo_hour(self, slo: str, objective: int, hour: int) -> str:
        return f"{GLOBAL}slo-hours/{slo}/{objective}/{hour:010d}"

    def slo_alert(self, slo: str, objective: int, name: str) -> str:
        return f"{GLOBAL}slo-alerts/{slo}/{objective}/{name}"

    def escrow(self, budget: str) -> str:
        return f"{GLOBAL}escrow/{budget}"

    def share_ack(self, budget: str, region: RegionId) -> str:
        return f"{GLOBAL}share-acks/{budget}/{region}"


def event_id(node: NodeId, spool: SpoolId, sequence: int) -> EventId:
    """``<node>/<spool>/<sequence>``: unique for ever, and sorts by sequence within a spool."""
    return EventId(f"{node}/{spool}/{sequence:020d}")


KEYS = GlobalKeys()
