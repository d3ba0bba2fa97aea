"""How far a standby region is behind.

Protects: a lag of 0 is said only of a region where the newest checkpoint was verified.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.checkpointmetrics import checkpoint_metrics
from failover.domain.lag import Lag, lags
from gridkeeper.decision import Versioned
from gridkeeper.ids import Epoch, JobId, RegionId, Revision
from gridkeeper.records.jobs import CheckpointRecord, HeadRecord, JobState
from gridkeeper.snapshot import GlobalState
from tests.fixtures import records

JOB, EAST, WEST = JobId("train"), RegionId("east"), RegionId("west")


def at(record: object) -> Versioned:  # type: ignore[type-arg]
    return Versioned(record, Revision(1), Revision(1), 0)


def kept(step: int, *regions: RegionId, suspect: bool = False) -> CheckpointRecord:
    return CheckpointRecord(JOB, step, Epoch(1, 1), f"d{step}", 50, regions[0], suspect, step * 1000, regions[1:])


def world(*checkpoints: CheckpointRecord, state: JobState = JobState.RUNNING) -> GlobalState:
    newest = checkpoints[-1]
    job = records.job("train", state)
    head = HeadRecord(JOB, newest.step, newest.epoch, newest.digest, 50, (newest.region,), newest.committed_ms)
    return GlobalState(
        jobs={JOB: at(replace(job, spec=replace(job.spec, regions=(EAST, WEST))))},
        heads={JOB: at(head)},
        checkpoints={str(c.step): at(c) for c in checkpoints},
    )


def test_a_region_is_behind_by_what_a_move_there_would_lose() -> None:
    state = world(kept(10, EAST, WEST), kept(20, EAST, WEST, suspect=True), kept(40, EAST))
    assert list(lags(state)) == [Lag(JOB, EAST, 0, 0, 0), Lag(JOB, WEST, 30, 30_000, 50)]


def test_a_region_without_any_is_not_called_up_to_date() -> None:
    assert list(lags(world(kept(40, EAST))))[1] == Lag(JOB, WEST, -1, -1, 50)


def test_jobs_that_have_ended_have_no_lag() -> None:
    assert list(lags(world(kept(40, EAST), state=JobState.SUCCEEDED))) == []


def test_the_metrics_say_the_same() -> None:
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in checkpoint_metrics(world(kept(10, EAST, WEST), kept(40, EAST)))
        for sample in family.samples
    }
    assert values["gridkeeper_checkpoint_lag_steps", JOB, "west"] == 30
    assert values["gridkeeper_checkpoint_lag_seconds", JOB, "west"] == 30
    assert values["gridkeeper_checkpoint_lag_bytes", JOB, "west"] == 50
    assert values["gridkeeper_checkpoint_lag_steps", JOB, "east"] == 0
    assert (values["gridkeeper_checkpoints", "kept"], values["gridkeeper_checkpoints", "damaged"]) == (2, 0)
