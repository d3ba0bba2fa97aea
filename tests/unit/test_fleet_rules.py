"""Telemetry and the rules over it: what is not known is never "no", and a verdict is told once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.fleet import BadTelemetry, FleetTable
from controlplane.domain.rowlabels import Inventory
from controlplane.domain.rulefindings import Transition, finding_for
from controlplane.domain.rules import MOST, STALE_MS, RuleEngine
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, Revision
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import Mode, Policy, RulePolicy
from gridkeeper.records.common import Action, Label, Severity
from gridkeeper.records.faults import FindingRecord
from gridkeeper.telemetry import COLUMN, METRICS
from tests.fixtures import records as fixtures

NODE = NodeId("n1")
IDS = (DeviceId("n1/gpu0"), DeviceId("n1/gpu1"))
WIDTH = len(METRICS)
DEVICE = fixtures.device("n1/gpu0")


def _held(record: Any) -> Versioned[Any]:
    return Versioned(record, Revision(1), Revision(1), 0)


class Feed:
    """A node of two devices whose second one stays quiet, and a store that shows what was written."""

    def __init__(self, *rules: RulePolicy) -> None:
        self.table = FleetTable()
        self.table.register(NODE, IDS)
        self.policy = replace(default_policy(), rules=rules) if rules else default_policy()
        self.engine = RuleEngine(self.policy)
        self.inventory = Inventory()
        self.findings: Mapping[str, Versioned[FindingRecord]] = {}
        self.now = 1_000_000

    def tell(self, after_ms: int = 1_000, **values: float) -> dict[str, bool]:
        """A sample of the first device later; the verdicts on it that changed."""
        self.now += after_ms
        block = np.full((2, WIDTH), np.nan, "<f4")
        for name, value in values.items():
            block[0, COLUMN[name]] = value
        self.table.ingest(NODE, block.tobytes(), 2, WIDTH, self.now)
        return self.changed()

    def adopt(self, *rules: RulePolicy) -> None:
        self.policy = replace(self.policy, rules=rules, version=self.policy.version + 1)
        self.engine.adopt(self.policy)

    def transitions(self) -> tuple[Transition, ...]:
        return self.engine.evaluate(self.table, self.findings, self.inventory, self.now)

    def changed(self) -> dict[str, bool]:
        """What is written, until nothing is left to write."""
        found: dict[str, bool] = {}
        for _ in range(3):
            told = [t for t in self.transitions() if t.device == IDS[0]]
            for transition in told:
                version = self.policy.version
                record = finding_for(transition, DEVICE, self.findings, version, self.now, "t")
                assert record is not None, transition
                found[transition.rule] = record.active
                self.findings = {**self.findings, record.id: Versioned(record, Revision(1), Revision(1), 0)}
            if not told:
                return found
        raise AssertionError("what is written is told again")


def rule(when: str = "temperature_c > 85", name: str = "r", **changes: Any) -> RulePolicy:
    return RulePolicy(name, when, Severity.ERROR, Action.WATCH, "thermal", "hot", **changes)


def test_a_pending_remap_with_rising_corrected_errors_is_a_finding_of_its_own() -> None:
    feed = Feed()
    assert feed.tell(remap_pending=0, ecc_corrected=5) == {}
    assert feed.tell(remap_pending=1, ecc_corrected=5) == {"remap-pending": True}
    assert feed.tell(remap_pending=1, ecc_corrected=14) == {}
    assert feed.tell(remap_pending=1, ecc_corrected=15) == {"remap-pending-rising": True, "corrected-rising": True}
    assert feed.tell(remap_pending=1, ecc_corrected=90) == {}


def test_growth_counts_only_the_last_minute_and_survives_a_driver_reload() -> None:
    feed = Feed()
    feed.tell(ecc_corrected=100)
    for step in range(1, 40):
        assert "corrected-rising" not in feed.tell(10_000, ecc_corrected=100 + step)
    assert "corrected-rising" not in feed.tell(ecc_corrected=0)
    assert "corrected-rising" not in feed.tell(ecc_corrected=9)
    assert feed.tell(ecc_corrected=10)["corrected-rising"] is True


def test_what_a_counter_grew_while_it_was_not_heard_counts_for_no_minute() -> None:
    feed = Feed()
    feed.tell(ecc_corrected=100)
    feed.now += 10 * STALE_MS
    feed.changed()
    assert "corrected-rising" not in feed.tell(ecc_corrected=500)
    assert "corrected-rising" not in feed.tell(ecc_corrected=509)
    assert feed.tell(ecc_corrected=510)["corrected-rising"] is True


def test_unknown_neither_raises_nor_clears() -> None:
    feed = Feed()
    assert feed.tell(remap_failed=1)["remap-failed"] is True
    assert "remap-failed" not in feed.tell(temperature=50)
    assert feed.tell(remap_failed=0)["remap-failed"] is False


def test_a_condition_must_hold_without_a_break() -> None:
    feed = Feed(rule(for_ms=10_000))
    for _ in range(10):
        assert feed.tell(temperature=95) == {}
    assert feed.tell(temperature=60) == {}
    for _ in range(10):
        assert feed.tell(temperature=95) == {}
    assert feed.tell(temperature=95) == {"r": True}


def test_one_sample_holds_for_no_time_however_late_it_is_looked_at() -> None:
    """Protects against firing early: nobody knows that it stayed hot while nothing was sampled."""
    feed = Feed(rule(for_ms=5_000))
    feed.tell(temperature=95)
    for _ in range(STALE_MS // 1_000 - 1):
        feed.now += 1_000
        assert feed.changed() == {}
    assert feed.tell(2 * STALE_MS, temperature=95) == {}
    for _ in range(4):
        assert "r" not in feed.tell(temperature=95)
    assert feed.tell(temperature=95)["r"] is True


def test_time_in_which_it_was_not_known_counts_for_nothing_and_forgets_nothing() -> None:
    feed = Feed(rule(for_ms=5_000))
    for _ in range(4):
        assert feed.tell(temperature=95) == {}  # 3 s
    for _ in range(10):
        assert feed.tell(power=1) == {}  # unknown
    assert feed.tell(temperature=95) == {}
    assert feed.tell(temperature=95) == {}  # 4 s
    assert feed.tell(temperature=95) == {"r": True}


def test_clearing_has_its_own_condition_and_time() -> None:
    feed = Feed(rule(clear="temperature_c < 80", clear_ms=3_000))
    assert feed.tell(temperature=90) == {"r": True}
    assert feed.tell(60_000, temperature=82) == {}  # neither hot nor cool
    for _ in range(3):
        assert feed.tell(temperature=70) == {}
    assert feed.tell(temperature=82) == {}  # a break
    for _ in range(2):
        assert feed.tell(temperature=70) == {}
    assert feed.tell(power=1) == {}  # unknown: no break, and no time
    for _ in range(2):
        assert feed.tell(temperature=70) == {}
    assert feed.tell(temperature=70) == {"r": False}


def test_a_restarted_replica_knows_what_is_raised_and_starts_its_timers_anew() -> None:
    feed = Feed(rule(for_ms=3_000), rule("power_w > 700", "p"))
    for _ in range(3):
        feed.tell(temperature=95, power=800)
    assert [f.record.rule for f in feed.findings.values() if f.record.active] == ["p"]
    feed.engine = RuleEngine(feed.policy)
    for _ in range(3):
        assert feed.tell(temperature=95, power=800) == {}  # not again, and not early
    assert feed.tell(temperature=95, power=100) == {"r": True, "p": False}


def test_a_finding_is_told_until_the_store_shows_it() -> None:
    feed = Feed(rule())
    block = np.full((2, WIDTH), 95, "<f4")
    feed.table.ingest(NODE, block.tobytes(), 2, WIDTH, feed.now)
    first = feed.transitions()
    assert {(t.device, t.rule) for t in first} == {(device, "r") for device in IDS}
    assert feed.transitions() == first


def test_a_changed_policy_counts_from_the_next_pass() -> None:
    feed = Feed(rule(for_ms=5_000), rule("power_w > 700", "p"))
    for _ in range(4):
        feed.tell(temperature=95, power=800)
    feed.adopt(rule(for_ms=5_000), rule("power_w > 900", "q", mode=Mode.SHADOW))
    assert feed.tell(temperature=95, power=950) == {"p": False, "q": True}  # "p" is no rule any more
    assert [f.record.shadow for f in feed.findings.values() if f.record.active] == [True]
    assert feed.tell(temperature=95, power=950) == {"r": True}  # its timer went on
    feed.adopt(rule(for_ms=5_000, mode=Mode.OFF), rule("power_w > 900", "q"))
    assert feed.tell(temperature=95, power=950) == {"r": False, "q": True}  # the same finding, acting now
    (active,) = [f.record for f in feed.findings.values() if f.record.active]
    assert (active.shadow, active.rule_version, active.source) == (False, 2, "policy 2")


def test_a_rule_sees_and_selects_by_labels() -> None:
    """A device whose labels are not known is neither selected nor left out."""
    feed = Feed(rule(select="rack=r1,class=train"), rule("temperature_c > 85 AND job = '' AND model LIKE 'H%'", "idle"))
    assert feed.tell(temperature=95) == {}
    node = dataclasses.replace(fixtures.node("n1"), labels=(Label("class", "train"),))
    devices = {DEVICE.id: _held(dataclasses.replace(DEVICE, rack="r1", model="H100"))}
    jobs: dict[DeviceId, JobId] = {}
    feed.inventory = Inventory({NODE: _held(node)}, devices, {}, (1,), lambda: jobs)
    assert feed.tell(temperature=95) == {"r": True, "idle": True}
    jobs = {DEVICE.id: JobId("train")}
    feed.inventory = replace(feed.inventory, jobs_from=(2,))
    assert feed.tell(temperature=95) == {"idle": False}
    feed.inventory = replace(feed.inventory, nodes={})  # its own labels are gone: not selected any more
    assert feed.tell(temperature=95) == {"r": False}


def test_a_limit_of_zero_is_no_limit() -> None:
    feed = Feed()
    for _ in range(30):
        assert feed.tell(temperature=95, temperature_slowdown=0, power=500, power_limit=0) == {}


def test_a_row_that_stops_coming_is_a_finding_and_is_not_judged() -> None:
    feed = Feed()
    assert feed.tell(remap_pending=1) == {"remap-pending": True}
    feed.now += STALE_MS + 1
    assert feed.changed() == {"telemetry-lost": True}
    assert feed.tell(remap_pending=0) == {"telemetry-lost": False, "remap-pending": False}


def test_silence_is_seen_whatever_the_policy() -> None:
    feed = Feed(rule(mode=Mode.OFF))
    feed.tell(temperature=95)
    feed.now += STALE_MS + 1
    assert feed.changed() == {"telemetry-lost": True}


def test_findings_of_others_are_left_alone() -> None:
    """Protects: a comparison of peers writes findings too, under names that no rule of the policy has."""
    feed = Feed(rule())
    feed.tell(temperature=60)
    other = fixtures.finding("n1:gpu0:rule-slow-step", evidence=())
    slow = replace(other, device=DEVICE.id, node=DEVICE.node, code="slow-step", rule="slow-step", active=True)
    feed.findings = {slow.id: _held(slow)}
    assert feed.tell(temperature=60) == {}


def test_rows_that_change_hands_are_judged_anew() -> None:
    feed = Feed()
    feed.tell(remap_failed=1)
    feed.table.forget(NODE)
    assert feed.changed() == {}
    feed.table.register(NODE, IDS)
    assert feed.changed() == {}  # not heard yet: what the store says stands
    assert feed.tell(remap_failed=0) == {"remap-failed": False}


def test_others_coming_and_going_end_no_timer_and_no_count() -> None:
    """Protects: in a region in which some node says hello every few seconds, a rule that takes a minute still fires for
    those whose rows have stayed theirs; a node that comes into freed rows inherits nothing."""
    feed = Feed(rule(for_ms=30_000), rule("growth(ecc_corrected, '1m') >= 10", "grows"))
    found: dict[str, int] = {}
    for second in range(1, 41):
        other = NodeId(f"n{second + 1}")
        feed.table.register(other, tuple(DeviceId(f"{other}/gpu{slot}") for slot in range(second)))
        if second > 2:
            feed.table.forget(NodeId(f"n{second - 1}"))
        for name, raised in feed.tell(temperature=90, ecc_corrected=second).items():
            assert raised
            found[name] = second
    assert found == {"grows": 11, "r": 31}
    feed.adopt(rule(for_ms=30_000, name="again"))
    for _ in range(29):
        assert "again" not in feed.tell(temperature=90)
    feed.table.forget(NODE)
    feed.table.register(NODE, IDS)
    for _ in range(30):
        assert "again" not in feed.tell(temperature=90)
    assert feed.tell(temperature=90) == {"again": True}


def test_a_condition_that_no_value_can_change_is_judged_like_any_other() -> None:
    """Protects: an expression that the engine folds into one value has one for each row, and stops no replica."""
    feed = Feed(rule("sqrt(1) = coalesce(1, temperature_c)"))
    assert feed.tell(temperature=20) == {"r": True}
    assert [t.device for t in feed.transitions()] == [IDS[1]]


def test_transitions_of_one_pass_are_bounded() -> None:
    table = FleetTable()
    ids = [DeviceId(f"n1/gpu{i}") for i in range(2 * MOST)]
    table.register(NODE, ids)
    table.ingest(NODE, np.full((len(ids), WIDTH), 95, "<f4").tobytes(), len(ids), WIDTH, 1)
    assert len(RuleEngine(Policy(rules=(rule(),))).evaluate(table, {}, Inventory(), 1)) == MOST


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.sampled_from([95.0, 60.0, math.nan])), min_size=1, max_size=40),
    st.sampled_from([1, 2_000, 10_000]),
)
def test_no_sequence_of_samples_fires_early(steps: list[tuple[int, float]], for_ms: int) -> None:
    """Raised only when consecutive known samples, none further apart than a stale row, show it for ``for_ms``; against
    a plain account of one device."""
    feed = Feed(rule(for_ms=for_ms))
    held, sure, raised = -1, False, False
    for gap, value in steps:
        changed = feed.tell(gap, temperature=value).get("r")
        if value > 85:
            held = held + gap if sure and held >= 0 and gap <= STALE_MS else max(held, 0)
        elif value <= 85:
            held = -1
        sure = value > 85
        now_raised = held >= for_ms if value > 85 else raised if math.isnan(value) else False
        assert changed == (None if now_raised == raised else now_raised)
        raised = now_raised


def test_a_finding_is_written_when_it_changes_something_and_keeps_its_trace() -> None:
    raised, cleared = Transition(IDS[0], "r", rule(), ("a=1",)), Transition(IDS[0], "r", None, ("a=0",))
    assert finding_for(cleared, DEVICE, {}, 3, 5, "t1") is None
    finding = finding_for(raised, DEVICE, {}, 3, 5, "t1")
    assert finding is not None and finding.active and finding.code == finding.rule and finding.rule_version == 3
    held = {finding.id: _held(finding)}
    assert finding_for(raised, DEVICE, held, 4, 9, "t2") is None
    gone = finding_for(cleared, DEVICE, held, 4, 9, "t2")
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


def test_a_node_without_devices_that_leaves_takes_no_sample_of_its_neighbour_along() -> None:
    """Protects: what waits to be placed belongs to the node that sent it. A node without devices has no row of its own:
    the next node's rows may begin where it stands."""
    table = FleetTable()
    table.register(NodeId("empty"), ())
    table.register(NodeId("small"), (DeviceId("small/gpu0"),))
    table.register(NODE, IDS)
    block = np.full((len(IDS), WIDTH), 7, dtype="<f4")
    table.ingest(NODE, block.tobytes(), len(IDS), WIDTH, 1_000)
    table.ingest(NodeId("empty"), b"", 0, WIDTH, 1_000)
    table.forget(NodeId("empty"))
    assert [table.seen(device) for device in IDS] == [1_000, 1_000]
    assert table.value(IDS[1], METRICS[0].name) == 7
