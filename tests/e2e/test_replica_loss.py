"""A control-plane replica dies at each step of a migration, before and after the transaction: the other one finishes
it, and the job runs exactly once."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.failpoint import ENVIRONMENT
from gridkeeper.v1 import records_pb2
from tests.e2e.conftest import Stage
from tests.e2e.observer import Observer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

DONE = records_pb2.MIGRATION_STATE_DONE
EDGES = [
    f"migration.{state}.{when}"
    for state in (
        "planned",
        "pre_copying",
        "stopping",
        "copying",
        "verified",
        "ownership_moved",
        "starting",
        "running",
        "done",
    )
    for when in ("before", "after")
] + ["place.reserve.after", "place.offer.after"]


async def all_answer(grid: LocalGrid, seen: Observer) -> None:
    async with asyncio.timeout(30):
        while any(status.info is None for status in await seen.client.info()):
            await grid.clock.sleep(50)


async def test_a_replica_killed_at_any_step_of_a_migration_is_stood_in_for(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = tmp_path / "failpoints"
    armed.mkdir()
    monkeypatch.setenv(ENVIRONMENT, str(armed))
    async with stage(GridOptions(replicas=2)) as (grid, seen):
        spec = job_spec("wanderer", Training(steps=1_000_000, step_ms=400, checkpoint_every=4), 2)
        await seen.client.submit_job(spec)
        await seen.until("the job runs", lambda: seen.running("wanderer"))
        for epoch, edge in enumerate(EDGES, 1):
            await seen.until(
                "no migration is under way", lambda: all(m.state == DONE for m in seen.migrations("wanderer"))
            )
            here = seen.running("wanderer", epoch=epoch)
            assert here is not None, seen.summary()
            there = "west" if here.ownership.region == "east" else "east"
            (armed / edge).touch()
            await seen.client.migrate_job("wanderer", there, f"to meet {edge}")
            await seen.until(f"{edge} is met", lambda e=edge: not (armed / e).exists())  # type: ignore[misc]
            await seen.until(
                f"the job runs in {there} after a death at {edge}",
                lambda e=epoch, t=there: seen.running("wanderer", epoch=e + 1, region=t),  # type: ignore[misc]
                60,
            )
            dead = await seen.until(
                "one replica has died", lambda: [r.name for r in grid.replicas if not grid.replica(r.name).running]
            )
            assert len(dead) == 1, f"{edge}: {dead}"
            grid.start_replica(dead[0])
            # The next death must meet a region with both replicas: two at once would fence the job, rightly.
            await all_answer(grid, seen)
        lines = grid.steps("wanderer")
        assert len({line.epoch for line in lines}) >= 4, "nodes keep the files of their newest epochs only"
        for earlier, later in pairwise(lines):
            assert earlier.wall_ms <= later.wall_ms
            if later.epoch in (earlier.epoch, earlier.epoch.next()):
                assert later.step == earlier.step + 1, "no step twice, none left out"
        assert seen.drains() == []
