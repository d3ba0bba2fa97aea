"""Protects the whole course of a job's moves: start, planned move, recovery, stop, end."""

from __future__ import annotations

from dataclasses import replace

from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import JobState, MigrationKind, MigrationRecord, MigrationState
from tests.unit.failover_world import Grid, spec_of

TRAIN = JobId("train")


def two_regions() -> Grid:
    return Grid({"east": {"east-1": 4, "east-2": 4}, "west": {"west-1": 4, "west-2": 4}})


def running(grid: Grid, **changes: object) -> Grid:
    grid.submit(spec_of("train", **changes))
    grid.run(12)
    assert grid.job("train").state is JobState.RUNNING, grid.log[-5:]
    return grid


def names(record: object) -> list[str]:
    return [stamp.name for stamp in record.stages]  # type: ignore[attr-defined]


def test_a_submitted_job_starts_at_epoch_one_from_scratch() -> None:
    grid = running(two_regions())
    start = grid.migrations("train")[0]
    assert (start.id, start.kind, start.state) == ("train-e1.0", MigrationKind.START, MigrationState.DONE)
    assert str(grid.owner("train").epoch) == "1.1"
    assert grid.owner("train").resume_step == -1
    assert start.rto_ms >= 0


def test_a_drain_moves_the_job_to_the_other_region_after_its_last_checkpoint() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    grid.drain(source.devices[0])
    grid.run(30)
    move = grid.migrations("train")[-1]
    assert (move.id, move.kind, move.state) == ("train-e1.1", MigrationKind.PLANNED, MigrationState.DONE)
    assert grid.owner("train").region != source.region
    assert names(move) == [
        "planned", "pre_copying", "stopping", "copying", "verified", "ownership_moved", "starting", "running", "done",
    ]  # fmt: skip
    assert move.rpo_steps == 0, "a planned move loses no step"
    assert move.last_source_step == move.resume_step
    assert move.rto_ms > 0
    assert move.drain and move.incident
    assert move.fault_ms < move.requested_ms + 1


def test_a_silent_node_loses_its_job_only_after_r() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    grid.cut(source.node)
    grid.run(80)
    move = grid.migrations("train")[-1]
    assert (move.kind, move.state) == (MigrationKind.RECOVERY, MigrationState.DONE), grid.log[-8:]
    stamps = {stamp.name: stamp.at_ms for stamp in move.stages}
    assert stamps["source_fenced"] - stamps["fencing"] >= grid.settings.timings.takeover_ms
    assert grid.owner("train").node != source.node
    assert move.rpo_steps >= 0
    head_steps = move.resume_step
    assert head_steps >= 0


def test_the_time_to_recover_counts_from_when_the_node_was_last_heard() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    heard_ms = grid.time_ms + 250
    grid.cut(source.node)
    grid.run(80)
    move = grid.migrations("train")[-1]
    first_step_ms = grid.memory.record(KEYS.run(TRAIN, 1, 2)).first_step_ms
    assert move.requested_ms > move.fault_ms == heard_ms
    assert move.rto_ms == first_step_ms - heard_ms


def fencing(grid: Grid) -> MigrationRecord:
    """Rounds until a revoke intent stands."""
    for _ in range(20):
        grid.round()
        if grid.migrations("train")[-1].state is MigrationState.FENCING:
            return grid.migrations("train")[-1]
    raise AssertionError(grid.log[-5:])


def test_a_node_that_comes_back_within_f_keeps_its_job() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    grid.cut(source.node)
    move = fencing(grid)
    assert (revoke := grid.owner("train").revoke) and revoke.withdrawable
    grid.heal(source.node)
    grid.run(4)
    [withdrawn] = [m for m in grid.migrations("train") if m.id == move.id]
    assert withdrawn.state is MigrationState.CANCELLED, grid.log[-5:]
    assert f"node {source.node} is heard again and epoch 1.1 still runs there, so train stays" in withdrawn.reason
    written = len(grid.log)
    grid.run(4 * grid.settings.timings.takeover_ms // 250)
    assert (grid.owner("train").epoch, grid.owner("train").revoke) == (source.epoch, None)
    assert [p.epoch for _, p in grid.alive()] == [source.epoch]
    assert grid.job("train").state is JobState.RUNNING
    assert grid.migrations("train")[-1].id == move.id, "nothing is asked for again"
    assert not [line for line in grid.log[written:] if "migrate.plan" in line or "executor.stop" in line]


def test_a_node_that_comes_back_after_f_has_lost_its_job() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    grid.cut(source.node)
    fencing(grid)
    grid.run(grid.settings.timings.fence_ms * 105 // 100 // 250 + 1)
    assert not list(grid.alive())
    grid.heal(source.node)
    grid.run(40)
    assert grid.withdrawn == 0
    assert grid.owner("train").epoch.number == 2 and grid.job("train").state is JobState.RUNNING


def test_r_runs_anew_after_a_withdrawn_intent() -> None:
    """The wait for the first intent counts for nothing: the job was renewed since."""
    grid = running(two_regions())
    source = grid.owner("train")
    grid.cut(source.node)
    fencing(grid)
    grid.run(12)
    grid.heal(source.node)
    grid.run(3)
    assert grid.withdrawn == 1
    grid.cut(source.node)
    move = fencing(grid)
    grid.run(80)
    stamps = {stamp.name: stamp.at_ms for stamp in grid.migrations("train")[-1].stages}
    assert grid.migrations("train")[-1].id == move.id != "train-e1.1"
    assert stamps["source_fenced"] - stamps["fencing"] >= grid.settings.timings.takeover_ms


def test_a_planned_move_goes_on_when_its_silent_source_comes_back() -> None:
    """Whoever asked for it still wants it: only the recovery is withdrawn."""
    grid = running(Grid({"east": {"east-1": 2}, "west": {"west-1": 1}}))  # nowhere to go
    source = grid.owner("train")
    grid.drain(source.devices[0])
    grid.run(8)
    before = grid.migrations("train")[-1]
    grid.cut(source.node)
    assert fencing(grid).kind is MigrationKind.RECOVERY
    grid.heal(source.node)
    grid.run(4)
    [_, move] = grid.migrations("train")
    assert (move.id, move.kind, move.state) == (before.id, MigrationKind.PLANNED, MigrationState.PLANNED)
    assert move.reason == before.reason
    assert grid.owner("train").revoke is None and list(grid.alive())


def test_a_job_that_still_is_to_start_is_not_given_back() -> None:
    """Renewals may keep a process alive, never start one under an intent that somebody may have waited out."""
    grid = two_regions()
    grid.submit(spec_of("train"))
    while not [m for m in grid.migrations("train") if m.state is MigrationState.OWNERSHIP_MOVED]:
        grid.round()
    source = grid.owner("train")
    grid.cut(source.node)
    fencing(grid)
    assert (revoke := grid.owner("train").revoke) and not revoke.withdrawable
    grid.heal(source.node)
    grid.run(60)
    assert grid.withdrawn == 0
    assert grid.owner("train").epoch.number == 2 and grid.job("train").state is JobState.RUNNING


def test_a_crash_with_evidence_restarts_elsewhere_without_counting() -> None:
    grid = running(two_regions())
    source = grid.owner("train")
    grid.drain(source.devices[1])
    grid.crash(TRAIN, 1)
    grid.run(40)
    job, move = grid.job("train"), grid.migrations("train")[-1]
    assert (move.kind, move.state) == (MigrationKind.RECOVERY, MigrationState.DONE)
    assert move.drain == f"d-{source.devices[1].replace('/', '-')}"
    assert job.restarts == 0
    assert grid.owner("train").region != source.region


def test_crashes_of_its_own_doing_restart_in_place_until_the_limit() -> None:
    grid = running(two_regions(), max_restarts=1)
    source = grid.owner("train")
    grid.crash(TRAIN, 3)
    grid.run(30)
    assert grid.job("train").restarts == 1
    assert grid.owner("train").region == source.region, "a mere crash starts again where its checkpoint is"
    assert grid.job("train").state is JobState.RUNNING
    grid.crash(TRAIN, 3)
    grid.run(30)
    job = grid.job("train")
    assert job.state is JobState.FAILED
    assert "max_restarts" in job.reason


def test_a_job_that_fills_the_only_node_restarts_on_its_own_devices() -> None:
    grid = running(Grid({"east": {"east-1": 2}}))
    grid.crash(TRAIN, 1)
    grid.run(30)
    assert grid.job("train").state is JobState.RUNNING
    assert str(grid.owner("train").epoch) == "1.2"


def test_exit_zero_is_success_and_releases_the_devices() -> None:
    grid = running(two_regions())
    grid.crash(TRAIN, 0)
    grid.run(6)
    assert grid.job("train").state is JobState.SUCCEEDED
    assert not [key for key in grid.memory.items if "/reservations/" in key]


def test_a_stop_wins_during_a_planned_move() -> None:
    for rounds in range(14):
        grid = running(two_regions())
        grid.drain(grid.owner("train").devices[0])
        grid.run(rounds)
        grid.want_stop(TRAIN)
        grid.run(60)
        assert grid.job("train").state is JobState.STOPPED, (rounds, grid.log[-6:])
        assert grid.owner("train").desired is Desired.STOP
        assert all(m.state in (MigrationState.CANCELLED, MigrationState.DONE) for m in grid.migrations("train"))
        assert not [key for key in grid.memory.items if "/reservations/" in key or "/offers/" in key]


def test_a_job_without_room_says_why_and_starts_when_room_appears() -> None:
    grid = Grid({"east": {"east-1": 2}})
    grid.submit(spec_of("first"))
    grid.run(12)
    grid.submit(spec_of("train"))
    grid.run(12)
    job = grid.job("train")
    assert job.state is JobState.PENDING
    assert "waits for room" in job.reason
    grid.want_stop(JobId("first"))
    grid.run(60)
    assert grid.job("train").state is JobState.RUNNING, grid.log[-8:]


def test_a_planned_move_whose_source_dies_becomes_a_recovery() -> None:
    grid = running(Grid({"east": {"east-1": 2}, "west": {"west-1": 1}}))  # nowhere to go
    source = grid.owner("train")
    grid.drain(source.devices[0])
    grid.run(8)
    assert grid.migrations("train")[-1].state is MigrationState.PLANNED
    grid.cut(NodeId(source.node))
    grid.run(60)
    move = grid.migrations("train")[-1]
    assert move.id == "train-e1.1"
    assert (move.kind, move.state) == (MigrationKind.RECOVERY, MigrationState.SOURCE_FENCED)
    assert "waits for room" in grid.job("train").reason
    grid.repair(DeviceId(source.devices[0]))
    grid.heal(source.node)
    grid.run(40)
    assert grid.job("train").state is JobState.RUNNING, (grid.job("train"), grid.log[-8:])


def test_a_target_that_dies_before_the_first_step_is_left_again() -> None:
    grid = two_regions()
    grid.submit(spec_of("train"))
    while not [m for m in grid.migrations("train") if m.state is MigrationState.OWNERSHIP_MOVED]:
        grid.round()
    first = grid.owner("train")
    grid.power_off(first.node)
    grid.run(100)
    start, *rest = grid.migrations("train")
    assert start.state is MigrationState.FAILED
    assert first.node in start.reason
    assert rest[-1].state is MigrationState.DONE
    assert grid.owner("train").node != first.node


def test_a_region_that_does_not_answer_is_left_for_another_after_r() -> None:
    grid = Grid({"east": {"east-1": 2}, "west": {"west-1": 4}})
    grid.lead("east")
    grid.lead("west")
    grid.submit(spec_of("train"))

    def without_west(rounds: int) -> None:
        for _ in range(rounds):
            grid.advance(250)
            grid.read_ownership()
            for host in grid.hosts.values():
                grid.tick(host)
            grid.lead("east")
            grid.lead("global")

    without_west(8)
    assert grid.migrations("train")[0].target_region == "west"
    without_west(40)
    [start] = grid.migrations("train")
    assert (start.state, start.target_region) == (MigrationState.DONE, "east")
    assert start.refused[0].startswith("west: no answer")


def test_when_every_region_refuses_they_are_asked_in_turn_but_not_in_haste() -> None:
    grid = Grid({"east": {"east-1": 2}, "west": {"west-1": 2}})
    grid.submit(spec_of("train", model="B200"))
    grid.run(4)
    before = grid.memory.revision
    grid.run(100)
    [start] = grid.migrations("train")
    assert start.state is MigrationState.PLANNED
    rounds = 100 * 250 // grid.settings.timings.takeover_ms + 3
    assert start.attempt <= rounds
    assert grid.memory.revision - before < 12 * rounds, "waiting writes next to nothing"
    assert "model B200" in grid.job("train").reason


def test_a_stop_of_a_job_on_a_silent_node_is_confirmed_by_the_fence() -> None:
    grid = running(Grid({"east": {"east-1": 2}}))
    node = grid.owner("train").node
    grid.cut(node)
    grid.want_stop(TRAIN)
    grid.run(4)
    assert grid.job("train").state is JobState.STOPPING
    grid.run(120)
    job, owner = grid.job("train"), grid.owner("train")
    assert job.state is JobState.STOPPED
    assert owner.revoke is not None
    assert "revoke intent" in job.reason


def test_a_checkpoint_that_cannot_reach_its_target_sends_the_job_where_it_is() -> None:
    """The target has room, but the copy never arrives: after a while the job goes to a region that has it."""
    grid = running(Grid({"east": {"east-1": 2, "east-2": 2}, "west": {"west-1": 2}}))
    source = grid.owner("train")
    assert source.region == "east", "the first by name, as both have as much room"
    head = grid.memory.record(KEYS.head(TRAIN))
    grid.memory.put(KEYS.head(TRAIN), replace(head, regions=(source.region,)))
    grid.stored[RegionId("west")].clear()
    grid.power_off(source.node)

    def without_copies(rounds: int) -> None:
        for _ in range(rounds):
            grid.advance(250)
            grid.read_ownership()
            grid.judge_nodes()
            for host in grid.hosts.values():
                grid.tick(host)
            for where in ("east", "west", "global"):
                grid.lead(where)

    without_copies(200)
    move = grid.migrations("train")[-1]
    assert move.state is MigrationState.DONE, grid.log[-5:]
    assert grid.owner("train").region == source.region
    assert "did not arrive" in move.refused[0]
