"""The health machine of one device: ``step`` is the whole of it. Pure; ``assess`` feeds it, ``decide_health`` runs it.

    healthy ⇄ suspect ⇄ degraded → draining → drained → repairing → probation → healthy        (→ retired: by hand)
    unknown: beside healthy, suspect, degraded and probation, and back to where it was

- Getting worse is immediate, on evidence. Getting better needs quiet: ``repair_hold_ms``, doubled with each flap (a
  recovery that was not followed by ``probation_ms`` of health).
- ``degraded → draining → drained`` is the drain planner's (``drain.py``), in one transaction with drain and budgets.
- ``drained → repairing`` when the signs of the fault are gone (a level rule cleared, the host booted, the device came
  back) or a human returned it; ``repairing → probation`` after ``repair_hold_ms`` without them; a sign that comes back
  returns it to drained. A device that a human drained waits for a human, and so does one that the machine drained
  too often (``damping.py``).
- ``probation → healthy`` after ``probation_ms`` without findings, and a self-test passed meanwhile if the policy wants
  one (``repair.py``); the budget holds of its drain go in that transaction.
- Another card (uuid) in the slot starts in probation.
- No trust, no judgement: a silent node, a hung driver, dropped events, a missing device or a record that does not
  decode make a device unknown; the state it had is kept in ``before_unknown``. Positive evidence (a lost GPU, XID 79)
  outweighs missing telemetry while the node itself is heard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.domain.damping import waits_for_human
from controlplane.domain.evidence import calls_out, merged, weighs_on_device, worst
from controlplane.domain.words import duration
from gridkeeper.ids import DrainId, IncidentId
from gridkeeper.policy.model import Mode, Policy
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import DrainRecord, FindingRecord
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState

RULE = "health-machine"
RULE_VERSION = 1
MAX_DOUBLINGS = 4
MACHINE = "machine"

IN_SERVICE = frozenset({HealthState.HEALTHY, HealthState.SUSPECT})
JUDGED = frozenset({HealthState.HEALTHY, HealthState.SUSPECT, HealthState.DEGRADED})
OUT = frozenset(
    {
        HealthState.DRAINING,
        HealthState.DRAINED,
        HealthState.REPAIRING,
        HealthState.PROBATION,
        HealthState.RETIRED,
    }
)
"""Out of service by decision: what a budget counts even if no hold says so."""

_BADNESS = {HealthState.HEALTHY: 0, HealthState.SUSPECT: 1, HealthState.DEGRADED: 2}


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that the state of one device depends on.

    ``findings``: its active ones. ``held_ms``: how long this process has seen the health record as it is. ``quiet_ms``:
    how long none of its findings changed. ``distrust``: why nothing is known of it now; "" if it is to be trusted.
    """

    device: DeviceRecord
    old: HealthRecord | None
    findings: tuple[FindingRecord, ...] = ()
    held_ms: int = 0
    quiet_ms: int = 0
    distrust: str = ""
    drain: DrainRecord | None = None
    busy: bool = False  # a repair or a self-test of it is under way


def needs_test(record: HealthRecord, policy: Policy) -> bool:
    """It is on probation, and must pass a self-test before it is back in service."""
    wanted = bool(policy.repair.self_test) and policy.mode is not Mode.OFF
    return wanted and record.state is HealthState.PROBATION and record.tested_ms < record.since_ms


def step(s: Situation, policy: Policy, ledger_ms: int) -> HealthRecord | None:
    """The next record; None: nothing changes."""
    old = s.old
    if old is None:
        fresh = _new(s.device, ledger_ms)
        if s.distrust:
            return replace(fresh, state=HealthState.UNKNOWN, reason=s.distrust)
        return _judged(s, fresh, policy, ledger_ms) or fresh
    match old.state:
        case HealthState.RETIRED | HealthState.DRAINING:
            return None
        case HealthState.DRAINED:
            return _drained(s, old, policy, ledger_ms)
        case HealthState.REPAIRING:
            return _repairing(s, old, policy, ledger_ms)
        case HealthState.UNKNOWN:
            return _unknown(s, old, ledger_ms)
        case HealthState.PROBATION:
            return _doubted(s, old, ledger_ms) or _probation(s, old, policy, ledger_ms)
        case HealthState.HEALTHY | HealthState.SUSPECT | HealthState.DEGRADED:
            return _doubted(s, old, ledger_ms) or _judged(s, old, policy, ledger_ms)


def _new(device: DeviceRecord, ledger_ms: int) -> HealthRecord:
    return HealthRecord(
        device=device.id,
        node=device.node,
        uuid=device.uuid,
        state=HealthState.HEALTHY,
        since_ms=ledger_ms,
        reason="new in the inventory, nothing is known against it",
        evidence=(),
        incident=IncidentId(""),
        drain=DrainId(""),
        rule=RULE,
        rule_version=RULE_VERSION,
        flaps=0,
        before_unknown=HealthState.HEALTHY,
        trace="",
    )


def moved(old: HealthRecord, state: HealthState, reason: str, ledger_ms: int) -> HealthRecord:
    """``old`` in another state from now on."""
    return replace(old, state=state, since_ms=ledger_ms, reason=reason, rule=RULE, rule_version=RULE_VERSION)


def swapped(device: DeviceRecord, old: HealthRecord) -> bool:
    """Another card is in the slot."""
    return bool(device.uuid and old.uuid and device.uuid != old.uuid)


def _swapped(s: Situation, old: HealthRecord, ledger_ms: int) -> HealthRecord | None:
    if not swapped(s.device, old):
        return None
    reason = f"another card is in the slot: {s.device.uuid} instead of {old.uuid}"
    fresh = moved(old, HealthState.PROBATION, reason, ledger_ms)
    return replace(fresh, uuid=s.device.uuid, evidence=(), flaps=0, drained_ms=())


def _doubted(s: Situation, old: HealthRecord, ledger_ms: int) -> HealthRecord | None:
    if another := _swapped(s, old, ledger_ms):
        return another
    if not s.distrust:
        return None
    return replace(moved(old, HealthState.UNKNOWN, s.distrust, ledger_ms), before_unknown=old.state)


def _unknown(s: Situation, old: HealthRecord, ledger_ms: int) -> HealthRecord | None:
    if s.distrust:
        return None if s.distrust == old.reason else replace(old, reason=s.distrust)
    if another := _swapped(s, old, ledger_ms):
        return another
    reason = f"known again after {duration(max(0, ledger_ms - old.since_ms))} ({old.reason})"
    return moved(old, old.before_unknown, reason, ledger_ms)


def _drained(s: Situation, old: HealthRecord, policy: Policy, ledger_ms: int) -> HealthRecord | None:
    if another := _swapped(s, old, ledger_ms):
        return another
    if s.distrust or any(calls_out(f) for f in s.findings):
        return None
    if s.drain is None or s.drain.requested_by != MACHINE or s.drain.maintenance:
        return None  # taken out by a human, or for something that gives it back, or nobody knows why
    if damped := waits_for_human(old, policy.drain):
        return None if old.reason == damped else replace(old, reason=damped)
    return moved(old, HealthState.REPAIRING, "the signs of its fault are gone", ledger_ms)


def _repairing(s: Situation, old: HealthRecord, policy: Policy, ledger_ms: int) -> HealthRecord | None:
    if another := _swapped(s, old, ledger_ms):
        return another
    if s.distrust:
        return None
    back = worst(f for f in s.findings if calls_out(f))
    if back is not None:
        return moved(old, HealthState.DRAINED, f"not repaired: {back.sentence}", ledger_ms)
    if min(s.held_ms, s.quiet_ms) < policy.repair_hold_ms:
        return None
    reason = f"without signs of its fault for {duration(policy.repair_hold_ms)}"
    return moved(old, HealthState.PROBATION, reason, ledger_ms)


def _probation(s: Situation, old: HealthRecord, policy: Policy, ledger_ms: int) -> HealthRecord | None:
    weighing = [f for f in s.findings if weighs_on_device(f)]
    gravest = worst(weighing)
    if gravest is not None and _target(weighing) is HealthState.DEGRADED:
        failed = moved(old, HealthState.DEGRADED, f"failed its probation: {gravest.sentence}", ledger_ms)
        return replace(_resting_on(failed, s.findings), flaps=old.flaps + 1)
    if weighing or s.busy or needs_test(old, policy) or min(s.held_ms, s.quiet_ms) < policy.probation_ms:
        return None
    tested = ", self-test passed" if old.tested_ms >= old.since_ms else ""
    reason = f"passed its probation: no findings for {duration(policy.probation_ms)}{tested}"
    healthy = moved(old, HealthState.HEALTHY, reason, ledger_ms)
    return replace(healthy, evidence=(), incident=IncidentId(""), drain=DrainId(""), trace="")


def _target(weighing: list[FindingRecord]) -> HealthState:
    if any(calls_out(f) or f.severity in (Severity.ERROR, Severity.FATAL) for f in weighing):
        return HealthState.DEGRADED
    return HealthState.SUSPECT if weighing else HealthState.HEALTHY


def _judged(s: Situation, old: HealthRecord, policy: Policy, ledger_ms: int) -> HealthRecord | None:
    weighing = [f for f in s.findings if weighs_on_device(f)]
    target, gravest = _target(weighing), worst(weighing)
    if _BADNESS[target] > _BADNESS[old.state]:
        assert gravest is not None, "a device gets worse on evidence only"
        calm = old.state is HealthState.HEALTHY and ledger_ms - old.since_ms >= policy.probation_ms
        flaps = 0 if calm else old.flaps
        worse = replace(moved(old, target, gravest.sentence, ledger_ms), flaps=flaps)
        return _resting_on(worse, s.findings)
    if target is old.state:
        if not weighing:
            return None
        refreshed = _resting_on(old, s.findings)
        return None if refreshed == old else refreshed
    if s.quiet_ms < hold_ms(old.flaps, policy):
        return None
    if target is HealthState.HEALTHY:
        well = moved(old, target, f"well again: no findings for {duration(s.quiet_ms)}", ledger_ms)
        return replace(well, evidence=(), incident=IncidentId(""), drain=DrainId(""), trace="", flaps=old.flaps + 1)
    assert gravest is not None, "a suspect device has a finding"
    better = moved(old, target, gravest.sentence, ledger_ms)
    return replace(_resting_on(better, s.findings), drain=DrainId(""))


def hold_ms(flaps: int, policy: Policy) -> int:
    """How long it must be quiet before the device counts as better; doubles with each flap, at most 16-fold."""
    return policy.repair_hold_ms << min(flaps, MAX_DOUBLINGS)


def _resting_on(record: HealthRecord, findings: tuple[FindingRecord, ...]) -> HealthRecord:
    """``record`` with the evidence of the findings that weigh on it; the gravest one gives reason, rule and trace."""
    weighing = sorted((f for f in findings if weighs_on_device(f)), key=lambda f: (f.observed_ms, f.id))
    gravest = worst(weighing)
    if gravest is None:
        return record
    first = weighing[0]
    return replace(
        record,
        reason=gravest.sentence,
        evidence=merged((), (*(f.id for f in weighing), *gravest.evidence[:1])),
        rule=gravest.rule,
        rule_version=gravest.rule_version,
        trace=first.trace,
    )
