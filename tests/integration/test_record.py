"""``gridkeeper record`` against real servers: what the grid tells and measures is in the files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gridkeeper import recording as rec
from gridkeeper.cli.record import run
from gridkeeper.client import InvalidRequest
from gridkeeper.recorder import Recorder
from gridkeeper.records.fleet import HealthState
from tests.fixtures import records
from tests.fixtures.filled import every_kind, fleet
from tests.fixtures.gridserver import GridServers
from tests.integration.waiting import until


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    made = GridServers(tmp_path)
    yield made
    await made.stop()


async def test_a_grid_is_recorded_and_the_recording_goes_on(servers: GridServers, tmp_path: Path) -> None:
    """Protects: events, ownership and samples reach the files, a change while it runs too, and nothing comes twice."""
    grid = every_kind(fleet())
    grid.temperatures["east-1/gpu0"] = (71.0, ())
    await servers.start(grid)
    out = tmp_path / "out"
    async with servers.client() as client:
        task = asyncio.create_task(run(client, Recorder(out), 0, 1_000, 250))

        async def begun() -> bool:
            return bool(rec.files_of(out, rec.TELEMETRY))

        async def changed() -> bool:
            return len(rec.read(out, rec.TELEMETRY)) >= 2 and len(rec.files_of(out, rec.HEALTH)) >= 2

        await until(begun, "a file of telemetry")
        grid.now_ms += 5_000
        grid.temperatures["east-1/gpu0"] = (72.0, ())
        device = records.device("east-1/gpu1").id
        grid.put(grid.keys.health(device), records.health(device, HealthState.SUSPECT))
        await until(changed, "the next sample, and the change of health")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        events = rec.files_of(out, rec.EVENTS)
        await run(client, Recorder(out), 1_500, 1_000, 60_000)
    assert rec.files_of(out, rec.EVENTS) == events
    assert rec.read(out, rec.TELEMETRY)["temperature"].to_list()[:2] == [71.0, 72.0]
    health = rec.read(out, rec.HEALTH).filter(device="east-1/gpu1")["state"].to_list()
    assert health == ["healthy", "suspect"]
    for table in (rec.EVENTS, rec.FINDINGS, rec.INCIDENTS, rec.DRAINS, rec.OWNERSHIP, rec.INVENTORY):
        assert len(rec.read(out, table)) >= 1, table.name


async def test_a_period_that_no_server_takes_ends_it_with_the_reason(servers: GridServers, tmp_path: Path) -> None:
    await servers.start(fleet())
    async with servers.client() as client:
        with pytest.raises(InvalidRequest, match="period_ms: 5 is not between"):
            await run(client, Recorder(tmp_path / "out"), 0, 5, 1_000)
