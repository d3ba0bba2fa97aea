"""The Grid API over real gRPC and mTLS: what a client is told, what it may do, and what happens to nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.domain import uptime
from gridkeeper.client import (
    Gone,
    GridClient,
    InvalidRequest,
    NotFound,
    Partial,
    Put,
    Refused,
    Synced,
    Unreachable,
)
from gridkeeper.identity import spiffe
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ids import JobId, NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.records.faults import DrainState, IncidentState
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.jobs import JobState
from gridkeeper.v1 import api_pb2, records_pb2
from tests.fixtures import records
from tests.fixtures.filled import fleet
from tests.fixtures.grid import FakeGrid
from tests.fixtures.gridserver import GridServers


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    made = GridServers(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def grid(servers: GridServers) -> FakeGrid:
    made = fleet()
    await servers.start(made)
    return made


@pytest.fixture
async def client(servers: GridServers, grid: FakeGrid) -> AsyncIterator[GridClient]:
    async with servers.client() as opened:
        yield opened


def _spec(**fields: Any) -> records_pb2.JobSpec:
    base: dict[str, Any] = {"name": "train", "command": ["python", "train.py"], "devices": 1}
    return records_pb2.JobSpec(**{**base, **fields})


async def test_listing_get_and_live_telemetry(client: GridClient, grid: FakeGrid) -> None:
    grid.temperatures["east-1/gpu0"] = (71.0, (70.0, 71.0))
    listing = await client.list(api_pb2.KIND_DEVICE, "node=east-1")
    assert [item.name for item in listing.objects] == ["east-1/gpu0", "east-1/gpu1"]
    assert listing.partial == () and listing.as_of_ms == grid.now_ms
    assert not listing.objects[0].device.metrics[0].recent
    one = await client.get(api_pb2.KIND_DEVICE, "east-1/gpu0")
    assert list(one.device.metrics[0].recent) == [70.0, 71.0]


async def test_a_listing_of_many_pages_is_whole(client: GridClient, grid: FakeGrid) -> None:
    for i in range(4_500):
        event = records.event(sequence=i + 1)
        grid.local.data[grid.keys.event(event.id)] = grid.local.data[grid.keys.node(NodeId("east-1"))].__class__(
            event, grid.local.revision + 1, grid.local.revision + 1, 0
        )
    grid.put(grid.keys.event(records.event(sequence=4_501).id), records.event(sequence=4_501))
    listing = await client.list(api_pb2.KIND_EVENT)
    assert len(listing.objects) == 4_501


async def test_what_is_not_there_is_told_with_names_that_come_near(client: GridClient) -> None:
    with pytest.raises(NotFound, match=r"device 'east-1/gpu' is not in region east; did you mean east-1/gpu0 or"):
        await client.get(api_pb2.KIND_DEVICE, "east-1/gpu")
    with pytest.raises(NotFound, match="did you mean east-1"):
        await client.cordon("eats-1", "typing error")


async def test_a_watch_tells_what_exists_and_then_each_change(client: GridClient, grid: FakeGrid) -> None:
    device = records.device("east-1/gpu1").id
    watch = client.watch((api_pb2.KIND_DEVICE,), "health=suspect")
    told = []
    async for change in watch:
        told.append(change)
        if isinstance(change, Synced):
            grid.put(grid.keys.health(device), records.health(device, HealthState.SUSPECT))
        elif isinstance(change, Put):
            assert change.object.name == device
            grid.put(grid.keys.health(device), records.health(device, HealthState.DRAINING))
        elif isinstance(change, Gone):
            break
    await watch.aclose()
    assert [type(change) for change in told if isinstance(change, (Put, Gone, Synced))] == [Synced, Put, Gone]


async def test_a_watch_says_when_its_view_is_not_current(client: GridClient, grid: FakeGrid) -> None:
    watch = client.watch((api_pb2.KIND_NODE,))
    sentences = []
    async for change in watch:
        if isinstance(change, Synced):
            grid.set_reachable(local=False)
        elif isinstance(change, Partial):
            sentences.append(change.sentences)
            if not change.sentences:
                break
            grid.set_reachable()
    await watch.aclose()
    assert sentences == [("region east: its store does not answer; its objects are as last seen",), ()]


async def test_the_audit_trail_is_listed_and_watched(client: GridClient, grid: FakeGrid) -> None:
    watch = client.watch((api_pb2.KIND_AUDIT,))
    async for change in watch:
        if isinstance(change, Synced):
            await client.submit_job(_spec())
        elif isinstance(change, Put):
            assert (change.object.audit.verb, change.object.audit.actor) == ("job.submit", "user/ann")
            break
    await watch.aclose()
    grid.now_ms += 1
    await client.drain("east-1/gpu0", "a test")
    trail = await client.list(api_pb2.KIND_AUDIT)
    assert [item.audit.verb for item in trail.objects] == ["job.submit", "drain.request"]
    assert [item.region for item in trail.objects] == ["", "east"]
    only = await client.list(api_pb2.KIND_AUDIT, "verb=drain.request")
    assert [item.audit.sentence for item in only.objects] == [
        "drain of east-1/gpu0 asked for (1 device, mode checkpoint): a test"
    ]
    assert (await client.get(api_pb2.KIND_AUDIT, trail.objects[0].name)).audit.object == "job/train"


async def test_a_drain_of_a_node_asks_for_each_of_its_devices_once(client: GridClient, grid: FakeGrid) -> None:
    act = await client.drain("east-1", "vendor asks")
    assert act.objects == ("device/east-1/gpu0", "device/east-1/gpu1")
    requests = grid.region().drain_requests
    assert {r.record.requested_by for r in requests.values()} == {"user/ann"}
    assert all(r.record.trace.startswith("00-") for r in requests.values())
    again = await client.drain("east-1", "vendor asks")
    assert "already asked for" in again.sentence
    assert grid.region().drain_requests == requests


async def test_an_act_that_loses_a_race_is_decided_again(client: GridClient, grid: FakeGrid) -> None:
    device = records.device()
    grid.races = [lambda: grid.put(grid.keys.device(device.id), device)] * 2
    await client.drain(device.id, "a test")
    assert device.id in grid.region().drain_requests and not grid.races


async def test_an_act_that_always_loses_says_so(client: GridClient, grid: FakeGrid) -> None:
    device = records.device()
    grid.races = [lambda: grid.put(grid.keys.device(device.id), device)] * 20
    with pytest.raises(Exception, match="others changed the same objects 6 times in a row"):
        await client.drain(device.id, "a test")


async def test_acknowledging_an_incident(client: GridClient, grid: FakeGrid) -> None:
    grid.put(grid.keys.incident("i1"), records.incident())
    await client.ack_incident("i1", "on it")
    held = grid.region().incidents["i1"].record
    assert (held.state, held.acknowledged_by) == (IncidentState.ACKNOWLEDGED, "user/ann")
    assert "already, by user/ann" in (await client.ack_incident("i1")).sentence


async def test_submitting_twice_is_once_and_another_spec_is_refused(client: GridClient, grid: FakeGrid) -> None:
    await client.submit_job(_spec())
    assert "submitted already and is pending" in (await client.submit_job(_spec())).sentence
    with pytest.raises(Refused, match=r"a job train with another spec \(differs in devices\)"):
        await client.submit_job(_spec(devices=2))
    job = grid.world().jobs[JobId("train")].record
    assert (job.state, job.submitted_by, job.spec.grace_ms) == (JobState.PENDING, "user/ann", 30_000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Train!"}, "spec.name: 'Train!' is not a name"),
        ({"name": "../../leader"}, "spec.name"),
        ({"command": []}, "spec.command: it is empty"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["x"] * 300}, "300 arguments"),
        ({"devices": 0}, "spec.devices: 0 is not between 1 and 64"),
        ({"regions": ["mars"]}, "there is no region 'mars'; those that exist: east"),
        ({"env": [records_pb2.Label(key="GRIDKEEPER_EPOCH", value="9")]}, "set by Gridkeeper itself"),
        ({"env": [records_pb2.Label(key="A=B", value="9")]}, "no name of a variable"),
        ({"workdir": "/tmp/../etc"}, "no absolute path without"),
        ({"grace_ms": -1}, "spec.grace_ms"),
        ({"max_restarts": 10_000}, "spec.max_restarts"),
        ({"model": "$(reboot)"}, "spec.model"),
    ],
)
async def test_a_bad_spec_is_refused_by_field(client: GridClient, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await client.submit_job(_spec(**fields))


async def test_stopping_a_job(client: GridClient, grid: FakeGrid) -> None:
    with pytest.raises(NotFound, match="job 'train' is not in the grid"):
        await client.stop_job("train")
    await client.submit_job(_spec())
    await client.stop_job("train", "no longer needed")
    assert grid.world().jobs[JobId("train")].record.desired.value == "stop"
    assert "being stopped already" in (await client.stop_job("train")).sentence


async def test_moving_a_job(client: GridClient, grid: FakeGrid) -> None:
    grid.put(KEYS.region(RegionId("west")), records.region("west"))
    grid.put(KEYS.job(JobId("train")), records.job())
    grid.put(KEYS.ownership(JobId("train")), records.ownership())
    with pytest.raises(Refused, match="not running yet"):
        await client.migrate_job("train", "west")
    grid.put(KEYS.run(JobId("train"), 1, 1), records.run())
    with pytest.raises(InvalidRequest, match=r"to_region: there is no region 'mars'; use one of east, west"):
        await client.migrate_job("train", "mars")
    act = await client.migrate_job("train", "west", "maintenance")
    (migration,) = grid.world().migrations.values()
    assert (migration.record.wanted_region, migration.record.requested_by) == ("west", "user/ann")
    assert act.objects == ("job/train", f"migration/{migration.record.id}")
    assert "being moved already" in (await client.migrate_job("train", "west", "maintenance")).sentence
    with pytest.raises(Refused, match="wait until it is over"):
        await client.migrate_job("train", "east")


async def test_job_logs(client: GridClient, grid: FakeGrid) -> None:
    grid.put(KEYS.job(JobId("train")), records.job())
    with pytest.raises(Unreachable, match="has not run yet"):
        await client.job_logs("train")
    grid.logs["train"] = b"step 1\nstep 2\n"
    assert await client.job_logs("train", 7) == ("east-1", b"step 2\n")
    with pytest.raises(InvalidRequest, match="tail_bytes: 70000"):
        await client.job_logs("train", 70_000)


async def test_the_ledger_is_read_a_page_at_a_time_from_both_stores(client: GridClient, grid: FakeGrid) -> None:
    """Protects: what both sides of a contract count is complete, each entry once, and of the time that was asked."""
    for scope, keys in (("device/east-1/gpu1", grid.keys), ("device/east-1/gpu10", grid.keys), ("job/train", KEYS)):
        for number in range(1, 6):
            entry = EntryRecord(scope, number, "2026-10", 10 * number, 10 * number + 10, UptimeClass.UP, "", ())
            grid.put(keys.entry(scope, number), entry)
    told = await client.ledger(0, 100)
    assert [(entry.scope, entry.sequence) for entry in told.entries] == [
        (scope, number)
        for scope in ("device/east-1/gpu1", "device/east-1/gpu10", "job/train")
        for number in range(1, 6)
    ]
    assert [entry.sequence for entry in (await client.ledger(20, 30, "device/east-1/gpu1")).entries] == [2]
    assert {entry.scope for entry in (await client.ledger(0, 100, "job/")).entries} == {"job/train"}
    with pytest.raises(InvalidRequest, match="until_ms: 5 is not after from_ms, 5"):
        await client.ledger(5, 5)
    grid.global_reachable = False
    away = await client.ledger(0, 100)
    assert len(away.entries) == 10 and "the global store's entries are missing" in away.partial[0]


async def test_sla_status_and_explanations(client: GridClient, grid: FakeGrid) -> None:
    grid.put(grid.keys.account("device/east-1/gpu0"), records.account())
    grid.put(grid.keys.incident("i1"), records.incident())
    status = await client.sla_status("device/east-1/gpu0")
    assert status.slas[0].account.scope == "device/east-1/gpu0"
    with pytest.raises(NotFound, match="sla"):
        await client.sla_status("device/none")
    told = await client.explain(api_pb2.KIND_INCIDENT, "i1")
    assert [link.step for link in told.chain] == ["health.step", "incident.open", "sla.fold"]
    told = await client.explain(api_pb2.KIND_REGION, "east")
    assert {"region.publish", "incident.open"} <= {link.step for link in told.chain}
    with pytest.raises(InvalidRequest, match="a breaker has no chain of evidence"):
        await client.explain(api_pb2.KIND_BREAKER, "region")


async def test_a_viewer_may_look_and_not_touch(servers: GridServers, grid: FakeGrid) -> None:
    async with servers.client(spiffe.user("bob", "viewer")) as viewer:
        assert (await viewer.list(api_pb2.KIND_NODE)).objects
        with pytest.raises(Refused, match="user/bob has the role viewer, and Drain needs operator"):
            await viewer.drain("east-1/gpu0", "")
        (told,) = await viewer.info()
        assert told.info is not None and (told.info.identity, told.info.role) == ("user/bob", "viewer")
    assert not grid.region().drain_requests


@pytest.mark.parametrize("identity", [spiffe.node("east", "east-1"), spiffe.replica("west", "west-a")], ids=str)
async def test_machines_may_not_use_the_api(servers: GridServers, grid: FakeGrid, identity: Any) -> None:
    async with servers.client(identity) as machine:
        with pytest.raises(Refused, match="use one issued to a user"):
            await machine.list(api_pb2.KIND_NODE)
        with pytest.raises(Refused, match="use one issued to a user"):
            async for _ in machine.watch((api_pb2.KIND_NODE,)):
                break


async def test_a_stranger_is_not_even_connected(servers: GridServers, grid: FakeGrid, tmp_path: Path) -> None:
    foreign = GridServers(tmp_path / "foreign")
    files = foreign.files(spiffe.user("eve", "admin"))
    ours = servers.config()
    mixed = type(ours.tls)(certificate=files.certificate, key=files.key, authority=ours.tls.authority)
    async with GridClient(type(ours)(ours.regions, mixed)) as stranger:
        with pytest.raises(Unreachable):
            await stranger.list(api_pb2.KIND_NODE)


async def test_hostile_bytes_end_the_call_and_nothing_else(servers: GridServers, grid: FakeGrid) -> None:
    credentials = channel_credentials(servers.config().tls)
    address = next(iter(servers.addresses.values()))
    async with grpc.aio.secure_channel(address, credentials) as channel:
        for method in api_pb2.DESCRIPTOR.services_by_name["Grid"].methods:
            if method.server_streaming:
                continue
            call: Any = channel.unary_unary(f"/gridkeeper.v1.Grid/{method.name}")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"\xff\xff\xff\xff\x0f", timeout=5)
        alive: Any = channel.unary_unary(
            "/gridkeeper.v1.Grid/Info", response_deserializer=api_pb2.InfoResponse.FromString
        )
        assert (await alive(b"", timeout=5)).region == "east"


async def test_health_and_reflection_are_on(servers: GridServers, grid: FakeGrid) -> None:
    credentials = channel_credentials(servers.config().tls)
    async with grpc.aio.secure_channel(next(iter(servers.addresses.values())), credentials) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        serving = health_pb2.HealthCheckResponse
        request = health_pb2.HealthCheckRequest(service="gridkeeper.v1.Grid")
        assert (await health.Check(request)).status == serving.SERVING
        grid.set_reachable(local=False)
        assert (await health.Check(request)).status == serving.NOT_SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
        stream = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await stream.read()
        services = {service.name for service in answer.list_services_response.service}
        assert {"gridkeeper.v1.Grid", "grpc.health.v1.Health"} <= services


async def test_a_watcher_that_does_not_read_does_not_hold_others_up(servers: GridServers, grid: FakeGrid) -> None:
    async with servers.client() as idle, servers.client() as busy:
        stuck = idle.watch((api_pb2.KIND_DEVICE,))
        await anext(stuck)
        reading = busy.watch((api_pb2.KIND_DEVICE,))
        device = records.device("east-1/gpu0").id
        async with asyncio.timeout(20):
            async for change in reading:
                if isinstance(change, Synced):
                    for state in (HealthState.SUSPECT, HealthState.DEGRADED, HealthState.DRAINING) * 50:
                        grid.put(grid.keys.health(device), records.health(device, state))
                elif isinstance(change, Put) and change.object.labels["health"] == "draining":
                    break
        await reading.aclose()
        await stuck.aclose()


async def test_cordons_have_owners(servers: GridServers, client: GridClient, grid: FakeGrid) -> None:
    await client.cordon("east-1", "PSU swap", ttl_ms=60_000)
    async with servers.client(spiffe.user("bob", "operator")) as bob:
        await bob.cordon("east-1", "suspicious")
        held = grid.region().cordons["east-1"].record
        assert {(r.owner, r.expires_ms) for r in held.reasons} == {
            ("user/ann", grid.now().ledger_ms + 60_000),
            ("user/bob", 0),
        }
        assert "already" in (await bob.cordon("east-1", "suspicious")).sentence
        await client.uncordon("east-1")
        assert [r.owner for r in grid.region().cordons["east-1"].record.reasons] == ["user/bob"]
        again = await client.uncordon("east-1")
        assert "user/ann has no cordon on east-1" in again.sentence and "cordoned by user/bob" in again.sentence
        await bob.uncordon("east-1")
    assert "east-1" not in grid.region().cordons
    budget = grid.region().budgets["region"].record
    assert budget.holds == ()  # what was held for the cordons is free again
    with pytest.raises(InvalidRequest, match="ttl_ms: -1 is not between 0"):
        await client.cordon("east-1", "", ttl_ms=-1)


async def test_maintenance_is_announced_and_ended_by_any_operator(
    servers: GridServers, client: GridClient, grid: FakeGrid
) -> None:
    """Its time is excluded from the books; nobody ends it by taking back a cordon of their own."""
    announced = await client.cordon("east-1", "new fans", ttl_ms=3_600_000, maintenance=True)
    assert "new fans (announced by user/ann)" in announced.sentence
    device = next(held.record for held in grid.region().health.values() if held.record.node == "east-1")
    standing = uptime.of_device(grid.region(), device)
    assert standing.uptime is UptimeClass.EXCLUDED and standing.reason.endswith("new fans (announced by user/ann)")
    async with servers.client(spiffe.user("bob", "operator")) as bob:
        await bob.cordon("east-1", "suspicious")
        assert "still cordoned by maintenance" in (await bob.uncordon("east-1")).sentence
        assert "'gridkeeper uncordon east-1 --maintenance' ends" in (await bob.uncordon("east-1")).sentence
        ended = await bob.uncordon("east-1", "fans are in", maintenance=True)
        assert "fans are in (ended by user/bob)" in ended.sentence
    assert "east-1" not in grid.region().cordons
    assert uptime.of_device(grid.region(), device).uptime is not UptimeClass.EXCLUDED


async def test_a_cordon_counts_in_the_budgets(client: GridClient, grid: FakeGrid) -> None:
    await client.cordon("east-1/gpu0", "a test")
    holds = grid.region().budgets["region"].record.holds
    assert [(hold.device, hold.ref) for hold in holds] == [("east-1/gpu0", "user/ann")]
    shown = await client.get(api_pb2.KIND_DEVICE, "east-1/gpu0")
    assert shown.labels["cordoned"] == "true" and shown.device.cordon.reasons[0].reason == "a test"


async def test_cancelling_a_drain(client: GridClient, grid: FakeGrid) -> None:
    grid.put(grid.keys.drain("d1"), records.drain(incident=""))
    device = records.device().id
    grid.put(grid.keys.health(device), records.health(device, HealthState.DRAINING, drain="d1"))
    await client.cancel_drain("d1", "false alarm")
    assert grid.region().drains["d1"].record.state is DrainState.CANCELLED
    assert grid.region().health[device].record.state is not HealthState.DRAINING
    assert "already" in (await client.cancel_drain("d1", "")).sentence
    grid.put(grid.keys.drain("d2"), records.drain("d2", state=DrainState.DRAINED))
    with pytest.raises(Refused, match="uncordon"):
        await client.cancel_drain("d2", "")
