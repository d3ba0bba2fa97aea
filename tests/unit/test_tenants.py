"""Protects: a job owner sees and moves the jobs of their namespaces, and learns nothing of anybody else's."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.rpc.auth import NEEDS, OWNED
from controlplane.rpc.tenant import KINDS, TenantViews
from gridkeeper.client import InvalidRequest, NotFound, Put, Refused, Synced
from gridkeeper.identity import spiffe
from gridkeeper.identity.spiffe import Identity, UserRole
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ids import DeviceId, JobId
from gridkeeper.keys import KEYS
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.v1 import api_pb2, records_pb2
from tests.fixtures import records
from tests.fixtures.filled import every_kind, fleet
from tests.fixtures.grid import FakeGrid
from tests.fixtures.gridserver import GridServers

OWNER = spiffe.user("bob", "job-owner", "vision")
SECRET = "skunkworks"


def tenants() -> FakeGrid:
    """Job ``train`` of namespace ``vision`` on ``east-1/gpu0``; job ``skunkworks`` of ``speech`` on ``east-1/gpu1``."""
    grid = every_kind(fleet())
    for name, space, device in (("train", "vision", "east-1/gpu0"), (SECRET, "speech", "east-1/gpu1")):
        job = records.job(name)
        grid.put(KEYS.job(JobId(name)), dataclasses.replace(job, spec=dataclasses.replace(job.spec, namespace=space)))
        owner = dataclasses.replace(records.ownership(name), devices=(DeviceId(device),))
        grid.put(KEYS.ownership(JobId(name)), owner)
        grid.put(KEYS.run(JobId(name), 1, 1), records.run(name))
        grid.put(KEYS.head(JobId(name)), records.head(name))
        grid.put(KEYS.checkpoint(JobId(name), 40), records.checkpoint(name))
        grid.put(KEYS.account(f"job/{name}"), records.account(f"job/{name}"))
        grid.put(grid.keys.account(f"device/{device}"), records.account(f"device/{device}"))
    other = dataclasses.replace(records.migration(), job=JobId(SECRET), id=type(records.migration().id)("m-secret"))
    grid.put(KEYS.migration(other.id), other)
    return grid


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    made = GridServers(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def grid(servers: GridServers) -> FakeGrid:
    made = tenants()
    await servers.start(made)
    return made


SEEN = {
    api_pb2.KIND_JOB: ["train"],
    api_pb2.KIND_DEVICE: ["east-1/gpu0"],
    api_pb2.KIND_CHECKPOINT: ["train/40"],
    api_pb2.KIND_MIGRATION: [str(records.migration().id)],
    api_pb2.KIND_SLA: ["device/east-1/gpu0", "job/train"],
}


async def test_listings_hold_their_own_and_other_kinds_are_refused(servers: GridServers, grid: FakeGrid) -> None:
    assert set(SEEN) == KINDS
    async with servers.client(OWNER) as client:
        for kind in BY_NUMBER:
            if kind in SEEN:
                assert sorted(item.name for item in (await client.list(kind)).objects) == SEEN[kind]
            else:
                with pytest.raises(Refused, match="not shown to a job owner"):
                    await client.list(kind)


async def test_what_is_not_theirs_is_not_there_not_even_as_a_hint(servers: GridServers, grid: FakeGrid) -> None:
    async with servers.client(OWNER) as client:
        asks: list[Any] = [
            client.get(api_pb2.KIND_JOB, SECRET),
            client.get(api_pb2.KIND_JOB, "skunk"),
            client.get(api_pb2.KIND_DEVICE, "east-1/gpu1"),
            client.explain(api_pb2.KIND_JOB, SECRET),
            client.stop_job(SECRET),
            client.migrate_job(SECRET, "east"),
            client.job_logs(SECRET),
            client.sla_status(f"job/{SECRET}"),
        ]
        for ask in asks:
            with pytest.raises(NotFound) as missing:
                await ask
            hint = str(missing.value).partition("did you mean")[2]
            assert SECRET not in hint and "gpu1" not in hint
        spec = records_pb2.JobSpec(name=SECRET, command=["true"], devices=1)
        with pytest.raises(Refused, match="is taken; use another name") as taken:
            await client.submit_job(spec)
        assert "speech" not in str(taken.value)
    assert grid.world().jobs[JobId(SECRET)].record.desired.value == "run"


async def test_a_watch_tells_of_their_own_only(servers: GridServers, grid: FakeGrid) -> None:
    async with servers.client(OWNER) as client:
        watch = client.watch(tuple(SEEN))
        names = set()
        async for change in watch:
            if isinstance(change, Put):
                names.add(change.object.name)
                assert SECRET not in str(change.object)
            if isinstance(change, Synced):
                break
        await watch.aclose()
        assert names == {name for listed in SEEN.values() for name in listed}


async def test_they_submit_into_their_namespace_and_no_other(servers: GridServers, grid: FakeGrid) -> None:
    async with servers.client(OWNER) as client:
        await client.submit_job(records_pb2.JobSpec(name="mine", command=["true"], devices=1))
        assert grid.world().jobs[JobId("mine")].record.spec.namespace == "vision"
        await client.stop_job("mine")
        with pytest.raises(Refused, match="'speech' is not yours; use vision"):
            await client.submit_job(records_pb2.JobSpec(name="theirs", namespace="speech", command=["true"], devices=1))
        with pytest.raises(InvalidRequest, match="command"):
            await client.submit_job(records_pb2.JobSpec(name="theirs", devices=1))
    assert JobId("theirs") not in grid.world().jobs


def test_a_tenants_part_is_the_same_object_until_something_in_it_changes() -> None:
    """Protects: caches above keep working; and what does not decode is told without others' names."""
    grid = tenants()
    views = TenantViews(grid, ("vision",))
    one, two = views.world(), views.world()
    assert one.jobs is two.jobs and views.region().devices is views.region().devices
    grid.suspect = frozenset({f"{KEYS.prefix('jobs')}{SECRET}", grid.keys.device(DeviceId("east-1/gpu1"))})
    shown = " ".join(views.region().suspect_keys)
    assert SECRET not in shown and "gpu1" not in shown and len(views.region().suspect_keys) == 2


ROLES: list[Identity] = [
    spiffe.user("vic", "viewer"),
    spiffe.user("ann", "operator"),
    spiffe.user("adm", "admin"),
    OWNER,
    spiffe.user("eve", "job-owner", "speech"),
    spiffe.node("east", "east-1"),
    spiffe.node("west", "west-1"),
    spiffe.replica("east", "east-r1"),
    spiffe.store("etcd"),
]


@pytest.mark.parametrize("identity", ROLES, ids=str)
async def test_every_call_as_everybody(servers: GridServers, grid: FakeGrid, identity: Identity) -> None:
    """Protects: over the wire each RPC is open to who may call it and closed to all others, with an audit entry."""
    files = servers.files(identity)
    order = [UserRole.VIEWER, UserRole.OPERATOR, UserRole.ADMIN]
    refused = 0
    async with grpc.aio.secure_channel(servers.addresses["east-1"], channel_credentials(files)) as channel:
        for method in api_pb2.DESCRIPTOR.services_by_name["Grid"].methods:
            request: Any = getattr(api_pb2, method.input_type.name)()
            kind = method.input_type.fields_by_name.get("kind")
            if kind is not None and kind.enum_type is not None:
                request.kind = api_pb2.KIND_JOB
            if hasattr(request, "kinds"):
                request.kinds.append(api_pb2.KIND_JOB)
            path = f"/{method.containing_service.full_name}/{method.name}"
            call: Any
            data = request.SerializeToString()
            if method.server_streaming:
                call = channel.unary_stream(path)(data, timeout=5).read()
            else:
                call = channel.unary_unary(path)(data, timeout=5)
            try:
                await call
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
            if identity.role is None:
                allowed = False
            elif identity.role is UserRole.JOB_OWNER:
                allowed = method.name in OWNED
            else:
                allowed = order.index(identity.role) >= order.index(NEEDS[method.name])
            refused += not allowed
            assert (code is not grpc.StatusCode.PERMISSION_DENIED) == allowed, (method.name, code)
    await servers.books["east-1"].flush()
    trail = [held.record for key, held in grid.local.data.items() if key.startswith(grid.keys.prefix("audit"))]
    entries = [entry for entry in trail if entry.result == "refused"]
    assert len([entry for entry in entries if entry.actor == str(identity)]) >= refused
    assert all(entry.origin == "127.0.0.1" and entry.trace for entry in entries)
