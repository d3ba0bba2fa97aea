"""A small grid in memory for failover tests: two stores, leaders with lagging views, agents that obey rule 4.1.

Every write is checked against the ground truth (which processes really live, which checkpoints really exist), so any
test that drives this world checks the invariants of failover.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from failover.checkpoint.replicate import record_copy, wanted_copies
from failover.domain.fencing import Refusal, command_for, commit_head, epoch_refused, may_acknowledge
from failover.domain.jobs import decide_jobs
from failover.domain.migrate import decide_migrations
from failover.domain.placement import decide_offers, decide_reservations, published_region
from failover.domain.requests import decide_requests
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import (
    DeviceId,
    DrainId,
    Epoch,
    FindingId,
    IncidentId,
    JobId,
    MigrationId,
    NodeId,
    RegionId,
    ReplicaId,
    Revision,
)
from gridkeeper.keys import GLOBAL, KEYS, RegionKeys
from gridkeeper.records.common import Desired, Severity
from gridkeeper.records.faults import DrainRecord, DrainState, IncidentRecord, IncidentState
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState, LivenessRecord, NodeRecord, NodeState
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    TERMINAL_MIGRATION,
    GrantRecord,
    JobRecord,
    JobSpec,
    JobState,
    MigrationRecord,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.timings import Timings

TIGHT = Timings(stale_ms=1_000, fence_ms=5_000, takeover_ms=6_250, renewal_ms=300, unreachable_ms=500, settle_ms=1_000)
"""R at the least that the rule allows, so that a wait cut short shows, and hasty suspicion."""

SETTINGS = Settings(TIGHT)
GLOBAL_FIELDS = {
    "jobs": "jobs", "ownership": "ownership", "runs": "runs", "heads": "heads", "checkpoints": "checkpoints",
    "migrations": "migrations", "offers": "offers", "grants": "grants", "regions": "regions",
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


class Grid:
    """The world. ``nodes``: region -> node -> number of devices."""

    def __init__(self, nodes: dict[str, dict[str, int]], settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.memory = Memory()
        self.time_ms = 1_000_000
        self.hosts: dict[NodeId, Host] = {}
        self.stored: dict[RegionId, set[str]] = {RegionId(r): set() for r in nodes}
        self.log: list[str] = []
        self.terms = 0
        self.leaders: dict[str, View] = {}
        for region, members in nodes.items():
            for index, (node, count) in enumerate(members.items()):
                self._add_node(RegionId(region), NodeId(node), count, 1.05 if index % 2 else 1.0)
            self.new_leader(region)
        self.new_leader("global")
        self.replica = View(self.memory, 0)
        self.replica_as_of = self.time_ms
        self.replica.look(self.time_ms)
        self.frozen = False
        self.verified: list[Decision] = []

    @property
    def regions(self) -> tuple[RegionId, ...]:
        return tuple(self.stored)

    def _add_node(self, region: RegionId, node: NodeId, count: int, slow: float) -> None:
        keys = RegionKeys(region)
        devices = tuple(DeviceId(f"{node}/gpu{i}") for i in range(count))
        self.memory.put(keys.node(node), NodeRecord(node, region, "rack", (), "boot", "1", ("nvml",), devices, 0))
        self.memory.put(keys.liveness(node), LivenessRecord(node, NodeState.ALIVE, self.time_ms, "heard"))
        self.hosts[node] = Host(node, region, slow)
        for device in devices:
            slot = device.partition("/")[2]
            record = DeviceRecord(
                device, node, slot, f"uuid-{device}", "nvidia", "H100", "hopper", "", "", 81920, "1", "rack", region,
                True,
            )  # fmt: skip
            self.memory.put(keys.device(device), record)
            self.set_health(device, HealthState.HEALTHY)

    def region_of(self, device: DeviceId) -> RegionId:
        return self.hosts[NodeId(device.partition("/")[0])].region

    def set_health(self, device: DeviceId, state: HealthState) -> None:
        node = NodeId(device.partition("/")[0])
        record = HealthRecord(
            device, node, f"uuid-{device}", state, self.time_ms, "as told", (), IncidentId(""), DrainId(""), "rule", 1,
            0, HealthState.HEALTHY, "",
        )  # fmt: skip
        self.memory.put(RegionKeys(self.region_of(device)).health(device), record)

    def now(self, leader: str) -> Now:
        return Now(mono_ms=self.time_ms + self.leaders[leader].offset, ledger_ms=self.time_ms)

    # -- leaders ---------------------------------------------------------------------------------------------------

    def new_leader(self, where: str) -> None:
        """Another process takes over: it has seen nothing yet, and its boot clock begins elsewhere."""
        self.terms += 1
        self.leaders[where] = View(self.memory, -self.time_ms + 10 * self.terms)
        if where != "global":
            region = RegionId(where)
            self.memory.put(KEYS.grant(region), GrantRecord(region, self.terms, ReplicaId(f"{where}-r"), self.time_ms))

    def decisions(self, where: str) -> list[Decision]:
        """What a leader decides on its view as it is."""
        view, now = self.leaders[where], self.now(where)
        world = view.world()
        if where == "global":
            return [*decide_jobs(world, self.settings, now), *decide_migrations(world, self.settings, now)]
        state = view.region(RegionId(where))
        decided = list(decide_reservations(state, world, self.settings, now))
        decided += decide_requests(state, world, self.settings, now)
        decided += decide_offers(state, world, self.settings, now)
        published = published_region(state, world, self.settings, now, ReplicaId(f"{where}-r"))
        return [*decided, published] if published else decided

    def lead(self, where: str) -> int:
        """Look, decide, apply. Returns how many decisions held."""
        self.leaders[where].look(self.time_ms)
        return sum(self.apply(decision) for decision in self.decisions(where))

    def apply(self, decision: Decision) -> bool:
        before = dict(self.memory.items)
        assert decision.sentence, f"{decision.step} gives no reason"
        if not self.memory.apply(decision):
            return False
        self.log.append(f"{self.time_ms} {decision.step}: {decision.sentence}")
        self._check(before, decision)
        return True

    # -- ground truth ----------------------------------------------------------------------------------------------

    def alive(self) -> Iterable[tuple[Host, Proc]]:
        for host in self.hosts.values():
            for proc in host.procs.values():
                if proc.alive:
                    yield host, proc

    def _check(self, before: dict[str, tuple[Any, int, int]], decision: Decision) -> None:
        for write in decision.writes:
            old = before[write.key][0] if write.key in before else None
            new = write.record if isinstance(write, Put) else None
            if isinstance(new, OwnershipRecord):
                self._check_ownership(old, new)
            elif isinstance(new, MigrationRecord):
                assert not (old and old.state in TERMINAL_MIGRATION), f"{new.id} left a terminal state"
                active = [
                    r.id for k, (r, _, _) in self.memory.items.items()
                    if k.startswith(KEYS.prefix("migrations")) and r.job == new.job
                    and r.state not in TERMINAL_MIGRATION
                ]  # fmt: skip
                assert len(active) <= 1, f"two active migrations: {active}"
            elif isinstance(new, JobRecord) and new.state in TERMINAL_JOB:
                living = [p for _, p in self.alive() if p.job == new.spec.name]
                assert not living, f"{new.spec.name} is {new.state} and lives: {living}"
            elif write.key.startswith(KEYS.prefix("heads")):
                assert new is not None, "a head was deleted"
                assert old is None or new.step > old.step or (new.step, new.digest) == (old.step, old.digest)
                owner = self.memory.record(KEYS.ownership(new.job))
                copied = old is not None and old.digest == new.digest
                assert copied or owner.epoch == new.epoch, f"epoch {new.epoch} commits, {owner.epoch} owns the job"
                for region in new.regions:
                    assert new.digest in self.stored[region], f"the head names {new.digest}, not verified in {region}"

    def _check_ownership(self, old: OwnershipRecord | None, new: OwnershipRecord) -> None:
        if old is not None:
            assert new.epoch >= old.epoch, "an epoch went back"
        if old is not None and old.epoch == new.epoch:
            return
        living = [(h.node, p.epoch) for h, p in self.alive() if p.job == new.job]
        assert not living, f"{new.job} gets epoch {new.epoch} while {living} live"
        assert self.job(new.job).desired is Desired.RUN, f"{new.job} is to stop and gets epoch {new.epoch}"
        head = self.memory.record(KEYS.head(new.job))
        assert new.resume_step == (head.step if head else -1), "it does not resume from the newest checkpoint"
        assert head is None or new.region in head.regions, "its checkpoint is not where it starts"

    # -- agents ----------------------------------------------------------------------------------------------------

    def read_ownership(self) -> None:
        """The replicas' linearizable view of ownership; ``frozen``: the store does not answer them."""
        if self.frozen:
            return
        self.replica.look(self.time_ms)
        self.replica_as_of = self.time_ms

    def _acknowledged(self, host: Host, job: JobId, epoch: Epoch) -> bool:
        age = self.time_ms - self.replica_as_of
        owner = self.replica.world().ownership.get(job)
        return may_acknowledge(owner, host.node, epoch, age, True, self.settings.timings)

    def advance(self, ms: int) -> None:
        """Time passes; agents fence what was not renewed in time."""
        self.time_ms += ms
        for host, proc in list(self.alive()):
            if self.time_ms >= proc.deadline_ms:
                self.end(host, proc, 0, 9, by_us=True, reason="fenced")

    def end(self, host: Host, proc: Proc, code: int, signal: int, by_us: bool, reason: str) -> None:
        proc.alive = False
        proc.exit_code, proc.exit_signal, proc.by_us, proc.reason = code, signal, by_us, reason
        proc.ended_ms = self.time_ms

    def crash(self, job: JobId, code: int = 1) -> None:
        """The process dies by itself."""
        for host, proc in list(self.alive()):
            if proc.job == job:
                self.end(host, proc, code, 0, by_us=False, reason=f"exit {code}")

    def tick(self, host: Host) -> None:
        """One round of an agent: commands, renewals, a step of work, reports."""
        if host.up and host.connected:
            if not host.deaf:
                self._commands(host)
            self._renew(host)
        for proc in host.procs.values():
            if proc.alive and host.up:
                proc.last_step = max(proc.last_step, proc.resume_step) + 1
                proc.last_step_ms = self.time_ms
                if proc.first_step < 0:
                    proc.first_step, proc.first_step_ms = proc.last_step, self.time_ms
        if host.up and host.connected:
            self.report(host)

    def _deadline(self, host: Host) -> int:
        return self.time_ms + int(self.settings.timings.fence_ms * host.slow)

    def _commands(self, host: Host) -> None:
        for job, owner in sorted(self.replica.world().ownership.items()):
            record = owner.record
            if record.node != host.node or epoch_refused(host.highest.get(job), record.epoch):
                continue
            proc = host.procs.get((job, record.epoch))
            host.highest[job] = record.epoch
            if command_for(record) is Desired.RUN and proc is None:
                if self._acknowledged(host, job, record.epoch):
                    self._start(host, record)
            elif command_for(record) is Desired.STOP and proc is None:
                proc = Proc(job, record.epoch, record.devices, 0, record.resume_step, 0, alive=False, by_us=True)
                proc.ended_ms, proc.reason = self.time_ms, "never started"
                host.procs[(job, record.epoch)] = proc
            elif command_for(record) is Desired.STOP and proc is not None and proc.alive:
                self.checkpoint(job)
                self.end(host, proc, 0, 0, by_us=True, reason="stopped")

    def _start(self, host: Host, record: OwnershipRecord) -> None:
        for other, proc in self.alive():
            assert proc.job != record.job, f"{record.job} runs twice: {proc.epoch} on {other.node}, {record.epoch}"
            shared = set(proc.devices) & set(record.devices)
            assert not shared, f"{record.job} and {proc.job} share {shared}"
        deadline = self._deadline(host)
        proc = Proc(record.job, record.epoch, record.devices, deadline, record.resume_step, self.time_ms)
        host.procs[(record.job, record.epoch)] = proc

    def _renew(self, host: Host) -> None:
        for proc in host.procs.values():
            if proc.alive and self._acknowledged(host, proc.job, proc.epoch):
                proc.deadline_ms = self._deadline(host)

    def report(self, host: Host) -> None:
        """Runs as the replica would record them."""
        for (job, epoch), proc in host.procs.items():
            key = KEYS.run(job, epoch.generation, epoch.number)
            old = self.memory.record(key)
            if old is not None and old.phase is RunPhase.EXITED:
                continue
            phase = RunPhase.RUNNING if proc.alive else RunPhase.EXITED
            record = RunRecord(
                job, epoch, host.region, host.node, phase, proc.exit_code, proc.exit_signal, not proc.alive, proc.by_us,
                proc.resume_step, proc.first_step, proc.last_step, proc.first_step_ms, proc.last_step_ms,
                proc.started_ms, proc.ended_ms, 0.0, proc.reason,
            )  # fmt: skip
            if record != old:
                self.memory.put(key, record)

    def checkpoint(self, job: JobId) -> None:
        """Every living process of the job (there is at most one) stores and announces its newest step."""
        self.announce(job)
        self.commit()

    def announce(self, job: JobId) -> None:
        """A replica verifies the newest step of the job; the transaction is still to come."""
        for host, proc in list(self.alive()):
            if proc.job != job or proc.last_step < 0 or not host.connected:
                continue
            digest = f"{job}-{proc.epoch}-{proc.last_step}"
            self.stored[host.region].add(digest)
            view = View(self.memory, 0)
            view.look(self.time_ms)
            outcome = commit_head(
                job=job, epoch=proc.epoch, step=proc.last_step, digest=digest, size_bytes=1, region=host.region,
                world=view.world(), ledger_ms=self.time_ms,
            )  # fmt: skip
            if not isinstance(outcome, Refusal):
                self.verified.append(outcome)

    def commit(self) -> None:
        """What replicas have decided to commit arrives, newest first."""
        for decision in reversed(self.verified):
            self.apply(decision)
        self.verified.clear()

    def copy(self, region: RegionId) -> None:
        """The region's replicator brings over what it wants."""
        view = View(self.memory, 0)
        view.look(self.time_ms)
        world = view.world()
        for task in wanted_copies(world, region):
            self.stored[region].add(task.digest)
            self.apply(record_copy(world.heads[task.job], region, world.grants.get(region)))

    # -- people and faults -----------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec) -> None:
        if self.memory.record(KEYS.job(spec.name)) is None:
            record = JobRecord(
                spec, JobState.PENDING, Desired.RUN, "submitted", "alice", self.time_ms, MigrationId(""), 0, 0, ""
            )
            self.memory.put(KEYS.job(spec.name), record)

    def want_stop(self, job: JobId) -> None:
        record = self.memory.record(KEYS.job(job))
        if record is not None and record.state not in TERMINAL_JOB:
            self.memory.put(KEYS.job(job), replace(record, desired=Desired.STOP))

    def drain(self, device: DeviceId) -> None:
        """Detection and the planner have decided to take the device out."""
        region = self.region_of(device)
        keys = RegionKeys(region)
        name = device.replace("/", "-")
        if self.memory.record(keys.drain(f"d-{name}")) is not None:
            return
        incident = IncidentRecord(
            IncidentId(f"i-{name}"), region, device, "memory", IncidentState.OPEN, Severity.FATAL, "row remap",
            self.time_ms, self.time_ms, self.time_ms, 1, (FindingId(f"f-{name}"),), DrainId(f"d-{name}"), "", 0, "", "",
        )  # fmt: skip
        self.memory.put(keys.incident(incident.id), incident)
        drain = DrainRecord(
            DrainId(f"d-{name}"), region, NodeId(device.partition("/")[0]), device, f"uuid-{device}", incident.id,
            DrainState.EVACUATING, "a row remap is pending", (f"f-{name}",), 100, 1, "rule", 1, (), (), "machine",
            self.time_ms, self.time_ms + 60_000, (), "",
        )  # fmt: skip
        self.memory.put(keys.drain(drain.id), drain)
        self.set_health(device, HealthState.DRAINING)

    def repair(self, device: DeviceId) -> None:
        """The device comes back: incident resolved, drain done, healthy again."""
        keys, name = RegionKeys(self.region_of(device)), device.replace("/", "-")
        incident, drain = self.memory.record(keys.incident(f"i-{name}")), self.memory.record(keys.drain(f"d-{name}"))
        if incident is None or drain is None:
            return
        self.memory.put(keys.incident(f"i-{name}"), replace(incident, state=IncidentState.RESOLVED))
        self.memory.put(keys.drain(f"d-{name}"), replace(drain, state=DrainState.DRAINED, planned_ms=0))
        self.set_health(device, HealthState.HEALTHY)

    def cut(self, node: NodeId) -> None:
        """The node loses its network; its processes live on until fenced."""
        self.hosts[node].connected = False

    def power_off(self, node: NodeId) -> None:
        host = self.hosts[node]
        host.up = host.connected = False
        for proc in host.procs.values():
            if proc.alive:
                self.end(host, proc, 0, 9, by_us=True, reason="host died")

    def heal(self, node: NodeId) -> None:
        host = self.hosts[node]
        host.up = host.connected = True

    def judge_nodes(self) -> None:
        """Silence for the unreachable limit makes a node unreachable; a word from it, alive."""
        for host in self.hosts.values():
            key = RegionKeys(host.region).liveness(host.node)
            state = self.memory.record(key).state
            if host.connected:
                host.silent_since = -1
                if state is not NodeState.ALIVE:
                    self.memory.put(key, LivenessRecord(host.node, NodeState.ALIVE, self.time_ms, "heard"))
                continue
            if host.silent_since < 0:
                host.silent_since = self.time_ms
            if self.time_ms - host.silent_since >= self.settings.timings.unreachable_ms and state is NodeState.ALIVE:
                self.memory.put(
                    key, LivenessRecord(host.node, NodeState.UNREACHABLE, host.silent_since, "nothing heard")
                )

    # -- driving ---------------------------------------------------------------------------------------------------

    def round(self, ms: int = 250) -> int:
        """Everybody acts once; returns how many decisions held."""
        self.advance(ms)
        self.read_ownership()
        self.judge_nodes()
        for host in self.hosts.values():
            self.tick(host)
        held = sum(self.lead(where) for where in (*self.regions, "global"))
        for region in self.regions:
            self.copy(region)
        return held

    def rush(self) -> None:
        """All leaders and copies at their fastest: as much as can happen before anybody fences himself."""
        self.judge_nodes()
        for _ in range(16):
            for where in (*self.regions, "global"):
                self.lead(where)
            for region in self.regions:
                self.copy(region)

    def run(self, rounds: int, checkpoint_every: int = 4) -> None:
        for index in range(rounds):
            if index % checkpoint_every == 0:
                for job in self.jobs():
                    self.checkpoint(job)
            self.round()

    def jobs(self) -> tuple[JobId, ...]:
        prefix = KEYS.prefix("jobs")
        return tuple(JobId(k.removeprefix(prefix)) for k in sorted(self.memory.items) if k.startswith(prefix))

    def job(self, name: str) -> JobRecord:
        record = self.memory.record(KEYS.job(JobId(name)))
        assert isinstance(record, JobRecord)
        return record

    def owner(self, name: str) -> OwnershipRecord:
        record = self.memory.record(KEYS.ownership(JobId(name)))
        assert isinstance(record, OwnershipRecord)
        return record

    def migrations(self, name: str) -> list[MigrationRecord]:
        """Of one job, oldest first."""
        prefix = KEYS.prefix("migrations")
        found = [(c, r) for k, (r, _, c) in self.memory.items.items() if k.startswith(prefix) and r.job == name]
        return [record for _, record in sorted(found, key=lambda item: item[0])]
