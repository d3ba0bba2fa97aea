"""What one report of a node costs the replica that takes it, beside a bare server that only parses and drops it.

    python -m benchmarks.ingest [--nodes 1000] [--seconds 20]

A report is what an agent sends each second: telemetry of 8 devices, a heartbeat, a renewal and a workload report in one
message, over one TLS connection per node (``benchmarks/load.py``, a process of its own). The yardstick is a grpc.aio
server with the same mutual TLS, options, messages and method: it parses each and drops it, without an answer;
it gets the same load from as many connections, before and after. CPU is user and system time of the server's process:
of the replica, everything that it does meanwhile, its leaders' rounds over all these devices included.

- *server, bare*: CPU per report at one report per second and node.
- *one more*: by how much the replica's CPU grows per report when twice as many come: without what it does anyway.
- *lost*: renewals without an answer, of streams that are open, once the load has been quiet for three seconds; at that
  rate, and after all nodes reconnected at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import psutil

from benchmarks.common import cpu_seconds, last_line, machine, running_grid, say, table
from benchmarks.load import DEVICES, Load
from controlplane.rpc.agentlink import SERVER_OPTIONS
from gridkeeper.cli.local.children import free_ports
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.tls import server_credentials
from gridkeeper.policy.document import default_policy
from gridkeeper.timings import Timings
from gridkeeper.v1 import agent_pb2_grpc
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame, Welcome

REGION = "east"
SETTLE_S = 5.0
QUIET_S = 3.0
QUIET_RATE = 1e-3
"""Rounds per second over all agents: none within any of these times."""

Context = grpc.aio.ServicerContext[AgentFrame, ControlFrame]


class Bare(agent_pb2_grpc.AgentLinkServicer):
    async def Connect(self, request_iterator: AsyncIterator[AgentFrame], context: Context) -> None:  # type: ignore[override]
        await context.read()
        await context.write(ControlFrame(welcome=Welcome(replica="bare")))
        while isinstance(await context.read(), AgentFrame):
            pass


async def serve_bare(address: str, files: TlsFiles) -> None:
    """For ever."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    agent_pb2_grpc.add_AgentLinkServicer_to_server(Bare(), server)
    server.add_secure_port(address, server_credentials(files))
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@contextlib.asynccontextmanager
async def bare_server(grid: LocalGrid) -> AsyncIterator[tuple[str, int]]:
    """(address, process id) of one in a process of its own."""
    authority = CertificateAuthority.load(grid.places.ca, SystemClock())
    files = authority.issue(spiffe.replica(REGION, "bare"), grid.places.root / "bare", stem="replica")
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.ingest", "--bare", address, files.certificate, files.key, files.authority,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), 20)
        yield address, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Window:
    """What a server used for what was sent to it in some seconds."""

    reports: float
    cpu_s: float
    seconds: float
    wait_ms_p99: float

    @property
    def us_per_report(self) -> float:
        return 1e6 * self.cpu_s / self.reports

    @property
    def core_percent(self) -> float:
        return 100 * self.cpu_s / self.seconds


async def window(load: Load, pid: int, rate: float, seconds: float) -> Window:
    await load.rate(rate)
    await asyncio.sleep(SETTLE_S)
    await load.rate(rate)
    began, cpu = time.monotonic(), cpu_seconds(pid)
    await asyncio.sleep(seconds)
    used, lasted = cpu_seconds(pid) - cpu, time.monotonic() - began
    said = await load.rate(rate)
    return Window(said["sent"], used, lasted, said["wait_ms_p99"])


def rss_kb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1024


async def lost(load: Load) -> float:
    """Stop sending, and count what is unanswered then."""
    await load.rate(QUIET_RATE)
    await asyncio.sleep(QUIET_S)
    return (await load.rate(0))["unanswered"]


async def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of a replica per report, beside a bare grpc.aio server.")
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default 20)")
    parser.add_argument(
        "--bare", nargs=4, metavar=("ADDRESS", "CERTIFICATE", "KEY", "AUTHORITY"), help="be that server"
    )
    options = parser.parse_args()
    if options.bare:
        address, certificate, key, authority = options.bare
        await serve_bare(address, TlsFiles(certificate, key, authority))
        return
    nodes, seconds = int(options.nodes), float(options.seconds)
    say(__doc__ or "")
    shape = GridOptions(regions=(REGION,), nodes=0, devices=DEVICES, timings=Timings(), policy=default_policy())
    async with running_grid(shape) as grid:
        replica = grid.replicas[0]
        pid = grid.replica(replica.name).pid
        bare: list[Window] = []

        async def yardstick() -> None:
            async with (
                bare_server(grid) as (address, server),
                Load(grid, REGION, address, nodes, answers=False) as load,
            ):
                bare.append(await window(load, server, nodes, seconds))
                say(f"bare: {bare[-1].us_per_report:.0f} µs per report, {bare[-1].core_percent:.0f} % of a core")

        await yardstick()
        empty_kb = rss_kb(pid)
        async with Load(grid, REGION, replica.address, nodes) as load:
            kb_per_node = (rss_kb(pid) - empty_kb) / nodes
            once = await window(load, pid, nodes, seconds)
            twice = await window(load, pid, 2 * nodes, seconds)
            missing = await lost(load)
            again = await load.reconnect()
            await asyncio.sleep(SETTLE_S)
            missing += await lost(load)
            ended = (await load.rate(0))["ended"]
        await yardstick()
    server_us, bare_us = once.us_per_report, sum(w.us_per_report for w in bare) / len(bare)
    more_us = (
        1e6
        * (twice.cpu_s / twice.seconds - once.cpu_s / once.seconds)
        / (twice.reports / twice.seconds - once.reports / once.seconds)
    )
    say(machine())
    rows: list[list[object]] = [
        ["bare, before and after", *(w.us_per_report for w in bare)],
        ["replica, at 1 and 2 per second and node", server_us, twice.us_per_report],
        ["replica, one more", more_us, ""],
    ]
    table(f"{nodes} nodes × {DEVICES} devices: µs of CPU per report", ("server", "", ""), rows)
    say(
        f"renewals answered in p99 {once.wait_ms_p99:.0f} ms; {kb_per_node:.0f} KiB of memory per node; after all "
        f"streams were cut at once the last one was open again {again['seconds']:.1f} s later "
        f"({again['ended']:.0f} tries failed)"
    )
    last_line(
        benchmark="ingest",
        nodes=nodes,
        devices_per_node=DEVICES,
        hz=1,
        server_us_per_report=server_us,
        bare_us_per_report=bare_us,
        server_per_bare=server_us / bare_us,
        one_more_us_per_report=more_us,
        nodes_per_core=1e6 / server_us,
        rss_kb_per_node=kb_per_node,
        lost=missing,
        ended=ended,
        reconnect_s=again["seconds"],
        wait_ms_p99=once.wait_ms_p99,
    )


if __name__ == "__main__":
    asyncio.run(main())
