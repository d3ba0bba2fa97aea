"""How long a fault takes from the device to a drain that is durable.

    python -m benchmarks.latency [--faults 212] [--load-percent 50]

What is real: agents, a replica and etcd as processes on this host, mTLS between all of them, fsync. What is not: NVML,
which is the simulated library below the agent's unchanged backend; and etcd has one member.

A fault is an XID 48 posted at the NVML level on a device that has had none, one at a time, each a random pause after
the drain before it, so that none is in step with any timer. The clock starts before the event is posted and stops when
this process hears from etcd, by a watch, that the device's drain record is there: both are read here, so no two clocks
are compared, and the figure includes the watch's way back (``watch_lag``, measured with our own puts: too long by that,
never too short).

The load is what many more nodes send to the same replica (``benchmarks/load.py``), in rounds: all that one node sends
in a second. Its maximum is found first, in the same run: the load sends as fast as the replica answers; the rounds per
second, divided by the share of a core that the replica used (if less than one), are what one core takes.
``--load-percent`` of that is kept up while the faults come.

Between the faults, under the same load, come puts of 256 bytes from this process to the same etcd: the yardstick.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.common import (
    SCRATCH,
    Busy,
    cpu_seconds,
    last_line,
    machine,
    quantile,
    running_grid,
    say,
    store_of,
    table,
    timed_put,
)
from benchmarks.load import DEVICES, FLOOD, Load
from gridkeeper import codec
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.ids import RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.ports.store import Store
from gridkeeper.records.faults import DrainRecord, DrainState, FindingRecord
from gridkeeper.records.fleet import EventRecord
from gridkeeper.timings import Timings

REGION = "east"
NODES = 4
DEVICES_PER_NODE = 54
KEYS = RegionKeys(RegionId(REGION))
XID = 48
"""Double-bit ECC error: NVIDIA says drain."""
PAUSE_S = (0.1, 0.4)
PUTS_PER_FAULT = 3
FLOOD_S = 6.0
STEP_LIMIT_S = 30.0
STAGES = ("event", "finding", "drain", "drained")


@dataclass(slots=True)
class Heard:
    """When this process heard of each step, by device: ``time.perf_counter`` seconds."""

    steps: dict[tuple[str, str], float] = field(default_factory=dict)
    puts: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, step: str, device: str) -> float:
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                while (step, device) not in self.steps:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"no {step} of {device} within {STEP_LIMIT_S:.0f} s") from None
        return self.steps[(step, device)]


async def follow(store: Store, heard: Heard, start: Revision) -> None:
    """Stamps every step of every device on arrival."""
    kinds = {KEYS.prefix("events"): EventRecord, KEYS.prefix("findings"): FindingRecord}
    drains = KEYS.prefix("drains")
    async with contextlib.aclosing(store.watch(KEYS.root, start)) as batches:
        async for batch in batches:
            now = time.perf_counter()
            for change in batch.changes:
                if change.deleted:
                    continue
                if change.kv.key.startswith(drains):
                    drain = codec.decode(DrainRecord, change.kv.value)
                    if drain.state in (DrainState.REFUSED, DrainState.FAILED, DrainState.EXPIRED):
                        raise RuntimeError(f"the drain of {drain.device} is {drain.state}: {drain.reason}")
                    heard.steps.setdefault(("drain", drain.device), now)
                    if drain.state is DrainState.DRAINED:
                        heard.steps.setdefault(("drained", drain.device), now)
                for prefix, record in kinds.items():
                    if change.kv.key.startswith(prefix):
                        step = prefix.removeprefix(KEYS.root).rstrip("s/")
                        heard.steps.setdefault((step, codec.decode(record, change.kv.value).device), now)
            heard.changed.set()


async def watch_puts(store: Store, heard: Heard, start: Revision) -> None:
    async with contextlib.aclosing(store.watch(SCRATCH, start)) as batches:
        async for batch in batches:
            now = time.perf_counter()
            heard.puts.update({change.kv.key: now for change in batch.changes})


@dataclass(slots=True)
class Result:
    steps_ms: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STAGES})
    puts_ms: list[float] = field(default_factory=list)
    watch_lag_ms: list[float] = field(default_factory=list)


async def measure(grid: LocalGrid, store: Store, faults: int, chance: random.Random) -> Result:
    """One fault after the other, over nodes and devices in a random order; a first one on each node is not counted."""
    devices = [(node.name, index) for node in grid.nodes for index in range(1, DEVICES_PER_NODE)]
    chance.shuffle(devices)
    order = [(node.name, 0) for node in grid.nodes] + devices[:faults]
    return await measure_in(grid, store, order, len(grid.nodes), chance)


async def measure_in(
    grid: LocalGrid, store: Store, order: Sequence[tuple[str, int]], uncounted: int, chance: random.Random
) -> Result:
    """One fault after the other on these devices (node and index); the first ``uncounted`` only warm up."""
    heard, result = Heard(), Result()
    _, revision = await store.get(KEYS.leader)
    start = Revision(revision + 1)
    async with asyncio.TaskGroup() as group:
        watches = [group.create_task(follow(store, heard, start)), group.create_task(watch_puts(store, heard, start))]
        for number, (node, index) in enumerate(order):
            for put in range(PUTS_PER_FAULT):
                await asyncio.sleep(chance.uniform(*PAUSE_S) / PUTS_PER_FAULT)
                result.puts_ms.append(await timed_put(store, number * PUTS_PER_FAULT + put))
                answered = time.perf_counter()
                await asyncio.sleep(0.02)
                key = f"{SCRATCH}{(number * PUTS_PER_FAULT + put) % 64}"
                if heard.puts.get(key, 0.0) > answered - 0.1:
                    result.watch_lag_ms.append((heard.puts[key] - answered) * 1000)
            await asyncio.sleep(chance.uniform(*PAUSE_S))
            posted = time.perf_counter()
            grid.xid(node, index, XID, kernel=False)
            stamps = {step: await heard.wait(step, f"{node}/gpu{index}") for step in STAGES}
            if number >= uncounted:
                for step, stamp in stamps.items():
                    result.steps_ms[step].append((stamp - posted) * 1000)
            if number % 50 == 49:
                say(f"{number + 1} of {len(order)} faults")
        for watch in watches:
            watch.cancel()
    return result


async def find_maximum(load: Load, replica: int) -> tuple[float, float]:
    """(rounds per second that the replica can take with one core, the share of a core it used, in percent)."""
    await load.rate(FLOOD)
    await asyncio.sleep(1)
    await load.rate(FLOOD)
    began, cpu = time.monotonic(), cpu_seconds(replica)
    await asyncio.sleep(FLOOD_S)
    share = (cpu_seconds(replica) - cpu) / (time.monotonic() - began)
    answer = await load.rate(0)
    return answer["rounds_per_s"] / min(1.0, share), 100 * share


async def main() -> None:
    parser = argparse.ArgumentParser(description="Event at the device -> drain durable in etcd.")
    parser.add_argument("--faults", type=int, default=212, help="counted faults (default 212, at most 212)")
    parser.add_argument("--load-percent", type=float, default=50.0, help="of the measured maximum; 0: idle grid")
    parser.add_argument("--agents", type=int, default=100, help="nodes of the load (default 100)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = max(1, min(options.faults, NODES * (DEVICES_PER_NODE - 1)))
    policy = replace(default_policy(), budgets=(BudgetPolicy("region", 1.0, 1),))
    shape = GridOptions(
        regions=(REGION,), nodes=NODES, devices=DEVICES_PER_NODE, timings=Timings(), policy=policy, seed=options.seed
    )
    say(__doc__ or "")
    async with running_grid(shape) as grid, store_of(grid, REGION) as store, contextlib.AsyncExitStack() as stack:
        replica = grid.replicas[0]
        pid = grid.replica(replica.name).pid
        maximum = reached = 0.0
        load: Load | None = None
        if options.load_percent > 0:
            load = await stack.enter_async_context(Load(grid, REGION, replica.address, options.agents))
            maximum, reached = await find_maximum(load, pid)
            say(f"one core of the replica takes {maximum:.0f} rounds/s (it used {reached:.0f} % while flooded)")
            await load.rate(maximum * options.load_percent / 100)
            await asyncio.sleep(3)
            await load.rate(maximum * options.load_percent / 100)
        agents = [grid.agent(node.name).pid for node in grid.nodes]
        groups = {"replica": [pid], "agents": agents, "load": [load.pid] if load else []}
        busy = Busy(**groups)
        result = await measure(grid, store, faults, random.Random(options.seed))
        shares = busy.percent()
        during = await load.rate(0) if load else {"rounds_per_s": 0.0, "ended": 0.0}
        report(result, shares, during, maximum, options.agents if load else 0, shape)


def report(
    result: Result, shares: dict[str, float], during: dict[str, float], maximum: float, agents: int, shape: GridOptions
) -> None:
    rows: list[list[object]] = []
    for name, values in (
        ("event durable (acknowledged to the agent after it)", result.steps_ms["event"]),
        ("finding durable", result.steps_ms["finding"]),
        ("drain durable", result.steps_ms["drain"]),
        ("device drained", result.steps_ms["drained"]),
        ("yardstick: one etcd put", result.puts_ms),
        ("watch lag in each line but the yardstick", result.watch_lag_ms),
    ):
        rows.append([name, len(values), *(quantile(values, q) for q in (0.5, 0.9, 0.99)), max(values, default=0.0)])
    table("Milliseconds since the event was posted", ("until", "n", "p50", "p90", "p99", "max"), rows)
    drains, puts = result.steps_ms["drain"], result.puts_ms
    quarter = max(1, len(drains) // 4)
    first, final = quantile(drains[:quarter], 0.5), quantile(drains[-quarter:], 0.5)
    devices = shape.nodes * shape.devices + agents * DEVICES
    percent = 100 * during["rounds_per_s"] / maximum if maximum else 0.0
    say(f"{machine()}")
    say(
        f"a region of {shape.nodes + agents} nodes and {devices} devices; load {during['rounds_per_s']:.0f} rounds/s = "
        f"{percent:.0f} % of the maximum, {during['ended']:.0f} streams ended"
    )
    if maximum:
        say(f"a renewal of the load is answered in p50 {during['wait_ms_p50']:.1f}, p99 {during['wait_ms_p99']:.1f} ms")
    say("CPU, % of one core: " + ", ".join(f"{name} {share:.0f}" for name, share in sorted(shares.items())))
    say(f"first quarter of the faults p50 {first:.1f} ms, last quarter {final:.1f} ms")
    last_line(
        benchmark="latency",
        load_percent=percent,
        load_rounds_per_s=during["rounds_per_s"],
        max_rounds_per_s=maximum,
        faults=len(drains),
        nodes=shape.nodes + agents,
        devices=devices,
        event_to_drain_ms_p50=quantile(drains, 0.5),
        event_to_drain_ms_p99=quantile(drains, 0.99),
        etcd_put_ms_p50=quantile(puts, 0.5),
        etcd_put_ms_p99=quantile(puts, 0.99),
        drain_per_put_p50=quantile(drains, 0.5) / quantile(puts, 0.5),
        watch_lag_ms_p50=quantile(result.watch_lag_ms, 0.5),
        others_cpu_percent=shares["others"],
    )


if __name__ == "__main__":
    asyncio.run(main())
