"""A bit flips in the newest checkpoint of a job, in every region, while its host is dead: the job goes on from the one
before, and the user is told which and why."""

from __future__ import annotations

import json

import pytest

from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.v1 import api_pb2, records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

LONG = Training(steps=100_000, step_ms=50, checkpoint_every=20)


def damage(grid: LocalGrid, job: str, step: int) -> int:
    """Flip a bit in each chunk that only this step has, wherever it is stored; how many."""
    flipped = 0
    for region in grid.options.regions:
        root = grid.places.checkpoints(region)
        named = {
            int(path.name.partition(".")[0]): {c for f in json.loads(path.read_bytes())["files"] for c in f["chunks"]}
            for path in (root / "manifests" / job).glob("*.json")
        }
        own = named.get(step, set()).difference(*(chunks for other, chunks in named.items() if other != step))
        for chunk in own:
            for path in (root / "chunks" / chunk[:2]).glob(f"{chunk}*"):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
                flipped += 1
    return flipped


async def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_job_says_so(stage: Stage) -> None:
    async with stage(GridOptions()) as (grid, seen):
        await seen.client.submit_job(job_spec("phoenix", LONG, 4))
        job = await seen.until("the job runs", lambda: seen.running("phoenix"))
        await seen.until("checkpoints are committed", lambda: (j := seen.job("phoenix")) and j.head.step >= 60)
        grid.kill_node(job.ownership.node)
        await seen.until(
            "it is silent", lambda: seen.node_state(job.ownership.node) == records_pb2.NODE_STATE_UNREACHABLE
        )
        newest = seen.job("phoenix")
        assert newest is not None
        step = newest.head.step
        assert damage(grid, "phoenix", step) > 0
        told = await seen.until(
            "the head says which is used instead",
            lambda: (j := seen.job("phoenix")) and f"step {step}, which is damaged" in j.head.instead and j,
            120,
        )
        instead = told.head.step
        assert step - 2 * LONG.checkpoint_every <= instead < step
        moved = await seen.until(
            "the job runs again",
            lambda: (j := seen.running("phoenix")) and j.ownership.resume_step == instead and j,
            120,
        )
        resumed = [line for line in grid.steps("phoenix") if line.epoch.number == moved.ownership.epoch.number]
        assert resumed[0].step - 1 == instead
        started = [line for line in grid.steps("phoenix") if 1 < line.epoch.number < moved.ownership.epoch.number]
        assert started == [], "an epoch began from the damaged one"
        damaged = [
            item.checkpoint.record.damage
            for item in (await seen.client.list(api_pb2.KIND_CHECKPOINT)).objects
            if item.checkpoint.record.job == "phoenix" and item.checkpoint.record.step == step
        ]
        assert len(damaged) == 1 and "altered" in damaged[0]
