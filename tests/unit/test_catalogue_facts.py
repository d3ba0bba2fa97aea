"""The catalogue against the vendors' published lists (``tests/data/facts``), row by row, and its deliberate deviations
from them, each with its reason."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gridkeeper.catalogue import JobEffect, judge, nvlink5
from gridkeeper.catalogue.ascend import LEVELS, Level
from gridkeeper.catalogue.codes import AmdCode, CambriconCode, HostCode, PpuCode
from gridkeeper.catalogue.model import finding_code
from gridkeeper.catalogue.nvidia import ACTION_OF, DEVIATIONS
from gridkeeper.catalogue.tables import FILES, by_finding, conflicts, opinions, sources, table
from gridkeeper.policy.model import Policy
from gridkeeper.records.common import Action, Severity
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import EventKind
from tests.unit.events import card, event

FACTS = Path(__file__).resolve().parents[1] / "data" / "facts"
OUT = {Action.RESET_DEVICE, Action.DRAIN, Action.REBOOT_NODE, Action.REPLACE}
BLACKWELL = card("blackwell", "NVIDIA GB200")


def facts(name: str) -> list[dict[str, str]]:
    with (FACTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


XIDS, NVLINK5, ASCEND = facts("nvidia-xid.csv"), facts("nvidia-nvlink5-xid.csv"), facts("ascend-fault-levels.csv")


def test_the_facts_are_whole() -> None:
    assert (len(XIDS), len(NVLINK5), len(ASCEND)) == (172, 94, 287)
    assert [int(row["xid"]) for row in XIDS] == list(range(1, 173)) == list(table(EventKind.XID))[:172]


@pytest.mark.parametrize("row", XIDS, ids=lambda row: f"xid-{row['xid']}")
def test_each_xid_is_nvidias(row: dict[str, str]) -> None:
    """Protects: mnemonic, meaning and both actions are NVIDIA's words, and our default action follows from them."""
    code = int(row["xid"])
    entry = table(EventKind.XID)[code]
    assert (entry.mnemonic, entry.meaning) == (row["mnemonic"], row["description"])
    assert (entry.says, entry.then) == (row["immediate_resolution"], row["investigatory_resolution"])
    assert entry.source.id == "nvidia" and entry.source.date == "2025-10-29"
    expected, _ = DEVIATIONS.get(code, (ACTION_OF[entry.says], ""))
    verdict = judge(event(EventKind.XID, code), BLACKWELL, Policy())
    assert verdict is not None
    assert entry.action is verdict.action is expected
    assert (verdict.severity is Severity.FATAL) == (expected in OUT), "what takes a device out is fatal, only that"
    assert "NVIDIA Analyzing XID Errors" in verdict.source and "2025-10-29" in verdict.source


def test_deviations_are_real_and_say_why() -> None:
    """Protects: no deviation is left over, and none is without a reason."""
    for code, (action, reason) in DEVIATIONS.items():
        assert ACTION_OF[table(EventKind.XID)[code].says] is not action
        assert len(reason) > 40


SAID = {"RESET_GPU": Action.RESET_DEVICE, "IGNORE": Action.WATCH, "XID_154_EVAL": Action.WATCH}


@pytest.mark.parametrize("number", range(len(NVLINK5)))
@pytest.mark.parametrize("layout", ["intrinfo_pattern_v1", "intrinfo_pattern_v2"])
def test_each_nvlink5_rule_decides_its_line(number: int, layout: str) -> None:
    """Protects: every sub-code of 144 to 150, in both register layouts and under both names of its unit."""
    row = NVLINK5[number]
    assert nvlink5.rules()[number].error_status == int(row["error_status"], 16)
    intrinfo = int(row[layout].replace("-", "0"), 2)
    noise = int("".join("1" if bit == "-" else "0" for bit in row[layout]), 2)
    for unit in row["unit"].split("/"):
        for bits in (intrinfo, intrinfo | noise):
            line = (
                f"NVRM: Xid (PCI:0008:01:00): {row['xid']}, {unit} Fatal XC0 i0 Link 03 "
                f"(0x{bits:08x} {row['error_status']} 0x00000000 0x00000000)"
            )
            read = nvlink5.read(line)
            assert read is not None
            rule = nvlink5.decode(int(row["xid"]), read)
            if bits != intrinfo and rule is None:
                continue  # with every free bit set, another layout's pattern may fit as well: then nothing is decided
            assert rule is not None and (rule.says, rule.severity) == (row["resolution"], row["severity"]), line
            verdict = judge(event(EventKind.XID, int(row["xid"]), line), BLACKWELL, Policy())
            assert verdict is not None and verdict.action is SAID[row["resolution"]]
            assert (verdict.severity is Severity.FATAL) == (row["resolution"] == "RESET_GPU")


def test_half_of_the_nvlink5_rules_need_no_reset() -> None:
    said = [row["resolution"] for row in NVLINK5]
    assert {word: said.count(word) for word in SAID} == {"RESET_GPU": 41, "IGNORE": 45, "XID_154_EVAL": 8}


TWICE = {
    "A2301001": ("RestartBusiness", "SeparateNPU"),  # listed under both: the graver counts
    "B4060011": ("RestartBusiness", "RestartBusiness"),
}


@pytest.mark.parametrize("row", ASCEND, ids=lambda row: f"{row['fault_code']}-{row['level']}")
def test_each_ascend_code_has_its_level(row: dict[str, str]) -> None:
    """Protects: all 287 rows of Huawei's list and what each level comes to."""
    code = int(row["fault_code"], 16)
    entry = table(EventKind.ASCEND)[code]
    level = TWICE.get(row["fault_code"], (row["level"],))[-1]
    assert entry.says == level
    severity, _, job, action = LEVELS[Level(level)]
    assert (entry.severity, entry.job, entry.action) == (severity, job, action)
    verdict = judge(event(EventKind.ASCEND, code), card("910b", "Ascend 910B", vendor="ascend"), Policy())
    assert verdict is not None and verdict.action is action and verdict.code == f"ascend-{row['fault_code']}"
    assert row["level"] in TWICE.get(row["fault_code"], (row["level"],))


def test_the_ladder_of_levels_is_complete_and_only_its_top_takes_a_device_out() -> None:
    assert set(LEVELS) == set(Level)
    assert {level for level, (_, _, _, action) in LEVELS.items() if action in OUT} == {Level.RESTART, Level.SEPARATE}
    assert len(table(EventKind.ASCEND)) == len({row["fault_code"] for row in ASCEND}) == 285


def test_sources_that_are_known_to_disagree_are_in_the_conflict_report() -> None:
    """Protects: the report shows the disagreements that operators know of, each with version and date per source."""
    found = conflicts(EventKind.XID)
    assert {32, 38, 44, 63, 64, 69, 94, 109, 121, 136, 143, 160} <= set(found)
    assert not {13, 31, 46, 48, 62, 79, 119, 120, 140} & set(found), "here they agree on what becomes of the hardware"
    for every in found.values():
        for opinion in every:
            assert opinion.says and opinion.source.version and opinion.source.date
    assert 0x819B8003 in conflicts(EventKind.ASCEND), "newer lists move it"


def test_what_sources_contradict_each_other_about_is_not_said_with_full_confidence() -> None:
    for code in conflicts(EventKind.XID):
        verdict = judge(event(EventKind.XID, code), BLACKWELL, Policy())
        assert verdict is not None and verdict.confidence is not Confidence.HIGH


def test_every_entry_can_be_cited_and_no_two_share_a_finding() -> None:
    """Protects: each entry has a source with version and date; findings lead back to exactly one entry."""
    entries = [entry for kind in FILES for entry in table(kind).values()]
    assert len({entry.name for entry in entries}) == len(entries) == len(by_finding())
    for entry in entries:
        assert entry.fault_class and entry.meaning and entry.source.cited
        assert all(code in table(entry.kind) for code in entry.ends)
        assert entry.action in OUT or entry.severity is not Severity.FATAL
        if entry.kind is not EventKind.XID:
            assert entry.action not in OUT or entry.severity is Severity.FATAL
    for source in sources().values():
        assert source.name and source.version and source.date and source.where
        assert source.tier in ("vendor", "tool", "thin")


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (EventKind.HOST, HostCode),
        (EventKind.AMD, AmdCode),
        (EventKind.CAMBRICON, CambriconCode),
    ],
)
def test_our_own_numbers_and_the_data_agree(kind: EventKind, codes: type[HostCode]) -> None:
    """Protects: what agents report is what the catalogue knows, by number and name."""
    assert {int(code): code.name for code in codes}.items() <= {
        code: entry.mnemonic for code, entry in table(kind).items()
    }.items()


def test_thin_facts_are_said_to_be_thin() -> None:
    """Protects: where vendors publish little, the verdict says so and takes nothing out of service."""
    for kind, code in ((EventKind.CAMBRICON, CambriconCode.UNHEALTHY), (EventKind.PPU, PpuCode.ECC_UNCORRECTED)):
        verdict = judge(event(kind, code), None, Policy())
        assert verdict is not None and verdict.confidence is Confidence.LOW
    for kind in (EventKind.CAMBRICON, EventKind.PPU):
        assert not [entry.code for entry in table(kind).values() if entry.action in OUT]


@pytest.mark.parametrize("kind", list(EventKind))
def test_any_code_of_any_kind_gets_a_verdict_or_none_and_never_an_exception(kind: EventKind) -> None:
    for code in (-1, 0, 1, 500, 1_000_000, 0xFFFFFFFF, 1 << 62):
        for message in ("", "fatal", "\ufffd" * 50, "x" * 1_024):
            verdict = judge(event(kind, code, message), None, Policy())
            if verdict is not None and code == 1 << 62 and kind is not EventKind.SELF_TEST:
                assert verdict.action not in OUT, "an unknown code takes nothing out"


def test_amd_records_mean_what_their_severity_says() -> None:
    for text, action, job in (
        ("CPER fatal, AFID 24", Action.RESET_DEVICE, JobEffect.ALL_DIE),
        ("CPER non-fatal uncorrected, AFID 24", Action.WATCH, JobEffect.UNKNOWN),
        ("CPER corrected, AFID 24", Action.WATCH, JobEffect.SURVIVES),
    ):
        verdict = judge(event(EventKind.AMD, 24, text), card("", "MI300X", vendor="amd"), Policy())
        assert verdict is not None
        assert (verdict.code, verdict.action, verdict.job) == (finding_code(EventKind.AMD, 24), action, job)


def test_opinions_name_every_source_once() -> None:
    names = [opinion.source.id for opinion in opinions(EventKind.XID, 64)]
    assert names == ["nvidia", "nvsentinel", "gpud", "aws", "aws-1190", "dcgm", "eks"]
