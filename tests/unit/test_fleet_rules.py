"""Telemetry and the rules over it: what is not known is never "no", and a verdict is told once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.fleet import BadTelemetry, FleetTable
from controlplane.domain.rulebook import RULES
from controlplane.domain.rules import STALE_MS, RuleEngine, Transition, finding_for
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId, RegionId, Revision
from gridkeeper.records.fleet import DeviceRecord
from gridkeeper.telemetry import COLUMN, METRICS

NODE = NodeId("n1")
IDS = (DeviceId("n1/gpu0"), DeviceId("n1/gpu1"))
WIDTH = len(METRICS)


class Feed:
    """A node of two devices whose second one stays quiet."""

    def __init__(self) -> None:
        self.table = FleetTable()
        self.table.register(NODE, IDS)
        self.engine = RuleEngine()
        self.now = 1_000_000

    def tell(self, after_ms: int = 1_000, **values: float) -> dict[str, bool]:
        """A sample of the first device later; the verdicts on it that changed."""
        self.now += after_ms
        block = np.full((2, WIDTH), np.nan, "<f4")
        for name, value in values.items():
            block[0, COLUMN[name]] = value
        self.table.ingest(NODE, block.tobytes(), 2, WIDTH, self.now)
        return self.changed()

    def changed(self) -> dict[str, bool]:
        found = self.engine.evaluate(self.table, self.now)
        return {t.rule.name: t.raised for t in found if t.device == IDS[0]}


def test_a_pending_remap_with_rising_corrected_errors_is_a_finding_of_its_own() -> None:
    feed = Feed()
    assert feed.tell(remap_pending=0, ecc_corrected=5)["remap-pending-rising"] is False
    raised = feed.tell(remap_pending=1, ecc_corrected=5)
    assert raised == {"remap-pending": True}
    assert feed.tell(remap_pending=1, ecc_corrected=14) == {}
    assert feed.tell(remap_pending=1, ecc_corrected=15) == {"remap-pending-rising": True, "corrected-rising": True}
    assert feed.tell(remap_pending=1, ecc_corrected=90) == {}


def test_growth_counts_only_the_last_minute_and_survives_a_driver_reload() -> None:
    feed = Feed()
    feed.tell(ecc_corrected=100)
    for step in range(1, 10):
        assert "corrected-rising" not in feed.tell(20_000, ecc_corrected=100 + 3 * step)
    assert "corrected-rising" not in feed.tell(ecc_corrected=0)
    assert "corrected-rising" not in feed.tell(ecc_corrected=9)
    assert feed.tell(ecc_corrected=10)["corrected-rising"] is True


def test_unknown_neither_raises_nor_clears() -> None:
    feed = Feed()
    assert feed.tell(remap_failed=1)["remap-failed"] is True
    assert "remap-failed" not in feed.tell(temperature=50)
    assert feed.tell(remap_failed=0)["remap-failed"] is False


def test_a_condition_must_hold_without_a_break() -> None:
    feed = Feed()
    hot = {"temperature": 95.0, "temperature_slowdown": 90.0}
    cool = {"temperature": 60.0, "temperature_slowdown": 90.0}
    feed.tell(**cool)
    for _ in range(9):
        assert "hot" not in feed.tell(**hot)
    assert "hot" not in feed.tell(**cool)
    for _ in range(10):
        assert "hot" not in feed.tell(**hot)
    assert feed.tell(**hot)["hot"] is True


def test_a_limit_of_zero_is_no_limit() -> None:
    feed = Feed()
    for _ in range(30):
        assert feed.tell(temperature=95, temperature_slowdown=0, power=500, power_limit=0).get("hot", False) is False


def test_a_row_that_stops_coming_is_a_finding_and_is_not_judged() -> None:
    feed = Feed()
    assert feed.tell(remap_pending=1)["remap-pending"] is True
    feed.now += STALE_MS + 1
    assert feed.changed() == {"telemetry-lost": True}
    assert feed.tell(remap_pending=1) == {"telemetry-lost": False}


def test_rows_that_change_hands_are_judged_anew() -> None:
    feed = Feed()
    feed.tell(remap_failed=1)
    feed.table.forget(NODE)
    assert feed.changed() == {}
    feed.table.register(NODE, IDS)
    assert feed.tell(remap_failed=0)["remap-failed"] is False


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_reads_metrics_that_exist(rule: object) -> None:
    for need in rule.needs:  # type: ignore[attr-defined]
        assert need.removesuffix("/min") in COLUMN
    assert len({r.name for r in RULES}) == len(RULES)


def _device() -> DeviceRecord:
    texts = {f.name: "x" for f in dataclasses.fields(DeviceRecord) if f.type in ("str", "NodeId", "RegionId")}
    return DeviceRecord(
        **{**texts, "id": IDS[0], "node": NODE, "region": RegionId("e"), "memory_mib": 1, "present": True}
    )  # type: ignore[arg-type]


def test_a_finding_is_written_when_it_changes_something_and_keeps_its_trace() -> None:
    rule = RULES[0]
    raised, cleared = Transition(IDS[0], rule, True, ("a=1",)), Transition(IDS[0], rule, False, ("a=0",))
    assert finding_for(cleared, _device(), {}, 5, "t1") is None
    finding = finding_for(raised, _device(), {}, 5, "t1")
    assert finding is not None and finding.active and finding.code == finding.rule
    held = {finding.id: Versioned(finding, Revision(1), Revision(1), 0)}
    assert finding_for(raised, _device(), held, 9, "t2") is None
    gone = finding_for(cleared, _device(), held, 9, "t2")
    assert gone is not None and not gone.active and (gone.trace, gone.observed_ms) == ("t1", 5)


@pytest.mark.parametrize(
    ("rows", "columns", "size", "field"),
    [(1, WIDTH, WIDTH * 4, "rows"), (2, WIDTH - 1, 2 * (WIDTH - 1) * 4, "columns"), (2, WIDTH, 7, "values")],
)
def test_a_block_that_does_not_fit_changes_nothing(rows: int, columns: int, size: int, field: str) -> None:
    feed = Feed()
    feed.tell(temperature=40)
    with pytest.raises(BadTelemetry, match=f"telemetry.{field}"):
        feed.table.ingest(NODE, bytes(size), rows, columns, feed.now)
    assert feed.table.value(IDS[0], "temperature") == 40


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=30))
def test_rows_of_different_nodes_never_overlap(steps: list[tuple[int, int]]) -> None:
    """Nodes come, go and change size in any order; each device keeps the value of its own node."""
    table = FleetTable()
    expected: dict[str, int] = {}
    for number, size in steps:
        node = NodeId(f"n{number}")
        expected = {d: v for d, v in expected.items() if not d.startswith(f"{node}/")}
        ids = [DeviceId(f"{node}/gpu{i}") for i in range(size)]
        if not ids:
            table.forget(node)
            continue
        table.register(node, ids)
        block = np.full((size, WIDTH), number, "<f4")
        table.ingest(node, block.tobytes(), size, WIDTH, 1)
        expected |= dict.fromkeys(ids, number)
    for device, value in expected.items():
        assert table.value(DeviceId(device), "power") == value
        assert table.recent(DeviceId(device), "power")[-1] == value
    assert int(table.used.sum()) == len(expected)
