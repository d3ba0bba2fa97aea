"""The client over two regions with real servers: replicas die, regions go away and come back, and the answer is never
silently smaller."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gridkeeper.client import Gone, GridClient, Incomplete, NotFound, Partial, Put, Synced, Unreachable
from gridkeeper.client.changes import Change
from gridkeeper.client.replicas import Patience
from gridkeeper.config import RegionEndpoints
from gridkeeper.ids import JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.records.faults import DrainState
from gridkeeper.v1 import api_pb2
from tests.fixtures import records
from tests.fixtures.grid import FakeGrid, MemoryStore
from tests.fixtures.gridserver import GridServers

NODES = (api_pb2.KIND_NODE, api_pb2.KIND_JOB)


def _region(name: str, world: MemoryStore) -> FakeGrid:
    grid = FakeGrid(name, world=world)
    grid.put(grid.keys.node(NodeId(f"{name}-1")), records.node(f"{name}-1", name))
    grid.put(grid.keys.liveness(NodeId(f"{name}-1")), records.liveness(f"{name}-1"))
    return grid


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    """east with two replicas on one store, west with one; one job in the store that both share."""
    made, world = GridServers(tmp_path), MemoryStore()
    east, west = _region("east", world), _region("west", world)
    second = FakeGrid("east", east.local, world, "east-2")
    for grid in (east, second, west):
        await made.start(grid)
    east.put(KEYS.job(JobId("train")), records.job())
    yield made
    await made.stop()


@pytest.fixture
async def client(servers: GridServers) -> AsyncIterator[GridClient]:
    async with servers.client() as opened:
        yield opened


async def _until(watch: AsyncIterator[Change], wanted: type[Change], held: dict[str, object]) -> Change:
    """Apply changes to ``held`` until one of the wanted kind comes."""
    async with asyncio.timeout(30):
        async for change in watch:
            if isinstance(change, Put):
                held[change.object.name] = change.object
            elif isinstance(change, Gone):
                held.pop(change.name)
            if isinstance(change, wanted):
                return change
    raise AssertionError("the watch ended")


async def test_regions_are_merged_and_a_job_is_listed_once(client: GridClient) -> None:
    nodes = await client.list(api_pb2.KIND_NODE)
    assert [item.name for item in nodes.objects] == ["east-1", "west-1"]
    assert nodes.partial == ()
    assert [item.name for item in (await client.list(api_pb2.KIND_JOB)).objects] == ["train"]


async def test_a_dead_replica_is_not_noticed(client: GridClient, servers: GridServers) -> None:
    await servers.kill("east-1")
    nodes = await client.list(api_pb2.KIND_NODE)
    assert [item.name for item in nodes.objects] == ["east-1", "west-1"]
    assert nodes.partial == ()
    states = {status.address: status.info is not None for status in await client.info()}
    assert states == {servers.addresses[name]: name != "east-1" for name in ("east-1", "east-2", "west-1")}


async def test_a_region_that_is_away_makes_the_answer_partial_and_never_empty(
    client: GridClient, servers: GridServers
) -> None:
    await servers.kill("west-1")
    nodes = await client.list(api_pb2.KIND_NODE)
    assert [item.name for item in nodes.objects] == ["east-1"]
    (sentence,) = nodes.partial
    assert sentence.startswith("region west does not answer (127.0.0.1:") and "connection refused" in sentence
    assert (await client.list(api_pb2.KIND_JOB)).partial == ()  # east knows all jobs
    assert (await client.get(api_pb2.KIND_JOB, "train")).name == "train"
    with pytest.raises(Incomplete, match="node/west-1 is not in the regions that answer, and region west does not"):
        await client.get(api_pb2.KIND_NODE, "west-1")
    with pytest.raises(NotFound):
        await client.get(api_pb2.KIND_JOB, "nope")


async def test_no_region_at_all_is_an_error(client: GridClient, servers: GridServers) -> None:
    for name in ("east-1", "east-2", "west-1"):
        await servers.kill(name)
    for ask in (client.list(api_pb2.KIND_NODE), client.list(api_pb2.KIND_JOB), client.sla_status()):
        with pytest.raises(Unreachable, match="region west does not answer"):
            await ask
    with pytest.raises(Unreachable, match="region east does not answer"):
        await client.stop_job("train")


async def test_acts_go_to_the_region_that_has_the_object(client: GridClient, servers: GridServers) -> None:
    west = servers.grids["west-1"]
    device = records.device("west-1/gpu0", "west")
    west.put(west.keys.device(device.id), device)
    act = await client.drain("west-1/gpu0", "a test")
    assert act.region == "west"
    assert list(west.region().drain_requests) == ["west-1/gpu0"]
    assert not servers.grids["east-1"].region().drain_requests


async def test_an_explanation_is_put_together_from_all_regions(client: GridClient, servers: GridServers) -> None:
    east, west = servers.grids["east-1"], servers.grids["west-1"]
    east.put(east.keys.incident("i1"), records.incident(drain="d1"))
    east.put(east.keys.drain("d1"), records.drain(state=DrainState.EVACUATING))
    west.put(KEYS.migration(records.migration().id), records.migration())
    told = await client.explain(api_pb2.KIND_MIGRATION, "m1")
    steps = [link.step for link in told.chain]
    assert steps.index("drain.plan") < steps.index("migrate.plan") < steps.index("migrate.confirm")
    assert len(steps) == len({(link.step, link.object, link.at_ms) for link in told.chain})


async def test_a_watch_survives_its_replica(client: GridClient, servers: GridServers) -> None:
    held: dict[str, object] = {}
    watch = client.watch(NODES)
    await _until(watch, Synced, held)
    east = servers.grids["east-1"]
    for victim in ("east-1", "east-2"):
        await servers.kill(victim)
        name = f"after-{victim}"
        east.put(east.keys.node(NodeId(name)), records.node(name))
        if victim == "east-2":
            await servers.start(east)
        while name not in held:
            await _until(watch, Put, held)
    await watch.aclose()
    assert set(held) == {"east-1", "west-1", "train", "after-east-1", "after-east-2"}


async def test_a_watch_says_that_a_region_is_away_and_heals(client: GridClient, servers: GridServers) -> None:
    held: dict[str, object] = {}
    watch = client.watch(NODES)
    await _until(watch, Synced, held)
    assert set(held) == {"east-1", "west-1", "train"}
    west = servers.grids["west-1"]
    await servers.kill("west-1")
    lost = await _until(watch, Partial, held)
    assert isinstance(lost, Partial) and lost.sentences[0].startswith("region west does not answer")
    assert set(held) == {"east-1", "west-1", "train"}
    west.delete(west.keys.node(NodeId("west-1")))
    west.put(west.keys.node(NodeId("west-2")), records.node("west-2", "west"))
    await servers.start(west)
    healed = await _until(watch, Partial, held)
    assert healed == Partial(())
    await watch.aclose()
    assert set(held) == {"east-1", "west-2", "train"}


async def test_a_watch_begins_while_a_region_is_away(client: GridClient, servers: GridServers) -> None:
    await servers.kill("west-1")
    held: dict[str, object] = {}
    watch = client.watch(NODES)
    assert isinstance(await _until(watch, Partial, held), Partial)
    await _until(watch, Synced, held)
    await watch.aclose()
    assert set(held) == {"east-1", "train"}


async def test_a_replica_that_hangs_is_given_up_and_another_asked(tmp_path: Path) -> None:
    """A paused process accepts connections and says nothing: only a deadline on each call and a limit on silence in
    each watch notice it."""
    servers, world = GridServers(tmp_path), MemoryStore()
    east = _region("east", world)
    second = FakeGrid("east", east.local, world, "east-2")
    hangs = socket.create_server(("127.0.0.1", 0))  # never accepts
    east_address = await servers.start(second)
    config = servers.config()
    address = f"127.0.0.1:{hangs.getsockname()[1]}"
    mute = dataclasses.replace(config, regions=(RegionEndpoints(records.EAST, (address, east_address)),))
    try:
        async with GridClient(mute, patience=Patience(call_ms=300, act_ms=300, stall_ms=300)) as client:
            assert [item.name for item in (await client.list(api_pb2.KIND_NODE)).objects] == ["east-1"]
        async with GridClient(mute, patience=Patience(call_ms=300, act_ms=300, stall_ms=2_000)) as client:
            held: dict[str, object] = {}
            watch = client.watch(NODES)
            await _until(watch, Synced, held)
            await watch.aclose()
            assert set(held) == {"east-1"}
    finally:
        hangs.close()
        await servers.stop()


async def test_what_is_found_in_one_region_leaves_no_errors_of_the_others_behind(client: GridClient) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    for _ in range(20):
        await client.get(api_pb2.KIND_NODE, "west-1")
        await client.get(api_pb2.KIND_NODE, "east-1")
    gc.collect()
    assert reported == []
