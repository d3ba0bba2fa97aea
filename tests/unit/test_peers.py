"""Comparison with peers: a gray device is convicted, with the numbers that convict it; healthy ones, modes, small
groups and what is not known are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.peers import Fleet
from controlplane.domain.fleet import FleetTable
from controlplane.domain.peers import (
    FORGET_MS,
    METRICS,
    Layout,
    Member,
    PeerWatch,
    Verdict,
    compared,
    evidence,
    outliers,
    sentence,
    spread,
)
from gridkeeper import telemetry
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.policy.model import PeerPolicy

POLICY = PeerPolicy(for_ms=60_000)
CLOCK = METRICS[0]
EVERY_MS = 2_500


class Bench:
    """One job on one node of ``count`` cards."""

    def __init__(self, count: int = 8, policy: PeerPolicy = POLICY) -> None:
        self.policy = policy
        self.table = FleetTable()
        self.watch = PeerWatch()
        self.now_ms = 1_000_000
        self.standing: set[tuple[DeviceId, str]] = set()
        self.devices = [DeviceId(f"n1/gpu{i}") for i in range(count)]
        self.members: Mapping[DeviceId, Member] = {device: Member("train", "1.1") for device in self.devices}
        self.values = np.full((count, len(telemetry.METRICS)), np.nan, np.float32)
        self.table.register(NodeId("n1"), self.devices)
        self.set("clock_sm", [1_980 + 3 * i for i in range(count)])

    def set(self, metric: str, values: float | list[float], row: int | slice = slice(None)) -> None:
        self.values[row, telemetry.COLUMN[metric]] = values

    def look(self, heard: bool = True) -> tuple[Verdict, ...]:
        """The next look, ``EVERY_MS`` later."""
        self.now_ms += EVERY_MS
        if heard:
            rows, columns = self.values.shape
            self.table.ingest(NodeId("n1"), self.values.tobytes(), rows, columns, self.now_ms)
        looks = self.watch.evaluate(self.table, self.members, self.standing, self.policy, self.now_ms)
        return tuple(verdict for look in looks for verdict in look)

    def looks(self, seconds: float, heard: bool = True) -> list[Verdict]:
        return [v for _ in range(round(seconds * 1_000 / EVERY_MS)) for v in self.look(heard)]

    def raised(self, seconds: float) -> list[tuple[str, str]]:
        return [(v.device, v.metric.rule) for v in self.looks(seconds) if v.raised]


def test_a_slow_card_is_convicted_by_a_comparison_that_names_the_numbers() -> None:
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(55) == []
    (verdict,) = [v for v in bench.looks(10) if v.raised]
    assert (verdict.device, verdict.metric.rule, verdict.job) == ("n1/gpu3", "peers-sm-clock", "train")
    assert verdict.held_ms >= POLICY.for_ms
    assert "n1/gpu3: SM clock 1,155 MHz, the 7 others of job train have median 1,992, MAD 6.0;" in sentence(verdict)
    assert sentence(verdict).endswith("robust σ for 60 s")
    assert evidence(verdict) == ("clock_sm=1155", "median=1992", "mad=6", "others=7")
    assert bench.looks(120) == [], "a verdict is told once"
    bench.set("clock_sm", 1_980, 3)
    cleared = bench.looks(60)
    assert [(v.device, v.raised) for v in cleared] == [("n1/gpu3", False)]


@pytest.mark.parametrize(
    ("metric", "rule"),
    [("utilisation", "peers-utilisation"), ("power", "peers-power"), ("clock_memory", "peers-memory-clock")],
)
def test_each_metric_convicts_by_its_own_rule(metric: str, rule: str) -> None:
    bench = Bench()
    bench.set(metric, [600, 601, 598, 605, 603, 600, 400, 602])
    assert bench.raised(70) == [("n1/gpu6", rule)]


def test_a_slow_link_is_one_of_both_directions_together() -> None:
    bench = Bench()
    bench.set("nvlink_tx", 90_000.0)
    bench.set("nvlink_rx", [90_000, 90_100, 90_000, 30_000, 90_000, 90_000, 90_000, 90_000])
    assert bench.raised(70) == [("n1/gpu3", "peers-nvlink")]


def test_better_than_the_peers_is_no_fault() -> None:
    bench = Bench()
    bench.set("clock_sm", 2_600, 3)
    assert bench.raised(200) == []


@pytest.mark.parametrize("slow", [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3, 4, 5]])
def test_a_mode_is_not_convicted(slow: list[int]) -> None:
    """Protects: the stages of a pipeline differ from each other, and none of them is broken."""
    bench = Bench()
    for row in slow:
        bench.set("clock_sm", 1_000 + row, row)
    assert bench.raised(200) == []


def test_small_groups_and_idle_groups_are_not_judged() -> None:
    bench = Bench(3)
    bench.set("clock_sm", 900, 0)
    assert bench.raised(200) == []
    idle = Bench()
    idle.set("utilisation", [3, 3, 3, 0, 3, 3, 3, 3])
    assert idle.raised(200) == []


def test_half_a_group_that_is_not_known_lets_nobody_be_judged() -> None:
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    bench.set("clock_sm", float("nan"), slice(4, 8))
    assert bench.raised(70) == [("n1/gpu3", "peers-sm-clock")]
    bench = Bench()
    bench.set("clock_sm", 1_155, 2)
    bench.set("clock_sm", float("nan"), slice(3, 8))
    assert bench.raised(200) == []


def test_what_is_not_known_ends_a_timer_and_clears_nothing() -> None:
    """Protects: a deviation counts only while it is seen."""
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(50) == []
    bench.set("clock_sm", float("nan"), 3)
    bench.look()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(50) == [], "it has begun anew"
    assert bench.raised(20) == [("n1/gpu3", "peers-sm-clock")]
    bench.set("clock_sm", float("nan"), 3)
    assert bench.looks(600) == []


def test_silence_of_the_node_or_of_the_observer_ends_timers() -> None:
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(50) == []
    assert [v for v in bench.looks(20, heard=False) if v.raised] == []
    assert bench.raised(50) == []
    bench.now_ms += 40_000
    assert bench.raised(55) == [], "nobody looked meanwhile"
    assert bench.raised(10) == [("n1/gpu3", "peers-sm-clock")]


def test_other_nodes_coming_and_going_end_no_timer() -> None:
    """Protects: in a big fleet some agent connects every few seconds."""
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(30) == []
    bench.table.register(NodeId("n2"), [DeviceId("n2/gpu0")])
    assert bench.raised(25) == []
    bench.table.forget(NodeId("n2"))
    assert bench.raised(7.5) == [("n1/gpu3", "peers-sm-clock")]


def test_a_new_run_of_the_job_begins_anew() -> None:
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(50) == []
    bench.members = {device: Member("train", "1.2") for device in bench.devices}
    assert bench.raised(55) == []
    assert bench.raised(10) == [("n1/gpu3", "peers-sm-clock")]


def test_a_card_without_peers_stays_as_it_was_for_an_hour() -> None:
    bench = Bench()
    bench.set("clock_sm", 1_155, 3)
    assert bench.raised(70)
    bench.members = {}
    assert bench.looks(FORGET_MS / 1_000 - 60) == []
    assert [(v.device, v.raised) for v in bench.looks(120)] == [("n1/gpu3", False)]


def test_what_an_earlier_leader_convicted_is_cleared_once_it_is_seen_to_be_well() -> None:
    """Protects: a replica that has just begun neither clears what it has not seen nor leaves it standing for ever."""
    bench = Bench()
    bench.standing = {(bench.devices[3], "peers-sm-clock"), (bench.devices[4], "peers-power")}
    assert [(v.device, v.metric.rule, v.raised) for v in bench.looks(60)] == [("n1/gpu3", "peers-sm-clock", False)]
    bench = Bench()
    bench.standing = {(bench.devices[3], "peers-sm-clock")}
    bench.set("clock_sm", 1_155, 3)
    assert bench.looks(90) == [], "it stands already"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), min_size=1, max_size=6))
def test_the_statistics_of_all_groups_at_once_are_those_of_each(found: list[list[float]]) -> None:
    values, groups = flat(found)
    order = np.random.default_rng(len(values)).permutation(len(values))
    values = np.concatenate([values[order], [np.nan, 5.0]])
    groups = np.concatenate([groups[order], [0, -1]])
    got = spread(values, Layout.of(groups))
    for number, group in enumerate(found):
        median = np.median(group)
        assert got.median[number] == median
        assert got.mad[number] == np.median(np.abs(np.array(group) - median))
        assert got.count[number] == len(group)


def flat(found: list[list[float]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values, and the number of the group of each."""
    values = np.array([value for group in found for value in group])
    return values, np.array([number for number, group in enumerate(found) for _ in group])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 3_000), min_size=1, max_size=20), min_size=1, max_size=5), st.integers(0, 1 << 20)
)
def test_a_conviction_always_has_a_reason(found: list[list[float]], seed: int) -> None:
    """Protects: whatever the values, only a minority that is worse by ``least`` is convicted, and never in a small
    group; the order of the rows changes nothing."""
    policy = PeerPolicy()
    values, groups = flat(found)
    judged, worse = outliers(values, Layout.of(groups), CLOCK, policy)
    order = np.random.default_rng(seed).permutation(len(values))
    again = outliers(values[order], Layout.of(groups[order]), CLOCK, policy)
    assert (again[0] == judged[order]).all()
    assert (again[1] == worse[order]).all()
    assert (judged | ~worse).all()
    for number, group in enumerate(found):
        mine = groups == number
        median = float(np.median(group))
        assert worse[mine].sum() <= max(1, len(group) // 8)
        assert (values[mine & worse] < (1 - policy.least) * median).all()
        if len(group) < policy.peers:
            assert not judged[mine].any()


def test_the_sigmas_are_those_of_the_others() -> None:
    found = compared(1_155.0, np.array([1_980.0, 1_968, 1_992, 1_980, 1_992, 1_968, 1_980]))
    assert (found.median, found.mad, found.others) == (1_980, 12, 7)
    assert found.sigmas == pytest.approx(825 / (1.4826 * 12))


def test_healthy_fleets_convict_nobody_in_three_hundred_device_hours() -> None:
    """Protects: the stated rate of false convictions (docs/detection.md; ``make bench-peers`` measures more hours)."""
    fleet = Fleet(devices=1_200, seed=11)
    assert fleet.play(hours=0.25, every_ms=5_000, policy=PeerPolicy()) == []


def test_the_simulated_fleet_would_show_a_gray_card() -> None:
    """Protects: the test before this one, which a fleet that nobody judges would pass too."""
    fleet = Fleet(devices=64, seed=12)
    fleet.slow(9, "clock_sm", 0.7)
    told = fleet.play(hours=0.1, every_ms=5_000, policy=PeerPolicy())
    assert {(v.device, v.metric.rule) for v in told} == {(fleet.devices[9], "peers-sm-clock")}
