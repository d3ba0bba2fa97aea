"""Jobs in a real Slurm: what can go wrong between an agent, its guardians and slurmctld."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from failover.executors.commands import HostCommandLine, NoAnswer, Output
from failover.executors.queued import QueuedExecutor
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, Epoch, JobId
from gridkeeper.ports.jobs import ExecutorError, ExecutorUnavailable, ExecutorWaiting, Launch, Process
from gridkeeper.records.jobs import JobSpec
from gridkeeper.v1.agent_pb2 import NodeGate
from tests.fixtures.slurm import NODE, SlurmCluster, slurm_executor, slurm_gate
from tests.integration.test_agent_process import Host
from tests.integration.waiting import until

JOB = JobId("train")
FIRST = Epoch(1, 1)
WORK = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(7))
child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
with open("seen.new", "w") as file:
    json.dump({"child": child.pid, "env": dict(os.environ)}, file)
os.rename("seen.new", "seen")
while True:
    time.sleep(0.02)
"""


def launch(epoch: Epoch = FIRST) -> Launch:
    spec = JobSpec(JOB, "default", (sys.executable, "-c", WORK), (), "", 1, "", (), False, False, 1_000, 0)
    return Launch(JOB, epoch, spec, (DeviceId("east-1/gpu0"),), "", -1)


class Deaf:
    """``Commands``: the reply of ``sbatch`` is lost ``lost`` times, after it was obeyed."""

    def __init__(self, lost: int = 0) -> None:
        self.lost = lost
        self.submitted = 0

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Output:
        output = await HostCommandLine().run(argv, environment, timeout_ms)
        if argv[0] == "sbatch":
            self.submitted += 1
            if self.lost:
                self.lost -= 1
                raise NoAnswer("sbatch has not ended within 15000 ms")
        return output


class Bench:
    def __init__(self, cluster: SlurmCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.clock = SystemClock()
        self.commands = Deaf()
        self.executor = self.another()

    def another(self) -> QueuedExecutor:
        return slurm_executor(self.cluster, self.directory, self.clock, self.commands)

    async def ask(self, epoch: Epoch = FIRST) -> str:
        """Why it has to wait; "": it has begun."""
        try:
            await self.executor.start(launch(epoch), self.clock.mono_ms() + 60_000)
        except ExecutorWaiting as waiting:
            return str(waiting)
        return ""

    async def begin(self, epoch: Epoch = FIRST) -> dict[str, object]:
        """The job runs: what it says of itself."""

        async def begun() -> bool:
            return not await self.ask(epoch)

        await until(begun, "room for it")
        seen = self.directory / "jobs" / JOB / str(epoch) / "work" / "seen"

        async def there() -> bool:
            return seen.exists()

        await until(there, "the job runs")
        found: dict[str, object] = json.loads(seen.read_text())
        return found

    async def gone(self) -> Process:
        async def look() -> Process | None:
            (process,) = await self.executor.list()
            return process if process.tree_gone else None

        found = await until(look, "its whole tree is gone")
        assert found is not None
        return found

    def queue(self) -> list[str]:
        """Jobs of this agent that have not ended, as slurmctld has them."""
        tag = json.loads((self.directory / "queue.json").read_text())["tag"]
        return [line for line in self.cluster.run("squeue", "-h", "-o", "%j %T").splitlines() if f".{tag}." in line]

    def guardian(self) -> int:
        return int(next(self.directory.glob("jobs/*/*/guardian-*/guardian.lock")).read_text())


@pytest_asyncio.fixture
async def bench(slurm: SlurmCluster, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(slurm, tmp_path)
    yield made
    made.executor.close()
    slurm.quiet()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_it_runs_inside_of_what_slurm_gave_it(bench: Bench) -> None:
    """Protects: the job sees Slurm's word on its room, our contract, and ends with its status in Slurm's own books."""
    seen = await bench.begin()
    environment = seen["env"]
    assert isinstance(environment, dict)
    assert environment["GRIDKEEPER_EPOCH"] == "1.1"
    assert environment["SLURM_JOB_NODELIST"] == NODE
    number = environment["SLURM_JOB_ID"]
    (process,) = await bench.executor.list()
    assert process.alive
    await bench.executor.stop(JOB, FIRST, 5_000)
    assert (await bench.gone()).exit_code == 7

    async def booked() -> bool:
        return "ExitCode=7:0" in bench.cluster.run("scontrol", "show", "job", str(number))

    await until(booked, "Slurm has the job's own exit status")
    assert not alive(int(str(seen["child"])))


async def test_a_submission_whose_reply_was_lost_is_found_again(bench: Bench) -> None:
    """Protects: no second ticket for one start, however the first one's reply was lost."""
    bench.commands.lost = 1
    await bench.ask()

    async def handed_in() -> bool:
        return bench.commands.submitted == 1

    await until(handed_in, "sbatch")
    bench.executor.close()  # the agent died before it could write anything down
    bench.executor = bench.another()
    await bench.begin()
    assert bench.commands.submitted == 1
    assert len(bench.queue()) == 1


async def test_a_drained_node_makes_it_wait_and_says_why(bench: Bench) -> None:
    """Protects: a job that waits in Slurm's queue runs nothing, is no process of ours, and says whom it waits for."""
    bench.cluster.run("scontrol", "update", f"nodename={NODE}", "state=drain", "reason=someone else")

    async def told() -> bool:
        return "UnavailableNodes" in await bench.ask()

    await until(told, "the reason")
    assert await bench.executor.list() == ()
    bench.cluster.run("scontrol", "update", f"nodename={NODE}", "state=undrain")
    await bench.begin()


async def test_who_does_not_ask_again_gives_up_its_place(bench: Bench) -> None:
    """Protects: an order that was withdrawn leaves nothing in Slurm's queue, and its epoch can still be asked for."""
    bench.cluster.run("scontrol", "update", f"nodename={NODE}", "state=drain", "reason=full")

    async def queued() -> bool:
        return bool(await bench.ask() and bench.queue())

    async def empty() -> bool:
        await bench.executor.list()
        return not bench.queue()

    await until(queued, "it is in the queue")
    await until(empty, "its place is given up")
    bench.cluster.run("scontrol", "update", f"nodename={NODE}", "state=undrain")
    await bench.begin()


async def test_without_an_agent_nothing_that_waited_begins(bench: Bench) -> None:
    """Protects: room that comes after the agent has died starts no job."""
    await bench.ask()

    async def guarded() -> bool:
        return any(bench.directory.glob("jobs/*/*/guardian-*/guardian.sock"))

    async def submitted() -> bool:
        return bool(bench.queue())

    await until(submitted, "it is in the queue")
    bench.executor.close()
    await until(guarded, "its guardian is up")
    bench.executor = bench.another()
    assert await bench.executor.list() == ()
    assert not (bench.directory / "jobs" / JOB / "1.1" / "work" / "seen").exists()


async def test_an_agent_that_returns_adopts_what_runs(bench: Bench) -> None:
    """Protects: a restart of the agent ends nothing and starts nothing twice."""
    await bench.begin()
    (before,) = await bench.executor.list()
    bench.executor.close()
    bench.executor = bench.another()
    (after,) = await bench.executor.list()
    assert (after.pids, after.started_ms) == (before.pids, before.started_ms)
    with pytest.raises(ExecutorError, match="still has processes"):
        await bench.ask(Epoch(1, 2))


@pytest.mark.parametrize("by", ["kernel", "slurm"])
async def test_a_guardian_that_is_killed_takes_its_job_along(bench: Bench, by: str) -> None:
    """Protects: the stop is confirmed only when nothing of the tree is left, and it is confirmed."""
    seen = await bench.begin()
    if by == "kernel":
        os.kill(bench.guardian(), signal.SIGKILL)
    else:
        bench.cluster.run("scancel", "--signal=KILL", "--full", f"--user={os.geteuid()}")
    ended = await bench.gone()
    assert not ended.alive
    assert not alive(int(str(seen["child"])))
    await bench.begin(Epoch(1, 2))


async def test_a_frozen_guardian_is_ended_at_its_deadline(bench: Bench) -> None:
    """Protects: a guardian that cannot act any more does not outlive the deadline that it should have kept."""
    seen = await bench.begin()
    bench.executor.margins(400, 200)
    os.kill(bench.guardian(), signal.SIGSTOP)
    with pytest.raises(ExecutorUnavailable):
        await bench.executor.stop(JOB, FIRST, 0)
    ended = await bench.gone()
    assert not ended.alive
    assert not alive(int(str(seen["child"])))


async def test_a_drain_of_ours_comes_and_goes_with_its_reason(slurm: SlurmCluster) -> None:
    """Protects: Slurm's users get no node that we closed, they are told why, and get it back."""
    gate = slurm_gate(slurm)
    try:
        assert "is drained in Slurm" in await gate.close("gpu3 is draining")
        view = await gate.view()
        assert view.ours
        assert view.reason.startswith("gridkeeper: gpu3 is draining [")
        assert await gate.close("gpu3 is draining") == "", "nothing is to be done twice"
        assert "now since gpu3 is drained" in await gate.close("gpu3 is drained")
        assert (await gate.view()).reason.startswith("gridkeeper: gpu3 is drained [")
        assert "takes work of Slurm again" in await gate.open()
        assert not (await gate.view()).drained
        assert await gate.open() == ""
    finally:
        slurm.quiet()


async def test_a_drain_of_somebody_else_stays_his(slurm: SlurmCluster) -> None:
    """Protects: neither is his reason overwritten nor his drain taken back; also when he drained after us."""
    gate = slurm_gate(slurm)
    try:
        slurm.run("scontrol", "update", f"nodename={NODE}", "state=drain", "reason=bob: new fans")
        assert await gate.close("gpu3 is draining") == ""
        assert await gate.open() == ""
        view = await gate.view()
        assert (view.drained, view.ours, view.reason.startswith("bob: new fans")) == (True, False, True)
        slurm.run("scontrol", "update", f"nodename={NODE}", "state=undrain")
        await gate.close("gpu3 is draining")
        slurm.run("scontrol", "update", f"nodename={NODE}", "state=drain", "reason=bob: new fans")
        assert await gate.open() == ""
        assert (await gate.view()).drained
    finally:
        slurm.quiet()


async def test_jobs_of_others_on_a_closed_node_are_requeued_if_that_is_wanted(bench: Bench, tmp_path: Path) -> None:
    """Protects: they start elsewhere (here: again) at once; one that is not to be requeued, and ours, run on."""
    slurm = bench.cluster
    await bench.begin()
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho start >> {tmp_path}/starts\nexec sleep 600\n")
    submit = ("sbatch", "--parsable", "--output=/dev/null")
    willing = slurm.run(*submit, "--requeue", str(script)).strip()
    fixed = slurm.run(*submit, "--no-requeue", "--wrap=exec sleep 600").strip()

    async def states() -> dict[str, str]:
        rows = slurm.run("squeue", "-h", "-o", "%A %T").splitlines()
        return dict(row.split(" ", 1) for row in rows)

    async def both_run() -> bool:
        now = await states()
        return (now.get(willing), now.get(fixed)) == ("RUNNING", "RUNNING")

    await until(both_run, "two jobs of somebody else run")
    gate = slurm_gate(slurm, requeue=True)
    done = await gate.close("gpu3 is draining")
    assert f"job {willing} of Slurm is requeued" in done
    assert f"job {fixed} of Slurm runs on" in done

    async def waits() -> bool:
        return (await states()).get(willing) == "PENDING"

    await until(waits, "it is back in the queue")
    assert (await states())[fixed] == "RUNNING"
    (process,) = await bench.executor.list()
    assert process.alive
    assert f"job {willing} of Slurm may start at once" in await gate.close("gpu3 is draining")
    slurm.quiet(keep=True)
    starts = tmp_path / "starts"

    async def again() -> bool:
        return starts.exists() and starts.read_text().count("start") == 2

    await until(again, "it starts again as soon as a node takes it", seconds=40)


async def test_a_whole_agent_closes_its_node_and_runs_its_jobs_there(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Protects: the wiring of a real agent: an order becomes a job of Slurm, one that waits says for whom, a stop is
    confirmed, and the control plane's wish becomes a drain."""
    host = Host(tmp_path)
    await host.server.start()
    try:
        await host.agent(slurm={"node": NODE, "conf": slurm.environment["SLURM_CONF"]})

        async def connected() -> bool:
            return host.control.context is not None

        async def closed() -> bool:
            return "gridkeeper: gpu1 is drained" in slurm.run("scontrol", "show", "node", NODE)

        async def waits() -> bool:
            workload = host.control.workloads.get(1)
            return workload is not None and "UnavailableNodes" in workload.reason

        await until(connected, "the agent is connected")
        assert host.control.hellos[0].scheduler == "slurm"
        await host.control.gate(NodeGate(closed=True, reason="gpu1 is drained"))
        await until(closed, "the node is drained in Slurm")
        await host.control.command(1)
        await until(waits, "the job waits for the node")
        await host.control.gate(NodeGate())
        await host.running(1)
        await host.control.command(1, run=False)
        ended = await host.phase(1, "EXITED")
        assert (ended.stop_confirmed, ended.exit_code) == (True, 0)
    finally:
        await host.close()
        slurm.quiet()


async def test_a_stopped_controller_stops_no_job_and_no_stop(bench: Bench) -> None:
    """Protects: once a job runs, neither its deadline nor its stop needs slurmctld; a new one waits for it."""
    await bench.begin()
    bench.cluster.stop_controller()
    try:
        await bench.executor.extend({(JOB, FIRST): bench.clock.mono_ms() + 90_000})
        await bench.executor.stop(JOB, FIRST, 5_000)
        assert (await bench.gone()).exit_code == 7

        async def waits() -> bool:
            return "cannot be asked" in await bench.ask(Epoch(1, 2))

        await until(waits, "it says that Slurm cannot be asked", seconds=40)
    finally:
        bench.cluster.start_controller()
