"""Protects the limits of moves: never more at once than the policy says, whoever is ahead goes first, nobody waits
without a reason, and copies tell how far they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.simulate.checkpoints import SimCheckpointStore
from chaos.simulate.files import FileData, MemoryTree
from failover.checkpoint.replicate import Copying, CopyTask, Replicator, record_progress
from failover.domain.turns import HOLDS_A_TURN, link_policy
from gridkeeper.configfile import ConfigError, parse
from gridkeeper.decision import Now, Put, Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.policy.model import CheckpointPolicy, LinkPolicy, MovePolicy, Policy
from gridkeeper.records.jobs import TERMINAL_MIGRATION, JobState, MigrationKind, MigrationRecord, MigrationState
from gridkeeper.snapshot import Settings
from tests.fixtures import records
from tests.unit.failover_world import SETTINGS, Grid, spec_of
from tests.unit.test_replicator import head, job, world

EAST, WEST = RegionId("east"), RegionId("west")
NODES = {"east": {f"east-{n}": 1 for n in range(1, 5)}, "west": {f"west-{n}": 1 for n in range(1, 6)}}
NAMES = ("a", "b", "c", "d")


def busy(moves: MovePolicy, priorities: dict[str, int] | None = None) -> Grid:
    """Four jobs that run in east, each on a node of its own."""
    grid = Grid(NODES, Settings(SETTINGS.timings, Policy(moves=moves)))
    for name in NAMES:
        grid.submit(spec_of(name, devices=1, regions=(EAST,), priority=(priorities or {}).get(name, 0)))
    grid.run(8)
    for name in NAMES:
        key = f"/gridkeeper/v1/global/jobs/{name}"
        record = grid.memory.record(key)
        grid.memory.put(key, replace(record, spec=replace(record.spec, regions=(), prefer_other_region=True)))
    assert all(grid.job(name).state is JobState.RUNNING for name in NAMES)
    return grid


def newest(grid: Grid, name: str) -> MigrationRecord:
    return next(m for m in grid.migrations(name) if m.id == grid.job(name).migration)


def moving(grid: Grid) -> list[MigrationRecord]:
    return [
        m
        for m in (m for name in NAMES for m in grid.migrations(name))
        if m.kind is not MigrationKind.START and m.state in HOLDS_A_TURN
    ]


def leave(grid: Grid, *names: str) -> None:
    for name in names:
        grid.drain(DeviceId(grid.owner(name).devices[0]))


def test_one_moves_at_a_time_the_most_important_first_and_the_others_say_what_they_wait_for() -> None:
    grid = busy(MovePolicy(per_link=1), {"c": 7})
    leave(grid, *NAMES)
    order: list[str] = []
    reasons = set()
    for _ in range(200):
        grid.round()
        held = moving(grid)
        assert len(held) <= 1
        order += [m.job for m in held if m.job not in order]
        reasons |= {grid.job(name).reason for name in NAMES}
        for name in NAMES:
            grid.checkpoint(JobId(name))
        if all(newest(grid, name).state in TERMINAL_MIGRATION for name in NAMES):
            break
    assert order == ["c", "a", "b", "d"]
    assert any("waits for its turn: the policy lets 1 jobs move from east to west at once" in r for r in reasons)
    assert {grid.owner(name).region for name in NAMES} == {WEST}


def test_a_job_that_is_down_goes_before_one_that_still_runs_and_its_fence_never_waits() -> None:
    grid = busy(MovePolicy(at_once=1))
    leave(grid, "a")
    grid.power_off(NodeId(grid.owner("d").node))
    states: set[MigrationState] = set()
    for _ in range(12):
        grid.round()
        states |= {m.state for m in grid.migrations("d") if m.kind is MigrationKind.RECOVERY}
        assert len(moving(grid)) <= 1
    assert MigrationState.FENCING in states
    grid.run(120)
    assert grid.job("d").state is JobState.RUNNING
    assert grid.job("a").state is JobState.RUNNING


faults = st.lists(
    st.one_of(
        st.tuples(st.just("drain"), st.sampled_from(NAMES)),
        st.tuples(st.just("off"), st.sampled_from(NAMES)),
        st.tuples(st.just("round"), st.integers(1, 6)),
        st.tuples(st.just("copy"), st.sampled_from(("east", "west"))),
        st.tuples(st.just("replace"), st.just("global")),
    ),
    max_size=14,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(faults, st.integers(1, 3), st.integers(1, 2))
def test_at_no_time_do_more_jobs_move_than_the_policy_lets(
    script: list[tuple[str, str | int]], at_once: int, per_link: int
) -> None:
    """Protects: both limits, whatever fails, also when another leader takes over in between."""
    grid = busy(MovePolicy(at_once=at_once, per_link=per_link))

    def check() -> None:
        held = moving(grid)
        assert len(held) <= at_once
        links = Counter((m.source_region, m.target_region) for m in held if m.source_region != m.target_region)
        assert all(count <= per_link for count in links.values()), links

    for action in script:
        match action:
            case ("drain", str(name)):
                leave(grid, name)
            case ("off", str(name)):
                grid.power_off(NodeId(grid.owner(name).node))
            case ("round", int(count)):
                for _ in range(count):
                    grid.round()
                    check()
            case ("copy", str(region)):
                grid.copy(RegionId(region))
            case ("replace", _):
                grid.new_leader("global")
        grid.lead("global")
        check()
    for _ in range(24):
        grid.round()
        check()


def test_links_are_named_with_a_direction_once() -> None:
    policy = MovePolicy(2, 1, 100, (LinkPolicy(EAST, WEST, 3, 500),))
    assert link_policy(policy, EAST, WEST) == LinkPolicy(EAST, WEST, 3, 500)
    assert link_policy(policy, WEST, EAST) == LinkPolicy(WEST, EAST, 1, 100)
    for pairs in ("[{source: a, target: b}, {source: a, target: b}]", "[{source: a, target: a}]"):
        with pytest.raises(ConfigError, match=r"moves\.links"):
            parse(Policy, f"moves: {{links: {pairs}}}", "policy")


class Ticking:
    """A clock that a wait moves on."""

    def __init__(self) -> None:
        self.now = 1_000

    def mono_ms(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return self.now

    async def sleep(self, ms: float) -> None:
        self.now += int(ms)


@pytest.mark.parametrize(("urgent", "least_ms"), [(True, 1_000), (False, 2_000)])
def test_a_links_limit_holds_for_all_copies_and_the_other_for_those_that_nobody_waits_for(
    urgent: bool, least_ms: int
) -> None:
    async def story() -> None:
        tree, clock = MemoryTree(), Ticking()
        east, west = SimCheckpointStore(tree), SimCheckpointStore(tree)
        replicator = Replicator(WEST, {EAST: east, WEST: west}, clock)
        policy = Policy(
            moves=MovePolicy(links=(LinkPolicy(EAST, WEST, bytes_per_s=1_000),)),
            checkpoints=CheckpointPolicy(copy_bytes_per_s=500),
        )
        seen = []
        for name in ("alpha", "beta"):
            directory = Path(f"/{name}/step-10")
            tree.write(directory, {"model": FileData(0o644, name.encode() * 200)})
            digest, _ = await east.put(JobId(name), 10, Epoch(1, 1), directory)
            state = replace(world(**{name: job(name)}), heads={JobId(name): head(name, 10, digest)})
            if urgent:
                coming = replace(
                    records.migration(), job=JobId(name), id=MigrationId(f"{name}-m"), target_region=WEST,
                    state=MigrationState.COPYING,
                )  # fmt: skip
                held = Versioned(coming, Revision(9), Revision(9), 0)
                state = replace(state, migrations={coming.id: held})
            await replicator.copy(state, policy)
            seen.append(clock.now)
        assert clock.now - 1_000 >= least_ms, "the second copy pays for the first"
        assert replicator.copying is None

    asyncio.run(story())


def test_how_far_a_copy_is_stands_on_the_record_of_who_waits_for_it() -> None:
    grid = busy(MovePolicy())
    grid.checkpoint(JobId("a"))
    leave(grid, "a")
    for _ in range(20):
        grid.lead("east")
        grid.lead("west")
        grid.lead("global")
        if newest(grid, "a").state is MigrationState.PRE_COPYING:
            break
    view = grid.leaders["west"]
    view.look(grid.time_ms)
    task = CopyTask(JobId("a"), 5, "d", (EAST,), True)
    copying = Copying(task, EAST, 0, 250, 1_000)
    decision = record_progress(view.world(), WEST, copying, Now(1_000, grid.time_ms))
    assert decision is not None and grid.apply(decision)
    [write] = decision.writes
    assert isinstance(write, Put)
    copy = newest(grid, "a").copy
    assert copy is not None
    assert (copy.bytes_here, copy.bytes_total, copy.eta_ms) == (250, 1_000, 3_000)
    view.look(grid.time_ms)
    assert record_progress(view.world(), WEST, copying, Now(1_500, grid.time_ms)) is None, "it has not come on"
    later = record_progress(view.world(), WEST, replace(copying, here=750), Now(2_000, grid.time_ms + 2_000))
    assert later is not None and grid.apply(later)
    copy = newest(grid, "a").copy
    assert copy is not None and copy.eta_ms == 1_000, "at the pace of late"
    assert record_progress(view.world(), EAST, copying, Now(1_500, grid.time_ms)) is None, "nobody waits for it there"
