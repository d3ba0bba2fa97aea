"""Protects the guards: what was decided on an older world does not hold on a newer one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridkeeper.decision import Decision, Put
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import HealthState, SessionRecord
from gridkeeper.records.jobs import JobState, MigrationRecord, MigrationState
from tests.unit.failover_world import Grid, spec_of

TRAIN = JobId("train")


def running() -> Grid:
    grid = Grid({"east": {"east-1": 4, "east-2": 4}, "west": {"west-1": 4}})
    grid.submit(spec_of("train"))
    grid.run(12)
    assert grid.job("train").state is JobState.RUNNING
    return grid


def until(grid: Grid, state: MigrationState, rounds: int = 120) -> None:
    """Rounds without checkpoints until the newest migration is in ``state``."""
    for _ in range(rounds):
        if grid.migrations("train")[-1].state is state:
            return
        grid.round()
    raise AssertionError(f"never {state}: {grid.log[-5:]}")


def the(decisions: list[Decision], step: str) -> Decision:
    [found] = [d for d in decisions if d.step == step]
    return found


def recovery_about_to_move(grid: Grid) -> Decision:
    """The node falls silent, the fence is waited for; the next decision is to move the ownership."""
    grid.cut(grid.owner("train").node)
    until(grid, MigrationState.FENCING)
    until(grid, MigrationState.VERIFIED)
    grid.leaders["global"].look(grid.time_ms)
    return the(grid.decisions("global"), "fence.bump_epoch")


def test_a_checkpoint_of_a_lost_epoch_is_never_committed() -> None:
    grid = running()
    grid.announce(TRAIN)
    assert grid.verified
    grid.cut(grid.owner("train").node)
    until(grid, MigrationState.FENCING)
    until(grid, MigrationState.DONE)
    before = grid.memory.record(KEYS.head(TRAIN))
    grid.commit()
    assert grid.memory.record(KEYS.head(TRAIN)) == before


def test_a_checkpoint_committed_in_the_last_moment_is_what_the_job_resumes_from() -> None:
    grid = running()
    grid.announce(TRAIN)
    late = grid.verified[:]
    grid.verified.clear()
    move = recovery_about_to_move(grid)
    grid.verified = late
    # The replica decided before the revoke intent: it sees its conflict, and decides again, as the agent repeats.
    grid.commit()
    assert grid.memory.record(KEYS.head(TRAIN)).step < grid.migrations("train")[-1].last_source_step
    head = grid.memory.record(KEYS.head(TRAIN))
    newer = replace(head, step=head.step + 1, digest="late", regions=(RegionId("east"),))
    grid.stored[RegionId("east")].add("late")
    grid.memory.put(KEYS.head(TRAIN), newer)
    assert not grid.apply(move), "it would resume from a step before the last verified one"
    until(grid, MigrationState.DONE)
    assert grid.owner("train").resume_digest == "late"


def test_a_stop_between_decision_and_move_wins() -> None:
    grid = running()
    move = recovery_about_to_move(grid)
    grid.want_stop(TRAIN)
    assert not grid.apply(move)
    grid.run(60)
    assert grid.job("train").state is JobState.STOPPED


def test_a_withdrawn_offer_is_not_used() -> None:
    grid = running()
    move = recovery_about_to_move(grid)
    grid.set_health(grid.migrations("train")[-1].target_devices[0], HealthState.DEGRADED)
    grid.lead("west")
    assert not grid.apply(move)
    until(grid, MigrationState.DONE)
    assert grid.owner("train").desired is Desired.RUN


def test_two_deciders_never_create_two_migrations() -> None:
    grid = running()
    owner = grid.owner("train")
    grid.drain(owner.devices[0])
    grid.leaders["east"].look(grid.time_ms)
    grid.leaders["rival"] = grid.leaders["east"]
    first, second = grid.decisions("east"), grid.decisions("east")
    assert grid.apply(the(first, "migrate.plan"))
    assert not grid.apply(the(second, "migrate.plan"))


def test_a_region_leader_without_the_grant_writes_nothing_globally() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    grid.leaders["east"].look(grid.time_ms)
    decided = the(grid.decisions("east"), "migrate.plan")
    grid.new_leader("east")
    assert not grid.apply(decided)


@pytest.mark.parametrize("what", ["health", "device", "cordon", "node cordon", "liveness"])
def test_a_reservation_holds_only_on_the_facts_it_was_decided_on(what: str) -> None:
    grid = Grid({"east": {"east-1": 2}})
    grid.submit(spec_of("train"))
    for _ in range(20):
        grid.leaders["east"].look(grid.time_ms)
        decided = [d for d in grid.decisions("east") if d.step == "place.reserve"]
        if decided:
            break
        grid.round()
    keys, device = RegionKeys(RegionId("east")), DeviceId("east-1/gpu1")
    key = {
        "health": keys.health(device),
        "device": keys.device(device),
        "cordon": keys.cordon(device),
        "node cordon": keys.cordon("east-1"),
        "liveness": keys.liveness(NodeId("east-1")),
    }[what]
    grid.memory.put(key, grid.memory.record(key))
    assert not grid.apply(decided[0])


def test_another_global_leader_waits_the_whole_r_again() -> None:
    """R runs from when a process *saw* the intent, so a takeover in the middle of the wait starts it anew."""
    grid = running()
    grid.cut(grid.owner("train").node)
    until(grid, MigrationState.FENCING)
    takeover = grid.settings.timings.takeover_ms
    grid.advance(takeover - 500)
    grid.new_leader("global")
    replaced_at = grid.time_ms
    grid.lead("global")
    until(grid, MigrationState.SOURCE_FENCED)
    fenced = next(s.at_ms for s in grid.migrations("train")[-1].stages if s.name == "source_fenced")
    assert fenced - replaced_at >= takeover


def test_a_move_decided_on_an_older_head_conflicts() -> None:
    grid = running()
    move = recovery_about_to_move(grid)
    assert KEYS.head(TRAIN) in {guard.key for guard in move.guards}
    grid.memory.put(KEYS.head(TRAIN), grid.memory.record(KEYS.head(TRAIN)))
    assert not grid.apply(move)


def test_a_move_is_not_begun_on_a_job_whose_last_migration_changed_meanwhile() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    grid.leaders["east"].look(grid.time_ms)
    plan = the(grid.decisions("east"), "migrate.plan")
    last = KEYS.migration(grid.job("train").migration)
    grid.memory.put(last, grid.memory.record(last))
    assert not grid.apply(plan)


def test_ownership_never_moves_onto_devices_that_a_living_owner_holds() -> None:
    grid = running()
    grid.submit(spec_of("other", regions=(RegionId("east"),)))
    offer = None
    for _ in range(20):
        for leader in ("global", "east"):
            grid.lead(leader)
        offer = grid.memory.record(KEYS.offer(MigrationId("other-e1.0")))
        if offer is not None:
            break
    owner = grid.owner("train")
    grid.memory.put(KEYS.offer(MigrationId("other-e1.0")), replace(offer, node=owner.node, devices=owner.devices))
    grid.leaders["global"].look(grid.time_ms)
    assert not [d for d in grid.decisions("global") if d.step == "fence.bump_epoch"]


def coming_back(grid: Grid) -> Decision:
    """The node fell silent and is back: its region's leader decides to withdraw the intent."""
    node = grid.owner("train").node
    grid.cut(node)
    until(grid, MigrationState.FENCING)
    grid.heal(node)
    grid.judge_nodes()
    grid.leaders["east"].look(grid.time_ms)
    found = the(grid.decisions("east"), "migrate.plan")
    assert "the revoke intent is withdrawn" in found.sentence
    return found


@pytest.mark.parametrize("what", ["ownership", "migration", "run", "grant"])
def test_a_withdrawal_holds_only_on_the_facts_it_was_decided_on(what: str) -> None:
    grid = running()
    withdrawal = coming_back(grid)
    key = {
        "ownership": KEYS.ownership(TRAIN),
        "migration": KEYS.migration(grid.job("train").migration),
        "run": KEYS.run(TRAIN, 1, 1),
        "grant": KEYS.grant(RegionId("east")),
    }[what]
    grid.memory.put(key, grid.memory.record(key))
    assert not grid.apply(withdrawal)


def test_of_a_withdrawal_and_the_fence_only_one_holds() -> None:
    grid = running()
    withdrawal = coming_back(grid)
    grid.leaders["global"].look(grid.time_ms)
    grid.advance(grid.settings.timings.takeover_ms)
    fenced = the(grid.decisions("global"), "executor.stop")
    assert "may start elsewhere" in fenced.sentence
    assert grid.apply(fenced)
    assert not grid.apply(withdrawal)


def test_nothing_is_withdrawn_on_the_word_that_the_node_was_alive_before_its_silence() -> None:
    grid = running()
    node = grid.owner("train").node
    alive = grid.memory.items[RegionKeys(RegionId("east")).liveness(node)]
    grid.cut(node)
    until(grid, MigrationState.FENCING)
    grid.leaders["east"].look(grid.time_ms)
    grid.leaders["east"].copy[RegionKeys(RegionId("east")).liveness(node)] = alive
    assert not [d for d in grid.decisions("east") if d.step == "migrate.plan"]


def test_a_node_that_is_silent_again_is_not_given_its_job_back() -> None:
    """Judged alive, but not heard now: its renewals would not come."""
    grid = running()
    node = grid.owner("train").node
    coming_back(grid)
    session = SessionRecord(node, ReplicaId("r"), "s", False, grid.time_ms)
    grid.memory.put(RegionKeys(RegionId("east")).session(node), session)
    grid.leaders["east"].look(grid.time_ms)
    assert not [d for d in grid.decisions("east") if d.step == "migrate.plan"]


def test_a_move_that_begins_asks_a_region_at_once() -> None:
    """Protects: a storm of drains waits for one step of the global leader less."""
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    grid.judge_nodes()
    grid.leaders["east"].look(grid.time_ms)
    [begun] = [d for d in grid.decisions("east") if d.step == "migrate.plan"]
    [moved] = [w.record for w in begun.writes if isinstance(w, Put) and isinstance(w.record, MigrationRecord)]
    assert (moved.target_region, moved.attempt) != ("", 0) and "is asked for devices" in begun.sentence
    assert not moved.target_devices, "devices are offered by the region itself"
