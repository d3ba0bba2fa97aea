"""Protects rules 1, 2 and 8 under an adversary: faults, lagging leaders, leaders that are replaced in the middle, and
writes that arrive in any order.

``failover_world`` checks each write against the ground truth: no new owner while a process of an older epoch lives,
never two active migrations of a job, no head that goes back or names what is not stored, no device given twice. Here
the adversary acts, then all faults end, and every job must run or say why not.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import TERMINAL_JOB, TERMINAL_MIGRATION, JobState
from tests.unit.failover_world import Grid, spec_of

NODES = {"east": {"east-1": 3, "east-2": 2}, "west": {"west-1": 2, "west-2": 3}}
HOSTS = tuple(node for members in NODES.values() for node in members)
DEVICES = tuple(f"{node}/gpu{i}" for members in NODES.values() for node, count in members.items() for i in range(count))
LEADERS = ("east", "west", "global")
JOBS = ("alpha", "beta")
SEEDS = 40

jobs = st.sampled_from(JOBS)
hosts = st.sampled_from(HOSTS)
leaders = st.sampled_from(LEADERS)
actions = st.one_of(
    st.tuples(st.just("advance"), st.integers(50, 3_000)),
    st.tuples(st.just("agents"), st.just(0)),
    st.tuples(st.just("look"), leaders),
    st.tuples(st.just("decide"), leaders, st.randoms(use_true_random=False)),
    st.tuples(st.just("lead"), leaders),
    st.tuples(st.just("round"), st.integers(1, 6)),
    st.tuples(st.just("replace"), leaders),
    st.tuples(st.just("view"), st.just(0)),
    st.tuples(st.just("checkpoint"), jobs),
    st.tuples(st.just("copy"), st.sampled_from(("east", "west"))),
    st.tuples(st.just("crash"), jobs, st.sampled_from((0, 1, 1, 1))),
    st.tuples(st.just("cut"), hosts),
    st.tuples(st.just("power_off"), hosts),
    st.tuples(st.just("heal"), hosts),
    st.tuples(st.just("drain"), st.sampled_from(DEVICES)),
    st.tuples(st.just("repair"), st.sampled_from(DEVICES)),
    *(st.tuples(st.just(name), st.just(0)) for name in ("judge", "rush", "commit", "freeze")),
    st.tuples(st.just("announce"), jobs),
    st.tuples(st.just("deaf"), hosts),
    st.tuples(st.just("blip"), jobs),
    st.tuples(st.just("stop"), jobs),
)


def act(grid: Grid, action: tuple[object, ...]) -> None:
    match action:
        case ("advance", int(ms)):
            grid.advance(ms)
        case ("agents", _):
            for host in grid.hosts.values():
                grid.tick(host)
        case ("look", str(where)):
            grid.leaders[where].look(grid.time_ms)
        case ("decide", str(where), rng):
            decisions = grid.decisions(where)  # on a view that may be old
            rng.shuffle(decisions)  # type: ignore[attr-defined]
            for decision in decisions:
                grid.apply(decision)
        case ("lead", str(where)):
            grid.lead(where)
        case ("round", int(count)):
            grid.run(count)
        case ("replace", str(where)):
            grid.new_leader(where)
            grid.leaders[where].look(grid.time_ms)
        case ("view", _):
            grid.read_ownership()
        case ("checkpoint", str(job)):
            grid.checkpoint(JobId(job))
        case ("copy", str(region)):
            grid.copy(RegionId(region))
        case ("crash", str(job), int(code)):
            grid.crash(JobId(job), code)
        case ("cut", str(node)):
            grid.cut(NodeId(node))
        case ("power_off", str(node)):
            grid.power_off(NodeId(node))
        case ("heal", str(node)):
            grid.heal(NodeId(node))
        case ("drain", str(device)):
            grid.drain(DeviceId(device))
        case ("repair", str(device)):
            grid.repair(DeviceId(device))
        case ("rush", _):
            grid.rush()
        case ("announce", str(job)):
            grid.announce(JobId(job))
        case ("commit", _):
            grid.commit()
        case ("freeze", _):
            grid.frozen = not grid.frozen
        case ("deaf", str(node)):
            grid.hosts[NodeId(node)].deaf = not grid.hosts[NodeId(node)].deaf
        case ("judge", _):
            grid.judge_nodes()
        case ("blip", str(job)):
            grid.blip(JobId(job))
        case ("stop", str(job)):
            grid.want_stop(JobId(job))
        case _:
            raise AssertionError(action)


def settle(grid: Grid) -> None:
    """The last fault is over: nodes come back, devices are repaired, and time passes."""
    grid.frozen = False
    for node, host in grid.hosts.items():
        grid.heal(node)
        host.deaf = False
    for device in DEVICES:
        grid.repair(DeviceId(device))
    limit_ms = grid.time_ms + 4 * grid.settings.timings.takeover_ms + 60_000
    quiet = 0
    while grid.time_ms < limit_ms and quiet < 4:
        for name in JOBS:
            grid.checkpoint(JobId(name))
        held = grid.round()
        resting = all(
            grid.job(name).state in (JobState.RUNNING, *TERMINAL_JOB)
            and all(m.state in TERMINAL_MIGRATION for m in grid.migrations(name))
            for name in JOBS
        )
        quiet = quiet + 1 if resting and not held else 0


def check_end(grid: Grid) -> None:
    held = set()
    for name in JOBS:
        job = grid.job(name)
        living = [p for _, p in grid.alive() if p.job == name]
        if job.state in TERMINAL_JOB:
            assert not living
            assert job.reason
        else:
            assert job.state is JobState.RUNNING, (name, job.state, job.reason, grid.log[-12:])
            owner = grid.owner(name)
            assert [p.epoch for p in living] == [owner.epoch]
            held |= {f"/reservations/{name}"}
            [reservation] = [
                r for k, (r, _, _) in grid.memory.items.items() if k.endswith(f"/reservations/{name}")
            ]  # fmt: skip
            assert (reservation.node, reservation.devices) == (owner.node, owner.devices)
        assert all(m.state in TERMINAL_MIGRATION and m.reason for m in grid.migrations(name))
    leaked = [
        key
        for key in grid.memory.items
        if key.startswith(KEYS.prefix("offers")) or ("/reservations/" in key and not key.endswith(tuple(held)))
    ]
    assert not leaked


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(actions, min_size=5, max_size=60))
def test_whatever_happens_no_job_runs_twice_and_each_ends_up_running_or_says_why(
    script: list[tuple[object, ...]],
) -> None:
    grid = Grid(NODES)
    for name in JOBS:
        grid.submit(spec_of(name, max_restarts=3))
    grid.run(6)
    for action in script:
        act(grid, action)
    settle(grid)
    check_end(grid)


WEIGHTS: tuple[tuple[str, int], ...] = (
    ("advance", 30), ("agents", 30), ("view", 25), ("look", 20), ("decide", 30), ("lead", 25), ("judge", 15),
    ("round", 6), ("replace", 3), ("checkpoint", 12), ("copy", 12), ("crash", 3), ("cut", 3), ("power_off", 1),
    ("heal", 6), ("drain", 4), ("repair", 5), ("rush", 6), ("announce", 8), ("commit", 5), ("freeze", 3), ("deaf", 2),
    ("blip", 8),
)  # fmt: skip


def adversary(rng: Random) -> tuple[object, ...]:
    """The next action of a long run: mostly progress in small, uneven pieces, and now and then a fault."""
    name = rng.choices([n for n, _ in WEIGHTS], [w for _, w in WEIGHTS])[0]
    arguments: dict[str, tuple[object, ...]] = {
        "advance": (rng.choice((50, 200, 700, 2_500)),),
        "round": (rng.randint(1, 8),),
        "decide": (rng.choice(LEADERS), rng),
        "crash": (rng.choice(JOBS), rng.choice((1, 1, 139))),
        **{n: (rng.choice(LEADERS),) for n in ("look", "lead", "replace")},
        **{n: (rng.choice(HOSTS),) for n in ("cut", "power_off", "heal", "deaf")},
        **{n: (rng.choice(DEVICES),) for n in ("drain", "repair")},
        **{n: (rng.choice(JOBS),) for n in ("checkpoint", "announce", "blip")},
        "copy": (rng.choice(("east", "west")),),
    }
    return (name, *arguments.get(name, (0,)))


def test_the_adversary_lets_intents_be_withdrawn() -> None:
    """The runs below protect nothing of a withdrawal that never happens."""
    assert sum(long_run(seed).withdrawn for seed in range(4)) >= 8


@pytest.mark.parametrize("seed", range(SEEDS))
def test_long_runs_under_an_adversary(seed: int) -> None:
    check_end(long_run(seed))


def long_run(seed: int) -> Grid:
    rng = Random(seed)
    grid = Grid(NODES)
    for name in JOBS:
        grid.submit(spec_of(name, max_restarts=1_000, prefer_other_region=rng.random() < 0.7))
    grid.run(6)
    for _ in range(400):
        act(grid, adversary(rng))
    if rng.random() < 0.3:
        grid.want_stop(JobId(rng.choice(JOBS)))
    settle(grid)
    return grid
