"""The one question everybody asks of the catalogue: what does this event mean? Pure; never raises, whatever an event
holds.

Stated policies:

- A code that the catalogue does not have means what ``Policy.catalogue.unknown_severity`` and ``unknown_action`` say
  (a warning that is watched), with low confidence.
- ``Policy.catalogue.sources`` chooses, per vendor, whose verdicts apply. Where the chosen source says nothing about a
  code, the vendor's own verdict does.
- ``Policy.events`` comes last: a site's own rule overrules everything. One in shadow mode overrules nothing: what it
  would say stands beside the verdict (``rehearsed``).
- Confidence is low for unknown codes and where public facts are thin, medium where the sources contradict each other,
  high otherwise and where the driver itself says what is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from gridkeeper.catalogue import nvidia, own
from gridkeeper.catalogue.model import (
    VERSION,
    Evidence,
    JobEffect,
    Opinion,
    Verdict,
    finding_code,
)
from gridkeeper.catalogue.tables import VENDOR, disputed, opinions, sources, table
from gridkeeper.policy.model import CataloguePolicy, EventPolicy, Mode, Policy
from gridkeeper.records.common import Scope
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import DeviceRecord, EventKind, EventRecord
from gridkeeper.selector import Selector
from gridkeeper.selector import parse as parse_selector

SHOWN = 120
"""Characters of an event's text that a sentence quotes."""

UNJUDGED = "open-gpu"
"""The source that names XIDs without saying what to do about them: such a code is as good as unknown."""

CLASS_OF_UNKNOWN = {EventKind.XID: "driver", EventKind.SXID: "fabric", EventKind.HOST: "host"}


def judge(event: EventRecord, device: DeviceRecord | None, policy: Policy) -> Verdict | None:
    """What one event means by itself (chains and repeats are the detector's); None: it convicts nobody.

    ``device`` None: the event is about the node, or its device is not in the inventory.
    """
    verdict = _catalogued(event, device, policy.catalogue)
    if verdict is None:
        return None
    if not event.device:
        narrow = verdict.scope in (Scope.DEVICE, Scope.PARTITION)
        verdict = replace(verdict, scope=Scope.NODE if narrow else verdict.scope)
    for rule in policy.events:
        if rule.mode is not Mode.SHADOW and _matches(rule, event, device):
            return _overruled(rule, verdict, policy.version)
    return verdict


def rehearsed(event: EventRecord, device: DeviceRecord | None, policy: Policy, verdict: Verdict) -> Verdict | None:
    """What a site's rule in shadow mode would make of an event whose verdict is ``verdict``; None: none would be the
    first to decide. It stands beside the verdict that counts, so that a rule on trial takes nothing out of force."""
    rule = next((rule for rule in policy.events if _matches(rule, event, device)), None)
    return _overruled(rule, verdict, policy.version) if rule is not None and rule.mode is Mode.SHADOW else None


def _catalogued(event: EventRecord, device: DeviceRecord | None, chosen: CataloguePolicy) -> Verdict | None:
    match event.kind:
        case EventKind.BOOT | EventKind.DEVICE_FOUND:
            return None
        case EventKind.XID:
            return nvidia.refine_xid(event, device, _by_number(event, chosen, "XID"))
        case EventKind.SXID:
            return nvidia.refine_sxid(event, _by_number(event, chosen, "SXID"))
        case EventKind.AMD:
            return own.refine_amd(event, _by_number(event, chosen, "AMD code"))
        case EventKind.ASCEND | EventKind.CAMBRICON | EventKind.PPU | EventKind.HOST:
            return _by_number(event, chosen, f"{event.kind.value} code")
        case EventKind.DEVICE_MISSING | EventKind.DRIVER_HANG | EventKind.OVERFLOW | EventKind.SELF_TEST:
            return own.of_agent(event)
        case EventKind.REPLAY:
            return own.of_replay(event)


def _by_number(event: EventRecord, chosen: CataloguePolicy, label: str) -> Verdict:
    kind, code = event.kind, event.code
    entry, every = table(kind).get(code), opinions(kind, code)
    name = f"{code:08X}" if kind is EventKind.ASCEND else str(code)
    quoted = f" ({event.message[:SHOWN]})" if event.message and kind not in (EventKind.XID, EventKind.SXID) else ""
    wanted = preferred(kind, chosen)
    opinion = next((o for o in every if wanted and o.source.id == wanted), None)
    if opinion is None and entry is not None and (entry.says or entry.source.id != UNJUDGED):
        opinion = Opinion(entry.source, entry.says, entry.severity, entry.action)
    said = f"{label} {name} ({entry.meaning if entry else 'unknown code' if opinion is None else opinion.says}){quoted}"
    if opinion is None:
        severity, action, confidence = chosen.unknown_severity, chosen.unknown_action, Confidence.LOW
        source = f"policy for unknown codes; {sources()['gridkeeper'].cited}"
    else:
        severity, action, source = opinion.severity, opinion.action, opinion.source.cited
        confidence = _confidence(kind, code, opinion)
    return Verdict(
        code=finding_code(kind, code),
        fault_class=entry.fault_class if entry else CLASS_OF_UNKNOWN.get(kind, "device"),
        scope=entry.scope if entry else Scope.DEVICE,
        severity=severity,
        action=action,
        meaning=said,
        rule=rule_of(kind),
        rule_version=VERSION,
        source=source,
        confidence=confidence,
        job=entry.job if entry else JobEffect.UNKNOWN,
        evidence=entry.evidence if entry else Evidence.ONE,
    )


def _confidence(kind: EventKind, code: int, opinion: Opinion) -> Confidence:
    if opinion.source.tier == "thin":
        return Confidence.LOW
    no_action_given = kind is EventKind.XID and not opinion.says
    return Confidence.MEDIUM if no_action_given or disputed(kind, code) else Confidence.HIGH


def rule_of(kind: EventKind) -> str:
    """The name of a kind's table as findings cite it: ``nvidia-xid``, ``host``."""
    vendor = VENDOR.get(kind, "agent")
    return f"{vendor}-{kind.value}" if kind in (EventKind.XID, EventKind.SXID) else vendor


def preferred(kind: EventKind, chosen: CataloguePolicy) -> str:
    """The source that the policy chooses for a kind; "": the vendor's own."""
    vendor = VENDOR.get(kind, "")
    return next((label.value for label in chosen.sources if label.key == vendor and label.value != vendor), "")


# -- a site's own rules -----------------------------------------------------------------------------------------------


def _matches(rule: EventPolicy, event: EventRecord, device: DeviceRecord | None) -> bool:
    if rule.mode is Mode.OFF or rule.kind != event.kind.value or (rule.codes and event.code not in rule.codes):
        return False
    if rule.pattern and not _contains(event.message, rule.pattern):
        return False
    selector = _selector(rule.select)
    return not selector or selector.matches(labels(event, device))


def _contains(message: str, pattern: str) -> bool:
    """In time linear in the message, which may be a program's own: no text and no pattern hold up the leader."""
    import polars as pl  # not above: agents import this package, and judge nothing

    return bool(pl.Series([message]).str.contains(pattern).item())


@functools.lru_cache(maxsize=256)
def _selector(text: str) -> Selector:
    return parse_selector(text)


def labels(event: EventRecord, device: DeviceRecord | None) -> Mapping[str, str]:
    """What a ``select`` of an event rule can look at."""
    found = {"node": event.node, "device": event.device}
    if device is not None:
        found |= {
            "region": device.region, "zone": device.zone, "rack": device.rack, "vendor": device.vendor,
            "model": device.model, "architecture": device.architecture,
        }  # fmt: skip
    return found


def _overruled(rule: EventPolicy, verdict: Verdict, version: int) -> Verdict:
    return replace(
        verdict,
        fault_class=rule.fault_class or verdict.fault_class,
        scope=rule.scope or verdict.scope,
        severity=rule.severity,
        action=rule.action,
        rule=f"events/{rule.name}",
        rule_version=version,
        source=f"policy v{version}, event rule {rule.name}",
        confidence=Confidence.HIGH,
        shadow=rule.mode is Mode.SHADOW,
    )
