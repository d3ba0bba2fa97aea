"""Each replica compares the devices whose telemetry it receives with their peers in the same job, and watches the
progress of the jobs on its nodes; it writes durable findings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from controlplane.domain import hang, pace, peers
from controlplane.domain.fleet import FleetTable
from controlplane.domain.words import made_id
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.runs import epoch_of
from controlplane.shell.session import AgentStream
from gridkeeper import tracing
from gridkeeper.decision import ABSENT, Decision, Put, Versioned
from gridkeeper.ids import DeviceId, FindingId, JobId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Mode
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import StoreError
from gridkeeper.records.common import Scope
from gridkeeper.records.faults import Confidence, FindingRecord
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.snapshot import Settings
from gridkeeper.v1 import records_pb2

log = logging.getLogger("gridkeeper.peerwatch")

SLOW_CLASS, HANG_CLASS = "slow", "job-hang"
"""Fault classes: incidents merge by subject and class."""
RULES = frozenset({*(metric.rule for metric in peers.METRICS), pace.RULE, HANG_CLASS})
VERSION = 1
LONGEST_PERIOD_MS, SHORTEST_PERIOD_MS = 5_000, 250
REPORT_STALE_MS = 10_000
"""Agents report their workloads each second: an older report says nothing of a job's progress."""


class FindingWriter:
    """Wanted findings, one per id, kept until the store has taken them."""

    def __init__(
        self, region: RegionId, replica: ReplicaId, local: Mirror, applier: Applier, clock: Clock, rng: Rng
    ) -> None:
        self._actor = f"machine/{replica}"
        self._local = local
        self._applier = applier
        self._clock = clock
        self._rng = rng
        self._keys = RegionKeys(region)
        self._wanted: dict[FindingId, FindingRecord | None] = {}

    def raise_(self, finding: FindingRecord) -> None:
        """Once it stands, it keeps the evidence and the trace that it was raised on until it is cleared."""
        self._wanted[finding.id] = finding

    def revise(self, finding: FindingRecord) -> None:
        """What stands says this from now on, unless something newer is wanted of it."""
        self._wanted.setdefault(finding.id, finding)

    def clear(self, name: FindingId) -> None:
        self._wanted[name] = None

    def standing(self) -> Mapping[str, Versioned[FindingRecord]]:
        return self._local.kind("findings")

    async def write(self) -> None:
        """What differs from the store. A lost race is tried again; a store that is away is waited for."""
        if not self._local.fresh:
            return
        for name, wanted in list(self._wanted.items()):
            held = self.standing().get(name)
            stands = held is not None and held.record.active
            if stands == (wanted is not None) and (wanted is None or held is None or _same(held.record, wanted)):
                del self._wanted[name]
                continue
            if wanted is not None and held is not None and stands:
                new = replace(held.record, severity=wanted.severity, action=wanted.action, shadow=wanted.shadow)
            elif wanted is not None:
                new = replace(wanted, trace=f"00-{self._rng.token(16)}-{self._rng.token(8)}-01")
            else:
                assert held is not None, "what is active is there"
                new = replace(held.record, active=False)
            put = Put(self._keys.finding(name), new, held.revision if held else ABSENT)
            subject = f"job/{new.job}" if new.job else f"device/{new.device}"
            said = new.sentence if new.active else f"over: {new.sentence}"
            decision = Decision("detect.peers", said, (put,), subject=subject, trace=new.trace, evidence=new.evidence)
            try:
                with tracing.root("fleet.peers", new.trace if wanted and not stands else "", {"rule": new.rule}):
                    revision = await self._applier.apply(decision, self._actor, None)
                await self._applier.caught_up(revision)
            except Conflict:
                continue
            except StoreError as error:
                log.warning("finding %s waits for the store: %s", name, error)
                return
            self._wanted.pop(name, None)


class PeerShell:
    """One per replica. ``settings``: in force now."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        table: FleetTable,
        streams: Mapping[NodeId, AgentStream],
        local: Mirror,
        world: Mirror,
        applier: Applier,
        clock: Clock,
        rng: Rng,
        settings: Callable[[], Settings],
    ) -> None:
        self._region = region
        self._table = table
        self._streams = streams
        self._local = local
        self._world = world
        self._clock = clock
        self._settings = settings
        self._peers = peers.PeerWatch()
        self._hangs = hang.HangWatch()
        self._writer = FindingWriter(region, replica, local, applier, clock, rng)
        self._ownership: object = None
        self._members: dict[DeviceId, peers.Member] = {}

    async def run(self) -> None:
        """For ever, 24 times within the time that a deviation must last, between four times a second and every 5 s."""
        while True:
            policy = self._settings().policy.peers
            if self._settings().policy.mode is not Mode.OFF and policy.mode is not Mode.OFF:
                now = self._clock.mono_ms()
                self._revise()
                for verdicts in self._peers.evaluate(self._table, self._peers_of(), self._convicted(), policy, now):
                    for verdict in verdicts:
                        self._slow(verdict)
                    await self._clock.sleep(0)  # renewals are answered in between
                if self._world.fresh:
                    self._hanging(now)
                    self._pacing()
                await self._writer.write()
            elif self._clear_all():
                await self._writer.write()
            shortest = min(policy.for_ms, policy.hang_ms)
            await self._clock.sleep(min(LONGEST_PERIOD_MS, max(SHORTEST_PERIOD_MS, shortest // 24)))

    def _clear_all(self) -> bool:
        """Switched off: what was found is not kept up any more, and must not stand for ever."""
        ours = [name for name, held in self._writer.standing().items() if held.record.active and _ours(held.record)]
        for name in ours:
            self._writer.clear(FindingId(name))
        return bool(ours)

    def _revise(self) -> None:
        """What stands weighs what the policy in force says, also what was found under another one."""
        policy = self._settings().policy.peers
        severity, action, shadow = policy.severity, policy.action, policy.mode is Mode.SHADOW
        for held in self._writer.standing().values():
            record = held.record
            if record.active and _ours(record) and record.node in self._streams:
                said = replace(record, severity=severity, action=action, shadow=shadow)
                if said != record:
                    self._writer.revise(said)

    def _peers_of(self) -> Mapping[DeviceId, peers.Member]:
        """Device -> its run; the same object until ownership changes. While the global store is away it is as last
        seen: a comparison needs no newer one."""
        ownership = self._world.kind("ownership")
        if ownership is not self._ownership:
            self._ownership = ownership
            owners = (held.record for held in ownership.values() if held.record.region == self._region)
            self._members = {
                device: peers.Member(owner.job, str(owner.epoch)) for owner in owners for device in owner.devices
            }
        return self._members

    # -- slow devices

    def _convicted(self) -> Iterator[tuple[DeviceId, str]]:
        for held in self._writer.standing().values():
            if held.record.fault_class == SLOW_CLASS and held.record.active and held.record.device:
                yield held.record.device, held.record.rule

    def _slow(self, verdict: peers.Verdict) -> None:
        name = FindingId(made_id(verdict.device, f"rule-{verdict.metric.rule}"))
        device = self._local.kind("devices").get(verdict.device)
        if not verdict.raised or device is None:
            self._writer.clear(name)
            return
        policy = self._settings().policy
        self._writer.raise_(
            FindingRecord(
                id=name,
                region=self._region,
                node=device.record.node,
                device=verdict.device,
                scope=verdict.metric.scope,
                fault_class=SLOW_CLASS,
                code=verdict.metric.rule,
                severity=policy.peers.severity,
                action=policy.peers.action,
                sentence=peers.sentence(verdict),
                evidence=peers.evidence(verdict),
                observed_ms=self._clock.wall_ms() - verdict.held_ms,
                rule=verdict.metric.rule,
                rule_version=VERSION,
                active=True,
                trace="",
                source="comparison with peers",
                confidence=Confidence.MEDIUM,
                shadow=policy.peers.mode is Mode.SHADOW,
            )
        )

    # -- slow nodes

    def _pacing(self) -> None:
        """The runs on the nodes whose streams are held here, each against the job's runs elsewhere."""
        owners = [held.record for held in self._world.kind("ownership").values() if held.record.node in self._streams]
        paces = pace.by_job(self._world.kind("runs"), (owner.job for owner in owners))
        kept: set[FindingId] = set()
        for owner in owners:
            mine = next((p for p in paces.get(owner.job, ()) if p.epoch == owner.epoch), None)
            if mine is not None and mine.over:
                continue
            found = pace.compare_pace(mine, paces[owner.job], self._settings().policy.peers) if mine else None
            name = FindingId(made_id(owner.node, pace.RULE, owner.job))
            if mine is not None and found is not None and found[0]:
                self._writer.raise_(self._slow_node(name, mine, found[1]))
                kept.add(name)
            elif found is None and owner.devices:
                kept.add(name)  # it cannot be said yet
        for key, held in self._writer.standing().items():
            record = held.record
            if record.rule == pace.RULE and record.active and record.node in self._streams and key not in kept:
                self._writer.clear(FindingId(key))

    def _slow_node(self, name: FindingId, mine: pace.Pace, found: peers.Comparison) -> FindingRecord:
        policy = self._settings().policy
        return FindingRecord(
            id=name,
            region=self._region,
            node=mine.node,
            device=DeviceId(""),
            scope=Scope.NODE,
            fault_class=SLOW_CLASS,
            code=pace.RULE,
            severity=policy.peers.severity,
            action=policy.peers.action,
            sentence=pace.sentence(mine, found),
            evidence=(f"step_ms={mine.step_ms:.4g}", f"median={found.median:.4g}", f"mad={found.mad:.4g}"),
            observed_ms=self._clock.wall_ms(),
            rule=pace.RULE,
            rule_version=VERSION,
            active=True,
            trace="",
            source="comparison with the job's other nodes",
            confidence=Confidence.MEDIUM,
            shadow=policy.peers.mode is Mode.SHADOW,
        )

    # -- hung jobs

    def _hanging(self, now_ms: int) -> None:
        policy = self._settings().policy
        pulses = tuple(self._pulses(now_ms))
        hung, well = self._hangs.look(pulses, policy.peers, now_ms)
        for job in sorted(hung):
            self._hung(hung[job])
        for job in sorted(well):
            self._writer.clear(_hang_id(job))
        for name, held in self._writer.standing().items():
            record = held.record
            if record.rule == HANG_CLASS and record.active and self._left(record):
                self._writer.clear(FindingId(name))

    def _left(self, finding: FindingRecord) -> bool:
        """The job has another epoch, or none: the run that hung is no more wanted."""
        owner = self._world.kind("ownership").get(finding.job)
        return owner is None or f"epoch={owner.record.epoch}" not in finding.evidence or not owner.record.devices

    def _pulses(self, now_ms: int) -> Iterator[hang.Pulse]:
        ownership = self._world.kind("ownership")
        for _, stream in sorted(self._streams.items()):
            report = stream.report
            since_ms = now_ms - stream.report_mono_ms
            if report is None or since_ms > REPORT_STALE_MS:
                continue
            for workload in report.workloads:
                owner: Versioned[OwnershipRecord] | None = ownership.get(workload.job)
                epoch = epoch_of(workload.epoch)
                if owner is None or owner.record.node != stream.node or owner.record.epoch != epoch:
                    continue
                yield hang.Pulse(
                    job=JobId(workload.job),
                    epoch=epoch,
                    node=stream.node,
                    devices=owner.record.devices,
                    running=workload.phase == records_pb2.RUN_PHASE_RUNNING and owner.record.revoke is None,
                    storing=workload.storing_checkpoint,
                    first_step=workload.first_step,
                    last_step=workload.last_step,
                    span_ms=workload.first_step_age_ms - workload.last_step_age_ms,
                    last_age_ms=workload.last_step_age_ms + since_ms,
                    mark=(workload.checkpoint_step, workload.checkpoint_request),
                )

    def _hung(self, found: hang.Hang) -> None:
        policy, pulse = self._settings().policy, found.pulse
        values = {
            column: [self._table.value(device, column) for device in pulse.devices]
            for column, _, _, _ in hang.ODD_METRICS
        }
        odd = hang.odd_one_out(pulse.devices, values, policy.peers)
        self._writer.raise_(
            FindingRecord(
                id=_hang_id(pulse.job),
                region=self._region,
                node=pulse.node,
                device=DeviceId(""),
                scope=Scope.PROCESS,
                fault_class=HANG_CLASS,
                code=HANG_CLASS,
                severity=policy.peers.severity,
                action=policy.peers.action,
                sentence=hang.sentence(found, odd),
                evidence=(f"epoch={pulse.epoch}", f"last_step={pulse.last_step}", *odd.evidence),
                observed_ms=self._clock.wall_ms() - found.quiet_ms,
                rule=HANG_CLASS,
                rule_version=VERSION,
                active=True,
                trace="",
                source="the job's progress line",
                confidence=Confidence.MEDIUM,
                shadow=policy.peers.mode is Mode.SHADOW,
                job=pulse.job,
            )
        )


def _ours(finding: FindingRecord) -> bool:
    """By its rule: a rule of the policy may use the same fault class."""
    return finding.rule in RULES


def _same(held: FindingRecord, wanted: FindingRecord) -> bool:
    return (held.severity, held.action, held.shadow) == (wanted.severity, wanted.action, wanted.shadow)


def _hang_id(job: JobId) -> FindingId:
    return FindingId(made_id(f"job/{job}", HANG_CLASS))
