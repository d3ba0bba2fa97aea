"""One contract for every ``Executor``: real processes under a guardian, the same in a real Slurm and behind a
double of Kubernetes, and simulated jobs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from chaos.simulate.executor import SimExecutor, SimJob
from chaos.simulate.files import SimFiles
from failover.executors.process import ProcessExecutor
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, Epoch, JobId
from gridkeeper.ports.jobs import Executor, ExecutorError, ExecutorWaiting, Launch, Process
from gridkeeper.records.jobs import JobSpec
from nodeagent.checkpointing import CheckpointDirs, FileCheckpointDirs
from tests.fixtures.kubernetes import kubernetes
from tests.fixtures.slurm import SlurmCluster, slurm_executor
from tests.integration.waiting import until

JOB = JobId("train")
FAR_MS = 60_000
TRAINER = """
import json, os, signal, sys, time
asked = []
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *a: asked.append("stop"))
signal.signal(signal.SIGUSR1, lambda *a: asked.append("checkpoint"))
root = os.environ["GRIDKEEPER_CHECKPOINT_DIR"]
def checkpoint(step):
    os.mkdir(root + "/tmp-%d" % step)
    os.rename(root + "/tmp-%d" % step, root + "/step-%d" % step)
step = -1
with open(os.environ["GRIDKEEPER_PROGRESS"], "a") as progress:
    while "stop" not in asked:
        time.sleep(0.01)
        step += 1
        progress.write(json.dumps({"step": step, "loss": 0.5}) + "\\n")
        progress.flush()
        print("step", step, flush=True)
        if "checkpoint" in asked:
            asked.remove("checkpoint")
            checkpoint(step)
checkpoint(step)
"""


class Bench:
    def __init__(self, executor: Executor, dirs: CheckpointDirs, clock: SystemClock) -> None:
        self.executor = executor
        self.dirs = dirs
        self.clock = clock
        executor.margins(300, 100)

    def launch(self, number: int, *arguments: str) -> Launch:
        command = (sys.executable, "-c", TRAINER, *arguments)
        spec = JobSpec(JOB, "default", command, (), "", 1, "", (), False, True, 1_000, 0)
        return Launch(JOB, Epoch(1, number), spec, (DeviceId("east-1/gpu0"),), "", -1)

    async def start(self, number: int, *arguments: str, deadline_ms: int = FAR_MS) -> None:
        """As the agent does: asked again, with a renewed deadline, while there is no room."""
        launch = self.launch(number, *arguments)

        async def begun() -> bool:
            try:
                await self.executor.start(launch, self.clock.mono_ms() + deadline_ms)
            except ExecutorWaiting:
                return False
            return True

        await until(begun, "room for it")

    async def when(self, number: int, test: Callable[[Process], object], what: str) -> Process:
        async def look() -> Process | None:
            for process in await self.executor.list():
                if process.epoch == Epoch(1, number) and test(process):
                    return process
            return None

        found = await until(look, what)
        assert found is not None
        return found

    async def stepping(self, number: int) -> Process:
        return await self.when(number, lambda p: p.progress.last_step >= 0, "its first step")


@pytest_asyncio.fixture(params=["process", "slurm", "kubernetes", "simulated"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    clock = SystemClock()
    if request.param == "simulated":
        files = SimFiles()

        def script(launch: Launch) -> SimJob:
            deaf = "deaf" in launch.spec.command
            return SimJob(step_ms=10, checkpoint_every=1_000_000, ignores_sigterm=deaf)

        simulated = SimExecutor("east-1", clock, files, script)
        yield Bench(simulated, files, clock)
        simulated.lose_power()
        return
    if request.param == "slurm":
        cluster: SlurmCluster = request.getfixturevalue("slurm")
        queued = slurm_executor(cluster, tmp_path, clock)
        yield Bench(queued, FileCheckpointDirs(), clock)
        queued.close()
        cluster.quiet()
        return
    if request.param == "kubernetes":
        async with kubernetes(clock) as served:
            queued = served.executor(tmp_path, clock)
            yield Bench(queued, FileCheckpointDirs(), clock)
            queued.close()
        return
    executor = ProcessExecutor(tmp_path, clock)
    yield Bench(executor, FileCheckpointDirs(), clock)
    executor.close()
    pid = int((tmp_path / "guardian.lock").read_text())
    if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)


async def test_a_started_job_is_listed_with_its_progress(bench: Bench) -> None:
    await bench.start(1)
    process = await bench.stepping(1)
    assert (process.job, process.alive, process.tree_gone, process.ended_ms) == (JOB, True, False, 0)
    assert (process.exit_code, process.exit_signal) == (-1, 0)
    assert process.started_ms <= process.progress.first_step_at_ms <= process.progress.last_step_at_ms
    assert len(process.pids) >= 1
    later = await bench.when(1, lambda p: p.progress.last_step > process.progress.last_step, "another step")
    assert later.progress.first_step == 0


async def test_starting_again_is_no_second_start(bench: Bench) -> None:
    await bench.start(1)
    before = await bench.stepping(1)
    await bench.start(1)
    after = await bench.stepping(1)
    assert (before.pids, before.started_ms) == (after.pids, after.started_ms)
    assert len(await bench.executor.list()) == 1


async def test_a_stop_lets_the_job_checkpoint_and_exit(bench: Bench) -> None:
    await bench.start(1)
    await bench.stepping(1)
    await bench.executor.stop(JOB, Epoch(1, 1), 10_000)
    ended = await bench.when(1, lambda p: p.tree_gone, "the stop is confirmed")
    assert (ended.exit_code, ended.exit_signal, ended.stop_asked, ended.fenced) == (0, 0, True, False)
    assert ended.ended_ms >= ended.started_ms
    assert bench.dirs.steps(bench.executor.checkpoint_dir(JOB, Epoch(1, 1))) == (ended.progress.last_step,)


async def test_a_deaf_job_is_killed_after_its_grace(bench: Bench) -> None:
    await bench.start(1, "deaf")
    await bench.stepping(1)
    await bench.executor.stop(JOB, Epoch(1, 1), 100)
    ended = await bench.when(1, lambda p: p.tree_gone, "the stop is confirmed")
    assert (ended.exit_code, ended.exit_signal, ended.stop_asked, ended.fenced) == (-1, signal.SIGKILL, True, False)


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
async def test_at_its_deadline_a_job_is_fenced(bench: Bench, arguments: tuple[str, ...]) -> None:
    began = bench.clock.mono_ms()
    await bench.start(1, *arguments, deadline_ms=1_000)
    ended = await bench.when(1, lambda p: p.tree_gone, "it is fenced")
    assert ended.fenced
    assert not ended.stop_asked
    assert ended.ended_ms >= began + 700, "not before its SIGTERM was due"


async def test_deadlines_move_forward_only(bench: Bench) -> None:
    key = (JOB, Epoch(1, 1))
    began = bench.clock.mono_ms()
    await bench.start(1, deadline_ms=1_000)
    await bench.executor.extend({key: began + FAR_MS})
    await bench.executor.extend({key: began + 500})
    await bench.stepping(1)

    async def past() -> bool:
        return bench.clock.mono_ms() > began + 1_200

    await until(past, "the first deadline is past")
    (process,) = await bench.executor.list()
    assert (process.alive, process.fenced) == (True, False)


async def test_a_checkpoint_can_be_asked_for(bench: Bench) -> None:
    await bench.start(1)
    await bench.stepping(1)
    await bench.executor.request_checkpoint(JOB, Epoch(1, 1))

    async def there() -> bool:
        return bool(bench.dirs.steps(bench.executor.checkpoint_dir(JOB, Epoch(1, 1))))

    await until(there, "the checkpoint")
    assert (await bench.stepping(1)).alive


async def test_epochs_of_a_job_never_overlap_nor_go_back(bench: Bench) -> None:
    await bench.start(2)
    await bench.stepping(2)
    with pytest.raises(ExecutorError, match=r"1\.1 .*1\.2"):
        await bench.start(1)
    with pytest.raises(ExecutorError, match="still has processes"):
        await bench.start(3)
    with pytest.raises(ExecutorError, match="still has processes"):
        await bench.executor.forget(JOB, Epoch(1, 2))
    await bench.executor.stop(JOB, Epoch(1, 2), 10_000)
    await bench.when(2, lambda p: p.tree_gone, "the stop is confirmed")
    await bench.start(3)
    await bench.stepping(3)
    await bench.executor.forget(JOB, Epoch(1, 2))
    assert [p.epoch for p in await bench.executor.list()] == [Epoch(1, 3)]
    with pytest.raises(ExecutorError, match=r"1\.2 .*1\.3"):
        await bench.start(2)


async def test_what_is_not_there_is_named(bench: Bench) -> None:
    missing = Epoch(1, 9)
    await bench.executor.forget(JOB, missing)
    for ask in (
        bench.executor.stop(JOB, missing, 0),
        bench.executor.request_checkpoint(JOB, missing),
        bench.executor.extend({(JOB, missing): 1}),
    ):
        with pytest.raises(ExecutorError, match=r"train epoch 1\.9 is not known"):
            await ask
    with pytest.raises(ExecutorError, match="train has no output"):
        await bench.executor.log_tail(JOB, 100)


async def test_the_end_of_the_output_can_be_read(bench: Bench) -> None:
    await bench.start(1)
    await bench.stepping(1)

    async def tail() -> bytes:
        return await bench.executor.log_tail(JOB, 16)

    assert b"step" in await until(tail, "output")
    assert len(await tail()) <= 16


async def test_a_deadline_that_has_come_refuses_the_start(bench: Bench) -> None:
    with pytest.raises(ExecutorError, match="deadline has come"):
        await bench.start(1, deadline_ms=200)
    assert await bench.executor.list() == ()
