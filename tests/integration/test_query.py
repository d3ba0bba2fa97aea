"""Protects: a query is answered over all replicas of all regions, says what is missing, and is killed at its limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from gridkeeper.cli.query import print_answer
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.client.query import Answer
from gridkeeper.ids import NodeId
from gridkeeper.query import sandbox
from gridkeeper.query.limits import Limits
from gridkeeper.query.sql import BadQuery, Query, checked
from gridkeeper.records.faults import ReplicaRecord
from tests.fixtures import records
from tests.fixtures.filled import every_kind
from tests.fixtures.grid import FakeGrid
from tests.fixtures.gridserver import GridServers


def region(name: str, devices: int, replica: str = "", like: FakeGrid | None = None) -> FakeGrid:
    """A region whose node ``<name>-1`` holds its stream open to ``<name>-1``."""
    if like is not None:
        return FakeGrid(name, local=like.local, world=like.globe, replica=replica)
    grid = FakeGrid(name)
    node = f"{name}-1"
    grid.put(grid.keys.node(NodeId(node)), records.node(node, name, devices))
    for i in range(devices):
        device = records.device(f"{node}/gpu{i}", name)
        grid.put(grid.keys.device(device.id), device)
        grid.temperatures[device.id] = (60.0 + 10 * i, ())
    for number in (1, 2):
        name_of = f"{name}-{number}"
        grid.put(grid.keys.replica(name_of), ReplicaRecord(name_of, grid.name, "", "", "1", 1))  # type: ignore[arg-type]
    grid.put(grid.keys.session(NodeId(node)), replace(records.session(), node=NodeId(node), replica=f"{name}-1"))  # type: ignore[arg-type]
    return grid


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    held = GridServers(tmp_path)
    yield held
    await held.stop()


async def test_it_counts_over_all_regions_and_each_device_once(servers: GridServers) -> None:
    """Protects: both replicas of a region know all its devices, and only one of them has the telemetry."""
    east, west = region("east", 4), region("west", 2)
    other = region("east", 0, "east-2", like=east)
    for grid in (east, other, west):
        await servers.start(grid)
    async with servers.client() as grid:
        hot = await grid.query(
            "select region, count(*) as n from devices where temperature_c > 65 group by region order by region"
        )
        assert (hot.columns, hot.rows, hot.partial) == (("region", "n"), (("east", 3), ("west", 1)), ())
        every = await grid.query("select count(*), avg(temperature_c), count(distinct node) from devices")
        assert every.rows == ((6, pytest.approx((60 + 70 + 80 + 90 + 60 + 70) / 6), 2),)
        some = await grid.query("select device from devices order by device", limit=2)
        assert some.rows == (("east-1/gpu0",), ("east-1/gpu1",)) and "only the first 2 rows" in some.partial[0]
        await servers.kill("west-1")
        left = await grid.query("select region, count(*) from devices group by region")
        assert left.rows == (("east", 4),) and "region west does not answer" in left.partial[0]


async def test_every_table_answers_with_every_column(servers: GridServers) -> None:
    grid = every_kind(region("east", 2))
    await servers.start(grid)
    async with servers.client() as client:
        for table in ("devices", "nodes", "incidents", "drains", "jobs"):
            answer = await client.query(f"select * from {table}")
            assert answer.rows and answer.partial == (), table
        joined = await client.query(
            "select d.device, i.title, n.state from drains d join incidents i on d.incident = i.incident "
            "left join nodes n on d.node = n.node"
        )
        assert joined.rows == (("east-1/gpu0", records.incident().title, "unknown"),)
        with pytest.raises(InvalidRequest, match="did you mean temperature_c"):
            await client.query("select temprature_c from devices")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("table", "DEVICE       TEMPERATURE_C  POWER_W\neast-1/gpu0  60             -\n"),
        ("csv", "device,temperature_c,power_w\neast-1/gpu0,60,\n"),
        ("json", '[\n  {\n    "device": "east-1/gpu0",\n    "temperature_c": 60,\n    "power_w": null\n  }\n]\n'),
    ],
)
def test_it_is_printed(form: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(Answer(("device", "temperature_c", "power_w"), (("east-1/gpu0", 60.0, None),), ()), form)
    assert capsys.readouterr().out == expected


FRAME = pl.DataFrame({"device": [f"d{i}" for i in range(20_000)], "region": ["east"] * 20_000})
SMALL = Limits(rows=100, memory_bytes=300 * 1024 * 1024, cpu_s=2, wall_s=20)


async def run(sql: str, limits: Limits = SMALL) -> pl.DataFrame:
    return (await sandbox.run(Query(sql, {"devices": ("device",)}), {"devices": FRAME}, limits))[0]


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from devices a join devices b on a.region = b.region join devices c on b.region = c.region",
        "select a.device from devices a join devices b on a.region = b.region order by b.device, a.device",
    ],
)
async def test_a_bomb_is_killed_at_its_limit_and_says_so(sql: str) -> None:
    """Protects: these pass the allow-list (each joins on a column), and would need terabytes or hours."""
    checked(sql)
    with pytest.raises(sandbox.QueryFailed, match="was killed"):
        await run(sql)


async def test_what_the_engine_cannot_do_is_told() -> None:
    with pytest.raises(BadQuery, match="sql: "):
        await run("select nothing_here from devices")
    assert (await run("select count(*) from devices")).rows() == [(20_000,)]


async def test_time_is_limited_too() -> None:
    with pytest.raises(sandbox.QueryFailed, match=r"killed after 0\.05 s"):
        await run("select count(*) from devices", replace(SMALL, wall_s=0.05))
