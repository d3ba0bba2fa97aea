"""A small grid in memory for failover tests: two stores, leaders with lagging views, agents that obey rule 4.1.

Every write is checked against the ground truth (which processes really live, which checkpoints really exist), so any
test that drives this world checks the invariants of failover.
"""

from __future__ import annotations

from dataclasses import replace

from failover.checkpoint.replicate import record_copy, wanted_copies
from failover.domain.fencing import Refusal, command_for, commit_head, epoch_refused, may_acknowledge
from failover.domain.jobs import decide_jobs
from failover.domain.migrate import decide_migrations
from failover.domain.placement import decide_offers, decide_reservations, published_region
from failover.domain.requests import decide_requests
from gridkeeper.decision import Decision, Now
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
)
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Desired, Severity
from gridkeeper.records.faults import DrainRecord, DrainState, IncidentRecord, IncidentState
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState, LivenessRecord, NodeRecord, NodeState
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    GrantRecord,
    JobRecord,
    JobSpec,
    JobState,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import Settings
from tests.unit.failover_parts import SETTINGS, Host, Proc, View, spec_of
from tests.unit.failover_truth import Truth

__all__ = ["SETTINGS", "Grid", "spec_of"]


class Grid(Truth):
    """The world. ``nodes``: region -> node -> number of devices."""

    def __init__(self, nodes: dict[str, dict[str, int]], settings: Settings = SETTINGS) -> None:
        super().__init__(nodes)
        self.settings = settings
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
        self.quiet: set[JobId] = set()  # jobs that print no progress
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
            if proc.alive and host.up and proc.job not in self.quiet:
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
                silent = LivenessRecord(
                    host.node, NodeState.UNREACHABLE, self.time_ms, "nothing heard", host.silent_since
                )
                self.memory.put(key, silent)

    def blip(self, job: JobId) -> None:
        """The job's node is silent for just long enough that its jobs are revoked, and is back."""
        owner = self.memory.record(KEYS.ownership(job))
        if owner is None:
            return
        node = owner.node
        self.cut(node)
        self.judge_nodes()
        self.advance(self.settings.timings.unreachable_ms)
        self.judge_nodes()
        self.lead(self.hosts[node].region)
        self.lead("global")
        if self.hosts[node].up:
            self.heal(node)
        self.judge_nodes()

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
