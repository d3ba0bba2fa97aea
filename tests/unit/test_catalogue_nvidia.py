"""The XID catalogue agrees with the facts that it carries, and with what operators know about the codes that matter."""

from __future__ import annotations

import csv
import importlib.resources

import pytest

from gridkeeper.catalogue import nvidia
from gridkeeper.catalogue.nvidia import ACTION_OF, OVERRULED, lookup_xid, recovery_action, xids
from gridkeeper.records.common import Action, Scope, Severity

OUT = {Action.DRAIN, Action.REBOOT_NODE, Action.REPLACE}


def test_all_172_codes_are_there_once_and_in_order() -> None:
    text = importlib.resources.files(nvidia.__package__).joinpath("nvidia_xid.csv").read_text()
    codes = [int(row["xid"]) for row in csv.DictReader(text.splitlines())]
    assert codes == list(range(1, 173)) == list(xids())


@pytest.mark.parametrize("entry", xids().values(), ids=lambda entry: f"xid-{entry.code}")
def test_each_action_follows_from_nvidias_column_by_the_one_table(entry: nvidia.CatalogueEntry) -> None:
    assert entry.action is OVERRULED.get(entry.code, ACTION_OF[entry.immediate])
    assert (entry.severity is Severity.FATAL) == (entry.action in OUT), "what takes a device out is fatal, only that"
    assert entry.source and entry.source_version and entry.source_date
    assert entry.mnemonic and entry.fault_class


def test_overruling_is_not_left_over() -> None:
    assert all(ACTION_OF[lookup_xid(code).immediate] is not action for code, action in OVERRULED.items())


FACTS = {
    13: (Severity.WARNING, Scope.PROCESS, Action.RESTART_JOB, "app"),
    31: (Severity.WARNING, Scope.PROCESS, Action.RESTART_JOB, "app"),
    43: (Severity.WARNING, Scope.PROCESS, Action.WATCH, "app"),
    45: (Severity.WARNING, Scope.PROCESS, Action.WATCH, "app"),
    48: (Severity.FATAL, Scope.DEVICE, Action.DRAIN, "memory"),
    63: (Severity.WARNING, Scope.DEVICE, Action.WATCH, "memory"),
    64: (Severity.FATAL, Scope.DEVICE, Action.REPLACE, "memory"),
    74: (Severity.FATAL, Scope.LINK, Action.DRAIN, "link"),
    79: (Severity.FATAL, Scope.NODE, Action.REBOOT_NODE, "bus"),
    92: (Severity.WARNING, Scope.DEVICE, Action.WATCH, "memory"),
    94: (Severity.ERROR, Scope.DEVICE, Action.RESTART_JOB, "memory"),
    95: (Severity.FATAL, Scope.DEVICE, Action.DRAIN, "memory"),
    119: (Severity.FATAL, Scope.DEVICE, Action.DRAIN, "gsp"),
    144: (Severity.WARNING, Scope.LINK, Action.WATCH, "link"),
}


@pytest.mark.parametrize("code", FACTS)
def test_the_codes_that_matter(code: int) -> None:
    entry = lookup_xid(code)
    assert (entry.severity, entry.scope, entry.action, entry.fault_class) == FACTS[code]


def test_reset_codes_take_the_device_out() -> None:
    for code in (46, 62, 74, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158):
        assert lookup_xid(code).action is Action.DRAIN, code


@pytest.mark.parametrize("code", [0, -1, 173, 9999])
def test_an_unknown_code_is_watched_by_stated_policy(code: int) -> None:
    entry = lookup_xid(code)
    assert (entry.severity, entry.action, entry.known) == (Severity.WARNING, Action.WATCH, False)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", Action.DRAIN),
        ("154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", Action.REBOOT_NODE),
        ("154, GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", Action.DRAIN),
        ("154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x4 (Drain and Reset)", Action.DRAIN),
        ("154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", Action.IGNORE),
        ("XID 154 (NVML event)", None),
        ("", None),
    ],
)
def test_the_text_of_154_says_what_is_to_be_done(text: str, action: Action | None) -> None:
    assert recovery_action(text) is action
