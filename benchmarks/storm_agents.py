"""Many simulated nodes in a process of its own, each with its own certificate, connection and stream, some with a job.

They speak the real protocol over mTLS and send what an agent sends, as often: by default each second telemetry of all
devices, a heartbeat and a workload report, every other second a renewal, and at once an event or a changed report. What
they do not have is hosts: a job told to run runs at once, one told to stop takes ``checkpoint_s`` for its
checkpoint, announces it (it is in the region's object store, so the control plane verifies it as any other), and when
it is acknowledged confirms that its processes are gone. The bytes of those checkpoints are stored ahead (``prepare``):
what storing costs is not what is measured here.

As a program it reads a line of JSON per command on standard input and answers each with a line of JSON:
``{"do": "fail", "nodes": […], "devices": n, "code": c}``, ``{"do": "prepare"}``, ``{"do": "stats"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cpu_seconds, quantile
from benchmarks.load import HEALTHY
from failover.checkpoint.store import open_store
from gridkeeper.config import TlsFiles
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import CheckpointStore
from gridkeeper.ports.link import LinkClosed, parts
from gridkeeper.telemetry import COLUMN, METRICS, SCHEMA_VERSION
from gridkeeper.timings import Timings
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentEvent,
    AgentFrame,
    CheckpointReady,
    Command,
    ControlFrame,
    DeviceInfo,
    EventBatch,
    Heartbeat,
    Hello,
    Renewal,
    RenewalItem,
    Telemetry,
    Workload,
    WorkloadReport,
)
from nodeagent.transport import GrpcAgentSession, GrpcTransport

CONNECTING_AT_ONCE = 32
PERIOD_S = 1.0
RENEWAL_ROUNDS = round(Timings().renewal_ms / 1000 / PERIOD_S)
RECONNECT_S = 0.5

RUNNING, STOPPING = records_pb2.RUN_PHASE_RUNNING, records_pb2.RUN_PHASE_STOPPING
EXITED = records_pb2.RUN_PHASE_EXITED

Key = tuple[str, int, int]


@dataclass(slots=True)
class Counters:
    """``gap_ms``: the longest time that a running job has been without an acknowledged renewal."""

    waits_ms: list[float] = field(default_factory=list)  # from a renewal's sending to its answer
    gap_ms: float = 0.0
    ended: int = 0


@dataclass(slots=True)
class SimulatedRun:
    """One epoch of a job on its node. ``renewed``: sending time of its last acknowledged renewal."""

    key: Key
    began: float
    renewed: float
    resumed_step: int
    phase: int = RUNNING
    digest: str = ""
    step: int = 0
    announced: bool = False
    ended: float = 0.0

    def report(self, now: float) -> Workload:
        over = self.phase == EXITED
        return Workload(
            job=self.key[0],
            epoch=records_pb2.Epoch(generation=self.key[1], number=self.key[2]),
            phase=self.phase,  # type: ignore[arg-type]
            stop_confirmed=over,
            stopped_by_us=self.phase != RUNNING,
            resumed_step=self.resumed_step,
            first_step=self.resumed_step + 1,
            last_step=self.step,
            first_step_age_ms=round((now - self.began) * 1000),
            last_step_age_ms=round((now - self.began) * 1000),
            started_age_ms=round((now - self.began) * 1000),
            ended_age_ms=round((now - self.ended) * 1000) if over else 0,
            checkpoint_step=self.step if self.announced else -1,
            storing_checkpoint=self.announced and not over,
        )


class SimulatedAgent:
    """One node: connects, and connects again when its stream ends."""

    def __init__(
        self,
        node: str,
        rack: str,
        address: str,
        spec: dict[str, Any],
        tls: TlsFiles,
        counters: Counters,
        store: CheckpointStore,
    ) -> None:
        self.node = node
        self._spec = spec
        self._credentials = channel_credentials(tls)
        self._counters = counters
        self._store = store
        self._devices = int(spec["devices"])
        self.runs: dict[Key, SimulatedRun] = {}
        self._sent: dict[int, float] = {}
        self._session: GrpcAgentSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self._sending = asyncio.Lock()
        self._rack = rack
        self._address = address
        row = np.zeros(len(METRICS), dtype="<f4")
        for name, value in HEALTHY.items():
            row[COLUMN[name]] = value
        values = np.tile(row, (self._devices, 1)).tobytes()
        self._telemetry = AgentFrame(
            telemetry=Telemetry(rows=self._devices, columns=len(METRICS), values=values, age_ms=5)
        )

    def _hello(self) -> Hello:
        return Hello(
            node=self.node,
            region=self._spec["region"],
            rack=self._rack,
            boot_id="storm",
            spool=f"storm-{os.getpid()}",
            agent_version="storm",
            backends=["storm"],
            metric_schema=SCHEMA_VERSION,
            devices=[
                DeviceInfo(
                    slot=f"gpu{n}",
                    uuid=f"GPU-{self.node}-{n}",
                    vendor="nvidia",
                    model="NVIDIA H100 80GB HBM3",
                    architecture="hopper",
                    pci_bus_id=f"0000:{n:02x}:00",
                    memory_mib=81_559,
                )
                for n in range(self._devices)
            ],
        )

    async def run(self, gate: asyncio.Semaphore, opened: asyncio.Event) -> None:
        while True:
            try:
                async with gate:
                    session = await GrpcTransport(lambda: self._credentials).connect(self._address)
                    await session.send(AgentFrame(hello=self._hello()))
                    await session.receive()
                self._session = session
                opened.set()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._listen(session))
                    group.create_task(self._rounds(session))
            except* LinkClosed as closed:
                self._counters.ended += 1
                print(f"{self.node}: {closed.exceptions[0]}", file=sys.stderr, flush=True)
            self._session = None
            await asyncio.sleep(random.random() * RECONNECT_S)

    async def _rounds(self, session: GrpcAgentSession) -> None:
        """What an agent sends each second, at a phase of its own."""
        number, due = 0, time.monotonic() + random.random() * PERIOD_S
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += PERIOD_S
            number += 1
            beat = [AgentFrame(heartbeat=Heartbeat()), self._telemetry]
            if number % RENEWAL_ROUNDS:
                first, *words = self._words()
                first.more.extend([*words, *beat])
                await self._send(session, first)
                continue
            self._sent[number] = time.monotonic()
            jobs = [
                RenewalItem(job=key[0], epoch=records_pb2.Epoch(generation=key[1], number=key[2]))
                for key, run in self.runs.items()
                if run.phase != EXITED
            ]
            frame = AgentFrame(renewal=Renewal(id=number, jobs=jobs))
            frame.more.extend([*self._words(), *beat])
            await self._send(session, frame)

    async def _send(self, session: GrpcAgentSession, frame: AgentFrame) -> None:
        async with self._sending:  # a stream takes one message at a time
            await session.send(frame)

    async def say(self, session: GrpcAgentSession) -> None:
        first, *more = self._words()
        first.more.extend(more)
        await self._send(session, first)

    def _words(self) -> list[AgentFrame]:
        """The workload report, and announcements that wait for their answer."""
        now = time.monotonic()
        words = [AgentFrame(workloads=WorkloadReport(workloads=[run.report(now) for run in self.runs.values()]))]
        for run in self.runs.values():
            if run.announced and run.phase != EXITED:
                epoch = records_pb2.Epoch(generation=run.key[1], number=run.key[2])
                ready = CheckpointReady(job=run.key[0], epoch=epoch, step=run.step, digest=run.digest)
                words.append(AgentFrame(checkpoint=ready))
        return words

    async def _listen(self, session: GrpcAgentSession) -> None:
        while True:
            message = await session.receive()
            news = [self._take(frame) for frame in parts(message)]
            if any(news):
                await self.say(session)

    def _take(self, frame: ControlFrame) -> bool:
        """Whether there is something new to report."""
        match frame.WhichOneof("frame"):
            case "renewal_ack":
                self._renewed(frame)
            case "command":
                return self._obey(frame.command)
            case "checkpoint_ack":
                ack = frame.checkpoint_ack
                run = self.runs.get((ack.job, ack.epoch.generation, ack.epoch.number))
                if run is not None and ack.committed and run.phase != EXITED:
                    run.phase, run.ended = EXITED, time.monotonic()
                    return True
        return False

    def _renewed(self, frame: ControlFrame) -> None:
        now = time.monotonic()
        sent = self._sent.pop(frame.renewal_ack.id, now)
        self._counters.waits_ms.append((now - sent) * 1000)
        for item in frame.renewal_ack.granted:
            run = self.runs.get((item.job, item.epoch.generation, item.epoch.number))
            if run is not None:
                self._counters.gap_ms = max(self._counters.gap_ms, (now - run.renewed) * 1000)
                run.renewed = sent

    def _obey(self, command: Command) -> bool:
        """Whether there is something new to report."""
        key = (command.job, command.epoch.generation, command.epoch.number)
        run, now = self.runs.get(key), time.monotonic()
        if command.forget:
            return self.runs.pop(key, None) is not None
        if command.desired == records_pb2.DESIRED_RUN:
            if run is not None:
                return False
            run = SimulatedRun(key, now, now, command.resume_step)
            run.step = run.resumed_step + 1
            self.runs[key] = run
            return True
        if run is None or run.phase != RUNNING:
            return False
        run.phase = STOPPING
        task = asyncio.ensure_future(self._checkpoint(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _checkpoint(self, run: SimulatedRun) -> None:
        await asyncio.gather(asyncio.sleep(self._spec["checkpoint_s"]), self.prepare(run))
        run.announced = True
        if self._session is not None:
            with contextlib.suppress(LinkClosed):  # it is announced again on the next stream
                await self.say(self._session)

    async def prepare(self, run: SimulatedRun) -> None:
        """Store the checkpoint that the run will announce."""
        if run.digest:
            return
        step = run.resumed_step + 100
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "state").write_bytes(b"the state of a simulated job")
            epoch = Epoch(run.key[1], run.key[2])
            run.digest, _ = await self._store.put(JobId(run.key[0]), step, epoch, Path(directory))
        run.step = step

    async def fail(self, devices: int, code: int) -> None:
        """One event per device, from the first on, in one batch."""
        assert self._session is not None, f"{self.node} has no stream"
        events = []
        for index in range(devices):
            self._sequence += 1
            trace = f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-01"
            message = f"NVRM: Xid (PCI:0000:{index:02x}:00): {code}, a simulated fault"
            events.append(
                AgentEvent(
                    sequence=self._sequence, slot=f"gpu{index}", kind=records_pb2.EVENT_KIND_XID, code=code,
                    message=message, sources=["nvml"], count=1, trace=trace,
                )
            )  # fmt: skip
        await self._send(self._session, AgentFrame(events=EventBatch(events=events)))


async def obey(agents: dict[str, SimulatedAgent], counters: Counters) -> None:
    """Commands until the end of standard input."""
    began, cpu = time.monotonic(), cpu_seconds(os.getpid())
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer: dict[str, float] = {}
        match command["do"]:
            case "fail":
                for node in command["nodes"]:
                    await agents[node].fail(command["devices"], command["code"])
            case "prepare":
                for agent in agents.values():
                    for run in list(agent.runs.values()):
                        await agent.prepare(run)
            case "stats":
                now, used = time.monotonic(), cpu_seconds(os.getpid())
                answer = {
                    "cpu_percent": 100 * (used - cpu) / (now - began),
                    "renewals": len(counters.waits_ms),
                    "renewal_ms_p50": quantile(counters.waits_ms, 0.5),
                    "renewal_ms_p99": quantile(counters.waits_ms, 0.99),
                    "renewal_ms_max": max(counters.waits_ms, default=0.0),
                    "renewal_gap_ms_max": counters.gap_ms,
                    "streams_ended": counters.ended,
                }
                began, cpu, counters.waits_ms, counters.gap_ms = now, used, [], 0.0
        print(json.dumps(answer), flush=True)


async def serve(told: dict[str, Any]) -> None:
    """``told``: "spec" (region, authority, checkpoints, devices, checkpoint_s) and "nodes": name -> rack, directory of
    the certificate and address of its replica."""
    counters, spec = Counters(), told["spec"]
    agents: dict[str, SimulatedAgent] = {}
    store = open_store(spec["checkpoints"])
    began, gate = time.monotonic(), asyncio.Semaphore(CONNECTING_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        events, tasks = [], []
        for name, (rack, directory, address) in told["nodes"].items():
            home = Path(directory)
            tls = TlsFiles(str(home / "node.crt"), str(home / "node.key"), spec["authority"])
            agent, opened = SimulatedAgent(name, rack, address, spec, tls, counters, store), asyncio.Event()
            agents[name] = agent
            events.append(opened)
            tasks.append(group.create_task(agent.run(gate, opened)))
        for opened in events:
            await opened.wait()
        gc.collect()
        gc.freeze()
        said = {"agents": len(agents), "connect_s": time.monotonic() - began, "streams_ended": counters.ended}
        print(json.dumps(said), flush=True)
        await obey(agents, counters)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
