"""``gridkeeper up``: a whole grid on this machine, a training job on it, and the TUI (or progress lines)."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from gridkeeper.cli.local.children import GridError
from gridkeeper.cli.local.follow import Follower, World
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.cli.local.weather import blow
from gridkeeper.client import GridClient
from gridkeeper.clock import SystemClock

JOB = "train"
TRAINING = Training(steps=1_000_000, step_ms=200, checkpoint_every=50)
DEVICES = 4
CHECK_MS = 1_000
PULSE_MS = 10_000


def run(directory: Path, *, tui: bool) -> int:
    """Until Ctrl-C, SIGTERM, or the TUI is left. Returns the exit code."""
    try:
        return asyncio.run(_up(directory, tui))
    except GridError as error:
        print(f"gridkeeper: {error}", file=sys.stderr)  # with the end of a log, on lines of its own
        return 1


def _say(sentence: str) -> None:
    # ``datetime`` without a zone is what a person at this terminal has on the wall.
    now = datetime.fromtimestamp(SystemClock().wall_ms() / 1000)
    print(f"{now:%H:%M:%S} {sentence}", flush=True)


async def _up(directory: Path, tui: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    grid = LocalGrid(directory, GridOptions(metrics=True), clock, _say)
    starting = asyncio.ensure_future(grid.start())  # when it fails, it has stopped everything again
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 130
        await starting
        async with GridClient(grid.client_config()) as client:
            act = await client.submit_job(job_spec(JOB, TRAINING, DEVICES))
            _say(act.sentence)
            follower = Follower(client, (lambda sentence: None) if tui else _say)
            hosts = {str(node.name): grid.nvml(node.name) for node in grid.nodes}
            tasks = [
                asyncio.create_task(follower.follow()),
                asyncio.create_task(blow(hosts, follower.world.devices_in_use, clock)),
                asyncio.create_task(_watch_children(grid, clock)),
                asyncio.create_task(_tui(grid.places.client) if tui else _pulse(follower.world, clock)),
            ]
            addresses = [f"127.0.0.1:{replica.metrics_port}" for replica in grid.replicas]
            _say(f"Prometheus metrics of the control planes: {', '.join(addresses)}")
            if not tui:
                _say(
                    f"gridkeeper --config {grid.places.client} get nodes   # or any other command; Ctrl-C ends the grid"
                )
            try:
                done, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return 0
    finally:
        starting.cancel()
        stopping.cancel()
        failed, _ = await asyncio.gather(starting, stopping, return_exceptions=True)
        if not isinstance(failed, GridError):
            _say("stopping the grid: agents, jobs, control planes, stores")
            await grid.stop()
            _say("the grid is down")


async def _pulse(world: World, clock: SystemClock) -> None:
    """A line now and then that says how the job gets on."""
    while True:
        await clock.sleep(PULSE_MS)
        run = world.run(JOB)
        if run is not None and run.last_step >= 0:
            _say(f"job {JOB} has done step {run.last_step} on {run.node}, epoch {run.epoch}, loss {run.last_loss:.5f}")


async def _watch_children(grid: LocalGrid, clock: SystemClock) -> None:
    """Raises ``GridError`` when a daemon has ended by itself."""
    while True:
        grid.check()
        await clock.sleep(CHECK_MS)


async def _tui(config: Path) -> None:
    """As a process of its own, so that the terminal is nobody else's while it runs."""
    command = (sys.executable, "-P", "-m", "gridkeeper.cli.main", "--config", str(config), "tui")
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
