"""Gangs: what the members' reports come to, and one checkpoint of many parts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulate.checkpoints import FileData, MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock
from chaos.simulate.executor import SimExecutor, SimJob
from chaos.simulate.files import SimFiles
from chaos.simulate.loop import run_virtual
from controlplane.shell.runs import gang_record
from failover.domain.fencing import may_acknowledge
from failover.domain.gang import (
    folded,
    is_broken,
    member_failed,
    members_of,
    never_complete,
    nodes_of,
    parts_complete,
    rendezvous_port,
    settled_step,
    unheard,
    wanted_part,
)
from failover.domain.indexes import confirmed_stopped, released, succeeded
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId, RegionId, Revision, device_id
from gridkeeper.ports.jobs import CheckpointError, Launch
from gridkeeper.records.jobs import MemberRun, OwnershipRecord, Revoke, RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import Timings
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import CheckpointAck, CheckpointReady, Command, Workload
from nodeagent.checkpointing import Checkpoints
from nodeagent.orders import epoch_message
from nodeagent.statefile import MemoryState
from nodeagent.supervisor import Supervisor
from tests.fixtures import records

JOB, EPOCH, EAST = JobId("train"), Epoch(1, 1), RegionId("east")
NODES = tuple(NodeId(f"n{number}") for number in range(4))


def gang(count: int, devices: int = 2) -> OwnershipRecord:
    spec = replace(records.spec("train", devices), nodes=count)
    names = tuple(device_id(node, f"gpu{number}") for node in NODES[:count] for number in range(devices))
    return replace(records.ownership("train", names), spec=spec)


def versioned(run: RunRecord) -> Versioned[RunRecord]:
    return Versioned(run, Revision(1), Revision(1), 0)


@st.composite
def members(draw: st.DrawFn) -> tuple[MemberRun, ...]:
    """Members as agents may report them."""
    found = []
    for node in NODES[: draw(st.integers(2, 4))]:
        phase = draw(st.sampled_from(RunPhase))
        ended = phase is RunPhase.EXITED or (phase is RunPhase.STOPPING and draw(st.booleans()))
        found.append(
            replace(
                unheard(node),
                reported=True,
                phase=phase,
                exit_code=draw(st.sampled_from([0, 1])) if ended else 0,
                exit_signal=draw(st.sampled_from([0, 9])) if ended else 0,
                stop_confirmed=phase is RunPhase.EXITED,
                stopped_by_us=phase in (RunPhase.EXITED, RunPhase.STOPPING) and draw(st.booleans()),
                ended_ms=draw(st.integers(1, 9)) if ended else 0,
                first_step=draw(st.sampled_from([-1, 3])),
                part_step=draw(st.integers(-1, 4)),
            )
        )
    return tuple(found)


@given(members())
def test_a_gang_is_what_all_of_its_members_are(found: tuple[MemberRun, ...]) -> None:
    """Protects: no takeover while one member may live, no success with one that failed, no wait for a broken gang."""
    run = folded(records.run(), found)
    ended = all(member.phase is RunPhase.EXITED for member in found)
    failed = [member for member in found if member_failed(member)]
    assert confirmed_stopped(versioned(run)) == ended
    assert succeeded(versioned(run)) == (ended and not failed)
    assert is_broken(versioned(run)) == bool(failed)
    assert (run.phase is RunPhase.RUNNING) <= (not failed and all(m.phase is not RunPhase.STARTING for m in found))
    if failed:
        first = min(failed, key=lambda member: (member.ended_ms or 99, member.node))
        assert (run.exit_code, run.exit_signal, run.stopped_by_us) == (
            first.exit_code,
            first.exit_signal,
            first.stopped_by_us,
        )
    assert folded(run, found) == run


@given(members(), st.integers(0, 60_000))
def test_the_takeover_waits_for_every_member_or_for_r(found: tuple[MemberRun, ...], waited: int) -> None:
    """Protects: one owner. A member that is confirmed stopped says nothing about the others."""
    timings, run = Timings(), folded(records.run(), found)
    intent = Revoke(records.migration().id, "why", 0)
    owner = Versioned(replace(gang(len(found)), revoke=intent), Revision(2), Revision(1), 0)
    over = bool(released(GlobalState(), owner, versioned(run), waited, timings))
    assert over == (all(member.phase is RunPhase.EXITED for member in found) or waited >= timings.takeover_ms)


@pytest.mark.parametrize("count", [1, 3])
def test_each_member_renews_for_itself_and_nobody_else_does(count: int) -> None:
    owner = Versioned(gang(count), Revision(1), Revision(1), 0)
    granted = [node for node in NODES if may_acknowledge(owner, node, EPOCH, 10, True, Timings())]
    assert tuple(granted) == nodes_of(owner.record) == NODES[:count]
    assert not may_acknowledge(owner, NODES[0], EPOCH.next(), 10, True, Timings())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_members_follow_from_the_devices_rank_by_rank(counts: list[int]) -> None:
    devices = [DeviceId(f"{node}/gpu{n}") for node, count in zip(NODES, counts, strict=False) for n in range(count)]
    found = members_of(devices)
    assert [member.rank for member in found] == list(range(len(counts)))
    assert [len(member.devices) for member in found] == counts
    assert [device for member in found for device in member.devices] == devices


def workload(phase: str, code: int = 0, storing: bool = False) -> Workload:
    return Workload(
        job=JOB,
        epoch=epoch_message(EPOCH),
        phase=records_pb2.RunPhase.Value(f"RUN_PHASE_{phase}"),
        exit_code=code,
        stop_confirmed=phase == "EXITED",
        first_step=-1,
        last_step=-1,
        storing_checkpoint=storing,
    )


def test_reports_of_members_make_one_record_and_the_first_names_them_all() -> None:
    """Protects: a member that has not spoken yet keeps the gang from counting as running, or as ended."""
    owner = gang(2)
    run = gang_record(workload("RUNNING"), None, owner, EAST, NODES[1], 1_000)
    assert [m.node for m in run.members] == list(NODES[:2]) and run.phase is RunPhase.STARTING
    run = gang_record(workload("RUNNING"), run, None, EAST, NODES[0], 1_000)
    assert run.phase is RunPhase.RUNNING
    run = gang_record(workload("EXITED", 3, storing=True), run, None, EAST, NODES[1], 1_000)
    assert run.phase is RunPhase.STOPPING and is_broken(versioned(run)), "the others wait for it in vain"
    run = gang_record(workload("EXITED", 3), run, None, EAST, NODES[1], 1_000)
    assert not confirmed_stopped(versioned(run))
    run = gang_record(workload("EXITED"), run, None, EAST, NODES[0], 1_000)
    assert confirmed_stopped(versioned(run)) and run.exit_code == 3
    assert gang_record(workload("RUNNING"), run, None, EAST, NODES[0], 9_000) == run, "an end is final"


def test_two_gangs_meet_at_two_ports_of_one_node() -> None:
    """Protects: rank 0 of the second gang would find its port taken."""
    port = rendezvous_port(GlobalState(), JOB, EPOCH, NODES[0])
    other = replace(gang(2), job=JobId("other"), rendezvous=f"host:{port}")
    world = GlobalState(ownership={other.job: Versioned(other, Revision(1), Revision(1), 0)})
    assert rendezvous_port(world, JOB, EPOCH, NODES[0]) != port == rendezvous_port(world, JOB, EPOCH, NODES[1])
    assert rendezvous_port(GlobalState(), JOB, EPOCH.next(), NODES[0]) != port, "an older epoch's ranks are not met"


class Dirs:
    """Directories of one member's ``CheckpointDirs``."""

    def __init__(self, tree: MemoryTree) -> None:
        self.tree = tree

    def steps(self, directory: Path) -> tuple[int, ...]:
        found = (path for path in self.tree.directories if path.parent == directory)
        return tuple(sorted(int(path.name.removeprefix("step-")) for path in found))

    def has(self, directory: Path) -> bool:
        return directory in self.tree.directories

    async def remove(self, directory: Path) -> None:
        self.tree.directories.pop(directory, None)


class Member:
    """One node's agent, as far as checkpoints go."""

    def __init__(
        self, rank: int, steps: set[int], tree: MemoryTree, store: SimCheckpointStore, clock: SimClock
    ) -> None:
        self.rank, self.tree, self.root = rank, tree, Path(f"/n{rank}")
        self.tasks: list[asyncio.Task[None]] = []
        for step in steps:
            data = FileData(0o600, f"{rank} {step}".encode())
            tree.directories[self.root / f"step-{step}"] = {f"shard-{rank}": data}
        self.checkpoints = Checkpoints(store, Dirs(tree), lambda job, epoch: self.root, clock, self.spawn, lambda: None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def look(self, run: RunRecord, settled: int, ended: bool) -> tuple[CheckpointReady, ...]:
        self.checkpoints.member((JOB, EPOCH), self.rank, wanted_part(run, settled))
        self.checkpoints.look((JOB, EPOCH), ended)
        await asyncio.gather(*self.tasks)
        return self.checkpoints.announcements()


@given(st.lists(st.sets(st.integers(0, 7), max_size=5), min_size=2, max_size=4), st.booleans())
def test_members_that_stopped_at_different_steps_agree_on_the_newest_that_all_have(
    steps: list[set[int]], suspect: bool
) -> None:
    """Protects: the last checkpoint of a gang is of one step, none is lost for want of agreement, and no member waits
    for ever for a part that never comes; nor if what they agreed on is suspect, and no head."""
    assert run_virtual(settle(steps, suspect), 600) == max(set.intersection(*steps), default=-1)


async def settle(steps: list[set[int]], suspect: bool) -> int:
    """All members have ended. The newest step that was committed when all of them are done. ``suspect``: the head does
    not move to it."""
    clock, tree = SimClock(asyncio.get_running_loop()), MemoryTree()
    store = SimCheckpointStore(tree)
    agents = [Member(rank, found, tree, store, clock) for rank, found in enumerate(steps)]
    ended = tuple(
        replace(unheard(node), reported=True, phase=RunPhase.STOPPING, ended_ms=5) for node in NODES[: len(steps)]
    )
    run, committed = folded(records.run(), ended), {-1}
    for _ in range(60):
        for agent in agents:
            settled = settled_step(run, -1 if suspect else max(committed), committed.__contains__)
            for ready in await agent.look(run, settled, ended=True):
                own = replace(run.members[agent.rank], part_step=ready.step, part_digest=ready.digest)
                run = folded(run, (*run.members[: agent.rank], own, *run.members[agent.rank + 1 :]))
                ack = CheckpointAck(job=JOB, epoch=epoch_message(EPOCH), step=ready.step)
                settled = settled_step(run, -1 if suspect else max(committed), committed.__contains__)
                if settled < ready.step and parts_complete(run, ready.step):
                    await store.join(JOB, ready.step, EPOCH, [member.part_digest for member in run.members])
                    committed.add(ready.step)
                if ready.step in committed:
                    ack.committed = True
                elif not never_complete(run, settled):
                    continue
                agent.checkpoints.acknowledge(ack)
            if not agent.checkpoints.busy((JOB, EPOCH)):
                done = replace(run.members[agent.rank], phase=RunPhase.EXITED)
                run = folded(run, (*run.members[: agent.rank], done, *run.members[agent.rank + 1 :]))
        if run.phase is RunPhase.EXITED:
            return max(committed)
    raise AssertionError(f"not settled: {[m.part_step for m in run.members]}, committed {committed}")


def test_a_step_that_was_committed_as_suspect_is_not_wanted_again() -> None:
    """Protects: the member that ended with it has answered; what rank 0 ends with is refused, not waited for."""
    stopping = replace(unheard(NODES[0]), reported=True, phase=RunPhase.STOPPING, ended_ms=5, part_step=7)
    exited = replace(unheard(NODES[1]), reported=True, phase=RunPhase.EXITED, ended_ms=5, part_step=5)
    run = folded(records.run(), (stopping, exited))
    assert settled_step(run, 3, lambda step: False) == 3 and wanted_part(run, 3) == 5
    settled = settled_step(run, 3, lambda step: step == 5)
    assert settled == 5 and wanted_part(run, settled) == 7
    assert "rank 1" in never_complete(run, settled) and "step 7" in never_complete(run, settled)


def test_a_join_holds_all_files_once_and_refuses_one_file_of_two_contents() -> None:
    """Protects: no resume from a mixture of what two ranks wrote under one name."""

    async def main() -> None:
        tree = MemoryTree()
        store = SimCheckpointStore(tree)
        for rank, config in enumerate(("same", "same", "other")):
            files = {f"shard-{rank}": FileData(0o600, b"%d" % rank), "config": FileData(0o600, config.encode())}
            tree.directories[Path(f"/n{rank}")] = files
        parts = [(await store.put(JOB, 3, EPOCH, Path(f"/n{rank}"), part=True))[0] for rank in range(3)]
        _, whole = await store.join(JOB, 3, EPOCH, parts[:2])
        assert [file.path for file in whole.files] == ["config", "shard-0", "shard-1"]
        with pytest.raises(CheckpointError, match="ranks 0 and 2 wrote 'config'"):
            await store.join(JOB, 3, EPOCH, parts)

    run_virtual(main(), 60)


def test_what_an_overruled_leader_says_of_a_gang_changes_nothing() -> None:
    """Protects: a command of a term that is over is refused as a whole; the member would store parts of a step that
    nobody else stores."""

    async def main() -> tuple[int, ...]:
        clock, files = SimClock(asyncio.get_running_loop()), SimFiles()
        executor = SimExecutor("n1", clock, files, lambda launch: SimJob(start_ms=1 << 30))
        store = SimCheckpointStore(files.tree)
        agent = Supervisor(NODES[1], executor, store, files, MemoryState(), Path("/resume"), clock, Timings())
        spec = gang(2).spec
        launch = Launch(JOB, EPOCH, spec, (device_id(NODES[1], "gpu0"),), "", -1, 1, "n0:20000")
        await executor.start(launch, clock.mono_ms() + 60_000)
        for step in (5, 9):
            files.put(executor.checkpoint_dir(JOB, EPOCH) / f"step-{step}", "shard-1", b"1")
        for term, step in ((5, 5), (4, 9)):
            told = {"rank": 1, "rendezvous": "n0:20000", "gang_step": step, "slots": ["gpu0"], "resume_step": -1}
            command = Command(term=term, job=JOB, epoch=epoch_message(EPOCH), **told)  # type: ignore[arg-type]
            command.desired = records_pb2.DESIRED_RUN
            command.spec.CopyFrom(cast(records_pb2.JobSpec, codec.to_message(spec)))
            agent.take(command)
        await agent.tick()
        await clock.sleep(1_000)
        return tuple(ready.step for ready in agent.announcements())

    assert run_virtual(main(), 600) == (5,)
