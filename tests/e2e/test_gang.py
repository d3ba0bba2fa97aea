"""A job on three nodes, through every real process: a card of one member is drained, and a spare takes its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.examples import gang
from gridkeeper.v1 import records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

STEPS, EVERY, DEVICES = 400, 20, 4


def undisturbed(count: int) -> str:
    """The value after all steps."""
    value = 0.0
    for step in range(1, STEPS + 1):
        total = 1 / step
        for rank in range(1, count):
            total += (rank + 1) / step
        value = value * 0.75 + total
    return value.hex()


async def test_a_gang_replaces_the_member_whose_card_is_drained_and_loses_no_step(stage: Stage) -> None:
    """Protects: ranks meet through what they are given, stop after one step, resume from all ranks' files, and the
    members that are well stay where they are."""
    command = [
        sys.executable,
        str(Path(gang.__file__)),
        f"--steps={STEPS}",
        "--step-ms=50",
        f"--checkpoint-every={EVERY}",
    ]
    spec = records_pb2.JobSpec(
        name="gang", command=command, nodes=3, devices=DEVICES, grace_ms=10_000, max_restarts=3, regions=["east"]
    )
    async with stage(GridOptions(regions=("east",), nodes=4)) as (grid, seen):
        await seen.client.submit_job(spec)
        first = await seen.until("the gang runs", lambda: seen.running("gang"), 60)
        devices = list(first.ownership.devices)
        await seen.until("a joined checkpoint is committed", lambda: (j := seen.job("gang")) and j.head.step >= EVERY)
        bad = devices[DEVICES + 1]  # of rank 1
        await seen.client.drain(bad, "its fan rattles")
        second = await seen.until("the gang runs again", lambda: seen.running("gang", epoch=2), 90)
        kept, now = devices[:DEVICES] + devices[2 * DEVICES :], list(second.ownership.devices)
        assert now[:DEVICES] + now[2 * DEVICES :] == kept, "ranks 0 and 2 stay"
        assert {name.split("/")[0] for name in now[DEVICES : 2 * DEVICES]}.isdisjoint(
            {n.split("/")[0] for n in devices}
        )
        lines = grid.steps("gang")
        ended = {line.node: line.wall_ms for line in lines if line.epoch.number == 1}
        began = [line.wall_ms for line in lines if line.epoch.number == 2]
        assert len(ended) == 3 and max(ended.values()) < min(began), "no two epochs at once, on any node"
        done = records_pb2.JOB_STATE_SUCCEEDED
        await seen.until("the gang is done", lambda: (j := seen.job("gang")) and j.record.state == done, 90)
        (move,) = [m for m in seen.migrations("gang") if m.kind != records_pb2.MIGRATION_KIND_START]
        assert move.rpo_steps == 0, "all ranks stopped after the same step"
        steps = [line.step for line in grid.steps("gang") if line.node == first.ownership.node]
        assert steps == list(range(1, STEPS + 1))
        _, text = await seen.client.job_logs("gang", 4096)
        assert f"done: rank 0, {STEPS} steps, {undisturbed(3)}" in text.decode()
