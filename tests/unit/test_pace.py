"""A node on which a job is slower than elsewhere: found by comparison with the job's other runs, not by few of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.pace import MIN_STEPS, Pace, by_job, compare_pace, pace_of, sentence
from failover.domain.gang import unheard
from gridkeeper.decision import Versioned
from gridkeeper.ids import Epoch, JobId, NodeId, Revision
from gridkeeper.policy.model import PeerPolicy
from gridkeeper.records.jobs import RunRecord
from tests.fixtures import records

POLICY = PeerPolicy(for_ms=60_000)
JOB = JobId("train")


def pace(number: int, step_ms: float, node: str = "", steps: int = 1_000) -> Pace:
    return Pace(JOB, Epoch(1, number), NodeId(node or f"n{number}"), step_ms, steps, round(step_ms * steps))


def test_a_node_that_slows_a_job_down_is_convicted_with_the_numbers() -> None:
    every = [pace(1, 980), pace(2, 990), pace(3, 985), pace(4, 1_420)]
    found = compare_pace(every[3], every, POLICY)
    assert found is not None and found[0]
    assert sentence(every[3], found[1]).startswith(
        "n4: job train makes a step in 1.42 s, on the 3 other nodes that it ran on in 0.985 s (median, MAD 0.005 s); "
    )
    for healthy in every[:3]:
        found = compare_pace(healthy, every, POLICY)
        assert found is not None and not found[0]


def test_few_nodes_or_a_short_run_are_not_judged() -> None:
    every = [pace(1, 980), pace(2, 990), pace(3, 985, "n2"), pace(4, 1_420)]
    assert compare_pace(every[3], every, POLICY) is None, "three nodes, one of them twice"
    every.append(pace(5, 985))
    assert compare_pace(pace(4, 1_420, steps=40), every, POLICY) is None, "not for long enough"
    assert compare_pace(every[3], every, POLICY) is not None


def test_a_run_has_a_pace_after_some_steps() -> None:
    run = replace(records.run(), first_step=0, last_step=MIN_STEPS, first_step_ms=1_000, last_step_ms=6_000)
    found = pace_of(run)
    assert found is not None and found.step_ms == pytest.approx(5_000 / MIN_STEPS)
    for few in (
        replace(run, last_step=MIN_STEPS - 1),
        replace(run, first_step=-1),
        replace(run, last_step_ms=run.first_step_ms),
    ):
        assert pace_of(few) is None


def test_the_step_time_of_a_gang_says_nothing_of_one_node() -> None:
    """Protects: the node of rank 0 is not blamed for what another member's node does."""
    run = replace(records.run(), first_step=0, last_step=MIN_STEPS, first_step_ms=1_000, last_step_ms=6_000)
    members = (unheard(NodeId("east-1")), unheard(NodeId("east-2")))
    assert pace_of(run) is not None and pace_of(replace(run, members=members)) is None


def test_only_the_jobs_that_are_asked_for() -> None:
    run = replace(records.run(), first_step=0, last_step=50, first_step_ms=1_000, last_step_ms=6_000)
    other = replace(run, job=JobId("other"))
    held: dict[str, Versioned[RunRecord]] = {
        name: Versioned(record, Revision(1), Revision(1), 0) for name, record in (("train/1", run), ("other/1", other))
    }
    assert list(by_job(held, [JOB])) == [JOB]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1, 100_000), min_size=1, max_size=9))
def test_at_most_a_minority_of_nodes_is_convicted(times: list[float]) -> None:
    """Protects: whatever the times, not every node of a job is slow, and none that is faster than the median."""
    every = [pace(number, time, steps=100_000) for number, time in enumerate(times, 1)]
    slow = [mine for mine in every if (found := compare_pace(mine, every, POLICY)) is not None and found[0]]
    assert 2 * len(slow) <= len(every)
    assert all(mine.step_ms > sorted(times)[len(times) // 2 - 1] for mine in slow)
