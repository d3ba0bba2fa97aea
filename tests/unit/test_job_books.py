"""A job's account: up while it makes steps, down from its end to its next step, excluded when nobody wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controlplane.domain.sla import decide_job_ledger, elapsed, totals_at
from gridkeeper.decision import Now, Put, Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.records.books import AccountRecord, EntryRecord, Totals, UptimeClass
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import JobRecord, JobSpec, JobState, OwnershipRecord, Revoke, RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState, Settings

JOB, SCOPE, START = JobId("train"), "job/train", 1_795_000_000_000
SPEC = JobSpec(JOB, "default", ("true",), (), "", 1, "", (), False, False, 1_000, 3)


def _v(record: Any) -> Versioned[Any]:
    return Versioned(record, Revision(1), Revision(1), 0)


class Job:
    """One job's records, and its books as the global leader keeps them."""

    def __init__(self) -> None:
        self.record = JobRecord(SPEC, JobState.RUNNING, Desired.RUN, "", "ada", START, MigrationId("m1"), 0, 0, "")
        self.owner = OwnershipRecord(
            JOB, Epoch(1, 1), RegionId("east"), NodeId("n1"), (DeviceId("n1/gpu0"),), Desired.RUN, 0, None, -1, "",
            MigrationId("m1"), SPEC, "",
        )  # fmt: skip
        self.runs: dict[int, RunRecord] = {}
        self.account: AccountRecord | None = None
        self.entries: list[EntryRecord] = []

    def run(self, epoch: int, phase: RunPhase, first_step_ms: int = 0, ended_ms: int = 0) -> None:
        self.owner = replace(self.owner, epoch=Epoch(1, epoch))
        first = 1 if first_step_ms else -1
        self.runs[epoch] = RunRecord(
            JOB, Epoch(1, epoch), RegionId("east"), NodeId("n1"), phase, 1 if ended_ms else -1, 0, bool(ended_ms),
            False, -1, first, first, first_step_ms, first_step_ms, START, ended_ms, 0.0, "",
        )  # fmt: skip

    def tick(self, at: int) -> None:
        accounts = {SCOPE: _v(self.account)} if self.account else {}
        runs = {f"{JOB}/{1:06d}.{number:010d}": _v(run) for number, run in self.runs.items()}
        world = GlobalState(jobs={JOB: _v(self.record)}, ownership={JOB: _v(self.owner)}, runs=runs, accounts=accounts)
        for decision in decide_job_ledger(world, Settings(), Now(0, START + at)):
            for write in decision.writes:
                assert isinstance(write, Put)
                if isinstance(write.record, AccountRecord):
                    self.account = write.record
                else:
                    self.entries.append(write.record)

    def totals(self, at: int) -> Totals:
        assert self.account is not None
        assert elapsed(totals_at(self.account, START + at)) == START + at - self.account.opened_ms
        return totals_at(self.account, START + at)


def running() -> Job:
    """Making steps since START; its account opens then."""
    job = Job()
    job.run(1, RunPhase.RUNNING, first_step_ms=START)
    job.tick(0)
    return job


def test_an_interruption_lasts_from_the_end_of_one_run_to_the_first_step_of_the_next() -> None:
    job = running()
    job.run(1, RunPhase.EXITED, first_step_ms=START, ended_ms=START + 10_000)
    job.record = replace(job.record, state=JobState.STARTING, migration=MigrationId("m2"))
    job.tick(10_400)
    job.run(2, RunPhase.RUNNING)
    job.record = replace(job.record, state=JobState.RUNNING)
    job.tick(14_000)
    assert job.totals(14_000) == Totals(10_000, 0, 4_000, 0, 0), "it runs, and has made no step yet"
    job.run(2, RunPhase.RUNNING, first_step_ms=START + 15_000)
    job.tick(15_300)
    assert job.totals(20_000) == Totals(15_000, 0, 5_000, 0, 0)
    assert [(e.uptime, e.refs) for e in job.entries] == [(UptimeClass.UP, ("m1",)), (UptimeClass.DOWN, ("m2",))]


def test_a_revoked_run_that_may_still_live_is_unknown() -> None:
    job = running()
    job.owner = replace(job.owner, revoke=Revoke(MigrationId("m2"), "n1 is unreachable", START + 3_000))
    job.tick(3_500)
    assert job.totals(5_000) == Totals(3_000, 0, 0, 0, 2_000)


def test_a_stop_by_wish_and_the_time_after_the_end_are_excluded() -> None:
    job = running()
    job.record = replace(job.record, desired=Desired.STOP)
    job.tick(4_000)
    job.record = replace(job.record, state=JobState.STOPPED, ended_ms=START + 6_000)
    job.tick(6_100)
    assert job.totals(9_000) == Totals(4_000, 0, 0, 5_000, 0)


def test_a_job_that_never_tells_of_a_step_has_no_account() -> None:
    job = Job()
    for epoch in (1, 2):
        job.run(epoch, RunPhase.RUNNING)
        job.tick(epoch * 1_000)
    assert job.account is None
