"""Protects the figures of a move: what is not known is said to be so, and what is learnt late is put right."""

from __future__ import annotations

from gridkeeper.ids import JobId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import JobState, MigrationKind, MigrationRecord, MigrationState, RunPhase
from tests.unit.failover_world import Grid, spec_of

TRAIN = JobId("train")


def running() -> Grid:
    grid = Grid({"east": {"east-1": 4, "east-2": 4}, "west": {"west-1": 4, "west-2": 4}})
    grid.submit(spec_of("train"))
    grid.run(12)
    assert grid.job("train").state is JobState.RUNNING
    return grid


def newest(grid: Grid) -> MigrationRecord:
    return grid.migrations("train")[-1]


def taken_over(grid: Grid) -> MigrationRecord:
    """The job's node falls silent, and R later the job runs elsewhere; meanwhile it went on for some steps."""
    grid.cut(grid.owner("train").node)
    grid.run(80)
    assert (newest(grid).kind, newest(grid).state) == (MigrationKind.RECOVERY, MigrationState.DONE)
    return newest(grid)


def test_work_lost_to_a_silent_node_is_at_least_what_was_known_of_it() -> None:
    grid = running()
    move = taken_over(grid)
    assert move.rpo_at_least
    [done] = [line for line in grid.log if "made its first step" in line and "epoch 1.2" in line]
    assert f"at least {move.rpo_steps} steps to redo" in done


def test_a_node_that_comes_back_puts_right_what_was_lost_with_it() -> None:
    grid = running()
    source = grid.owner("train")
    before = taken_over(grid)
    grid.heal(source.node)
    grid.run(4)
    after, run = newest(grid), grid.memory.record(KEYS.run(TRAIN, 1, 1))
    assert run.phase is RunPhase.EXITED and run.last_step > before.last_source_step
    assert (after.id, after.state, after.stages) == (before.id, MigrationState.DONE, before.stages)
    assert (after.last_source_step, after.rpo_at_least) == (run.last_step, False)
    assert after.rpo_steps == run.last_step - after.resume_step > before.rpo_steps
    checkpoint = grid.memory.record(KEYS.checkpoint(TRAIN, after.resume_step))
    assert after.rpo_ms == run.last_step_ms - checkpoint.committed_ms > before.rpo_ms
    assert after.rto_ms == before.rto_ms
    written = len(grid.log)
    grid.run(8)
    assert not [line for line in grid.log[written:] if "migrate.confirm" in line], "once is enough"


def test_without_the_checkpoint_that_it_resumed_from_the_time_lost_is_unknown() -> None:
    grid = running()
    source = grid.owner("train")
    move = taken_over(grid)
    del grid.memory.items[KEYS.checkpoint(TRAIN, move.resume_step)]
    grid.heal(source.node)
    grid.run(4)
    assert newest(grid).rpo_steps > move.rpo_steps
    assert newest(grid).rpo_ms == -1


def test_only_the_newest_move_of_a_job_is_put_right() -> None:
    grid = running()
    source = grid.owner("train")
    first = taken_over(grid)
    grid.crash(TRAIN, 1)
    grid.run(40)
    assert newest(grid).id != first.id
    grid.heal(source.node)
    grid.run(8)
    assert grid.memory.record(KEYS.migration(first.id)) == first


def test_a_confirmed_end_leaves_nothing_open() -> None:
    grid = running()
    grid.crash(TRAIN, 1)
    grid.run(40)
    assert (newest(grid).kind, newest(grid).state) == (MigrationKind.RECOVERY, MigrationState.DONE)
    assert not newest(grid).rpo_at_least


def quiet() -> Grid:
    grid = Grid({"east": {"east-1": 2}})
    grid.quiet.add(TRAIN)
    grid.submit(spec_of("train"))
    grid.run(8)
    assert newest(grid).state is MigrationState.RUNNING
    return grid


def test_a_job_that_tells_of_no_step_has_arrived_all_the_same() -> None:
    """Else it could never be moved: it would be in migration for ever."""
    grid = quiet()
    limit = 2 * grid.settings.timings.takeover_ms
    grid.run(limit // 250 - 8)
    assert newest(grid).state is MigrationState.RUNNING
    grid.run(10)
    assert (newest(grid).state, newest(grid).rto_ms) == (MigrationState.DONE, -1)
    said = f"has told of no step for {limit} ms, so the time to recover is not known"
    assert [line for line in grid.log if said in line]
    assert grid.job("train").state is JobState.RUNNING


def test_another_global_leader_waits_anew_for_the_first_step() -> None:
    grid = quiet()
    limit = 2 * grid.settings.timings.takeover_ms
    grid.run(limit // 250 - 8)
    grid.new_leader("global")
    grid.run(limit // 250 - 8)
    assert newest(grid).state is MigrationState.RUNNING


def test_a_late_first_step_makes_the_time_known_after_all() -> None:
    grid = quiet()
    grid.run(2 * grid.settings.timings.takeover_ms // 250 + 10)
    assert newest(grid).rto_ms == -1
    grid.quiet.clear()
    grid.run(4)
    first_step_ms = grid.memory.record(KEYS.run(TRAIN, 1, 1)).first_step_ms
    assert (newest(grid).state, newest(grid).rto_ms) == (MigrationState.DONE, first_step_ms - newest(grid).fault_ms)
