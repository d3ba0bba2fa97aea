"""Load on one replica: many agents in a process of its own, each with its own certificate, connection and stream.

They speak the real protocol over mTLS. What an agent sends each second by the default timings is a *round*: telemetry
of 8 devices, a heartbeat, a renewal and a workload report, in one message. A load of n rounds per second is what n
nodes send, over fewer connections. The devices are healthy and no event comes from them. The answer to a renewal says
that its message was taken; only those rounds are counted.

As a program it reads lines on standard input and answers each with a line of JSON: "rate <rounds per second over all
agents>" (``inf``: as fast as the server answers, ``0``: one each second and agent) with what was since the line before;
"reconnect": all streams are closed at once, and opened again as agents do it, with what that took.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common import cpu_seconds, quantile
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import TRUST_DOMAIN
from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ports.link import LinkClosed, parts
from gridkeeper.telemetry import COLUMN, METRICS, SCHEMA_VERSION
from gridkeeper.v1.agent_pb2 import AgentFrame, DeviceInfo, Heartbeat, Hello, Renewal, Telemetry, WorkloadReport
from nodeagent.transport import GrpcAgentSession, GrpcTransport

DEVICES = 8
CONNECTS_PER_S = 50
SETTLED_S, BACKOFF_S, BACKOFF_MAX_S = 10.0, 0.1, 5.0
"""As agents have them (``nodeagent/uplink.py``)."""
FLOOD = float("inf")
FLOOD_WINDOW = 2
"""Rounds of one agent under way while flooding."""
HEALTHY = {
    "temperature": 55, "temperature_memory": 60, "temperature_slowdown": 90, "power": 400, "power_limit": 700,
    "clock_sm": 1980, "clock_sm_max": 1980, "clock_memory": 2619, "utilisation": 95, "memory_used": 60_000,
    "memory_total": 81_559, "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16,
    "processes": 1,
}  # fmt: skip
"""Of an H100 at work; every other metric is 0."""


@dataclass(slots=True)
class Counters:
    rounds: int = 0  # answered
    sent: int = 0
    ended: int = 0
    waits_ms: list[float] = field(default_factory=list)  # from a renewal's sending to its answer


class LoadAgent:
    """One node: connects, and sends until cancelled; connects again, with the backoff of agents, when its stream ends.
    ``answered``: whether the server answers renewals."""

    def __init__(
        self, node: str, region: str, tls: TlsFiles, address: str, counters: Counters, answered: bool = True
    ) -> None:
        self._node = node
        self._region = region
        self._tls = tls
        self._address = address
        self._counters = counters
        self._recorded = answered
        self._open_stream: asyncio.Future[None] | None = None
        self.open = asyncio.Event()
        self.period_s = 1.0  # between rounds; 0: no pause
        self.changed = asyncio.Event()
        self._sent: dict[int, float] = {}  # renewal -> when it was sent
        self._answered = asyncio.Event()
        row = np.zeros(len(METRICS), dtype="<f4")
        for name, value in HEALTHY.items():
            row[COLUMN[name]] = value
        values = np.tile(row, (DEVICES, 1)).tobytes()
        self._telemetry = AgentFrame(telemetry=Telemetry(rows=DEVICES, columns=len(METRICS), values=values, age_ms=5))

    def _hello(self) -> Hello:
        return Hello(
            node=self._node,
            region=self._region,
            rack=f"rack-{self._node}",
            boot_id="load",
            spool=f"load-{os.getpid()}",
            agent_version="load",
            backends=["load"],
            metric_schema=SCHEMA_VERSION,
            devices=[
                DeviceInfo(
                    slot=f"gpu{n}",
                    uuid=f"GPU-{self._node}-{n}",
                    vendor="nvidia",
                    model="NVIDIA H100 80GB HBM3",
                    architecture="hopper",
                    pci_bus_id=f"0000:{n:02x}:00",
                    memory_mib=81_559,
                )
                for n in range(DEVICES)
            ],
        )

    async def run(self) -> None:
        failures = 0
        while True:
            began, cut = time.monotonic(), False
            stream = self._open_stream = asyncio.ensure_future(self._stream())
            try:
                await asyncio.wait((stream,))
                cut = stream.cancelled()
                if not cut:
                    stream.result()
            except* LinkClosed as closed:
                self._counters.ended += 1
                print(f"{self._node}: {closed.exceptions[0]}", file=sys.stderr, flush=True)
            finally:
                stream.cancel()
            self.open.clear()
            self._sent.clear()
            self._answered.set()
            failures = 0 if cut or time.monotonic() - began > SETTLED_S else failures + 1
            await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures, 10))))

    def cut(self) -> None:
        """End the stream from this side."""
        self.open.clear()
        if self._open_stream is not None:
            self._open_stream.cancel()

    @property
    def unanswered(self) -> int:
        """Renewals of the open stream."""
        return len(self._sent)

    async def _stream(self) -> None:
        transport = GrpcTransport(lambda: channel_credentials(self._tls))
        session = await transport.connect(self._address)
        try:
            await session.send(AgentFrame(hello=self._hello()))
            await session.receive()
            self.open.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(session))
                group.create_task(self._send(session))
        finally:
            await session.close()

    async def _listen(self, session: GrpcAgentSession) -> None:
        while True:
            for frame in parts(await session.receive()):
                if frame.WhichOneof("frame") == "renewal_ack":
                    sent = self._sent.pop(frame.renewal_ack.id)
                    self._counters.waits_ms.append((time.perf_counter() - sent) * 1000)
                    self._counters.rounds += 1
                    self._answered.set()

    async def _send(self, session: GrpcAgentSession) -> None:
        number, due = 0, time.monotonic() + random.random() * self.period_s
        while True:
            if self.changed.is_set():
                self.changed.clear()
                due = time.monotonic() + random.random() * self.period_s
            if self.period_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), max(0.0, due - time.monotonic()))
                    continue
                due += self.period_s
            else:
                while len(self._sent) >= FLOOD_WINDOW:
                    self._answered.clear()
                    await self._answered.wait()
            number += 1
            self._counters.sent += 1
            if self._recorded:
                self._sent[number] = time.perf_counter()
            frame = AgentFrame(renewal=Renewal(id=number))
            frame.more.append(AgentFrame(workloads=WorkloadReport()))
            frame.more.append(AgentFrame(heartbeat=Heartbeat()))
            frame.more.append(self._telemetry)
            await session.send(frame)


async def serve(spec: dict[str, str], nodes: dict[str, str]) -> None:
    """``spec``: region, address, authority; ``nodes``: name -> directory of its certificate."""
    counters = Counters()
    agents: list[LoadAgent] = []
    async with asyncio.TaskGroup() as group:
        tasks = []
        for name, directory in nodes.items():
            home = Path(directory)
            tls = TlsFiles(str(home / "node.crt"), str(home / "node.key"), spec["authority"])
            agent = LoadAgent(name, spec["region"], tls, spec["address"], counters, spec["answers"] == "yes")
            tasks.append(group.create_task(agent.run()))
            agents.append(agent)
            async with asyncio.timeout(20):
                await agent.open.wait()
            await asyncio.sleep(1 / CONNECTS_PER_S)
        gc.collect()
        gc.freeze()
        print(json.dumps({"agents": len(agents)}), flush=True)
        await _obey(agents, counters)
        for task in tasks:
            task.cancel()


async def _obey(agents: list[LoadAgent], counters: Counters) -> None:
    """Lines until the end of standard input."""
    began, cpu = time.monotonic(), cpu_seconds(os.getpid())
    counters.rounds, counters.sent, counters.waits_ms = 0, 0, []
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.split() == ["reconnect"]:
            print(json.dumps(await _reconnect(agents, counters)), flush=True)
            continue
        rate = float(line.split()[1])
        seconds, used = time.monotonic() - began, cpu_seconds(os.getpid())
        said = {
            "seconds": seconds,
            "rounds_per_s": counters.rounds / seconds,
            "sent": counters.sent,
            "unanswered": sum(agent.unanswered for agent in agents),
            "wait_ms_p50": quantile(counters.waits_ms, 0.5),
            "wait_ms_p99": quantile(counters.waits_ms, 0.99),
            "cpu_percent": 100 * (used - cpu) / seconds,
            "ended": counters.ended,
        }
        print(json.dumps(said), flush=True)
        began, cpu, counters.rounds, counters.sent, counters.waits_ms = time.monotonic(), used, 0, 0, []
        for agent in agents:
            agent.period_s = 1.0 if rate == 0 else 0.0 if rate == FLOOD else len(agents) / rate
            agent.changed.set()


async def _reconnect(agents: list[LoadAgent], counters: Counters) -> dict[str, float]:
    """``seconds`` until all streams are open again, ``ended``: how many tries failed meanwhile."""
    began, ended = time.monotonic(), counters.ended
    for agent in agents:
        agent.cut()
    await asyncio.gather(*(agent.open.wait() for agent in agents))
    return {"seconds": time.monotonic() - began, "ended": counters.ended - ended}


class Load:
    """The parent's side. ``async with Load(grid, region, replica_address, agents) as load``. ``answers``: whether the
    server there answers renewals."""

    def __init__(self, grid: LocalGrid, region: str, address: str, agents: int, answers: bool = True) -> None:
        self._grid = grid
        self._region = region
        self._address = address
        self._agents = agents
        self._answers = answers
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Load:
        places = self._grid.places
        authority = CertificateAuthority.load(places.ca, SystemClock())
        nodes = {}
        for number in range(self._agents):
            name = f"{self._region}-load-{number}"
            home = places.root / "load" / name
            authority.issue(spiffe.node(self._region, name), home, stem="node")
            nodes[name] = str(home)
        spec = {
            "region": self._region, "address": self._address, "authority": str(authority.authority),
            "answers": "yes" if self._answers else "no",
        }  # fmt: skip
        assert authority.trust_domain == TRUST_DOMAIN
        listing = places.root / "load" / "agents.json"
        listing.write_text(json.dumps({"spec": spec, "nodes": nodes}))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.load", str(listing),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await self._answer(60 + self._agents / 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def rate(self, rounds_per_s: float) -> dict[str, float]:
        """Set it. The answer is about the time since the last call: seconds, rounds_per_s (answered), sent, unanswered
        (at this moment), wait_ms_p50 and …_p99 (of renewals), cpu_percent (of the load's own process), ended (streams,
        since the start)."""
        return await self._ask(f"rate {rounds_per_s}", 30)

    async def reconnect(self) -> dict[str, float]:
        """Close all streams at once and wait until they are open again: seconds, ended (tries that failed)."""
        return await self._ask("reconnect", 120)

    async def _ask(self, line: str, timeout_s: float) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await self._answer(timeout_s)

    async def _answer(self, timeout_s: float) -> dict[str, float]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        if not line:
            raise RuntimeError("the load process has ended; its errors are above")
        answer: dict[str, float] = json.loads(line)
        return answer


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(serve(told["spec"], told["nodes"]))
