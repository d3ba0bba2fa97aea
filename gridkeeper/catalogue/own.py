"""Verdicts on what has no vendor's table: what agents themselves notice, replayed events, and AMD's error records."""

from __future__ import annotations

from dataclasses import replace

from gridkeeper.catalogue.codes import AmdCode
from gridkeeper.catalogue.model import VERSION, JobEffect, Verdict
from gridkeeper.catalogue.tables import sources, table
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import EventKind, EventRecord

MISSING, LOST, HANG, OVERFLOW = "device-missing", "device-lost", "driver-hang", "overflow"
SELF_TEST = "self-test"
AFIDS = range(1, 1000)


def _verdict(
    code: str, fault_class: str, scope: Scope, severity: Severity, action: Action, meaning: str, rule: str,
    job: JobEffect = JobEffect.UNKNOWN, confidence: Confidence = Confidence.HIGH,
) -> Verdict:  # fmt: skip
    return Verdict(
        code,
        fault_class,
        scope,
        severity,
        action,
        meaning,
        rule,
        VERSION,
        sources()["gridkeeper"].cited,
        confidence,
        job,
    )


def of_agent(event: EventRecord) -> Verdict | None:
    """What an agent notices without a code of the vendor's. None: a passed self-test."""
    rule = f"event-{event.kind.value}"
    match event.kind:
        case EventKind.DEVICE_MISSING:
            # Only the driver's own word "lost" convicts; a device that merely is not listed is unknown.
            if "is lost" in event.message.lower():
                meaning = "the driver says that the GPU is lost"
                scope, action = Scope.NODE, Action.REBOOT_NODE
                return _verdict(LOST, "bus", scope, Severity.FATAL, action, meaning, rule, JobEffect.ALL_DIE)
            meaning = "the device is missing from the inventory"
            return _verdict(MISSING, "bus", Scope.DEVICE, Severity.ERROR, Action.WATCH, meaning, rule)
        case EventKind.DRIVER_HANG:
            meaning = "a driver call does not come back"
            return _verdict(HANG, "driver", Scope.DEVICE, Severity.ERROR, Action.WATCH, meaning, rule)
        case EventKind.OVERFLOW:
            meaning = "events were dropped, so what happened meanwhile is unknown"
            return _verdict(OVERFLOW, "telemetry", Scope.NODE, Severity.WARNING, Action.WATCH, meaning, rule)
        case _:
            if event.code == 0:
                return None
            meaning = f"the self-test failed ({event.message[:120]})"
            return _verdict(SELF_TEST, SELF_TEST, Scope.DEVICE, Severity.FATAL, Action.DRAIN, meaning, rule)


def of_replay(event: EventRecord) -> Verdict:
    """An event that a replay makes up: watched, whatever its number."""
    meaning = f"replayed event {event.code} ({event.message[:120]})"
    code, rule = f"replay-{event.code}", "event-replay"
    return _verdict(
        code, "replay", Scope.DEVICE, Severity.WARNING, Action.WATCH, meaning, rule, confidence=Confidence.LOW
    )


def refine_amd(event: EventRecord, verdict: Verdict) -> Verdict:
    """A record with an AFID means what its severity says: the list from AFID to action is not public, so confidence
    stays low where it says none."""
    if event.code not in AFIDS:
        return verdict
    text = event.message.lower()
    if "corrected" in text and "uncorrected" not in text and "fatal" not in text:
        record = AmdCode.CPER_CORRECTED
    elif "non-fatal" in text or "nonfatal" in text or "uncorrected" in text:
        record = AmdCode.CPER_UNCORRECTED
    elif "fatal" in text:
        record = AmdCode.CPER_FATAL
    else:
        return verdict
    entry = table(EventKind.AMD)[record]
    return replace(
        verdict, fault_class=entry.fault_class, scope=entry.scope, severity=entry.severity, action=entry.action,
        job=entry.job, source=entry.source.cited, confidence=Confidence.MEDIUM,
        meaning=f"{entry.meaning}, AFID {event.code} ({event.message[:120]})",
    )  # fmt: skip
