"""Pure: regions, nodes and devices as users see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.rpc.rows import Inputs, KindSpec, Scene, message, new_object, word, yes
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId
from gridkeeper.records.fleet import HealthState, NodeState
from gridkeeper.records.jobs import TERMINAL_JOB
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

USABLE = frozenset({HealthState.HEALTHY, HealthState.SUSPECT})


def _region_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    region = scene.region
    replicas = tuple(v for _, v in sorted(region.replicas.items()))
    budgets = tuple(v for _, v in sorted(region.budgets.items()))
    yield region.region, (scene.world.regions.get(region.region), budgets, replicas, scene.leader)


def _region(region: RegionId, name: str, inputs: Inputs) -> Object:
    record, budgets, replicas, leader = inputs
    # Only records of the region's own store date it: the global one may be another cluster with revisions of its own.
    labels = {"region": region, "leader": leader, "in_doubt": yes(bool(record and record.record.in_doubt))}
    item = new_object(api_pb2.KIND_REGION, name, region, (budgets, replicas), labels)
    item.region_view.CopyFrom(
        api_pb2.RegionView(
            record=message(record),
            budgets=[message(budget) for budget in budgets],
            leader=leader,
            replicas=[message(replica) for replica in replicas],
        )
    )
    return item


# -- nodes and devices --------------------------------------------------------------------------------------------


def device_jobs(region: RegionState, world: GlobalState) -> dict[DeviceId, JobId]:
    """Which job holds which device of this region: by ownership while the job is not over, and by reservation."""
    held: dict[DeviceId, JobId] = {}
    for job, owner in world.ownership.items():
        record = world.jobs.get(job)
        if owner.record.region == region.region and record and record.record.state not in TERMINAL_JOB:
            held.update(dict.fromkeys(owner.record.devices, job))
    for job, reservation in region.reservations.items():
        held.update(dict.fromkeys(reservation.record.devices, job))
    return held


def _usable(region: RegionState, node: NodeId, devices: Iterable[DeviceId]) -> int:
    """Healthy or suspect, present, not cordoned, on a live node."""
    liveness = region.liveness.get(node)
    if liveness is None or liveness.record.state is not NodeState.ALIVE or node in region.cordons:
        return 0
    count = 0
    for device in devices:
        record, health = region.devices.get(device), region.health.get(device)
        if record and record.record.present and health and health.record.state in USABLE:
            count += device not in region.cordons
    return count


def _node_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    region = scene.region
    for name, node in region.nodes.items():
        usable = _usable(region, name, node.record.devices)
        session = region.sessions.get(name)
        yield name, (node, region.liveness.get(name), region.cordons.get(name), session, usable)


def _node(region: RegionId, name: str, inputs: Inputs) -> Object:
    node, liveness, cordon, session, usable = inputs
    labels = {label.key: label.value for label in node.record.labels}
    labels |= {
        "region": region,
        "rack": node.record.rack,
        "state": word(liveness.record.state) if liveness else "unknown",
        "cordoned": yes(cordon is not None),
    }
    item = new_object(api_pb2.KIND_NODE, name, region, inputs, labels)
    item.node.CopyFrom(
        api_pb2.NodeView(
            record=message(node),
            liveness=message(liveness),
            cordon=message(cordon),
            replica=session.record.replica if session and session.record.open else "",
            heard_age_ms=-1,
            devices_usable=usable,
        )
    )
    return item


def _device_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    region = scene.region
    jobs = device_jobs(region, scene.world)
    for name, device in region.devices.items():
        node_cordon = region.cordons.get(device.record.node)
        yield (
            name,
            (device, region.health.get(name), region.cordons.get(name), node_cordon is not None, jobs.get(name, "")),
        )


def _device(region: RegionId, name: str, inputs: Inputs) -> Object:
    device, health, cordon, node_cordoned, job = inputs
    record = device.record
    labels = {
        "region": region,
        "rack": record.rack,
        "node": record.node,
        "vendor": record.vendor,
        "model": record.model,
        "health": word(health.record.state) if health else word(HealthState.UNKNOWN),
        "job": job,
        "present": yes(record.present),
        "cordoned": yes(cordon is not None or node_cordoned),
    }
    item = new_object(api_pb2.KIND_DEVICE, name, region, inputs, labels)
    item.device.CopyFrom(
        api_pb2.DeviceView(
            record=message(device), health=message(health), cordon=message(cordon), job=job, metrics_age_ms=-1
        )
    )
    return item


FLEET: tuple[KindSpec, ...] = (
    KindSpec(
        api_pb2.KIND_REGION,
        ("region", "leader", "in_doubt"),
        lambda s: (s.world.regions, s.region.budgets, s.region.replicas, s.leader),
        _region_rows,
        _region,
    ),
    KindSpec(
        api_pb2.KIND_NODE,
        ("region", "rack", "state", "cordoned"),
        lambda s: (
            s.region.nodes,
            s.region.liveness,
            s.region.cordons,
            s.region.sessions,
            s.region.devices,
            s.region.health,
        ),
        _node_rows,
        _node,
    ),
    KindSpec(
        api_pb2.KIND_DEVICE,
        ("region", "rack", "node", "vendor", "model", "health", "job", "present", "cordoned"),
        lambda s: (
            s.region.devices,
            s.region.health,
            s.region.cordons,
            s.region.reservations,
            s.world.ownership,
            s.world.jobs,
        ),
        _device_rows,
        _device,
    ),
)
