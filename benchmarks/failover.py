"""How long a region is without decisions when its leading replica goes away.

    python -m benchmarks.failover [--kills 10] [--graceful 10]

One region with two replicas, one etcd, two agents; default timings (the leader's lease lives 5 s, renewed about every
third of that, so that after a SIGKILL between two thirds of it and all of it are left). All are processes on this host.

Before each run the leader is the replica that the region's leader key names, the other one answers, and both agents are
connected. Then, at a random moment, the leader is killed (SIGKILL) or asked to stop (SIGTERM). As soon as it can decide
nothing more (killed: at once; asked to stop: when its leader key is gone) a fault is posted at the NVML level of a
device that has had none. The clock starts with the signal and stops twice, each time when this process hears of it from
etcd by a watch: when the leader key names the other replica (``elected``), and when the device's drain is durable
(``decision``): by then the other one leads, the agent has a stream, the event is durable, and three decisions have
followed from it. ``moved`` says whether the faulty node's agent was connected to the replica that went away.

The yardstick is the lease's time to live: the limit below which nobody can know that the leader is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import time
from dataclasses import dataclass, field, replace

from benchmarks.common import Busy, last_line, machine, quantile, running_grid, say, store_of, table, until
from gridkeeper import codec
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.client import GridClient
from gridkeeper.ids import NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.ports.store import Store
from gridkeeper.records.faults import DrainRecord, LeaderRecord
from gridkeeper.records.fleet import SessionRecord
from gridkeeper.timings import Timings

REGION = "east"
KEYS = RegionKeys(RegionId(REGION))
XID = 48
NODES = 2
DEVICES = 32
LIMIT_S = 60.0


@dataclass(slots=True)
class Seen:
    """What etcd said, with the ``time.perf_counter`` seconds at which it arrived."""

    leaders: list[tuple[float, str]] = field(default_factory=list)  # "": the key is gone
    drains: dict[str, float] = field(default_factory=dict)

    def elected_after(self, at: float, other: str) -> float:
        """When ``other`` ("": nobody) was first seen to lead after ``at``; 0: not yet."""
        return next((when for when, who in self.leaders if when > at and who == other), 0.0)


async def follow(store: Store, seen: Seen, start: Revision) -> None:
    async with contextlib.aclosing(store.watch(KEYS.root, start)) as batches:
        async for batch in batches:
            now = time.perf_counter()
            for change in batch.changes:
                if change.deleted:
                    if change.kv.key == KEYS.leader:
                        seen.leaders.append((now, ""))
                elif change.kv.key == KEYS.leader:
                    seen.leaders.append((now, codec.decode(LeaderRecord, change.kv.value).replica))
                elif change.kv.key.startswith(KEYS.prefix("drains")):
                    seen.drains.setdefault(codec.decode(DrainRecord, change.kv.value).device, now)


async def leader_of(store: Store) -> str:
    kv, _ = await store.get(KEYS.leader)
    return codec.decode(LeaderRecord, kv.value).replica if kv else ""


async def settled(grid: LocalGrid, client: GridClient, store: Store) -> str:
    """The leader, once everything is as a run needs it."""

    async def look() -> str:
        statuses = await client.info()
        answer = all(s.info is not None and s.info.region_store_reachable for s in statuses)
        sessions = [await session_of(store, node.name) for node in grid.nodes]
        return await leader_of(store) if answer and all(s is not None and s.open for s in sessions) else ""

    return await until("both replicas answer, one leads, and the agents are connected", look, LIMIT_S, 0.1)


async def session_of(store: Store, node: NodeId) -> SessionRecord | None:
    kv, _ = await store.get(KEYS.session(node))
    return codec.decode(SessionRecord, kv.value) if kv else None


@dataclass(frozen=True, slots=True)
class Run:
    elected_s: float
    decision_s: float
    moved: bool  # the faulty node's agent had to find the other replica first


async def one(
    grid: LocalGrid, client: GridClient, store: Store, seen: Seen, node: NodeId, index: int, kill: bool, pause_s: float
) -> Run:
    leader = await settled(grid, client, store)
    await asyncio.sleep(pause_s)
    other = next(replica.name for replica in grid.replicas if replica.name != leader)
    session = await session_of(store, node)
    assert session is not None
    gone = time.perf_counter()
    grid.replica(leader).signal(signal.SIGKILL if kill else signal.SIGTERM)

    async def silenced() -> bool:
        return kill or seen.elected_after(gone, "") > 0

    await until(f"{leader} gives its key up", silenced, LIMIT_S, 0.001)
    grid.xid(node, index, XID, kernel=False)

    async def look() -> bool:
        return seen.elected_after(gone, other) > 0 and f"{node}/gpu{index}" in seen.drains

    await until(f"{other} leads and has drained {node}/gpu{index}", look, LIMIT_S, 0.01)
    elected, decided = seen.elected_after(gone, other) - gone, seen.drains[f"{node}/gpu{index}"] - gone

    async def ended() -> bool:
        return not grid.replica(leader).running

    await until(f"{leader} has ended", ended, LIMIT_S)
    grid.start_replica(leader)
    return Run(elected, decided, session.replica == leader)


async def main() -> None:
    parser = argparse.ArgumentParser(description="A region's leader goes away -> the other one decides.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--graceful", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.kills + options.graceful > NODES * DEVICES:
        parser.error(f"--kills + --graceful: more than {NODES * DEVICES}, each of which needs a fresh device")
    chance, timings = random.Random(options.seed), Timings()
    policy = replace(default_policy(), budgets=(BudgetPolicy("region", 1.0, 1),))
    shape = GridOptions(
        regions=(REGION,), nodes=NODES, devices=DEVICES, replicas=2, timings=timings, policy=policy, seed=options.seed
    )
    say(__doc__ or "")
    busy = Busy()
    found: dict[bool, list[Run]] = {True: [], False: []}
    async with running_grid(shape) as grid, store_of(grid, REGION) as store, GridClient(grid.client_config()) as client:
        seen = Seen()
        _, revision = await store.get(KEYS.leader)
        watching = asyncio.ensure_future(follow(store, seen, Revision(revision + 1)))
        devices = [(node.name, index) for node in grid.nodes for index in range(DEVICES)]
        chance.shuffle(devices)
        order = [True] * options.kills + [False] * options.graceful
        chance.shuffle(order)
        for number, (kill, (node, index)) in enumerate(zip(order, devices, strict=False), 1):
            run = await one(grid, client, store, seen, node, index, kill, chance.uniform(1, 1 + timings.lease_ttl_s))
            found[kill].append(run)
            how = "killed" if kill else "stopped"
            say(f"{number}: {how}; elected {run.elected_s:.2f} s, decision {run.decision_s:.2f} s, moved {run.moved}")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    shares = busy.percent()
    rows: list[list[object]] = []
    for name, kill in (("killed", True), ("asked to stop", False)):
        for step in ("elected", "decision"):
            values = [run.elected_s if step == "elected" else run.decision_s for run in found[kill]]
            rows.append([f"{name}: {step}", len(values), *(quantile(values, q) for q in (0.5, 0.9, 0.99))])
    rows.append(["yardstick: the lease's time to live", "", *[float(timings.lease_ttl_s)] * 3])
    table("Seconds since the leader went away", ("until", "n", "p50", "p90", "p99"), rows)
    say(f"{machine()}; the machine's cores were {shares['machine']:.0f} % of one busy, all processes")
    kills, stops = ([run.decision_s for run in found[kill]] for kill in (True, False))
    last_line(
        benchmark="failover",
        ttl_s=timings.lease_ttl_s,
        kills=len(kills),
        kill_s_p50=quantile(kills, 0.5),
        kill_s_p99=quantile(kills, 0.99),
        kill_elected_s_p99=quantile([run.elected_s for run in found[True]], 0.99),
        graceful=len(stops),
        graceful_s_p50=quantile(stops, 0.5),
        graceful_s_p99=quantile(stops, 0.99),
        graceful_elected_s_p99=quantile([run.elected_s for run in found[False]], 0.99),
    )


if __name__ == "__main__":
    asyncio.run(main())
