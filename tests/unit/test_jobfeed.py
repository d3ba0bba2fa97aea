"""What a replica tells an agent of its jobs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulate.loop import run_virtual
from chaos.simulate.network import SimAgentSession
from controlplane.shell.runs import STEP_EVERY_MS, run_record, said_of, says_more
from gridkeeper import codec
from gridkeeper.ids import Epoch, JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.ports.link import parts
from gridkeeper.ports.store import PutOp
from gridkeeper.records.jobs import RunPhase, RunRecord
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentFrame, CheckpointReady, Command, Renewal, Workload, WorkloadReport
from tests.unit.ingestbench import EAST, Bench, bench, hello, until

JOB = JobId("train")
EPOCH = records_pb2.Epoch(generation=1, number=4)
AT_MS = 1_700_000_000_000


def workload(phase: str, first_step: int = -1) -> Workload:
    return Workload(
        job=JOB,
        epoch=EPOCH,
        phase=records_pb2.RunPhase.Value(f"RUN_PHASE_{phase}"),
        first_step=first_step,
        last_step=first_step,
        stop_confirmed=phase == "EXITED",
        stopped_by_us=phase == "EXITED",
    )


def report(*workloads: Workload) -> AgentFrame:
    return AgentFrame(workloads=WorkloadReport(workloads=workloads))


async def recorded(b: Bench, run: RunRecord) -> None:
    done = await b.reader.txn([], [PutOp(KEYS.run(JOB, 1, 4), codec.encode(run))])
    await b.replicas[0].world.wait_revision(done.revision, 5_000)


async def heard(b: Bench, session: SimAgentSession) -> list[Command]:
    """Commands of the next seconds."""
    end, commands = b.clock.mono_ms() + 2_500, []
    while b.clock.mono_ms() < end:
        await session.send(AgentFrame(renewal=Renewal(id=b.clock.mono_ms())))
        await b.clock.sleep(20)
        frames = parts(await session.receive())
        commands += [frame.command for frame in frames if frame.WhichOneof("frame") == "command"]
    return commands


@pytest.mark.parametrize(
    ("before", "now", "desired"),
    [
        (("RUNNING", -1), None, "STOP"),
        (("STARTING", 7), None, "STOP"),
        (("RUNNING", 7), ("EXITED", -1), "STOP"),
        (("RUNNING", 7), ("RUNNING", 7), "RUN"),
        (("RUNNING", 7), ("STARTING", -1), "RUN"),
        (("STARTING", -1), None, "RUN"),
    ],
)
def test_an_epoch_that_has_begun_is_not_begun_again_by_an_agent_that_lost_its_state(
    before: tuple[str, int], now: tuple[str, int] | None, desired: str
) -> None:
    """A second start of the same epoch would go back to its old resume step, behind checkpoints that it has made."""

    async def main() -> None:
        async with bench() as b:
            await b.own(JOB, 4)
            await recorded(b, run_record(workload(*before), None, EAST, NodeId("n1"), AT_MS))
            session = await b.open(hello())
            await until(session, "welcome")
            await session.send(report(*([workload(*now)] if now else [])))
            commands = await heard(b, session)
            assert {records_pb2.Desired.Name(c.desired) for c in commands} == {f"DESIRED_{desired}"}

    run_virtual(main())


def test_before_the_agent_has_said_what_it_has_it_is_not_told_to_run_what_has_begun() -> None:
    async def main() -> None:
        async with bench() as b:
            await b.own(JOB, 4)
            await recorded(b, run_record(workload("RUNNING", 7), None, EAST, NodeId("n1"), AT_MS))
            session = await b.open(hello())
            await until(session, "welcome")
            assert not [c for c in await heard(b, session) if c.desired == records_pb2.DESIRED_RUN]

    run_virtual(main())


def test_a_checkpoint_that_cannot_be_verified_is_to_be_tried_again_and_one_without_right_is_not() -> None:
    """A refusal is final and loses the checkpoint: an object store that is away for a moment is no reason for it."""

    async def main() -> None:
        async with bench() as b:
            await b.own(JOB, 4)
            session = await b.open(hello())
            await until(session, "welcome")
            lost_epoch = records_pb2.Epoch(generation=1, number=3)
            for epoch, retry, words in ((EPOCH, True, "no manifest"), (lost_epoch, False, "is owned at epoch 1.4")):
                ready = CheckpointReady(job=JOB, epoch=epoch, step=3, digest="0" * 64)
                await session.send(AgentFrame(checkpoint=ready))
                ack = (await until(session, "checkpoint_ack")).checkpoint_ack
                assert (ack.committed, ack.retry) == (False, retry)
                assert words in ack.refusal

    run_virtual(main())


def test_what_was_recorded_of_a_run_stays_when_its_agent_has_forgotten_it() -> None:
    old = run_record(workload("RUNNING", 7), None, EAST, NodeId("n1"), AT_MS)
    new = run_record(workload("EXITED"), old, EAST, NodeId("n1"), AT_MS + 9)
    assert (new.phase, new.first_step, new.last_step, new.last_step_ms) == (RunPhase.EXITED, 7, 7, old.last_step_ms)
    assert new.epoch == Epoch(1, 4)


def test_what_an_agent_says_each_second_is_answered_in_one_message() -> None:
    """Protects: a node costs its replica one message a second, not one per thing that there is to say."""

    async def main() -> None:
        async with bench() as b:
            await b.own(JOB, 4)
            session = await b.open(hello())
            await until(session, "welcome")
            await until(session, "command")
            for number in range(1, 9):
                said = AgentFrame(renewal=Renewal(id=number))
                said.more.append(report(workload("RUNNING", 7)))
                await session.send(said)
                answer = await session.receive()
                assert answer.renewal_ack.id == number
                assert {frame.WhichOneof("frame") for frame in answer.more} <= {"command"}
                await b.clock.sleep(1_000)

    run_virtual(main())


def test_a_report_that_says_what_the_one_before_did_writes_nothing_and_progress_is_written_now_and_then() -> None:
    """Protects: etcd from telemetry, and everybody who follows it: what runs as it did is not written each second."""

    async def main() -> None:
        async with bench() as b:
            await b.own(JOB, 4)
            session = await b.open(hello())
            await until(session, "welcome")

            async def written(seconds: int, steps: int) -> int:
                """Versions of the run's record while it is reported for so long, with so many steps a second."""
                revisions = set()
                for second in range(seconds):
                    said = workload("RUNNING", 7)
                    said.last_step = 7 + steps * second
                    said.started_age_ms = 60_000 + 1_000 * second
                    await session.send(report(said))
                    await b.clock.sleep(1_000)
                    kv, _ = await b.reader.get(KEYS.run(JOB, 1, 4))
                    revisions.add(kv.mod_revision if kv else 0)
                return len(revisions)

            assert await written(10, 0) == 1
            assert abs(await written(20, 3) - 20 * 1_000 // STEP_EVERY_MS) <= 1  # by where in its period it begins
            record, _ = await b.reader.get(KEYS.run(JOB, 1, 4))
            assert record and codec.decode(RunRecord, record.value).last_step >= 7 + 3 * 18

    run_virtual(main())


def test_what_a_stream_remembers_of_runs_is_of_those_that_are_reported() -> None:
    """Protects: a replica's memory from a node that has had a million runs."""

    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            stream = b.replicas[0].ingest.streams[NodeId("n1")]
            for number in range(4, 10):
                await b.own(JOB, number)
                said = workload("RUNNING", 7)
                said.epoch.number = number
                for _ in range(2):
                    await session.send(report(said))
                    await b.clock.sleep(1_000)
                run = (JOB, Epoch(1, number))
                assert set(stream.written_ms) == set(stream.noted) == {run}

    run_virtual(main())


STEPS = st.integers(-1, 4)
SAID = st.builds(
    Workload,
    job=st.just(JOB),
    epoch=st.just(EPOCH),
    phase=st.sampled_from([records_pb2.RunPhase.Value(f"RUN_PHASE_{p}") for p in ("STARTING", "RUNNING", "EXITED")]),
    exit_code=st.sampled_from((0, 1)),
    stop_confirmed=st.booleans(),
    stopped_by_us=st.booleans(),
    first_step=STEPS,
    last_step=STEPS,
    started_age_ms=st.integers(0, 10_000),
    ended_age_ms=st.integers(0, 10_000),
    reason=st.sampled_from(("", "why")),
    storing_checkpoint=st.booleans(),
)


@settings(max_examples=200)
@given(st.lists(SAID, max_size=3), SAID, SAID, st.booleans())
def test_what_is_passed_over_for_saying_the_same_would_have_changed_nothing(
    before: list[Workload], one: Workload, drawn: Workload, alike: bool
) -> None:
    """Protects: the end of a run, or anything else that it reports, is never taken for what is on record already."""
    other = Workload()
    other.CopyFrom(one if alike else drawn)
    other.last_step, other.started_age_ms, other.ended_age_ms = drawn.last_step, drawn.started_age_ms, 7
    old: RunRecord | None = None
    for number, said in enumerate((*before, one)):
        old = run_record(said, old, EAST, NodeId("n1"), AT_MS + number)
    assert old is not None
    if said_of(other) == said_of(one):
        assert not says_more(old, run_record(other, old, EAST, NodeId("n1"), AT_MS + 20))
