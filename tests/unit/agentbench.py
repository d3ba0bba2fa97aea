"""An agent on simulated ports, and a control plane small enough to see through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from chaos.simulate.checkpoints import SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.devices import SimBackend
from chaos.simulate.disk import SimDisk
from chaos.simulate.executor import SimExecutor, SimJob
from chaos.simulate.files import SimFiles, SimState
from chaos.simulate.loop import run_virtual
from chaos.simulate.network import SimControlSession, SimNetwork
from gridkeeper.config import AgentConfig, TlsFiles
from gridkeeper.ids import Epoch, JobId, NodeId, RegionId
from gridkeeper.ports.jobs import Launch, Process
from gridkeeper.ports.link import LinkClosed
from gridkeeper.timings import SHORT
from gridkeeper.v1 import agent_pb2, records_pb2
from gridkeeper.v1.agent_pb2 import AgentEvent, AgentFrame, CheckpointReady, Command, ControlFrame, Hello, Workload
from nodeagent.agent import Agent, AgentPorts
from nodeagent.orders import epoch_message, epoch_of
from nodeagent.runner import InlineRunner

JOB = JobId("train")
NODE = NodeId("east-1")


class Control:
    """One replica: durable events by (spool, sequence), grants on demand, commands on demand."""

    def __init__(self, name: str, durable: dict[str, dict[int, AgentEvent]]) -> None:
        self.name = name
        self.durable = durable
        self.hellos: list[Hello] = []
        self.grants = True
        self.acks_events = True
        self.acks_checkpoints = True
        self.verifies: Callable[[CheckpointReady], bool] = lambda ready: True
        self.mute = False
        self.refusal = ""
        self.workloads: dict[str, Workload] = {}
        self.reports = 0
        self.ready: list[CheckpointReady] = []
        self.renewals: list[agent_pb2.Renewal] = []
        self.telemetry: list[agent_pb2.Telemetry] = []
        self.logs: list[agent_pb2.LogChunk] = []
        self.order_of_frames: list[str] = []
        self.session: SimControlSession | None = None

    @property
    def events(self) -> list[AgentEvent]:
        return [event for spool in self.durable.values() for _, event in sorted(spool.items())]

    async def serve(self, session: SimControlSession) -> None:
        hello = (await session.receive()).hello
        if self.refusal:
            await session.refuse(self.refusal)
            return
        self.hellos.append(hello)
        spool = self.durable.setdefault(hello.spool, {})
        timings = agent_pb2.Timings(
            stale_ms=SHORT.stale_ms,
            fence_ms=SHORT.fence_ms,
            takeover_ms=SHORT.takeover_ms,
            renewal_ms=SHORT.renewal_ms,
            heartbeat_ms=SHORT.heartbeat_ms,
            telemetry_ms=SHORT.telemetry_ms,
        )
        welcome = agent_pb2.Welcome(replica=self.name, timings=timings, acked_sequence=max(spool, default=0))
        await session.send(ControlFrame(welcome=welcome))
        self.session = session
        try:
            while True:
                frame = await session.receive()
                for each in (frame, *frame.more):
                    await self._take(session, spool, each)
        except LinkClosed:
            return
        finally:
            self.session = None

    async def _take(self, session: SimControlSession, spool: dict[int, AgentEvent], frame: AgentFrame) -> None:
        kind = frame.WhichOneof("frame") or ""
        self.order_of_frames.append(kind)
        if self.mute:
            return
        if kind == "events":
            if not self.acks_events:
                return
            for event in frame.events.events:
                if event.sequence > max(spool, default=0):
                    assert event.sequence == max(spool, default=0) + 1, "a gap in the sequences"
                    spool[event.sequence] = event
            await session.send(ControlFrame(event_ack=agent_pb2.EventAck(sequence=max(spool, default=0))))
        elif kind == "renewal":
            self.renewals.append(frame.renewal)
            granted = frame.renewal.jobs if self.grants else []
            ack = agent_pb2.RenewalAck(id=frame.renewal.id, granted=granted)
            await session.send(ControlFrame(renewal_ack=ack))
        elif kind == "workloads":
            self.reports += 1
            self.workloads = {f"{w.job}@{epoch_of(w.epoch)}": w for w in frame.workloads.workloads}
        elif kind == "checkpoint":
            self.ready.append(frame.checkpoint)
            if self.acks_checkpoints:
                ready = frame.checkpoint
                done = agent_pb2.CheckpointAck(job=ready.job, epoch=ready.epoch, step=ready.step, committed=True)
                if not self.verifies(ready):
                    done.committed, done.retry, done.refusal = False, True, "a chunk is missing"
                await session.send(ControlFrame(checkpoint_ack=done))
        elif kind == "telemetry":
            self.telemetry.append(frame.telemetry)
        elif kind == "log":
            self.logs.append(frame.log)

    async def command(
        self,
        number: int,
        run: bool = True,
        term: int = 7,
        resume: tuple[int, str] = (-1, ""),
        request: int = 0,
        forget: bool = False,
    ) -> None:
        assert self.session is not None
        spec = records_pb2.JobSpec(
            name=JOB, command=["train"], devices=1, grace_ms=1_000, handles_sigusr1=True, namespace="default"
        )
        command = Command(
            term=term,
            job=JOB,
            epoch=epoch_message(Epoch(1, number)),
            desired=records_pb2.DESIRED_RUN if run else records_pb2.DESIRED_STOP,
            spec=spec,
            slots=["gpu0"],
            resume_step=resume[0],
            resume_digest=resume[1],
            checkpoint_request=request,
            forget=forget,
        )
        await self.session.send(ControlFrame(command=command))


class Bench:
    """One host with its disk, files and jobs, which outlive the agents on it; and two replicas."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = SimRng(seed)
        self.clock = SimClock(self.loop)
        self.network = SimNetwork(self.clock, self.rng.child("network"))
        durable: dict[str, dict[int, AgentEvent]] = {}
        self.a, self.b = Control("a", durable), Control("b", durable)
        for control in (self.a, self.b):
            self.network.listen(control.name, control.serve)
        self.files = SimFiles()
        self.job = SimJob(step_ms=50)
        self.executor = SimExecutor(NODE, self.clock, self.files, lambda launch: self.script(launch))
        self.store = SimCheckpointStore(self.files.tree, self.clock, 1)
        self.disk = SimDisk(self.clock, self.rng.child("disk"))
        self.backend = SimBackend(NODE, self.clock)
        self.states = {name: SimState() for name in ("orders", "inventory", "boot")}
        self.boot_id = "boot-1"
        self.servers: tuple[str, ...] = ("a",)
        self.credentials: Callable[[], int] | None = None
        self.agent: Agent | None = None
        self.task: asyncio.Task[None] | None = None

    def script(self, launch: Launch) -> SimJob:
        return self.job

    def start_agent(self) -> Agent:
        config = AgentConfig(
            node=NODE,
            region=RegionId("east"),
            servers=self.servers,
            state_dir="/state",
            tls=TlsFiles("", "", ""),
            checkpoints="/checkpoints",
            driver_timeout_ms=1_000,
        )
        ports = AgentPorts(
            clock=self.clock,
            rng=self.rng.child(f"agent-{self.clock.mono_ms()}"),
            transport=self.network.transport(NODE, "east"),
            logs=self.disk,
            executor=self.executor,
            checkpoints=self.store,
            checkpoint_dirs=self.files,
            orders=self.states["orders"],
            inventory=self.states["inventory"],
            last_boot=self.states["boot"],
            backends=[self.backend],
            boot_id=self.boot_id,
            resume_dir=Path("/sim/east-1/resume"),
            runner=InlineRunner(self.clock),
            credentials=self.credentials,
        )
        self.agent = Agent(config, ports, replace(SHORT))
        self.task = self.loop.create_task(self.agent.run())
        return self.agent

    async def kill_agent(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, true: Callable[[], object], what: str, ms: int = 30_000) -> int:
        """Wait until ``true()``; returns when, in ms."""
        give_up = self.clock.mono_ms() + ms
        while not true():
            assert self.task is None or not self.task.done() or self.task.cancelled(), self.task
            assert self.clock.mono_ms() < give_up, f"not within {ms} ms: {what}"
            await self.clock.sleep(5)
        return self.clock.mono_ms()

    async def process(self, number: int) -> Process | None:
        found = [p for p in await self.executor.list() if p.epoch == Epoch(1, number)]
        return found[0] if found else None

    def workload(self, number: int, control: Control | None = None) -> Workload | None:
        return (control or self.a).workloads.get(f"{JOB}@1.{number}")

    def phase(self, number: int) -> str:
        workload = self.workload(number)
        return records_pb2.RunPhase.Name(workload.phase).removeprefix("RUN_PHASE_") if workload else ""


def on_bench(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    def run() -> None:
        async def main() -> None:
            bench = Bench()
            try:
                await test(bench)
            finally:
                if bench.task is not None:
                    await bench.kill_agent()

        run_virtual(main())

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
