"""Plays a trace against a policy: real decisions, virtual time, from one thing that can happen to the next.

Stated assumptions (``ASSUMED``, shown in the report): every node is heard throughout; a repair takes ``repair_ms`` from
the moment at which the device is drained (or until the trace says that it was repaired) and always works; a fault that
fell on a device which would have been out of service by then does not happen; no job holds a drain up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

from controlplane.backtest.outcome import Outcome
from controlplane.backtest.region import VirtualRegion
from controlplane.backtest.samples import Samples
from controlplane.backtest.trace import Drained, Fault, Trace
from controlplane.domain import health
from controlplane.domain.assess import decide_health
from controlplane.domain.cordon import uncordon
from controlplane.domain.detect import decide_detection
from controlplane.domain.drain import decide_drains
from controlplane.domain.drain_progress import OPEN, UNDER_WAY
from controlplane.domain.evidence import ACTION_RANK, calls_out, is_level
from controlplane.domain.health import hold_ms
from controlplane.domain.region import disjoint
from controlplane.domain.repeats import sticky_until_ms
from controlplane.domain.rulefindings import finding_for
from gridkeeper.catalogue.judge import judge
from gridkeeper.catalogue.model import JobEffect
from gridkeeper.decision import Decision, Now
from gridkeeper.ids import DeviceId, EventId, RegionId, SpoolId
from gridkeeper.keys import event_id
from gridkeeper.policy.model import Consent, Mode, Policy, RepairPolicy
from gridkeeper.records.common import Action
from gridkeeper.records.faults import DrainRecord, DrainState, FindingRecord
from gridkeeper.records.fleet import EventRecord, HealthRecord, HealthState
from gridkeeper.records.limits import BreakerState
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.timings import Timings

REPAIR_MS = 24 * 3_600_000
"""An assumption: a repair shop's day. ``--repair`` changes it."""
ASSUMED = (
    "every node is heard throughout",
    "a repair takes {repair} from the drain on, or until the trace says so, and always works",
    "a fault on a device that is out of service by then does not happen",
    "no job holds a drain up",
)
SAMPLED = "samples are as recorded: what lasts in them lasts after a modelled repair too"
REPAIRER = "repair-shop"
SPOOL = SpoolId("trace")
MAX_ROUNDS = 64
GRACE_MS = 1
_NO_HOLD = frozenset(
    {HealthState.HEALTHY, HealthState.UNKNOWN, HealthState.DRAINING, HealthState.DRAINED, HealthState.RETIRED}
)
"""States that time alone does not end."""
_PLANNED_FOR = frozenset({HealthState.SUSPECT, HealthState.DEGRADED, HealthState.DRAINING})
_OPEN_DRAINS = OPEN | UNDER_WAY
_WORLD = GlobalState()
ACT = ""
_Decide = Callable[[RegionState, Settings, Now], tuple[Decision, ...] | Decision | None]


def _drains(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    return decide_drains(state, _WORLD, settings, now)


class Unsettled(AssertionError):
    """The decisions go on for ever at one moment: a bug in them."""


def replayed(policy: Policy) -> Policy:
    """``policy`` as it can be replayed: repairs are modelled, so no hook runs and no self-test is asked for."""
    quiet = RepairPolicy(Consent.OFF, Consent.OFF, Consent.OFF, self_test="")
    return replace(policy, repair=quiet)


@dataclass(slots=True)
class _Track:
    """A drain while it is played."""

    first: DrainRecord
    last: DrainRecord
    wanted_ms: int
    admitted_ms: int = 0
    back_ms: int = 0
    action: Action = Action.DRAIN
    refused: bool = False


class Player:
    """One trace, one policy, once."""

    def __init__(self, trace: Trace, policy: Policy, name: str = "", repair_ms: int = REPAIR_MS) -> None:
        self._trace = trace
        self._name = name
        self._repair_ms = repair_ms
        region = next(iter(trace.devices.values())).region if trace.devices else RegionId("trace")
        self.region = VirtualRegion(region, trace.devices, trace.from_ms)
        self._settings = Settings(Timings(), replayed(policy))
        self._detect = self._act = False
        self._judge: set[str] = set()
        self._timers: list[tuple[int, str, bool]] = []  # (when, subject or ACT, is a hold of the health machine)
        self._armed: set[tuple[int, str, bool]] = set()
        self._repairs: list[tuple[int, DeviceId, str]] = []
        self._sequence = 0
        self._index: dict[EventId, int] = {}
        self._repaired_ms: dict[DeviceId, int] = {}
        self._drains: dict[str, _Track] = {}
        self._state_since: dict[DeviceId, tuple[HealthState, int]] = {}
        self._out_ms = self._degraded_ms = self._interruptions = self._avoided = 0
        self._incidents: set[str] = set()
        self._samples = Samples(trace.telemetry, self.region.nodes, policy) if trace.telemetry else None

    def run(self) -> Outcome:
        """Raises ``Unsettled`` and ``Conflicted``, which are bugs in the decisions."""
        position = 0
        faults, until = self._trace.faults, self._trace.until_ms
        while True:
            at = self._next(position)
            if at is None or at > until:
                break
            self.region.now_ms = max(self.region.now_ms, at)
            while position < len(faults) and faults[position].at_ms <= self.region.now_ms:
                self._feed(position, faults[position])
                position += 1
            self._repair_due()
            self._sample_due()
            while self._timers and self._timers[0][0] <= self.region.now_ms:
                timer = heapq.heappop(self._timers)
                self._armed.discard(timer)
                _, subject, hold = timer
                if subject == ACT:
                    self._act = True
                elif subject in self.region.hot and not (hold and self._state_of(subject) in _NO_HOLD):
                    self._judge.add(subject)
            self._settle()
            self.region.cool()
        return self._outcome(until)

    # -- time --

    def _next(self, position: int) -> int | None:
        """When the next thing can happen; None: nothing can any more."""
        faults = self._trace.faults
        times = [faults[position].at_ms] if position < len(faults) else []
        times += [queue[0][0] for queue in (self._timers, self._repairs) if queue]
        if self._samples and self._samples.next_ms is not None:
            times.append(self._samples.next_ms)
        return min(times, default=None)

    def _settle(self) -> None:
        """Until nothing is left to decide, in the leader's order: detect, judge, act, and again. A step whose grounds
        have not changed is not asked again: devices are judged when something was written about them, or when a hold
        of theirs is over."""
        region, judged = self.region, False
        for _ in range(MAX_ROUNDS):
            self._judge |= region.touched
            region.touched.clear()
            if self._detect:
                self._detect, judged = self._take(decide_detection), False
            elif self._judge and not judged:
                subjects, self._judge = tuple(self._judge), set()
                self._act |= self._take(decide_health, subjects)
                judged = True
            elif self._act and self._may_drain():
                self._act = self._take(_drains)
            elif self._judge:
                judged = False
            else:
                self._act = False
                return
        raise Unsettled(f"still deciding after {MAX_ROUNDS} steps at {region.now_ms}: {list(region.hot)[:8]}")

    def _state_of(self, device: str) -> HealthState:
        return self.region.health(DeviceId(device)).state

    def _may_drain(self) -> bool:
        """Whether there is anything that planning drains could say something about. Asking is cheap, planning is not,
        and most of what happens here (a card back from repair, a finding that has run out) leaves nothing to plan."""
        region = self.region
        return (
            self._settings.policy.mode is not Mode.ACT
            or bool(region.kind("drain-requests"))
            or any(held.record.state in _PLANNED_FOR for held in region.kind("health").values())
            or any(held.record.state in _OPEN_DRAINS for held in region.kind("drains").values())
            or any(held.record.state is not BreakerState.CLOSED for held in region.kind("breakers").values())
            or any(held.record.active and held.record.shadow for held in region.kind("findings").values())
        )

    def _take(self, decide: _Decide, subjects: tuple[str, ...] | None = None) -> bool:
        """Whether anything was written."""
        made = decide(self.region.state(subjects), self._settings, self.region.now)
        decisions = made if isinstance(made, tuple) else (made,) if made else ()
        for decision in disjoint(decisions):
            self.region.apply(decision)
            self._note()
        return bool(decisions)

    def _arm(self, subject: str, *at_ms: int, hold: bool = False) -> None:
        """Time alone may change what is decided about ``subject`` (ACT: about drains) then."""
        for at in at_ms:
            timer = (at, subject, hold)
            if at > self.region.now_ms and timer not in self._armed:
                self._armed.add(timer)
                heapq.heappush(self._timers, timer)

    # -- what happens --

    def _feed(self, position: int, fault: Fault) -> None:
        """A fault is seen, unless its device is out of service by then."""
        region = self.region
        self._sequence += 1
        event = EventRecord(
            event_id(fault.node, SPOOL, self._sequence), fault.node, SPOOL, self._sequence, fault.device, fault.kind,
            fault.code, fault.message, (fault.source,), fault.count, 0, "", 0, region.now_ms, "",
        )  # fmt: skip
        if fault.device:
            held = self._state_since.get(fault.device)
            if held is not None and held[0] in health.OUT:
                self._avoided += self._kills(event)
                self._repaired_ms[fault.device] = max(self._repaired_ms.get(fault.device, 0), fault.repaired_ms)
                return
            self._repaired_ms[fault.device] = fault.repaired_ms
        self._interruptions += self._kills(event)
        self._index[event.id] = position
        region.heat(fault.device or fault.node)
        region.write(region.keys.event(event.id), event)
        self._detect = True

    def _kills(self, event: EventRecord) -> bool:
        """Whether a job on the device does not survive it, and there was one (if that is known)."""
        if self._trace.busy is not None:
            spans = self._trace.busy.get(event.device, ())
            if not any(since <= event.observed_ms < until for since, until in spans):
                return False
        verdict = judge(event, self._trace.devices.get(event.device), self._settings.policy)
        return verdict is not None and verdict.job in (JobEffect.DIES, JobEffect.ALL_DIE)

    def _sample_due(self) -> None:
        """The rules look at samples that have come."""
        region, samples = self.region, self._samples
        if samples is None or samples.next_ms is None or samples.next_ms > region.now_ms:
            return
        for transition in samples.take(region.now_ms, dict(region.kind("findings")), region.inventory()):
            region.heat(transition.device)
            device = self._trace.devices[transition.device]
            known = region.kind("findings")
            version = self._settings.policy.version
            finding = finding_for(transition, device, known, version, region.now_ms, "")
            if finding is not None:
                region.write(region.keys.finding(finding.id), finding)
                self._note()

    def _repair_due(self) -> None:
        """What the repair shop is done with goes back: a new card where one was to be replaced, else by a human."""
        region = self.region
        while self._repairs and self._repairs[0][0] <= region.now_ms:
            _, device, drain = heapq.heappop(self._repairs)
            held = region.kind("health").get(device)
            if held is None or held.record.drain != drain or held.record.state is not HealthState.DRAINED:
                continue
            decision = uncordon(region.state(), self._settings, device, REPAIRER, "repaired", region.now)
            if decision is not None:
                region.apply(decision)
                self._note()
                self._act = True

    # -- what came of it --

    def _note(self) -> None:
        """Keep the books on what was just written, and remember when time alone may change something."""
        policy = self._settings.policy
        for kind, name, record in self.region.written:
            match kind:
                case "health" if record is not None:
                    self._health(record)
                case "drains" if record is not None:
                    self._drained(record)
                case "findings" if record is not None:
                    self._found(record)
                case "budgets" if record is not None and record.begun_ms:
                    windows = (p.window_ms for p in policy.budgets if p.window_ms)
                    self._arm(ACT, *(record.begun_ms[0] + window for window in windows))
                case "breakers" if record is not None:
                    for breaker in policy.breakers:
                        spans = (breaker.cool_ms, breaker.close_ms, breaker.within_ms)
                        self._arm(ACT, *(record.since_ms + span for span in spans))
                        self._arm(ACT, *(at + breaker.trickle_ms for at in record.passed_ms[-1:]))
                case "incidents" if record is not None:
                    self._incidents.add(name)
                case _:
                    pass

    def _found(self, finding: FindingRecord) -> None:
        """Every hold of the health machine counts from the last change of a health record or of a finding."""
        region, policy, subject = self.region, self._settings.policy, str(finding.device or finding.node)
        now = region.now_ms
        for device in (finding.device,) if finding.device else region.nodes.get(finding.node, ()):
            held = region.kind("health").get(device)
            if held is not None:
                self._await_holds(held.record)
        if finding.active and not is_level(finding) and not calls_out(finding):  # these do not end by time
            until_ms = sticky_until_ms(region.kind("repeats"), finding)
            self._arm(subject, now + policy.repair_hold_ms, now + policy.probation_ms, until_ms)

    def _await_holds(self, record: HealthRecord) -> None:
        now, policy = self.region.now_ms, self._settings.policy
        if record.state is HealthState.REPAIRING:
            self._arm(record.device, now + policy.repair_hold_ms, hold=True)
        elif record.state is HealthState.PROBATION:
            self._arm(record.device, now + policy.probation_ms, hold=True)
        elif record.state not in _NO_HOLD:
            self._arm(record.device, now + hold_ms(record.flaps, policy), hold=True)

    def _health(self, record: HealthRecord) -> None:
        now = self.region.now_ms
        self._await_holds(record)
        held = self._state_since.get(record.device)
        if held is not None and held[0] is record.state:
            return
        self._count(record.device, held)
        self._state_since[record.device] = (record.state, now)
        track = self._drains.get(record.drain)
        if track and not track.back_ms and held and held[0] in health.OUT and record.state is HealthState.PROBATION:
            track.back_ms = now

    def _count(self, device: DeviceId, held: tuple[HealthState, int] | None) -> None:
        if held is None:
            return
        state, since = held
        spent = min(self.region.now_ms, self._trace.until_ms) - since
        if state in health.OUT:
            self._out_ms += spent
        elif state is HealthState.DEGRADED:
            self._degraded_ms += spent

    def _drained(self, record: DrainRecord) -> None:
        now = self.region.now_ms
        track = self._drains.get(record.id)
        if track is None:
            track = self._drains[record.id] = _Track(record, record, now, action=self._action(record))
        track.last = record
        match record.state:
            case DrainState.REFUSED:
                track.refused = True
            case DrainState.ADMITTED:
                track.admitted_ms = now
                self._arm(ACT, record.deadline_ms)
            case DrainState.DRAINED:
                ready = self._repaired_ms.get(record.device, 0) or now + self._repair_ms
                heapq.heappush(self._repairs, (max(ready, now + GRACE_MS), record.device, record.id))
            case _:
                pass

    def _action(self, record: DrainRecord) -> Action:
        """What the gravest finding behind it asks for."""
        findings = self.region.kind("findings")
        cited = [findings[name].record for name in record.evidence if name in findings]
        return max((f.action for f in cited), key=ACTION_RANK.__getitem__, default=Action.DRAIN)

    def _outcome(self, until_ms: int) -> Outcome:
        self.region.now_ms = until_ms
        for device, held in self._state_since.items():
            self._count(device, held)
        drains = tuple(self._told(track) for track in self._drains.values())
        return Outcome(
            policy=self._name,
            devices=len(self._trace.devices),
            span_ms=until_ms - self._trace.from_ms,
            drains=tuple(sorted(drains, key=lambda d: (d.admitted_ms or d.wanted_ms, d.id))),
            out_ms=self._out_ms,
            degraded_ms=self._degraded_ms,
            faults=len(self._trace.faults),
            interruptions=self._interruptions,
            avoided=self._avoided,
            held_back=sum(track.refused for track in self._drains.values()),
            incidents=len(self._incidents),
        )

    def _told(self, track: _Track) -> Drained:
        record = track.last
        state = "shadow" if record.state.value == "shadow" else "admitted" if track.admitted_ms else "refused"
        faults = tuple(dict.fromkeys(self._index[EventId(e)] for e in record.evidence if e in self._index))
        return Drained(
            record.id, record.device, state, track.wanted_ms, track.admitted_ms, track.back_ms, track.action,
            record.rule, record.reason, faults,
        )  # fmt: skip
