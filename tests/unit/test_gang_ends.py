"""Gangs that do not come together, or do not come apart: they are placed anew or end, and nothing waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from failover.domain.gang import folded, unheard
from failover.domain.jobs import decide_jobs
from failover.domain.landing import follow_start
from failover.domain.requests import decide_requests
from gridkeeper.decision import Decision, Now, Put, Versioned
from gridkeeper.ids import JobId, NodeId, ReplicaId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import NodeState
from gridkeeper.records.jobs import (
    GrantRecord,
    JobRecord,
    JobState,
    MemberRun,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState
from tests.fixtures import records
from tests.unit.failover_parts import SETTINGS

JOB, NODES = JobId("train"), (NodeId("east-1"), NodeId("east-2"))
SPEC = replace(records.spec(), nodes=2)
R_MS = SETTINGS.timings.takeover_ms
STOP_MS = SPEC.grace_ms + 2 * SETTINGS.timings.fence_ms
T = TypeVar("T")


def seen(record: T, at_ms: int = 0) -> Versioned[T]:
    return Versioned(record, Revision(7), Revision(1), at_ms)


def runs(node: NodeId, **changed: Any) -> MemberRun:
    member = replace(unheard(node), reported=True, phase=RunPhase.RUNNING, first_step=1, last_step=9)
    return replace(member, **changed)


def crashed(node: NodeId) -> MemberRun:
    return runs(node, phase=RunPhase.EXITED, exit_code=1, stop_confirmed=True, ended_ms=5)


def owned(**changed: Any) -> OwnershipRecord:
    owner = records.ownership(devices=tuple(f"{node}/gpu0" for node in NODES))
    return replace(owner, spec=SPEC, migration=records.migration().id, **changed)


def grid(
    *members: MemberRun, state: MigrationState = MigrationState.FAILED, restarts: int = 0, **owner: Any
) -> GlobalState:
    """A gang of two as both leaders see it. ``state``: of the migration that brought it here."""
    migration = replace(records.migration(state=state, drain="", incident=""), target_epoch=records.run().epoch)
    job = replace(records.job(migration=migration.id), spec=SPEC, restarts=restarts)
    run = folded(records.run(), members)
    held = {JOB: seen(owned(**owner))}
    return GlobalState(
        fresh=True,
        jobs={JOB: seen(job)},
        ownership=held,
        migrations={migration.id: seen(migration)},
        runs={KEYS.run_name(JOB, run.epoch.generation, run.epoch.number): seen(run)},
        grants={records.EAST: seen(GrantRecord(records.EAST, 1, ReplicaId("r"), 0))},
    )


def asked(world: GlobalState, now_ms: int, silent: bool = False) -> tuple[Decision, ...]:
    """What the region's leader asks for."""
    liveness = {node: seen(records.liveness(node)) for node in NODES}
    if silent:
        liveness[NODES[1]] = seen(records.liveness(NODES[1], NodeState.UNREACHABLE))
    state = RegionState(records.EAST, liveness=liveness)
    return decide_requests(state, world, SETTINGS, Now(now_ms, now_ms))


def written(decisions: tuple[Decision, ...], kind: type[T]) -> list[T]:
    return [w.record for d in decisions for w in d.writes if isinstance(w, Put) and isinstance(w.record, kind)]


def test_a_gang_of_which_a_member_never_came_is_placed_anew() -> None:
    """Protects: a start that was given up leaves members that wait at the rendezvous for ever, on devices that nobody
    else gets."""
    world = grid(runs(NODES[0], first_step=-1, last_step=-1), unheard(NODES[1]))
    [migration] = written(asked(world, 1), MigrationRecord)
    assert "east-2" in migration.reason and "never" in migration.reason


def test_a_start_is_not_done_before_every_member_has_been_heard_of() -> None:
    """Protects: nobody would look after the member that never came."""
    world = grid(runs(NODES[0]), unheard(NODES[1]), state=MigrationState.STARTING)
    [landed] = world.migrations.values()
    early = follow_start(world, landed, SETTINGS, Now(1, 1))
    assert early is None or written((early,), MigrationRecord)[0].state is not MigrationState.DONE
    late = follow_start(world, landed, SETTINGS, Now(2 * R_MS, 2 * R_MS))
    assert late is not None
    [failed] = written((late,), MigrationRecord)
    assert failed.state is MigrationState.FAILED and "east-2" in failed.reason


def told(world: GlobalState, now_ms: int) -> tuple[Decision, ...]:
    """What the global leader decides of the job."""
    return decide_jobs(world, SETTINGS, Now(now_ms, now_ms))


def test_a_gang_that_is_given_up_ends_though_a_member_never_confirms_its_stop() -> None:
    """Protects: the job would neither end nor give its devices back."""
    given_up = {"restarts": SPEC.max_restarts + 1}
    members = (crashed(NODES[0]), runs(NODES[1]))
    [stop] = written(told(grid(*members, **given_up), 1), OwnershipRecord)
    assert stop.desired is Desired.STOP and stop.revoke is None
    stopping = grid(*members, **given_up, desired=Desired.STOP)
    assert not written(told(stopping, STOP_MS - 1), OwnershipRecord)
    [revoked] = written(told(stopping, STOP_MS), OwnershipRecord)
    assert revoked.revoke is not None
    waiting = grid(*members, **given_up, desired=Desired.STOP, revoke=revoked.revoke)
    assert all(job.state is not JobState.FAILED for job in written(told(waiting, R_MS - 1), JobRecord))
    [failed] = written(told(waiting, R_MS), JobRecord)
    assert failed.state is JobState.FAILED


def test_a_gang_that_is_given_up_is_moved_by_nothing_more() -> None:
    """Protects: max_restarts. The silence of a member that is to stop is no reason for another start."""
    members = (crashed(NODES[0]), runs(NODES[1]))
    over = SPEC.max_restarts + 1
    revoke = records.ownership().revoke
    stopping = grid(*members, restarts=over, desired=Desired.STOP, revoke=revoke)
    assert asked(stopping, STOP_MS, silent=True) == ()
    assert asked(grid(*members, restarts=over - 1), STOP_MS, silent=True) != ()


def test_steps_of_other_members_do_not_put_off_the_end_of_one_that_does_not_come_apart() -> None:
    """Protects: each report of a step writes the gang's record anew, so a member whose process has ended and whose end
    is never confirmed would keep the others on their devices for ever."""
    ended_ms = 1_000
    lingers = runs(NODES[1], phase=RunPhase.STOPPING, ended_ms=ended_ms)
    world = grid(runs(NODES[0]), lingers)
    now_ms = ended_ms + STOP_MS
    [(name, run)] = world.runs.items()
    for seen_ms, at_ms, asks in ((now_ms - 2, now_ms - 1, False), (now_ms - 1, now_ms, True)):
        stepped = replace(world, runs={name: replace(run, seen_ms=seen_ms)})
        found = written(asked(stepped, at_ms), MigrationRecord)
        assert bool(found) == asks
        assert not found or f"stopping for {STOP_MS} ms" in found[0].reason


def test_a_run_record_of_one_node_is_what_it_was() -> None:
    """Protects: records from before there were gangs."""
    run: RunRecord = records.run()
    assert run.members == () and records.spec().members == 1 and replace(records.spec(), nodes=0).members == 1
