"""What operators know about the XIDs that matter, and what overrules the number: registers, text, architecture."""

from __future__ import annotations

import pytest

from gridkeeper.catalogue import JobEffect, Verdict, judge, nvlink5
from gridkeeper.catalogue.nvidia import recovery_action
from gridkeeper.policy.model import CataloguePolicy, Policy
from gridkeeper.records.common import Action, Label, Scope, Severity
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import DeviceRecord, EventKind
from tests.unit.events import card, event

HOPPER, VOLTA = card("hopper", "NVIDIA H100 80GB HBM3"), card("volta", "Tesla V100-SXM2-32GB")
BLACKWELL = card("blackwell", "NVIDIA GB200")


def judged(code: int, message: str = "", device: DeviceRecord = HOPPER, policy: Policy | None = None) -> Verdict:
    verdict = judge(event(EventKind.XID, code, message), device, policy or Policy())
    assert verdict is not None
    return verdict


FACTS = {
    13: (Severity.WARNING, Scope.PROCESS, Action.RESTART_JOB, "app"),
    31: (Severity.WARNING, Scope.PROCESS, Action.RESTART_JOB, "app"),
    43: (Severity.WARNING, Scope.PROCESS, Action.WATCH, "app"),
    45: (Severity.WARNING, Scope.PROCESS, Action.WATCH, "app"),
    48: (Severity.FATAL, Scope.DEVICE, Action.RESET_DEVICE, "memory"),
    63: (Severity.WARNING, Scope.DEVICE, Action.WATCH, "memory"),
    64: (Severity.FATAL, Scope.DEVICE, Action.REPLACE, "memory"),
    74: (Severity.FATAL, Scope.LINK, Action.RESET_DEVICE, "link"),
    79: (Severity.FATAL, Scope.NODE, Action.REBOOT_NODE, "bus"),
    92: (Severity.WARNING, Scope.DEVICE, Action.WATCH, "memory"),
    94: (Severity.ERROR, Scope.DEVICE, Action.RESTART_JOB, "memory"),
    95: (Severity.FATAL, Scope.DEVICE, Action.RESET_DEVICE, "memory"),
    119: (Severity.FATAL, Scope.DEVICE, Action.RESET_DEVICE, "gsp"),
    144: (Severity.WARNING, Scope.LINK, Action.WATCH, "link"),
}


@pytest.mark.parametrize("code", FACTS)
def test_the_codes_that_matter(code: int) -> None:
    """Protects: severity, scope and action of the faults that a fleet sees most."""
    found = judged(code)
    assert (found.severity, found.scope, found.action, found.fault_class) == FACTS[code]


@pytest.mark.parametrize("code", [0, -1, 177, 9999, 1 << 40])
def test_an_unknown_code_means_what_the_policy_says(code: int) -> None:
    """Protects: an unknown code is a low-severity finding by stated policy, never an exception and never a drain."""
    found = judged(code)
    assert (found.severity, found.action, found.confidence) == (Severity.WARNING, Action.WATCH, Confidence.LOW)
    strict = Policy(catalogue=CataloguePolicy(unknown_severity=Severity.ERROR, unknown_action=Action.IGNORE))
    assert (judged(code, policy=strict).severity, judged(code, policy=strict).action) == (Severity.ERROR, Action.IGNORE)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", Action.RESET_DEVICE),
        ("154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", Action.REBOOT_NODE),
        ("154, GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", Action.DRAIN),
        (
            "154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x4 (Drain and Reset)",
            Action.RESET_DEVICE,
        ),
        ("154, GPU recovery action changed from 0x0 (None) to 0x5 (Recover IMEX Domain)", Action.WATCH),
        ("154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", Action.IGNORE),
        ("XID 154 (NVML event)", None),
        ("", None),
    ],
)
def test_the_text_of_154_says_what_is_to_be_done(text: str, action: Action | None) -> None:
    """Protects: the driver's own recovery action overrules what a number suggests."""
    assert recovery_action(text) is action
    assert judged(154, text).action is (action or Action.WATCH)


NETIR = "NVRM: Xid (PCI:0009:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000 0x0 0x0)"
PEER = "NVRM: Xid (PCI:0008:01:00): 149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x00000000 0x00000000)"
BER = "NVRM: Xid (PCI:0008:01:00): 149, NETIR_BER_EVENT Nonfatal XC0 i0 Link 01 (0x00082226 0x00000001 0x0 0x0)"
TRACK = (
    "NVRM: Xid (PCI:0008:01:00): 145, pid=11436, name=cache_mgr_main, RLW_SRC_TRACK Nonfatal XC1 i0 Link 03 "
    "(0x040868e2 0x00000008 0x00000000 0x00000000 0x00000000 0x00000000)"
)
RXPIPE = (
    "NVRM: Xid (PCI:0018:01:00): 145, pid=876767, name=ray::WorkerDict, RLW_RXPIPE Nonfatal XC0 i0 Link 13 "
    "(0x0409a0c2 0x00000008 0x00000001 0x00000000 0x00100000 0x00000004)"
)
NEWER = "NVRM: Xid (PCI:0000:04:00): 146, TLW_CTRL Fatal XC0 i0 Link 00 (0x00000009 0x00000004 0x00000000 0x00000000)"
UNPUBLISHED = "NVRM: Xid (PCI:0000:04:00): 146, TLW_CTRL Fatal XC0 i0 Link 00 (0x00000009 0x00000100 0x0 0x0)"


@pytest.mark.parametrize(
    ("code", "line", "action", "severity", "place", "confidence"),
    [
        (149, NETIR, Action.RESET_DEVICE, Severity.FATAL, "link 1", Confidence.HIGH),
        (149, PEER, Action.RESET_DEVICE, Severity.FATAL, "", Confidence.HIGH),
        (149, BER, Action.WATCH, Severity.WARNING, "link 1", Confidence.HIGH),
        (145, TRACK, Action.WATCH, Severity.WARNING, "link 3", Confidence.HIGH),
        (145, RXPIPE, Action.WATCH, Severity.WARNING, "link 13", Confidence.HIGH),
        (146, NEWER, Action.RESET_DEVICE, Severity.FATAL, "link 0", Confidence.HIGH),
        (146, UNPUBLISHED, Action.WATCH, Severity.ERROR, "link 0", Confidence.LOW),
        (146, NEWER[:70], Action.WATCH, Severity.WARNING, "link 0", Confidence.MEDIUM),
        (149, "XID 149 (NVML event)", Action.WATCH, Severity.WARNING, "", Confidence.MEDIUM),
    ],
)
def test_nvlink5_is_decided_by_unit_and_registers_not_by_the_number(
    code: int, line: str, action: Action, severity: Severity, place: str, confidence: Confidence
) -> None:
    """Protects: real lines in either register layout; a line that is cut or unpublished drains nothing."""
    found = judged(code, line, BLACKWELL)
    assert (found.action, found.severity, found.place, found.confidence) == (action, severity, place, confidence)


def test_a_deferred_sub_code_waits_for_154() -> None:
    assert "XID 154 decides" in judged(145, TRACK, BLACKWELL).meaning
    assert nvlink5.job_of(next(r for r in nvlink5.rules() if r.says == "XID_154_EVAL")) is JobEffect.DIES


def hopper74(*registers: int) -> str:
    words = ", ".join(hex(value) for value in (*registers, *[0] * (7 - len(registers))))
    return f"NVRM: Xid (PCI:0003:00:00): 74, pid='<unknown>', NVLink: fatal error detected on link 14({words})"


@pytest.mark.parametrize(
    ("registers", "action", "severity"),
    [
        ((1 << 21,), Action.RESET_DEVICE, Severity.FATAL),  # marginal signal integrity
        ((1 << 8 | 1 << 1,), Action.RESET_DEVICE, Severity.FATAL),
        ((1 << 4,), Action.WATCH, Severity.ERROR),  # ECC or parity: only if it comes again on this link
        ((1 << 1,), Action.WATCH, Severity.ERROR),  # sympathetic
        ((1 << 27,), Action.WATCH, Severity.ERROR),
        ((0, 0, 0x10000), Action.WATCH, Severity.ERROR),
        ((0, 0, 1 << 13), Action.RESET_DEVICE, Severity.FATAL),
        ((0, 0, 0, 0, 1 << 20), Action.WATCH, Severity.INFO),  # corrected, continue
        ((1 << 23,), Action.WATCH, Severity.INFO),
        ((1 << 2,), Action.RESET_DEVICE, Severity.FATAL),  # a bit that the workflow does not name
        ((0, 0xFFFF), Action.RESET_DEVICE, Severity.FATAL),  # registers that do not count say nothing
    ],
)
def test_the_registers_of_74_on_hopper(registers: tuple[int, ...], action: Action, severity: Severity) -> None:
    """Protects: NVIDIA's NVLink workflow; other architectures keep the number's verdict."""
    found = judged(74, hopper74(*registers))
    assert (found.action, found.severity, found.place) == (action, severity, "link 14")
    assert judged(74, hopper74(*registers), card("ampere", "NVIDIA A100")).action is Action.RESET_DEVICE


MIG = "NVRM: Xid (PCI:0000:41:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: No, D-RST: No"
RST = "NVRM: Xid (PCI:0000:01:00): 94, pid=7062, Contained: CE User Channel (0x9). RST: Yes, D-RST: No"


def test_containment_depends_on_the_architecture() -> None:
    """Protects: who is hit by an uncorrectable memory error."""
    assert judged(48).job is JobEffect.DIES
    assert judged(48, device=card("ampere", "NVIDIA A100-SXM4-80GB")).job is JobEffect.DIES
    for other in (VOLTA, card("ampere", "NVIDIA A10"), card("ada", "NVIDIA L40S")):
        assert judged(48, device=other).job is JobEffect.ALL_DIE, other.model
        assert "every job" in judged(48, device=other).meaning
    assert judged(48, device=card("", "")).job is JobEffect.UNKNOWN
    assert judged(95).job is JobEffect.ALL_DIE


def test_a_line_that_names_a_mig_instance_is_about_that_partition() -> None:
    found = judged(94, MIG)
    assert (found.scope, found.place, found.action) == (Scope.PARTITION, "instance 5", Action.RESTART_JOB)
    uncontained = judged(95, MIG.replace("94", "95"))
    assert uncontained.scope is Scope.DEVICE, "an uncontained error leaves its partition"


def test_the_drivers_word_that_a_reset_is_needed_outweighs_contained() -> None:
    assert judged(94, RST).action is Action.RESET_DEVICE
    assert judged(94, RST.replace("Yes", "No")).action is Action.RESTART_JOB


def test_a_core_and_a_link_are_named_as_places() -> None:
    text = "NVRM: Xid (PCI:0000:2d:00): 13, pid=77, Graphics SM Warp Exception on (GPC 4, TPC 1, SM 0): Illegal"
    assert judged(13, text).place == "GPC 4 TPC 1"


def test_policy_chooses_the_source_per_vendor() -> None:
    """Protects: another source's verdict applies where it has one, with its name and version; else the vendor's."""
    gpud = Policy(catalogue=CataloguePolicy(sources=(Label("nvidia", "gpud"), Label("amd", "amdsmi"))))
    assert judged(32).action is Action.RESTART_JOB
    assert judged(32, policy=gpud).action is Action.REBOOT_NODE
    assert "gpud" in judged(32, policy=gpud).source and "2026-08-22" in judged(32, policy=gpud).source
    aws = Policy(catalogue=CataloguePolicy(sources=(Label("nvidia", "aws"),)))
    assert judged(168, policy=aws).action is Action.REBOOT_NODE
    assert judged(32, policy=aws).action is Action.RESTART_JOB, "AWS says nothing of 32"
    assert judged(173).confidence is Confidence.LOW and judged(173, policy=gpud).confidence is not Confidence.LOW


SXID = "nvidia-nvswitch1: SXid (PCI:0000:06:00.0): {}, {}, Link 48 something"


@pytest.mark.parametrize(
    ("code", "word", "action", "severity"),
    [
        (20034, "Fatal", Action.WATCH, Severity.ERROR),
        (12028, "Fatal", Action.REBOOT_NODE, Severity.FATAL),
        (12028, "Non-fatal", Action.WATCH, Severity.WARNING),
        (11012, "Non-fatal", Action.IGNORE, Severity.INFO),
        (11012, "Fatal", Action.WATCH, Severity.ERROR),
        (99999, "Fatal", Action.WATCH, Severity.ERROR),
        (99999, "Non-fatal", Action.WATCH, Severity.WARNING),
    ],
)
def test_the_line_of_an_sxid_says_whether_it_is_fatal(code: int, word: str, action: Action, severity: Severity) -> None:
    found = judge(event(EventKind.SXID, code, SXID.format(code, word), device=""), None, Policy())
    assert found is not None
    assert (found.action, found.severity, found.fault_class) == (action, severity, "fabric")
    assert found.place == "link 48"
