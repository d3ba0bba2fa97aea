"""NVIDIA's XIDs and SXIDs: what the number says, and what overrules it.

Mnemonics, meanings and actions are NVIDIA's own (``nvidia_xid.csv``; ``ACTION_OF`` says what its actions come to here,
``DEVIATIONS`` where we differ and why). In this order, the later overruling the earlier:

1. the number, by the source that the policy chooses;
2. its registers: unit and error status of 144 to 150 (``nvlink5``), register bits of 74 on Hopper (``nvlink4``);
3. the driver's own words: "RST: Yes" of 94 and 95, the text of 154, "Non-fatal" of an SXID;
4. the architecture: only GA100, GH100 and Blackwell contain memory errors; elsewhere one hits every job of the card.

A MIG instance that the line names ("PCI:0000:41:00 GPU-I:05") narrows a contained fault to that partition.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gridkeeper.catalogue import nvlink4, nvlink5
from gridkeeper.catalogue.model import Evidence, JobEffect, Verdict
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import DeviceRecord, EventRecord

DOUBLE_BIT, CONTAINED, UNCONTAINED, CLEAN_UP, RECOVERY = 48, 94, 95, 45, 154
NVLINK4 = 74

ACTION_OF: dict[str, Action] = {
    "RESET_GPU": Action.RESET_DEVICE,
    "WORKFLOW_XID_48": Action.RESET_DEVICE,  # ends in a reset, for DRAM (171) and for SRAM (172)
    "WORKFLOW_NVLINK_ERR": Action.RESET_DEVICE,  # without its registers: as when they say hardware
    "CHECK_MECHANICALS": Action.DRAIN,  # somebody must open the machine
    "RESTART_BM": Action.REBOOT_NODE,
    "RESTART_VM": Action.REBOOT_NODE,
    "RESTART_APP": Action.RESTART_JOB,
    "IGNORE": Action.WATCH,
    "CONTACT_SUPPORT": Action.WATCH,
    "UPDATE_SWFW": Action.WATCH,
    "CHECK_UVM": Action.WATCH,
    "WORKFLOW_XID_45": Action.WATCH,
    "WORKFLOW_NVLINK5_ERR": Action.WATCH,  # the registers decide
    "XID_154": Action.WATCH,  # the text decides
    "": Action.WATCH,  # NVIDIA gives none
}
"""NVIDIA's immediate action -> ours."""

DEVIATIONS: dict[int, tuple[Action, str]] = {
    64: (
        Action.REPLACE,
        "a failed remap sets the card's RMA flag (NVIDIA, GPU memory error management); a reset does not bring the "
        "row back",
    ),
}
"""XIDs whose action is not ``ACTION_OF`` NVIDIA's immediate one, and why."""

_RECOVERY: tuple[tuple[re.Pattern[str], Action], ...] = (
    (re.compile(r"node reboot", re.IGNORECASE), Action.REBOOT_NODE),
    (re.compile(r"gpu reset|drain and reset", re.IGNORECASE), Action.RESET_DEVICE),
    (re.compile(r"drain p2p", re.IGNORECASE), Action.DRAIN),
    (re.compile(r"recover imex domain", re.IGNORECASE), Action.WATCH),
    (re.compile(r"\bnone\b", re.IGNORECASE), Action.IGNORE),
)
"""The driver's names of its recovery actions (open-gpu-kernel-modules, gpu.c)."""

_RESET_NEEDED = re.compile(r"\b(?:D-)?RST:\s*Yes\b", re.IGNORECASE)
_INSTANCE = re.compile(r"\bGPU-I:\s*(\d{1,3})")
_CORE = re.compile(r"\bGPC\s*(\d{1,3}),?\s*TPC\s*(\d{1,3})", re.IGNORECASE)
_LINK = re.compile(r"\blink\s+(\d{1,3})\b", re.IGNORECASE)
_FATAL = re.compile(r"\b(non-?)?fatal\b", re.IGNORECASE)

_CONTAINS_NOTHING = frozenset({"kepler", "maxwell", "pascal", "volta", "turing", "ada"})
_GA100 = re.compile(r"\bA(?:100|800|30)\b", re.IGNORECASE)
_CONSUMER = re.compile(r"\b(?:RTX|GeForce|Quadro)\b", re.IGNORECASE)


def contains_errors(device: DeviceRecord | None) -> bool | None:
    """Whether the card confines an uncorrectable memory error to the processes that touch it; None: not known."""
    if device is None:
        return None
    architecture = device.architecture.lower()
    if architecture in _CONTAINS_NOTHING:
        return False
    if architecture == "ampere":
        return bool(_GA100.search(device.model))
    if architecture in ("hopper", "blackwell"):
        return not _CONSUMER.search(device.model)
    return None


def recovery_action(text: str) -> Action | None:
    """What XID 154 says must be done now: the last action that its text names ("… changed from 0x0 (None) to 0x1 (GPU
    Reset Required)"). ``IGNORE``: nothing any more. None: the text names none (NVML gives the bare number)."""
    found = [(match.start(), action) for pattern, action in _RECOVERY for match in pattern.finditer(text)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def place_of(message: str) -> str:
    """Where within the card, as far as the text says: "GPC 4 TPC 1", "link 14", or ""."""
    if core := _CORE.search(message):
        return f"GPC {int(core[1])} TPC {int(core[2])}"
    if link := _LINK.search(message):
        return f"link {int(link[1])}"
    return ""


def refine_xid(event: EventRecord, device: DeviceRecord | None, verdict: Verdict) -> Verdict:
    """The number's verdict, overruled by what the line and the card say."""
    text = event.message
    if place := place_of(text):
        verdict = replace(verdict, place=place)
    if event.code in nvlink5.CODES:
        return _nvlink5(event.code, text, verdict)
    if event.code == NVLINK4:
        return _nvlink4(text, device, verdict)
    if event.code == RECOVERY:
        return _recovery(text, verdict)
    if event.code in (CONTAINED, UNCONTAINED) and _RESET_NEEDED.search(text) and verdict.action not in _OUT:
        verdict = replace(
            verdict, severity=Severity.FATAL, action=Action.RESET_DEVICE, confidence=Confidence.HIGH,
            evidence=Evidence.TEXT, meaning=f"{verdict.meaning}, and the driver asks for a reset",
        )  # fmt: skip
    return _contained(event.code, text, device, verdict)


_OUT = frozenset({Action.RESET_DEVICE, Action.REBOOT_NODE, Action.DRAIN, Action.REPLACE})


def _contained(code: int, text: str, device: DeviceRecord | None, verdict: Verdict) -> Verdict:
    contains = contains_errors(device)
    if code in (DOUBLE_BIT, CONTAINED) and contains is False:
        return replace(
            verdict, scope=Scope.DEVICE, job=JobEffect.ALL_DIE,
            meaning=f"{verdict.meaning}; this card does not contain memory errors, so every job on it is hit",
        )  # fmt: skip
    if code == DOUBLE_BIT and contains is None:
        verdict = replace(verdict, job=JobEffect.UNKNOWN)
    instance = _INSTANCE.search(text)
    if instance and verdict.scope is Scope.DEVICE and verdict.job is not JobEffect.ALL_DIE:
        return replace(verdict, scope=Scope.PARTITION, place=verdict.place or f"instance {int(instance[1])}")
    return verdict


def _recovery(text: str, verdict: Verdict) -> Verdict:
    action = recovery_action(text)
    if action is None:
        return verdict
    if action is Action.IGNORE:
        return replace(
            verdict, severity=Severity.INFO, action=action, confidence=Confidence.HIGH, job=JobEffect.SURVIVES,
            meaning=f"{verdict.meaning}: none is needed any more",
        )  # fmt: skip
    said, severity = {
        Action.REBOOT_NODE: ("a reboot of the node", Severity.FATAL),
        Action.RESET_DEVICE: ("a reset of the GPU", Severity.FATAL),
        Action.DRAIN: ("draining its peer-to-peer traffic", Severity.FATAL),
    }.get(action, ("recovery of its IMEX domain, which needs an operator", Severity.ERROR))
    return replace(
        verdict, severity=severity, action=action, confidence=Confidence.HIGH, meaning=f"{verdict.meaning} to {said}"
    )


def _nvlink5(xid: int, text: str, verdict: Verdict) -> Verdict:
    line = nvlink5.read(text)
    if line is None:
        return verdict  # the number alone: watched, XID 154 says if a reset is needed
    rule = nvlink5.decode(xid, line)
    place = f"link {line.link}" if line.link >= 0 else ""
    if rule is None:
        word = "fatal" if line.fatal else "not fatal"
        return replace(
            verdict, place=place, confidence=Confidence.LOW,
            severity=Severity.ERROR if line.fatal else Severity.WARNING,
            meaning=f"{verdict.meaning} in {line.unit}, no published sub-code; the driver calls it {word}",
        )  # fmt: skip
    if rule.says == "RESET_GPU" and not line.fatal:
        return replace(
            verdict,
            place=place,
            confidence=Confidence.MEDIUM,
            severity=Severity.ERROR,
            evidence=Evidence.COMPANION,
            meaning=f"{verdict.meaning} in {rule.unit} (NVIDIA: {rule.says}, but the driver calls it not fatal; "
            "XID 154 decides)",
        )
    deferred = "; XID 154 decides" if rule.says == "XID_154_EVAL" else ""
    return replace(
        verdict, place=place, severity=nvlink5.severity_of(rule), action=nvlink5.action_of(rule),
        job=nvlink5.job_of(rule), confidence=Confidence.MEDIUM if rule.severity.endswith("?") else Confidence.HIGH,
        evidence=Evidence.COMPANION if deferred else Evidence.TEXT,
        meaning=f"{verdict.meaning} in {rule.unit} ({rule.severity.lower()}, NVIDIA: {rule.says}{deferred})",
    )  # fmt: skip


def _nvlink4(text: str, device: DeviceRecord | None, verdict: Verdict) -> Verdict:
    found = nvlink4.read(text)
    if found is None or device is None or device.architecture.lower() != "hopper":
        return verdict
    link, registers = found
    meaning = nvlink4.decode(registers)
    if meaning is None:
        return replace(verdict, place=f"link {link}", confidence=Confidence.MEDIUM)
    said = f"{verdict.meaning} on link {link}: {meaning.value}"
    if meaning not in nvlink4.STAYS:
        return replace(verdict, place=f"link {link}", evidence=Evidence.TEXT, meaning=said)
    quiet = meaning in (nvlink4.LinkFault.NOTHING, nvlink4.LinkFault.CORRECTED)
    return replace(
        verdict, place=f"link {link}", severity=Severity.INFO if quiet else Severity.ERROR, action=Action.WATCH,
        job=JobEffect.SURVIVES if quiet else JobEffect.UNKNOWN, evidence=Evidence.REPEAT, meaning=said,
    )  # fmt: skip


def refine_sxid(event: EventRecord, verdict: Verdict) -> Verdict:
    """The line's own "Fatal" or "Non-fatal" overrules the number; a switch's fault reaches the GPU that it concerns as
    that GPU's XID 74."""
    if place := place_of(event.message):
        verdict = replace(verdict, place=place)
    word = _FATAL.search(event.message)
    if word is None:
        return verdict
    if word[1] and verdict.severity in (Severity.ERROR, Severity.FATAL):
        return replace(
            verdict, severity=Severity.WARNING, action=Action.WATCH, scope=Scope.LINK, confidence=Confidence.HIGH,
            meaning=f"{verdict.meaning}, which the driver calls not fatal",
        )  # fmt: skip
    if not word[1] and verdict.severity in (Severity.INFO, Severity.WARNING):
        return replace(
            verdict, severity=Severity.ERROR, action=Action.WATCH, confidence=Confidence.MEDIUM,
            meaning=f"{verdict.meaning}, which the driver calls fatal",
        )  # fmt: skip
    return verdict
