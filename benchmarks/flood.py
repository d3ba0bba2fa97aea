"""What one hostile node does to the detection of faults on the good ones.

    python -m benchmarks.flood [--good 500] [--faults 160]

A region of good nodes (four with simulated devices, the others as load: a report of 8 devices a second each, see
``benchmarks/load.py``). A flooder with a node's certificate sends as fast as it can, waits for no answer, and connects
again at once when it is cut off: reports in which everything is asked for, and between them messages of a megabyte.

The yardstick is the same flood into a server that takes and drops it (a null sink). Replica and etcd have one core,
flooder and sink the other, so that the flooder's own hunger for CPU is in both; the good nodes run where there is room.
The two conditions take turns, block by block of faults, so that what else the machine does is in both. Detection is
from the fault at the device to the drain that is durable in etcd.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.common import last_line, machine, quantile, running_grid, say, store_of, table
from benchmarks.ingest import bare_server
from benchmarks.latency import DEVICES_PER_NODE, NODES, REGION, measure_in
from benchmarks.load import Counters, Load, LoadAgent
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.ports.link import LinkClosed
from gridkeeper.timings import Timings
from gridkeeper.v1.agent_pb2 import AgentFrame, Heartbeat, LogChunk, Renewal
from nodeagent.transport import GrpcTransport

BLOCK = 20
MEEK = 15
"""Niceness of flooder and sink: the good nodes, which in earnest have hosts of their own, must not starve beside
them."""
SETTLE_S = 3.0
BIG = 1_000_000
BIG_EVERY = 500
WARM = 8
"""First faults of the whole run, on each node: not counted."""


class Flooder(LoadAgent):
    """One node that has gone mad."""

    async def flood(self) -> None:
        """For ever. Says once a second how much it got rid of."""
        sent, told = 0, time.monotonic()
        number = 0
        while True:
            session = None
            try:
                session = await GrpcTransport(lambda: channel_credentials(self._tls)).connect(self._address)
                await session.send(AgentFrame(hello=self._hello()))
                await session.receive()
                listening = asyncio.ensure_future(_drop(session.receive))
                try:
                    while not listening.done():
                        number += 1
                        frame = AgentFrame(renewal=Renewal(id=number))
                        frame.more.append(AgentFrame(heartbeat=Heartbeat()))
                        frame.more.append(self._telemetry)
                        if number % BIG_EVERY == 0:
                            frame.more.append(AgentFrame(log=LogChunk(id=number, text=b"x" * BIG)))
                        await session.send(frame)
                        sent += 1
                        if time.monotonic() - told >= 1.0:
                            print(json.dumps({"sent": sent}), flush=True)
                            sent, told = 0, time.monotonic()
                finally:
                    listening.cancel()
            except LinkClosed:
                await asyncio.sleep(0.01)
            finally:
                if session is not None:
                    await session.close()


async def _drop(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        await receive()


@contextlib.asynccontextmanager
async def flooding(files: TlsFiles, name: str, address: str, core: int) -> AsyncIterator[list[int]]:
    """The flooder as a process of its own. What it sent, second by second, is in the list."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.flood", "--flood", name, address, files.certificate, files.key,
        files.authority, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    flooder = psutil.Process(process.pid)
    flooder.cpu_affinity([core])
    flooder.nice(MEEK)
    sent: list[int] = []
    assert process.stdout is not None
    output = process.stdout

    async def read() -> None:
        while line := await output.readline():
            sent.append(json.loads(line)["sent"])

    reading = asyncio.ensure_future(read())
    try:
        yield sent
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        reading.cancel()


def pin(grid: LocalGrid, sink: int) -> None:
    """Replica and etcd on core 0, the sink on core 1; the good nodes are where there is room."""
    servers = {grid.replica(replica.name).pid for replica in grid.replicas}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            core = 1 if process.pid == sink else 0 if process.pid in servers or process.name() == "etcd" else None
            if core is not None:
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, {core})
    psutil.Process(sink).nice(MEEK)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Detection on good nodes beside one that floods.")
    parser.add_argument("--good", type=int, default=500, help="good nodes (default 500)")
    parser.add_argument("--faults", type=int, default=160, help="counted faults in both conditions together")
    parser.add_argument("--block", type=int, default=BLOCK, help="faults in a row in one condition")
    parser.add_argument("--flood", nargs=5, metavar=("NODE", "ADDRESS", "CERTIFICATE", "KEY", "AUTHORITY"))
    options = parser.parse_args()
    if options.flood:
        name, address, *files = options.flood
        await Flooder(name, REGION, TlsFiles(*files), address, Counters()).flood()
        return
    say(__doc__ or "")
    policy = replace(default_policy(), budgets=(BudgetPolicy("region", 1.0, 1),))
    shape = GridOptions(regions=(REGION,), nodes=NODES, devices=DEVICES_PER_NODE, timings=Timings(), policy=policy)
    chance = random.Random(1)
    quiet: list[float] = []
    flooded: list[float] = []
    rates: dict[str, list[int]] = {"sink": [], "replica": []}
    async with running_grid(shape) as grid, store_of(grid, REGION) as store, bare_server(grid) as (sink, sink_pid):
        replica = grid.replicas[0]
        files = CertificateAuthority.load(grid.places.ca, SystemClock()).issue(
            spiffe.node(REGION, "flooder"), grid.places.root / "flooder", stem="node"
        )
        devices = [(str(node.name), index) for node in grid.nodes for index in range(DEVICES_PER_NODE)]
        chance.shuffle(devices)
        async with Load(grid, REGION, replica.address, options.good - NODES) as load:
            await load.rate(0)
            pin(grid, sink_pid)
            await measure_in(grid, store, devices[:WARM], WARM, chance)
            left = devices[WARM : WARM + options.faults]
            for number, start in enumerate(range(0, len(left), options.block)):
                where, into = (("sink", quiet), ("replica", flooded))[number % 2]
                address = sink if where == "sink" else replica.address
                async with flooding(files, "flooder", address, 1) as sent:
                    await asyncio.sleep(SETTLE_S)
                    result = await measure_in(grid, store, left[start : start + options.block], 0, chance)
                    rates[where] += sent
                into += result.steps_ms["drain"]
                say(f"block {number + 1}, flood into the {where}: p50 {quantile(result.steps_ms['drain'], 0.5):.1f} ms")
            during = await load.rate(0)
    _report(quiet, flooded, rates, options.good, during)


def _report(
    quiet: list[float], flooded: list[float], rates: dict[str, list[int]], good: int, during: dict[str, float]
) -> None:
    rows: list[list[object]] = [
        [name, len(values), *(quantile(values, q) for q in (0.5, 0.9, 0.99)), max(values)]
        for name, values in (("flood into a null sink", quiet), ("flood into the replica", flooded))
    ]
    table("Milliseconds from the fault to its durable drain", ("condition", "n", "p50", "p90", "p99", "max"), rows)
    got = {name: sum(sent) / max(1, len(sent)) for name, sent in rates.items()}
    say(machine())
    say(f"messages that the flooder got rid of per second: sink {got['sink']:.0f}, replica {got['replica']:.0f}")
    p99 = quantile(quiet, 0.99), quantile(flooded, 0.99)
    last_line(
        benchmark="flood",
        good_nodes=good,
        faults=len(quiet) + len(flooded),
        p99_ms_quiet=p99[0],
        p99_ms_flood=p99[1],
        worse_percent=100 * (p99[1] / p99[0] - 1),
        p50_ms_quiet=quantile(quiet, 0.5),
        p50_ms_flood=quantile(flooded, 0.5),
        sink_messages_per_s=got["sink"],
        replica_messages_per_s=got["replica"],
        streams_ended=during["ended"],
    )


if __name__ == "__main__":
    assert Path("/proc").is_dir(), "pinning needs Linux"
    asyncio.run(main())
