"""What follows from repairs that are over: findings that are cured, or new ones that say that nothing helped. Pure;
each is derived from what the records say, so that deciding it twice changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from controlplane.domain.evidence import Finding, is_level, seen_ms
from controlplane.domain.repair_index import latest_ms
from controlplane.domain.words import duration, listed, made_id
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, FindingId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import RepairKind, RepairRecord
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DrainRecord, FindingRecord
from gridkeeper.records.fleet import HealthState
from gridkeeper.snapshot import RegionState

RULE, RULE_VERSION = "repair", 1
NOT_CURED, TEST_FAILED = "repair-failed", "self-test-failed"
MAX_CLEARED = 40
KEPT_MS = 100 * 86_400_000
"""How long a repair that is over stays to be looked at; the audit trail keeps it for ever."""


def cured(
    state: RegionState, findings: Mapping[str, list[Finding]], repair: Versioned[RepairRecord], now: Now
) -> Iterator[Decision]:
    """A reset clears what a reset cures and was last seen before it (a reboot does so by its boot event; level rules
    speak for themselves). A passed self-test dates the device's health record. ``findings``: by subject."""
    record, keys, draft = repair.record, RegionKeys(state.region), Draft()
    done_ms = latest_ms(record)
    if record.kind is RepairKind.SELF_TEST:
        held = state.health.get(record.device)
        if held is None or held.record.uuid != record.uuid or held.record.state is not HealthState.PROBATION:
            return
        if held.record.tested_ms >= held.record.since_ms or record.proposed_ms < held.record.since_ms:
            return
        draft.put(keys.health(record.device), replace(held.record, tested_ms=now.ledger_ms), held)
        sentence = f"{record.device} has passed its self-test: {record.result}"
        guards = (Guard(keys.repair(record.id), repair.revision),)
        yield Decision("health.step", sentence, draft.writes(), guards, f"device/{record.device}", (), record.trace)
    elif record.kind is RepairKind.RESET_DEVICE:
        for finding in findings.get(record.device, ()):
            found = finding.record
            curable = found.active and found.action is Action.RESET_DEVICE and not is_level(found)
            if curable and seen_ms(found) <= done_ms and len(draft.puts) < MAX_CLEARED:
                draft.put(keys.finding(found.id), replace(found, active=False), finding)
        if draft.puts:
            sentence = f"{record.device} was reset by repair {record.id}: findings from before it are over"
            ids = tuple(name.rpartition("/")[2] for name in draft.puts)
            yield Decision("detect.clear", sentence, draft.writes(), (), f"device/{record.device}", ids, record.trace)


def not_cured(
    state: RegionState,
    device: DeviceId,
    drain: DrainRecord,
    kind: RepairKind,
    tried: Sequence[RepairRecord],
    now: Now,
) -> Iterator[Decision]:
    """As often as the policy allows, and it did not help: the device stays drained, to be replaced."""
    results = listed([f"{r.id}: {r.state.value}" for r in tried])  # ``tried``: the newest last
    meaning = f"{kind.value} did not help {device} ({results}); replace it"
    finding = _finding(state, tried[-1], device, NOT_CURED, drain.id, Action.REPLACE, meaning, now)
    yield from _raised(state, finding)


def test_failed(state: RegionState, record: RepairRecord, now: Now) -> Iterator[Decision]:
    """Its device is no good: not while it is on probation for this test only, but until it is returned by hand."""
    held = state.health.get(record.device)
    if held is None or held.record.uuid != record.uuid or held.record.state is not HealthState.PROBATION:
        return
    if record.proposed_ms < held.record.since_ms:
        return
    meaning = f"{record.device} failed its self-test: {record.result}"
    finding = _finding(state, record, record.device, TEST_FAILED, record.id, Action.DRAIN, meaning, now)
    yield from _raised(state, finding)


def _finding(
    state: RegionState,
    repair: RepairRecord,
    device: DeviceId,
    code: str,
    about: str,
    action: Action,
    sentence: str,
    now: Now,
) -> FindingRecord:
    return FindingRecord(
        id=FindingId(made_id(device, code, about)),
        region=state.region,
        node=repair.node,
        device=device,
        scope=Scope.DEVICE,
        fault_class="repair",
        code=code,
        severity=Severity.ERROR,
        action=action,
        sentence=sentence,
        evidence=(repair.id,),
        observed_ms=now.ledger_ms,
        rule=RULE,
        rule_version=RULE_VERSION,
        active=True,
        trace=repair.trace,
    )


def _raised(state: RegionState, finding: FindingRecord) -> Iterator[Decision]:
    """Once: one that a human has cleared stays cleared."""
    keys = RegionKeys(state.region)
    if finding.id in state.findings or keys.finding(finding.id) in state.suspect_keys:
        return
    draft = Draft()
    draft.put(keys.finding(finding.id), finding, None)
    yield Decision(
        "detect.classify", finding.sentence, draft.writes(), (), f"device/{finding.device}", finding.evidence,
        finding.trace,
    )  # fmt: skip


def forgotten(keys: RegionKeys, over: Sequence[Versioned[RepairRecord]], now: Now) -> Iterator[Decision]:
    """``over``: repairs from which nothing follows any more, in the order of their ends."""
    for repair in over:
        record = repair.record
        if now.ledger_ms - latest_ms(record) < KEPT_MS:
            return
        draft = Draft()
        draft.delete(keys.repair(record.id), repair)
        sentence = f"repair {record.id} has been over for {duration(KEPT_MS)} and is in the audit trail alone"
        yield Decision("repair.forget", sentence, draft.writes(), (), f"repair/{record.id}", audit=False)
