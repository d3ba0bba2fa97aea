"""A real agent process, real jobs, real mTLS streams; only the control plane behind the stream is the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest_asyncio

from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.spiffe import Identity, Kind
from gridkeeper.identity.tls import server_credentials
from gridkeeper.ids import Epoch, JobId, RegionId
from gridkeeper.timings import SHORT
from gridkeeper.v1 import agent_pb2, agent_pb2_grpc, records_pb2
from gridkeeper.v1.agent_pb2 import AgentFrame, Command, ControlFrame, Workload
from nodeagent.orders import epoch_message
from tests.integration.waiting import until

JOB = JobId("train")
EAST = RegionId("east")
TRAINER = """
import json, os, signal, time
step = -1
asked = []
signal.signal(signal.SIGTERM, lambda *a: asked.append("stop"))
signal.signal(signal.SIGUSR1, lambda *a: asked.append("checkpoint"))
resume = os.environ["GRIDKEEPER_RESUME_FROM"]
if resume:
    step = int(open(resume + "/state").read())
root = os.environ["GRIDKEEPER_CHECKPOINT_DIR"]
def checkpoint():
    scratch = os.path.join(root, "tmp-%d" % step)
    os.mkdir(scratch)
    with open(scratch + "/state", "w") as f:
        f.write(str(step))
    os.rename(scratch, os.path.join(root, "step-%d" % step))
with open(os.environ["GRIDKEEPER_PROGRESS"], "a") as progress:
    while "stop" not in asked:
        time.sleep(0.02)
        step += 1
        progress.write(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\\n")
        progress.flush()
        if "checkpoint" in asked:
            asked.remove("checkpoint")
            checkpoint()
    checkpoint()
"""


class Control(agent_pb2_grpc.AgentLinkServicer):
    """Grants what it is asked, acknowledges everything, says what it is told to."""

    def __init__(self) -> None:
        self.context: grpc.aio.ServicerContext[AgentFrame, ControlFrame] | None = None
        self._writing = asyncio.Lock()  # a stream takes one write at a time, and a test writes beside the stream
        self.hellos: list[agent_pb2.Hello] = []
        self.events: list[agent_pb2.AgentEvent] = []
        self.ready: list[agent_pb2.CheckpointReady] = []
        self.workloads: dict[int, Workload] = {}
        self.reports = 0
        self.grants = True
        self.refuse = False

    async def Connect(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[AgentFrame],
        context: grpc.aio.ServicerContext[AgentFrame, ControlFrame],
    ) -> None:
        if self.refuse:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not a node of ours")
        hello = (await anext(aiter(request_iterator))).hello
        self.hellos.append(hello)
        told = {
            name: getattr(SHORT, name)
            for name in ("stale_ms", "fence_ms", "takeover_ms", "renewal_ms", "heartbeat_ms", "telemetry_ms")
        }
        acked = max((e.sequence for e in self.events), default=0)
        welcome = agent_pb2.Welcome(replica="test", timings=agent_pb2.Timings(**told), acked_sequence=acked)
        await self._write(context, ControlFrame(welcome=welcome))
        self.context = context
        async for frame in request_iterator:
            for each in (frame, *frame.more):
                await self._take(context, each)

    async def _write(self, context: grpc.aio.ServicerContext[AgentFrame, ControlFrame], frame: ControlFrame) -> None:
        async with self._writing:
            await context.write(frame)

    async def _take(self, context: grpc.aio.ServicerContext[AgentFrame, ControlFrame], frame: AgentFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "renewal":
            granted = frame.renewal.jobs if self.grants else []
            ack = agent_pb2.RenewalAck(id=frame.renewal.id, granted=granted)
            await self._write(context, ControlFrame(renewal_ack=ack))
        elif kind == "events":
            self.events.extend(frame.events.events)
            ack_events = agent_pb2.EventAck(sequence=self.events[-1].sequence)
            await self._write(context, ControlFrame(event_ack=ack_events))
        elif kind == "workloads":
            self.reports += 1
            self.workloads = {w.epoch.number: w for w in frame.workloads.workloads}
        elif kind == "checkpoint":
            self.ready.append(frame.checkpoint)
            ready = frame.checkpoint
            done = agent_pb2.CheckpointAck(job=ready.job, epoch=ready.epoch, step=ready.step, committed=True)
            await self._write(context, ControlFrame(checkpoint_ack=done))

    async def gate(self, wish: agent_pb2.NodeGate) -> None:
        assert self.context is not None
        await self._write(self.context, ControlFrame(node_gate=wish))

    async def command(
        self,
        number: int,
        run: bool = True,
        resume: tuple[int, str] = (-1, ""),
        request: int = 0,
        slots: tuple[str, ...] = ("gpu0",),
    ) -> None:
        assert self.context is not None
        spec = records_pb2.JobSpec(
            name=JOB,
            namespace="default",
            command=[sys.executable, "-c", TRAINER],
            devices=1,
            grace_ms=3_000,
            handles_sigusr1=True,
        )
        command = Command(
            term=1,
            job=JOB,
            epoch=epoch_message(Epoch(1, number)),
            desired=records_pb2.DESIRED_RUN if run else records_pb2.DESIRED_STOP,
            spec=spec,
            slots=slots,
            resume_step=resume[0],
            resume_digest=resume[1],
            checkpoint_request=request,
        )
        await self._write(self.context, ControlFrame(command=command))


class Host:
    """A state directory, a server, and the agent processes that a test starts."""

    def __init__(self, directory: Path, control: Control | None = None) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.control = control or Control()
        self.agents: list[asyncio.subprocess.Process] = []
        clock = SystemClock()
        authority = CertificateAuthority.create(directory / "ca", "test.local", clock)
        self.tls = authority.issue(Identity(Kind.NODE, EAST, "east-1"), directory / "tls-agent")
        server = authority.issue(Identity(Kind.REPLICA, EAST, "east-a"), directory / "tls-server")
        self.server = grpc.aio.server()
        agent_pb2_grpc.add_AgentLinkServicer_to_server(self.control, self.server)
        self.port = self.server.add_secure_port("127.0.0.1:0", server_credentials(server))

    async def agent(self, tls: TlsFiles | None = None, **changes: object) -> asyncio.subprocess.Process:
        values: dict[str, object] = {
            "node": "east-1",
            "region": "east",
            "servers": [f"127.0.0.1:{self.port}"],
            "state_dir": str(self.state),
            "tls": asdict(tls or self.tls),
            "checkpoints": str(self.directory / "objects"),
            "backends": ["host"],
            "kernel_log": str(self.directory / "kern.log"),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.agent_process",
            json.dumps({**values, **changes}),
            stderr=asyncio.subprocess.PIPE,
        )
        self.agents.append(process)
        return process

    async def phase(self, number: int, phase: str, seconds: float = 20) -> Workload:
        async def look() -> Workload | None:
            workload = self.control.workloads.get(number)
            wanted = records_pb2.RunPhase.Value(f"RUN_PHASE_{phase}")
            return workload if workload is not None and workload.phase == wanted else None

        found = await until(look, f"epoch {number} is {phase}", seconds)
        assert found is not None
        return found

    async def running(self, number: int = 1, **options: object) -> Workload:
        async def connected() -> bool:
            return self.control.context is not None

        await until(connected, "the agent is connected")
        await self.control.command(number, **options)  # type: ignore[arg-type]
        await self.phase(number, "RUNNING")

        async def stepping() -> Workload | None:
            workload = self.control.workloads.get(number)
            return workload if workload is not None and workload.last_step >= 0 else None

        found = await until(stepping, "its first step")
        assert found is not None
        return found

    async def close(self) -> None:
        for agent in self.agents:
            if agent.returncode is None:
                agent.send_signal(signal.SIGCONT)
                agent.kill()
            await agent.communicate()
        lock = self.state / "guardian.lock"
        if lock.exists() and (pid := int(lock.read_text().strip() or "0")):
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and str(self.state).encode() in command.read_bytes():
                os.kill(pid, signal.SIGKILL)
        await self.server.stop(None)

    def job_pid(self) -> int:
        """The trainer's process, found by its session's command line below the state directory's guardian."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if f"GRIDKEEPER_PROGRESS={self.state}".encode() in environment:
                    return int(entry.name)
        return 0


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    await host.server.start()
    yield host
    await host.close()


async def test_an_agent_killed_and_restarted_adopts_its_job(host: Host) -> None:
    """kill -9 of the agent: the job goes on without a break, under the next agent."""
    first = await host.agent()
    before = await host.running()
    pid = host.job_pid()
    first.kill()
    await first.wait()
    host.control.context = None
    host.control.workloads.clear()
    await host.agent()
    after = await host.phase(1, "RUNNING")
    assert host.job_pid() == pid

    async def later() -> bool:
        return host.control.workloads[1].last_step > before.last_step + 50

    await until(later, "it goes on making steps")
    assert host.job_pid() == pid
    assert after.resumed_step == -1


async def test_a_frozen_agents_job_is_ended_by_the_guardian(host: Host) -> None:
    """SIGSTOP to the agent: nobody renews, so the job is gone within F of the last renewal, with its checkpoint."""
    agent = await host.agent()
    await host.running()
    pid = host.job_pid()
    agent.send_signal(signal.SIGSTOP)

    async def gone() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await until(gone, "the guardian ended the job", SHORT.fence_ms / 1000 + 5)
    agent.send_signal(signal.SIGCONT)
    ended = await host.phase(1, "EXITED")
    assert ended.stopped_by_us
    assert ended.stop_confirmed
    assert "fenced" in ended.reason


async def test_stop_stores_the_last_checkpoint_and_the_next_epoch_resumes_from_it(host: Host) -> None:
    """The planned move, on one host: SIGUSR1, SIGTERM, last checkpoint, verified, resumed one step later."""
    await host.agent()
    await host.running(request=1)

    async def asked() -> bool:
        return bool(host.control.ready)

    await until(asked, "the checkpoint asked for by SIGUSR1 is announced")
    await host.control.command(1, run=False)

    async def final() -> Workload | None:
        workload = host.control.workloads.get(1)
        done = workload is not None and workload.stop_confirmed and not workload.storing_checkpoint
        return workload if done else None

    ended = await until(final, "the stop is confirmed and everything stored")
    assert ended is not None
    assert (ended.exit_code, ended.stopped_by_us) == (0, True)
    assert host.control.ready[-1].step == ended.last_step == ended.checkpoint_step
    await host.running(2, resume=(ended.last_step, host.control.ready[-1].digest))
    assert host.control.workloads[2].first_step == ended.last_step + 1


async def test_sigterm_ends_the_agent_and_no_job(host: Host) -> None:
    agent = await host.agent()
    await host.running()
    pid = host.job_pid()
    agent.terminate()
    assert await agent.wait() == 0
    assert host.job_pid() == pid


async def test_a_second_agent_on_one_state_directory_is_refused(host: Host) -> None:
    await host.agent()
    await host.running()
    second = await host.agent()
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert b"is used by another agent" in errors


async def test_a_kernel_log_line_arrives_once_also_over_a_restart(host: Host) -> None:
    log = host.directory / "kern.log"
    log.write_text("")
    agent = await host.agent()

    async def connected() -> bool:
        return len(host.control.hellos) > 0

    await until(connected, "connected")
    with open(log, "a") as file:  # noqa: ASYNC230 - a few bytes
        file.write(
            "Nov 24 10:00:00 east-1 kernel: [  100.000001] NVRM: Xid (PCI:0000:91:00): 79, pid=1, GPU has fallen off\n"
        )

    async def told() -> bool:
        return any(event.code == 79 for event in host.control.events)

    await until(told, "the XID of the kernel log arrives")
    agent.kill()
    await agent.wait()
    await host.agent()

    async def again() -> bool:
        return len(host.control.hellos) > 1

    await until(again, "the next agent is connected")
    reports = host.control.reports

    async def settled() -> bool:
        return host.control.reports > reports + 1

    await until(settled, "it has had time to say it again")
    assert [event.code for event in host.control.events if event.kind == records_pb2.EVENT_KIND_XID] == [79]


async def test_metrics_are_served(host: Host) -> None:
    with_port = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = with_port.sockets[0].getsockname()[1]
    with_port.close()
    await with_port.wait_closed()
    await host.agent(metrics_listen=f"127.0.0.1:{port}")
    await host.running()

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            return str(reply.read().decode())

    text = await asyncio.to_thread(scrape)
    assert "gridkeeper_agent_connected 1.0" in text
    assert "gridkeeper_agent_jobs_running 1.0" in text
    assert 'gridkeeper_agent_driver_hang{backend="host"} 0.0' in text


async def test_a_refused_agent_says_why_and_goes_on_trying(host: Host) -> None:
    host.control.refuse = True
    agent = await host.agent()
    assert agent.stderr is not None
    while b"refuses this agent" not in (line := await agent.stderr.readline()):
        assert line
    assert b"not a node of ours" in line
    assert agent.returncode is None


async def test_a_key_that_others_may_read_is_named(host: Host) -> None:
    os.chmod(host.tls.key, 0o644)
    agent = await host.agent()
    _, errors = await agent.communicate()
    assert agent.returncode == 1
    assert host.tls.key.encode() in errors
