"""A job that stops making steps is found and its odd one out named; one that starts, checkpoints or ends is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.hang import Hang, HangWatch, Pulse, odd_one_out, sentence
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId
from gridkeeper.policy.model import PeerPolicy

JOB = JobId("train")
POLICY = PeerPolicy(hang_ms=60_000, hang_steps=10)
DEVICES = tuple(DeviceId(f"n1/gpu{i}") for i in range(8))


@dataclass
class Bench:
    """A job seen each second."""

    watch: HangWatch = field(default_factory=HangWatch)
    now_ms: int = 5_000_000
    begun_ms: int = 5_000_000
    last_ms: int = 5_000_000
    pulse: Pulse = field(
        default_factory=lambda: Pulse(JOB, Epoch(1, 1), NodeId("n1"), DEVICES, True, False, -1, -1, 0, 0, (-1, 0))
    )

    def step(self, every_ms: int = 1_000, count: int = 1) -> list[str]:
        """Steps are made; what was said of it meanwhile."""
        said = []
        for _ in range(count):
            said += self.quiet(every_ms)
            number = self.pulse.last_step + 1
            if self.pulse.first_step < 0:
                self.begun_ms = self.now_ms
                self.pulse = replace(self.pulse, first_step=number)
            self.last_ms = self.now_ms
            self.pulse = replace(self.pulse, last_step=number)
            said.append(self.look())
        return said

    def quiet(self, ms: int) -> list[str]:
        said = []
        end = self.now_ms + ms
        while self.now_ms + 1_000 <= end:
            self.now_ms += 1_000
            said.append(self.look())
        self.now_ms = end
        return said

    def look(self) -> str:
        pulse = replace(self.pulse, span_ms=self.last_ms - self.begun_ms, last_age_ms=self.now_ms - self.last_ms)
        hung, well = self.watch.look((pulse,), POLICY, self.now_ms)
        self.hang: Hang | None = hung.get(JOB)
        return "hung" if JOB in hung else "well" if JOB in well else "?"


def test_a_job_that_stops_making_steps_is_hung_after_a_minute() -> None:
    bench = Bench()
    bench.step(count=20)
    assert set(bench.quiet(59_000)) == {"well"}
    assert bench.quiet(1_000) == ["hung"]
    assert bench.hang is not None
    assert (bench.hang.quiet_ms, bench.hang.limit_ms, bench.hang.step_ms) == (60_000, 60_000, 1_000)
    assert bench.step(count=1)[-1] == "well"


def test_slow_steps_are_given_more_time() -> None:
    bench = Bench()
    bench.step(every_ms=30_000, count=5)
    assert set(bench.quiet(299_000)) == {"well"}
    assert bench.quiet(1_000) == ["hung"]


def test_before_its_second_step_nothing_is_said_of_a_job() -> None:
    """Protects: a job that loads its data or compiles for an hour."""
    bench = Bench()
    assert set(bench.quiet(3_600_000)) == {"?"}
    assert set(bench.step()) == {"?"}
    assert set(bench.quiet(3_600_000)) == {"?"}


def test_a_checkpoint_that_is_being_stored_or_was_just_asked_for_is_no_hang() -> None:
    bench = Bench()
    bench.step(count=20)
    bench.pulse = replace(bench.pulse, storing=True)
    assert set(bench.quiet(600_000)) == {"?"}
    bench.pulse = replace(bench.pulse, storing=False, mark=(19, 0))
    assert set(bench.quiet(60_000)) == {"well"}
    assert bench.quiet(1_000) == ["hung"]
    bench.pulse = replace(bench.pulse, mark=(19, 1))
    assert bench.quiet(1_000) == ["well"]


def test_a_pause_that_it_came_back_from_is_expected_again() -> None:
    """Protects: a job that writes a checkpoint of its own for two minutes every hundred steps."""
    bench = Bench()
    bench.step(count=20)
    bench.quiet(120_000)
    bench.step(count=20)
    assert "hung" not in bench.quiet(180_000)
    assert bench.quiet(5_000)[-1] == "hung"


def test_a_job_that_ends_or_runs_anew_is_judged_by_what_it_is_now() -> None:
    bench = Bench()
    bench.step(count=20)
    assert bench.quiet(60_000)[-1] == "hung"
    bench.pulse = replace(bench.pulse, running=False)
    assert bench.quiet(1_000) == ["well"]
    bench.pulse = replace(bench.pulse, running=True, epoch=Epoch(1, 2), first_step=-1, last_step=-1)
    assert set(bench.quiet(100_000)) == {"?"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(50, 40_000), min_size=2, max_size=30))
def test_a_job_is_never_hung_sooner_than_the_policy_says(gaps: list[int]) -> None:
    """Protects: whatever the rhythm of its steps, at least ``hang_ms`` pass without one."""
    bench = Bench()
    for gap in gaps:
        assert "hung" not in bench.step(every_ms=gap)
    said = bench.quiet(1_000_000)
    first = said.index("hung") if "hung" in said else len(said)
    assert first * 1_000 >= POLICY.hang_ms - 1_000


def values(utilisation: list[float], power: list[float] | None = None) -> dict[str, list[float]]:
    return {
        "utilisation": utilisation,
        "power": power or [math.nan] * len(utilisation),
        "clock_sm": [math.nan] * len(utilisation),
    }


@pytest.mark.parametrize(
    ("utilisation", "power", "device", "words"),
    [
        ([100] * 5 + [0] + [100] * 2, None, "n1/gpu5", "spin"),
        ([0] * 2 + [100] + [0] * 5, None, "n1/gpu2", "idle"),
        ([100] * 8, [250] * 7 + [90], "n1/gpu7", "spin"),
        ([0] * 8, [70] * 8, "", "none unlike the rest"),
        ([100] * 4 + [0] * 4, None, "", "none unlike the rest"),
        ([math.nan] * 8, None, "", "nothing is known"),
        ([100, math.nan, math.nan, 0] + [math.nan] * 4, None, "", "none unlike the rest"),
    ],
)
def test_the_odd_one_out(utilisation: list[float], power: list[float] | None, device: str, words: str) -> None:
    """Protects: one that cannot be told apart is not named."""
    odd = odd_one_out(DEVICES, values(utilisation, power), POLICY)
    assert odd.device == device
    assert words in odd.words


def test_the_sentence_says_what_an_operator_looks_for() -> None:
    bench = Bench()
    bench.step(count=20)
    bench.quiet(61_000)
    assert bench.hang is not None
    said = sentence(bench.hang, odd_one_out(DEVICES, values([100] * 5 + [0] + [100] * 2), POLICY))
    assert said == (
        "job train hangs on n1: no step since 19, 61 s ago (usual step 1.00 s, given 60 s); its devices spin (median "
        "utilisation 100 %); the odd one out is n1/gpu5: utilisation 0 %, the 7 others have median 100"
    )
