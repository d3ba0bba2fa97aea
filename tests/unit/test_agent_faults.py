"""What is around an agent fails halfway: it concludes nothing from silence, and what runs runs on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from chaos.simulate.checkpoints import SimCheckpointStore
from chaos.simulate.executor import SimExecutor
from chaos.simulate.files import SimState
from failover.executors.protocol import ListRuns, Start, encode_request
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import ExecutorUnavailable, Launch, Manifest, Process
from gridkeeper.timings import SHORT
from nodeagent.guardian_core import Guardian
from nodeagent.guardian_runs import Run, look_for_lost
from nodeagent.linux import boot_ms, children
from tests.unit.agentbench import JOB, NODE, Bench, on_bench
from tests.unit.test_agent import connected, running


class SlowToAnswer(SimExecutor):
    """Starts what it is asked to, but the answer comes late or never, and it says nothing else meanwhile."""

    answer: asyncio.Event
    lost = False

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        await super().start(launch, deadline_ms)
        if self.lost:
            raise ExecutorUnavailable("no answer")
        await self.answer.wait()

    async def list(self) -> tuple[Process, ...]:
        if self.lost and not self.answer.is_set() and any(self._runs):
            raise ExecutorUnavailable("no answer")
        return await super().list()


@pytest.mark.parametrize("lost", [False, True])
def test_a_start_under_way_is_never_reported_as_an_epoch_that_ended(lost: bool) -> None:
    """A stop that arrives while the executor starts the job: "never started here" would let another node start it while
    it runs here."""

    async def test(bench: Bench) -> None:
        executor = bench.executor = SlowToAnswer(NODE, bench.clock, bench.files, lambda launch: bench.script(launch))
        executor.answer, executor.lost = asyncio.Event(), lost
        bench.start_agent()
        await connected(bench)
        await bench.a.command(1)
        await bench.until(lambda: any(executor._runs), "its process exists")
        await bench.a.command(1, run=False)
        reports = bench.a.reports
        await bench.until(lambda: bench.a.reports > reports + 2, "reported again")
        assert executor._runs[JOB, Epoch(1, 1)].alive
        assert bench.phase(1) == "STARTING", "nobody knows that it has ended"
        executor.answer.set()
        await bench.until(lambda: bench.phase(1) == "EXITED", "stopped")
        assert executor._runs[JOB, Epoch(1, 1)].tree_gone

    on_bench(test)()


class Hanging(SimState):
    """A disk that does not come back from a write until told to."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()
        self.free.set()

    async def save(self, data: bytes) -> None:
        await self.free.wait()
        await super().save(data)


@on_bench
async def test_a_disk_that_hangs_stops_new_starts_and_not_the_deadlines_of_what_runs(bench: Bench) -> None:
    state = bench.states["orders"] = Hanging()
    bench.start_agent()
    await running(bench)
    state.free.clear()
    await bench.a.command(1, request=1)
    await bench.a.command(1, request=2)
    await bench.clock.sleep(4 * SHORT.fence_ms)
    process = await bench.process(1)
    assert process is not None
    assert process.alive, "its renewals were acknowledged all the time"
    await bench.a.command(2)
    await bench.until(lambda: bench.phase(1) == "EXITED", "replaced")
    await bench.clock.sleep(2_000)
    assert await bench.process(2) is None, "its order is not on disk"
    state.free.set()
    await bench.until(lambda: bench.phase(2) == "RUNNING", "it runs once the order is kept")


class Unreadable(SimCheckpointStore):
    """A store whose disk fails in a way that it does not put into words."""

    broken = False

    async def put(
        self, job: JobId, step: int, epoch: Epoch, directory: Path, part: bool = False
    ) -> tuple[str, Manifest]:
        if self.broken:
            raise OSError(5, "Input/output error")
        return await super().put(job, step, epoch, directory)


@on_bench
async def test_a_checkpoint_that_a_failing_disk_does_not_take_is_tried_again_and_told(bench: Bench) -> None:
    store = bench.store = Unreadable(bench.files.tree, bench.clock, 1)
    store.broken = True
    bench.start_agent()
    await running(bench)

    def told() -> str:
        workload = bench.workload(1)
        return workload.reason if workload else ""

    await bench.until(lambda: "Input/output error" in told(), "its trouble is reported")
    store.broken = False
    await bench.until(lambda: bench.a.ready, "it is stored and announced after all")


class Silent(SimExecutor):
    """A guardian that is gone and cannot be started again."""

    silent = False

    async def list(self) -> tuple[Process, ...]:
        if self.silent:
            raise ExecutorUnavailable("no answer")
        return await super().list()


@on_bench
async def test_an_executor_that_is_gone_is_not_reported_as_a_job_that_runs(bench: Bench) -> None:
    """The node is heard, its job is dead: said to run and renewed for ever, it would never be started elsewhere."""
    executor = bench.executor = Silent(NODE, bench.clock, bench.files, lambda launch: bench.script(launch))
    bench.start_agent()
    await running(bench)
    executor.silent = True
    await bench.until(lambda: bench.phase(1) == "STOPPING", "its end is not known")
    asked = len(bench.a.renewals)
    await bench.until(lambda: len(bench.a.renewals) > asked + 2, "the stream goes on")
    assert not bench.a.renewals[-1].jobs
    executor.silent = False
    await bench.until(lambda: bench.phase(1) == "EXITED", "it was fenced meanwhile")


def test_a_guardian_starts_on_a_full_disk_and_starts_no_job_there(tmp_path: Path) -> None:
    """Without one nobody tells what runs on the host."""
    (tmp_path / "guardian.json.new").mkdir()  # what it writes first cannot be written
    guardian = Guardian(str(tmp_path), 60_000)
    assert guardian.answer(encode_request(ListRuns())).error == ""
    start = Start("j", "1.1", ("true",), (), "/", str(tmp_path / "log"), boot_ms() + 60_000, 1_000, 100)
    assert "guardian" in guardian.answer(encode_request(start)).error
    assert guardian.answer(encode_request(ListRuns())).runs == ()


def test_the_tree_of_a_dead_keeper_is_gone_only_after_two_looks_that_find_nothing() -> None:
    run = Run("j", "1.1", f"test-{os.getpid()}/j@1.1", 0, 0, 0, 0)
    run.keeper_ended(clean=False, now=1_000)
    ours = set(children(os.getpid()))
    look_for_lost([run], ours, 1_000)
    assert run.lost
    assert not run.tree_gone
    look_for_lost([run], ours, run.look_ms)
    assert run.tree_gone
