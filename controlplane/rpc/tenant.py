"""What a job owner sees of the grid: a part of both stores in which there is nothing of anybody else.

Every answer is made from ``Views``; a job owner's are made from ``TenantViews``, so that no listing, watch, explanation
or hint about a similar name can tell of others. Part of it are the jobs of the namespaces with their runs, checkpoints,
migrations and accounts, and the devices that these jobs hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import grpc

from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.rows import device_jobs
from controlplane.rpc.sources import DeviceTelemetry, Newest, ReplicaInfo, Samples, Views
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, node_of
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.memo import Memo
from gridkeeper.records.jobs import JobRecord
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1 import api_pb2

K = TypeVar("K", bound=str)
V = TypeVar("V")

KINDS = frozenset(
    {
        api_pb2.KIND_JOB,
        api_pb2.KIND_MIGRATION,
        api_pb2.KIND_CHECKPOINT,
        api_pb2.KIND_SLA,
        api_pb2.KIND_DEVICE,
    }
)
"""What a job owner may list, watch, get and have explained."""

Jobs = Mapping[JobId, Versioned[JobRecord]]


def _jobs(jobs: Jobs, namespaces: tuple[str, ...]) -> Jobs:
    return {name: held for name, held in jobs.items() if held.record.spec.namespace in namespaces}


def _of_jobs(records: Mapping[K, V], own: Jobs) -> dict[K, V]:
    """By the job that their name is, or begins with."""
    return {name: held for name, held in records.items() if JobId(name.partition("/")[0]) in own}


def _migrations(migrations: Mapping[K, Versioned[Any]], own: Jobs) -> dict[K, Versioned[Any]]:
    return {name: held for name, held in migrations.items() if held.record.job in own}


def _accounts(accounts: Mapping[str, V], own: Jobs, devices: Mapping[DeviceId, object]) -> dict[str, V]:
    scopes = {f"job/{job}" for job in own} | {f"device/{device}" for device in devices}
    return {scope: held for scope, held in accounts.items() if scope in scopes}


def _named(records: Mapping[K, V], names: Mapping[DeviceId, object]) -> dict[K, V]:
    """Of these devices, and of their nodes."""
    wanted = {str(name) for name in names} | {node_of(name) for name in names}
    return {name: held for name, held in records.items() if name in wanted}


def _devices(
    region: RegionId, devices: Mapping[DeviceId, V], reservations: Any, ownership: Any, jobs: Any
) -> dict[DeviceId, V]:
    """Those that the jobs hold."""
    held = device_jobs(
        RegionState(region=region, reservations=reservations), GlobalState(ownership=ownership, jobs=jobs)
    )
    return {name: device for name, device in devices.items() if name in held}


def _suspect(keys: frozenset[str], own: Jobs) -> frozenset[str]:
    """Keys that do not decode: those of others without their names, since what they stood for may be ours."""
    shown = set()
    for key in keys:
        parts = key.split("/")
        kind = 6 if parts[3:4] == ["region"] else 5
        shown.add(key if any(JobId(part) in own for part in parts) else "/".join(parts[:kind]))
    return frozenset(shown)


_NO_DEVICES: dict[DeviceId, object] = {}


class TenantViews:
    """``Views`` of one set of namespaces."""

    def __init__(self, views: Views, namespaces: tuple[str, ...]) -> None:
        self._views = views
        self._namespaces = namespaces
        self._memos: dict[str, Memo] = {}
        self._world_memo, self._region_memo = Memo(), Memo()

    def _once(self, what: str, function: Any, *inputs: Any) -> Any:
        """The same mapping as last time while it was made of the same ones: what is cached upon it stays good."""
        return self._memos.setdefault(what, Memo()).once(function, *inputs)

    def world(self) -> GlobalState:
        whole = self._views.world()
        own: Jobs = self._once("jobs", _jobs, whole.jobs, self._namespaces)
        return GlobalState(
            revision=whole.revision,
            fresh=whole.fresh,
            generation=whole.generation,
            jobs=own,
            ownership=self._once("ownership", _of_jobs, whole.ownership, own),
            runs=self._once("runs", _of_jobs, whole.runs, own),
            heads=self._once("heads", _of_jobs, whole.heads, own),
            checkpoints=self._once("checkpoints", _of_jobs, whole.checkpoints, own),
            migrations=self._once("migrations", _migrations, whole.migrations, own),
            regions=whole.regions,
            losses=whole.losses,
            accounts=self._once("accounts", _accounts, whole.accounts, own, _NO_DEVICES),
            suspect_keys=_suspect(whole.suspect_keys, own),
            memo=self._world_memo,
        )

    def region(self) -> RegionState:
        """The devices in use by the namespaces' jobs, and nothing else of the region."""
        whole, world = self._views.region(), self.world()
        reservations = self._once("reservations", _of_jobs, whole.reservations, world.jobs)
        devices = self._once(
            "devices", _devices, whole.region, whole.devices, reservations, world.ownership, world.jobs
        )
        return RegionState(
            region=whole.region,
            revision=whole.revision,
            devices=devices,
            health=self._once("health", _named, whole.health, devices),
            cordons=self._once("cordons", _named, whole.cordons, devices),
            reservations=reservations,
            accounts=self._once("own accounts", _accounts, whole.accounts, world.jobs, devices),
            suspect_keys=_suspect(whole.suspect_keys, world.jobs),
            memo=self._region_memo,
        )

    async def changed(self, after: int) -> int:
        return await self._views.changed(after)

    def telemetry(self, device: DeviceId, recent: bool) -> DeviceTelemetry | None:
        return self._views.telemetry(device, recent)  # asked only for devices that ``region`` shows

    def samples(self, after: int) -> Samples:
        raise _not_for_owners("samples")

    def newest(self, metrics: Sequence[str], devices: Sequence[DeviceId]) -> Newest:
        raise _not_for_owners("samples")

    def heard_age_ms(self, node: NodeId) -> int:
        return -1

    def info(self) -> ReplicaInfo:
        return self._views.info()

    def now(self) -> Now:
        return self._views.now()


def checked_request(rpc: str, request: Any, namespaces: tuple[str, ...], everything: Views) -> Any:
    """The request of a job owner, with its namespace filled in. Raises ``Refusal`` for what is not theirs to ask."""
    if rpc in ("List", "Get", "Explain", "Watch"):
        for kind in request.kinds if rpc == "Watch" else (request.kind,):
            if kind in BY_NUMBER and kind not in KINDS:
                raise _not_for_owners(BY_NUMBER[kind].plural)
    if rpc != "SubmitJob":
        return request
    wanted = request.spec.namespace or (namespaces[0] if len(namespaces) == 1 else "")
    if not wanted:
        raise invalid(f"spec.namespace: it is empty, and you have several; name one of {', '.join(namespaces)}")
    if wanted not in namespaces:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"spec.namespace: {wanted[:80]!r} is not yours; use {' or '.join(namespaces)}",
        )
    held = everything.world().jobs.get(JobId(request.spec.name))
    if held is not None and held.record.spec.namespace not in namespaces:
        raise Refusal(
            grpc.StatusCode.ALREADY_EXISTS, f"spec.name: {request.spec.name[:80]!r} is taken; use another name"
        )
    filled = api_pb2.SubmitJobRequest()
    filled.CopyFrom(request)
    filled.spec.namespace = wanted
    return filled


def _not_for_owners(what: str) -> Refusal:
    words = ", ".join(sorted(BY_NUMBER[kind].plural for kind in KINDS))
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED, f"{what} are not shown to a job owner; these are, of your own: {words}"
    )
