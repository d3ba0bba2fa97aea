"""How long it takes until nothing new is placed on nodes that fail together, and until their jobs are off them.

    python -m benchmarks.storm [--nodes 1500] [--replicas 1] [--only lifted|in-force]

What is real: the replicas (each holds its part of the streams) and two etcds (the region's and the global store) as
processes on this host, one mTLS stream per node, fsync. What is not: the nodes (``benchmarks/storm_agents.py``), which
send what agents send, as often, from one process beside; and each etcd has one member. A job sits on each failing node,
on all its devices, owned and running as the control plane sees it, before the fault comes.

A *failing node* sends the fault of an XID that NVIDIA's catalogue says to drain for, on ``faulty`` of its devices. The
clock of all of them starts before the first one is told to send, and stops when this process hears from etcd by a watch
(so the figures include its lag, and the generator's own time to send). All of them fail within the time printed.

- *cordoned*: for each faulty device of the node a drain is durable, admitted or refused. From that transaction on its
  health says ``draining`` (admitted) or at least ``degraded`` (refused: there was no room, or a breaker is open), and
  placement compares the revision of the health that it chose by: nothing new can be placed on it, and no leader that
  comes later can think otherwise. (The transaction before, which made it ``degraded``, keeps new work off already; what
  is timed is the later one.)
- *drained*: its drain says so durably: every job that was on it has its last checkpoint verified and committed, and its
  processes are confirmed gone. The checkpoint's own time is part of it.

Three storms: 10 % of the nodes, then a third of them, with budgets and breakers lifted; and 10 % with the default
policy in force, each node with all its devices and whole racks at a time, so that what is held back can be seen.
Beside them stand the figures that NVIDIA publishes for NVSentinel: from a test cluster, not from this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import (
    Busy,
    last_line,
    machine,
    quantile,
    running_grid,
    say,
    store_of,
    table,
    timed_put,
    until,
)
from gridkeeper import codec
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GLOBAL, GridOptions
from gridkeeper.client import GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.ids import RegionId, Revision
from gridkeeper.keys import GLOBAL as WORLD
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, Policy
from gridkeeper.ports.store import Store
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.fleet import HealthRecord
from gridkeeper.records.jobs import MigrationRecord, OwnershipRecord, RunPhase, RunRecord
from gridkeeper.timings import Timings
from gridkeeper.v1 import records_pb2

REGION = "east"
REGION_KEYS = RegionKeys(RegionId(REGION))
DEVICES = 8
RACK = 10
"""Nodes per rack."""
CHECKPOINT_S = 1.0
XID = 48
"""Double-bit ECC error: NVIDIA says drain."""
LIMIT_S = 300.0
SUBMITTING_AT_ONCE = 8
PUT_EVERY_S = 0.05
NVSENTINEL = {"cordon_150_of_1500_s_p90": 28.0, "drained_500_s": 52.0}
LIFTED = Policy(
    budgets=(BudgetPolicy("region", 1.0, 1),), breakers=(BreakerPolicy("region", 1_000_000, 1.0),), freeze_fraction=1.0
)


@dataclass(slots=True)
class Seen:
    """Per device: when (``time.monotonic``) its drain was first durable, and drained; and the newest state."""

    cordoned: dict[str, float] = field(default_factory=dict)
    drained: dict[str, float] = field(default_factory=dict)
    state: dict[str, DrainState] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Storm:
    """What was measured. Seconds from the start of the storm, one per node."""

    name: str
    nodes: int
    failed: int
    faulty: int
    cordoned_s: list[float] = field(default_factory=list)
    drained_s: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    sending_s: float = 0.0
    puts_ms: list[float] = field(default_factory=list)
    agents: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    moves_s: dict[str, list[float]] = field(default_factory=dict)


class Agents:
    """The process of the simulated nodes, from this side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def do(self, what: str, **arguments: object) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        return await self.answer(LIMIT_S)

    async def answer(self, timeout_s: float) -> dict[str, float]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        if not line:
            raise RuntimeError("the process of the simulated nodes has ended; its errors are above")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def agents_of(grid: LocalGrid, nodes: int) -> AsyncIterator[Agents]:
    places, replicas = grid.places, grid.replicas
    authority = CertificateAuthority.load(places.ca, SystemClock())
    homes: dict[str, tuple[str, str, str]] = {}
    for number in range(nodes):
        name = f"{REGION}-n{number:04d}"
        home = places.root / "storm" / name
        authority.issue(spiffe.node(REGION, name), home, stem="node")
        homes[name] = (f"rack-{number // RACK:03d}", str(home), replicas[number % len(replicas)].address)
    spec = {
        "region": REGION, "authority": str(authority.authority), "devices": DEVICES,
        "checkpoints": str(places.checkpoints(REGION)), "checkpoint_s": CHECKPOINT_S,
    }  # fmt: skip
    listing = places.root / "storm" / "agents.json"
    listing.write_text(json.dumps({"spec": spec, "nodes": homes}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.storm_agents", str(listing),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        agents = Agents(process)
        said = await agents.answer(LIMIT_S)
        say(f"{nodes} streams are open after {said['connect_s']:.1f} s, {said['streams_ended']:.0f} ended meanwhile")
        yield agents
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def follow(store: Store, seen: Seen, start: Revision) -> None:
    prefix = REGION_KEYS.prefix("drains")
    async with contextlib.aclosing(store.watch(prefix, start)) as batches:
        async for batch in batches:
            now = time.monotonic()
            for change in batch.changes:
                if change.deleted:
                    continue
                drain = codec.decode(DrainRecord, change.kv.value)
                seen.state[drain.device] = drain.state
                if drain.state is not DrainState.PLANNED:
                    seen.cordoned.setdefault(drain.device, now)
                if drain.state is DrainState.DRAINED:
                    seen.drained.setdefault(drain.device, now)
            seen.changed.set()


async def follow_moves(world: Store, marks: dict[str, list[float]], start: Revision) -> None:
    """When each migration first was in each state, and each offer first there, by the state's name."""
    told: set[tuple[str, str]] = set()

    def mark(what: str, name: str, now: float) -> None:
        if (what, name) not in told:
            told.add((what, name))
            marks.setdefault(what, []).append(now)

    async with contextlib.aclosing(world.watch(WORLD, start)) as batches:
        async for batch in batches:
            now = time.monotonic()
            for change in batch.changes:
                if change.deleted:
                    continue
                if change.kv.key.startswith(KEYS.prefix("migrations")):
                    record = codec.decode(MigrationRecord, change.kv.value)
                    mark(f"move {record.state.value}", record.id, now)
                elif change.kv.key.startswith(KEYS.prefix("offers")):
                    mark("move offered", change.kv.key, now)


async def records(store: Store, prefix: str, kind: type[Any]) -> list[Any]:
    return [codec.decode(kind, kv.value) for kv in (await store.range(prefix)).items]


async def running_on(world: Store) -> dict[str, str]:
    """Job -> node, of jobs whose owning epoch runs."""
    owners: list[OwnershipRecord] = await records(world, KEYS.prefix("ownership"), OwnershipRecord)
    runs: list[RunRecord] = await records(world, KEYS.prefix("runs"), RunRecord)
    alive = {(run.job, run.epoch) for run in runs if run.phase is RunPhase.RUNNING and run.first_step >= 0}
    return {owner.job: owner.node for owner in owners if (owner.job, owner.epoch) in alive}


async def start_jobs(grid: LocalGrid, world: Store, jobs: int) -> None:
    """Each on all devices of a node of its own; until all run."""
    began, gate = time.monotonic(), asyncio.Semaphore(SUBMITTING_AT_ONCE)
    async with GridClient(grid.client_config()) as client:

        async def submit(number: int) -> None:
            async with gate:
                spec = records_pb2.JobSpec(name=f"job-{number:04d}", command=["/bin/true"], devices=DEVICES)
                await client.submit_job(spec)

        await asyncio.gather(*(submit(number) for number in range(jobs)))

    async def all_run() -> bool:
        return len(await running_on(world)) == jobs

    await until(f"{jobs} jobs run", all_run, LIMIT_S, 0.5)
    say(f"{jobs} jobs run after {time.monotonic() - began:.1f} s")


async def one_storm(
    name: str, grid: LocalGrid, agents: Agents, region: Store, world: Store, nodes: int, failed: int, faulty: int,
    drains: bool,
) -> Storm:  # fmt: skip
    """Fail ``failed`` nodes that run a job, whole racks first. ``drains``: wait until all are drained."""
    placed = sorted(set((await running_on(world)).values()))
    doomed = placed[:failed]
    assert len(doomed) == failed, f"{len(placed)} nodes run a job; {failed} are to fail"
    await agents.do("prepare")
    storm, seen = Storm(name, nodes, failed, faulty), Seen()
    devices = {node: [f"{node}/gpu{index}" for index in range(faulty)] for node in doomed}
    _, revision = await region.get(REGION_KEYS.leader)
    watch = asyncio.ensure_future(follow(region, seen, Revision(revision + 1)))
    moves: dict[str, list[float]] = {}
    _, revision = await world.get(KEYS.leader)
    moving = asyncio.ensure_future(follow_moves(world, moves, Revision(revision + 1)))
    etcds = [grid.etcd(which).pid(0) for which in (GLOBAL, REGION)]
    await asyncio.sleep(2)
    await agents.do("stats")
    replicas = [grid.replica(plan.name).pid for plan in grid.replicas]
    busy = Busy(replica=replicas, etcd=etcds, generator=[agents.pid])
    puts = asyncio.ensure_future(yardstick(region, storm.puts_ms))
    began = time.monotonic()
    await agents.do("fail", nodes=doomed, devices=faulty, code=XID)
    storm.sending_s = time.monotonic() - began
    goal = {device for each in devices.values() for device in each}
    marks = seen.drained if drains else seen.cordoned
    try:
        async with asyncio.timeout(LIMIT_S):
            while not goal <= marks.keys():
                seen.changed.clear()
                await seen.changed.wait()
    except TimeoutError:
        missing = sorted(goal - marks.keys())
        raise TimeoutError(f"{name}: {len(missing)} devices not done after {LIMIT_S} s, first {missing[0]}") from None
    finally:
        for task in (puts, watch, moving):
            task.cancel()
        await asyncio.gather(puts, watch, moving, return_exceptions=True)
    storm.cpu = busy.percent()
    storm.agents = await agents.do("stats")
    storm.cordoned_s = [max(seen.cordoned[d] for d in each) - began for each in devices.values()]
    storm.drained_s = [max(seen.drained[d] for d in each) - began for each in devices.values()] if drains else []
    storm.moves_s = {what: [mark - began for mark in marks] for what, marks in moves.items()}
    storm.states = Counter(seen.state[device].value for device in goal)
    show(storm)
    return storm


async def yardstick(store: Store, puts_ms: list[float]) -> None:
    number = 0
    while True:
        puts_ms.append(await timed_put(store, number))
        number += 1
        await asyncio.sleep(PUT_EVERY_S)


@contextlib.asynccontextmanager
async def fleet(
    policy: Policy, nodes: int, jobs: int, replicas: int
) -> AsyncIterator[tuple[LocalGrid, Agents, Store, Store]]:
    """A grid of simulated nodes that are all alive, their devices healthy, with the jobs running."""
    shape = GridOptions((REGION,), nodes=0, devices=DEVICES, replicas=replicas, timings=Timings(), policy=policy)
    async with (
        running_grid(shape) as grid,
        store_of(grid, REGION) as region,
        store_of(grid, GLOBAL) as world,
        agents_of(grid, nodes) as agents,
    ):
        began = time.monotonic()

        async def judged() -> bool:
            health: list[HealthRecord] = await records(region, REGION_KEYS.prefix("health"), HealthRecord)
            return sum(record.state.value == "healthy" for record in health) == nodes * DEVICES

        await until("all devices are healthy", judged, LIMIT_S, 1.0)
        say(f"{nodes * DEVICES} devices are healthy {time.monotonic() - began:.1f} s later")
        await start_jobs(grid, world, jobs)
        await asyncio.sleep(3)
        yield grid, agents, region, world


async def jobs_run(world: Store, jobs: int) -> None:
    """Until all jobs run again where they were moved to."""

    async def settled() -> bool:
        return len(await running_on(world)) == jobs

    began = time.monotonic()
    await until("all jobs run again", settled, LIMIT_S, 0.5)
    say(f"all {jobs} jobs run (again) {time.monotonic() - began:.1f} s later")


def show(storm: Storm) -> None:
    rows: list[list[object]] = []
    for what, values in (("cordoned", storm.cordoned_s), ("drained", storm.drained_s)):
        if values:
            rows.append([what, len(values), *(quantile(values, q) for q in (0.5, 0.9)), max(values)])
    for what, values in sorted(storm.moves_s.items(), key=lambda item: quantile(item[1], 0.5)):
        rows.append([what, len(values), *(quantile(values, q) for q in (0.5, 0.9)), max(values)])
    puts = [put / 1000 for put in storm.puts_ms]
    rows.append(["yardstick: one etcd put meanwhile", len(puts), quantile(puts, 0.5), quantile(puts, 0.9), max(puts)])
    title = f"{storm.name}: {storm.failed} of {storm.nodes} nodes fail, {storm.faulty} devices each; s since the start"
    table(title, ("until", "n", "p50", "p90", "max"), rows)
    states = ", ".join(f"{count} {state}" for state, count in sorted(storm.states.items()))
    say(f"drains: {states}; the faults were sent within {storm.sending_s * 1000:.0f} ms")
    renewals = storm.agents
    say(
        f"{renewals['renewals']:.0f} renewals meanwhile, answered in p50 {renewals['renewal_ms_p50']:.0f}, p99 "
        f"{renewals['renewal_ms_p99']:.0f}, max {renewals['renewal_ms_max']:.0f} ms; no running job was without one "
        f"for longer than {renewals['renewal_gap_ms_max']:.0f} ms; {renewals['streams_ended']:.0f} streams ended so far"
    )
    say("CPU, % of one core: " + ", ".join(f"{name} {share:.0f}" for name, share in sorted(storm.cpu.items())))


def report(storms: Sequence[Storm], replicas: int) -> None:
    say(machine())
    say(f"published for NVSentinel, not measured here: {NVSENTINEL}")
    by_name = {storm.name: storm for storm in storms}
    values: dict[str, object] = {"benchmark": "storm", "replicas": replicas}
    tenth, third, force = by_name.get("tenth"), by_name.get("third"), by_name.get("in force")
    for storm, suffix in ((tenth, ""), (third, "_third"), (force, "_in_force")):
        if storm is None:
            continue
        values |= {
            f"nodes{suffix}": storm.nodes,
            f"failed{suffix}": storm.failed,
            f"cordon_s_p50{suffix}": quantile(storm.cordoned_s, 0.5),
            f"cordon_s_p90{suffix}": quantile(storm.cordoned_s, 0.9),
            f"cordon_s_max{suffix}": max(storm.cordoned_s),
            f"renewal_ms_max{suffix}": storm.agents["renewal_ms_max"],
            f"etcd_put_ms_p50{suffix}": quantile(storm.puts_ms, 0.5),
        }
    if third is not None:
        values["drained_s_p90"] = quantile(third.drained_s, 0.9)
    if tenth is not None:
        values["drained_s_p90_tenth"] = quantile(tenth.drained_s, 0.9)
    if force is not None:
        values["held_back_in_force"] = force.states[DrainState.REFUSED.value]
    last_line(**values, **{f"nvsentinel_{name}": value for name, value in NVSENTINEL.items()})


async def main() -> None:
    parser = argparse.ArgumentParser(description="Many nodes fail at once: cordoned, and drained.")
    parser.add_argument("--nodes", type=int, default=1_500)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--only", choices=("lifted", "in-force"), help="one part of it")
    options = parser.parse_args()
    nodes, tenth, third = options.nodes, options.nodes // 10, options.nodes // 3
    say(__doc__ or "")
    storms: list[Storm] = []
    if options.only != "in-force":
        async with fleet(LIFTED, nodes, third, options.replicas) as (grid, agents, region, world):
            storms.append(await one_storm("tenth", grid, agents, region, world, nodes, tenth, 1, True))
            await jobs_run(world, third)
            storms.append(await one_storm("third", grid, agents, region, world, nodes, third, 1, True))
            await jobs_run(world, third)
    if options.only != "lifted":
        async with fleet(Policy(), nodes, tenth, options.replicas) as (grid, agents, region, world):
            storms.append(await one_storm("in force", grid, agents, region, world, nodes, tenth, DEVICES, False))
    report(storms, options.replicas)


if __name__ == "__main__":
    asyncio.run(main())
