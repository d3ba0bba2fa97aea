"""What a rule's finding is: its id, what it says, and when it has to be written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.domain.words import made_id
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, FindingId
from gridkeeper.policy.model import Mode, RulePolicy
from gridkeeper.records.faults import Confidence, FindingRecord
from gridkeeper.records.fleet import DeviceRecord


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule's finding on a device has to be raised, or cleared. ``values``: ``column=value`` of what was looked at."""

    device: DeviceId
    rule: str
    raised: RulePolicy | None
    """The rule whose finding it is; None: it is cleared."""
    values: tuple[str, ...] = ()


def finding_id(device: DeviceId, rule: str) -> FindingId:
    return FindingId(made_id(device, f"policy-{rule}"))


def is_rules(finding: FindingRecord) -> bool:
    """It was raised by a rule over the fleet table."""
    return bool(finding.device) and finding.id == finding_id(finding.device, finding.rule)


def agrees(finding: FindingRecord, rule: RulePolicy) -> bool:
    """The finding says what the rule would say now."""
    said = (finding.fault_class, finding.severity, finding.action, finding.scope, finding.shadow)
    return said == (rule.fault_class, rule.severity, rule.action, rule.scope, rule.mode is Mode.SHADOW)


def finding_for(
    transition: Transition,
    device: DeviceRecord,
    findings: Mapping[str, Versioned[FindingRecord]],
    policy_version: int,
    wall_ms: int,
    trace: str,
) -> FindingRecord | None:
    """The finding as it should be after a transition; None: it is so already. ``trace``: for one that is new."""
    name = finding_id(device.id, transition.rule)
    held = findings.get(name)
    old = held.record if held else None
    rule = transition.raised
    if rule is None:
        return replace(old, active=False) if old is not None and old.active else None
    if old is not None and old.active and agrees(old, rule):
        return None
    again = old is not None and old.active  # the same fault under a changed rule
    values = f" ({', '.join(transition.values)})" if transition.values else ""
    return FindingRecord(
        id=name,
        region=device.region,
        node=device.node,
        device=device.id,
        scope=rule.scope,
        fault_class=rule.fault_class,
        code=rule.name,
        severity=rule.severity,
        action=rule.action,
        sentence=f"{device.id}: {rule.meaning}{values}",
        evidence=transition.values,
        observed_ms=old.observed_ms if old is not None and again else wall_ms,
        rule=rule.name,
        rule_version=policy_version,
        active=True,
        trace=old.trace if old is not None and again else trace,
        source=f"policy {policy_version}",
        confidence=Confidence.MEDIUM,
        shadow=rule.mode is Mode.SHADOW,
    )
