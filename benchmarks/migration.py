"""How long a job stands still when it is moved, and when its node dies.

    python -m benchmarks.migration [--runs 10] [--deaths 3] [--mib 256] [--changed-percent 100] [--default-timings]

The job (``benchmarks/job.py``) has a checkpoint of 256 MiB of random bytes, all of which change between two
checkpoints. Two regions with one node and one replica each, two etcds, agents, guardians and jobs are processes on this
host; both regions' checkpoint stores are directories on its one disk, which every copy is written to and fsynced.

Planned move: ``job migrate``, from one region to the other and back. RTO is from the last step in the old place to the
first step in the new one, by the job's own progress lines (one clock: one host). It includes the last checkpoint, its
way into the store, verification, the copy to the other region, the fetch, the start of Python, and loading.

By hand, between the moves, on the same disk while the grid is up: the same program is sent SIGTERM (it writes its
checkpoint and exits), its checkpoint directory is copied with ``cp -r`` and fsynced, and the program is started on the
copy; measured the same way. Nothing is hashed, verified or fenced there.

Node death: agent, guardian and job are killed at once. From there to the first step elsewhere; R is what safety makes
everybody wait after the revoke intent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common import Busy, last_line, machine, quantile, running_grid, say, table, until
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.runs import StepLine, read_steps
from gridkeeper.client import ClientError, GridClient
from gridkeeper.ids import Epoch
from gridkeeper.timings import SHORT, Timings
from gridkeeper.v1 import api_pb2, records_pb2

JOB = "mover"
SCRIPT = Path(__file__).with_name("job.py")
SETTLE_S = 1.0
"""A job runs this long before it is moved."""
DEATH_CHECKPOINT_STEPS = 250
MIGRATIONS = "MIGRATION_STATE_"


def command(options: argparse.Namespace, checkpoint_every: int) -> tuple[str, ...]:
    return (
        sys.executable, str(SCRIPT), f"--mib={options.mib}", f"--changed-percent={options.changed_percent}",
        f"--checkpoint-every={checkpoint_every}",
    )  # fmt: skip


def spec(name: str, words: Sequence[str]) -> records_pb2.JobSpec:
    return records_pb2.JobSpec(
        name=name, namespace="default", command=words, devices=4, prefer_other_region=True, handles_sigusr1=True,
        grace_ms=30_000, max_restarts=3, env=[records_pb2.Label(key="PYTHONPATH", value=str(SCRIPT.parents[1]))],
    )  # fmt: skip


async def view(client: GridClient, job: str) -> api_pb2.JobView | None:
    """None while the store or a replica is busy: asked again."""
    try:
        return (await client.get(api_pb2.KIND_JOB, job)).job
    except ClientError:
        return None


async def runs(client: GridClient, job: str, number: int, timeout_s: float = 120) -> api_pb2.JobView:
    """The job once its epoch ``number`` has made a step."""

    async def look() -> api_pb2.JobView | None:
        found = await view(client, job)
        right = found is not None and found.HasField("run") and found.run.epoch.number == number
        return found if right and found is not None and found.run.first_step >= 0 else None

    try:
        return await until(f"{job} runs at epoch {number}", look, timeout_s, 0.1)
    except TimeoutError as error:
        moves_ = (await client.list(api_pb2.KIND_MIGRATION)).objects
        said = "\n".join(f"{item.migration}" for item in moves_)
        raise TimeoutError(f"{error}\n{await view(client, job)}\n{said}") from None


async def newest_migration(client: GridClient, job: str, number: int) -> records_pb2.MigrationRecord:
    """The one that led to epoch ``number``, done."""

    async def look() -> records_pb2.MigrationRecord | None:
        for item in (await client.list(api_pb2.KIND_MIGRATION)).objects:
            found = item.migration
            done = found.state == records_pb2.MIGRATION_STATE_DONE
            if found.job == job and found.target_epoch.number == number and done:
                return found
        return None

    return await until(f"the migration to epoch {number} is done", look, 60, 0.1)


def of_epoch(lines: tuple[StepLine, ...], number: int) -> tuple[StepLine, ...]:
    return tuple(line for line in lines if line.epoch.number == number)


def stages_of(record: records_pb2.MigrationRecord, last_ms: int, first_ms: int) -> dict[str, float]:
    """Seconds from each stamp (one clock: the leader's, on this host) to the next, from the request on; and between
    the job's last step, its first one, and the stamps next to them."""
    stages = {}
    stamps = [(stamp.name, stamp.at_ms) for stamp in record.stages]
    for (name, at), (_, then) in pairwise(stamps):
        stages[name] = (then - at) / 1000
    stages["standstill"] = (first_ms - last_ms) / 1000
    return stages


async def move(grid: LocalGrid, client: GridClient, number: int) -> tuple[float, float, dict[str, float]]:
    """One planned move away from epoch ``number``: (RTO, request to first step, stages), seconds."""
    here = await runs(client, JOB, number)
    await asyncio.sleep(SETTLE_S)
    there = "west" if here.ownership.region == "east" else "east"
    asked_ms = time.time() * 1000
    await client.migrate_job(JOB, there, "benchmark")
    await runs(client, JOB, number + 1)
    lines = grid.steps(JOB)
    last, first = of_epoch(lines, number)[-1], of_epoch(lines, number + 1)[0]
    if first.step != last.step + 1:
        raise RuntimeError(f"epoch {number} ended with step {last.step}, and the next began with {first.step}")
    record = await newest_migration(client, JOB, number + 1)
    rto = (first.wall_ms - last.wall_ms) / 1000
    return rto, (first.wall_ms - asked_ms) / 1000, stages_of(record, last.wall_ms, first.wall_ms)


class ByHand:
    """The same job without us, in two directories that stand for two sites."""

    def __init__(self, root: Path, words: Sequence[str]) -> None:
        self._root = root
        self._words = tuple(words)
        self._number = 0
        self._process: subprocess.Popen[bytes]

    def _site(self, number: int) -> Path:
        return self._root / f"site-{number}"

    def start(self, resume: Path | None = None) -> None:
        site = self._site(self._number)
        (site / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            self._words,
            env={
                **os.environ,
                "PYTHONPATH": str(SCRIPT.parents[1]),
                "GRIDKEEPER_CHECKPOINT_DIR": str(site / "checkpoints"),
                "GRIDKEEPER_PROGRESS": str(site / "progress"),
                "GRIDKEEPER_RESUME_FROM": str(resume or ""),
            },
        )

    async def first_step(self) -> StepLine:
        path = self._site(self._number) / "progress"

        async def look() -> tuple[StepLine, ...]:
            return read_steps(path, "hand", Epoch(0, 0))

        return (await until("a first step by hand", look, 60))[0]

    async def move(self) -> tuple[float, dict[str, float]]:
        """Seconds from the last step to the first one, and its parts."""
        stamps = [time.time()]
        self._process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self._process.wait)
        stamps.append(time.time())
        site = self._site(self._number)
        last = read_steps(site / "progress", "hand", Epoch(0, 0))[-1]
        self._number += 1
        target = self._site(self._number)
        target.mkdir(parents=True)
        name = f"step-{last.step}"
        await asyncio.to_thread(copy_durably, site / "checkpoints" / name, target / name)
        stamps.append(time.time())
        self.start(target / name)
        first = await self.first_step()
        shutil.rmtree(site)
        parts = {
            "stop": stamps[1] - stamps[0],
            "copy": stamps[2] - stamps[1],
            "start": first.wall_ms / 1000 - stamps[2],
        }
        return (first.wall_ms - last.wall_ms) / 1000, parts

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def copy_durably(source: Path, target: Path) -> None:
    """``cp -r``, then fsync of every file and directory."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in (*target.rglob("*"), target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def death(grid: LocalGrid, client: GridClient, job: str, number: int) -> float:
    """Seconds from the death of the node under epoch ``number`` to the first step of the next."""
    here = await runs(client, job, number)

    async def safe() -> bool:
        found = await view(client, job)
        return found is not None and found.head.epoch.number == number and len(found.head.regions) == 2

    await until("a checkpoint of this epoch is in both regions", safe, 60)
    node = here.ownership.node
    grid.kill_node(node)
    killed_ms = time.time() * 1000
    await runs(client, job, number + 1)
    first = of_epoch(grid.steps(job), number + 1)[0]
    grid.start_agent(node)

    async def back() -> bool:
        return (await client.get(api_pb2.KIND_NODE, node)).node.liveness.state == records_pb2.NODE_STATE_ALIVE

    await until(f"{node} is alive", back, 60)
    return (first.wall_ms - killed_ms) / 1000


async def moves(options: argparse.Namespace) -> tuple[list[float], list[float], list[dict[str, float]], list[float]]:
    """(RTO, request to first step, stages, by hand) of each run."""
    rtos, whole, stages, manual = [], [], [], []
    parts: list[dict[str, float]] = []
    async with running_grid(GridOptions(nodes=1, timings=Timings())) as grid:
        words = command(options, 1_000_000)
        by_hand = ByHand(grid.places.root / "by-hand", words)
        async with GridClient(grid.client_config()) as client:
            await client.submit_job(spec(JOB, words))
            for run in range(options.runs):
                rto, total, stage = await move(grid, client, run + 1)
                rtos.append(rto)
                whole.append(total)
                stages.append(stage)
                await asyncio.sleep(SETTLE_S)
                if run == 0:
                    by_hand.start()
                    await by_hand.first_step()
                    await asyncio.sleep(SETTLE_S)
                seconds, part = await by_hand.move()
                manual.append(seconds)
                parts.append(part)
                say(f"move {run + 1}: {rto:.2f} s (from the request {total:.2f} s); by hand {seconds:.2f} s")
            by_hand.end()
    rows = [[name, quantile([part[name] for part in parts], 0.5)] for name in parts[0]]
    table("By hand, seconds", ("part", "p50"), rows)
    return rtos, whole, stages, manual


async def deaths(options: argparse.Namespace, timings: Timings) -> list[float]:
    found = []
    shape = GridOptions(nodes=1, timings=timings)
    async with running_grid(shape) as grid, GridClient(grid.client_config()) as client:
        await client.submit_job(spec("victim", command(options, DEATH_CHECKPOINT_STEPS)))
        for run in range(options.deaths):
            found.append(await death(grid, client, "victim", run + 1))
            say(f"death {run + 1}: first step after {found[-1]:.2f} s (R = {timings.takeover_ms / 1000:.0f} s)")
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description="Planned moves and deaths of nodes, next to a move by hand.")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--deaths", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--changed-percent", type=float, default=100.0)
    parser.add_argument(
        "--default-timings", action="store_true", help="deaths with R = 35 s instead of the short timings' 9 s"
    )
    options = parser.parse_args()
    timings = Timings() if options.default_timings else SHORT
    say(__doc__ or "")
    busy = Busy()
    rtos, whole, stages, manual = await moves(options)
    dead = await deaths(options, timings) if options.deaths else []
    shares = busy.percent()
    names = list(dict.fromkeys(name for stage in stages for name in stage))
    medians = {name: round(quantile([s[name] for s in stages if name in s], 0.5), 3) for name in names}
    table("Stages of a planned move, seconds", ("from here to the next stamp", "p50"), list(medians.items()))
    rows = [
        [name, len(values), quantile(values, 0.5), quantile(values, 0.99), max(values, default=float("nan"))]
        for name, values in (
            ("planned move, RTO", rtos),
            ("planned move, from the request", whole),
            ("stop, copy, start by hand", manual),
            (f"death of a node (R = {timings.takeover_ms / 1000:.0f} s)", dead),
        )
    ]
    table(f"Seconds until the first new step, checkpoint {options.mib} MiB", ("", "n", "p50", "p99", "max"), rows)
    say(f"{machine()}; the machine's cores were {shares['machine']:.0f} % of one busy, all processes")
    last_line(
        benchmark="migration",
        runs=len(rtos),
        checkpoint_mib=options.mib,
        changed_percent=options.changed_percent,
        rto_s_p50=quantile(rtos, 0.5),
        rto_s_p99=quantile(rtos, 0.99),
        from_request_s_p50=quantile(whole, 0.5),
        stages_s=medians,
        manual_s=quantile(manual, 0.5),
        rto_per_manual=quantile(rtos, 0.5) / quantile(manual, 0.5),
        deaths=len(dead),
        node_death_s_p99=quantile(dead, 0.99),
        r_s=timings.takeover_ms / 1000,
        unreachable_s=timings.unreachable_ms / 1000,
    )


if __name__ == "__main__":
    asyncio.run(main())
