"""Pure: regions, nodes and devices as users see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.rpc.rows import Inputs, KindSpec, Scene, changed_values, differing, message, new_object, word, yes
from gridkeeper.ids import DeviceId, NodeId, RegionId
from gridkeeper.records.fleet import HealthState, NodeState
from gridkeeper.snapshot import RegionState
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

USABLE = frozenset({HealthState.HEALTHY, HealthState.SUSPECT})


def _region_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    region = scene.region
    replicas = tuple(v for _, v in sorted(region.replicas.items()))
    budgets = tuple(v for _, v in sorted(region.budgets.items()))
    yield (
        region.region,
        (
            scene.world.regions.get(region.region),
            budgets,
            replicas,
            scene.leader,
            scene.world.grants.get(region.region),
            scene.world.losses.get(region.region),
        ),
    )


def _region(region: RegionId, name: str, inputs: Inputs) -> Object:
    record, budgets, replicas, leader, grant, loss = inputs
    # Only records of the region's own store date it: the global one may be another cluster with revisions of its own.
    labels = {
        "region": region,
        "leader": leader,
        "in_doubt": yes(bool(record and record.record.in_doubt)),
        "lost": yes(bool(grant and grant.record.revoked)),
    }
    item = new_object(api_pb2.KIND_REGION, name, region, (budgets, replicas), labels)
    item.region_view.CopyFrom(
        api_pb2.RegionView(
            record=message(record),
            budgets=[message(budget) for budget in budgets],
            leader=leader,
            replicas=[message(replica) for replica in replicas],
            grant=message(grant),
            loss=message(loss),
        )
    )
    return item


# -- nodes and devices --------------------------------------------------------------------------------------------


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


def _node_row(scene: Scene, key: str) -> Inputs:
    region, name = scene.region, NodeId(key)
    node = region.nodes[name]
    usable = _usable(region, name, node.record.devices)
    return node, region.liveness.get(name), region.cordons.get(name), region.sessions.get(name), usable


def _node_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    return ((name, _node_row(scene, name)) for name in scene.region.nodes)


def _nodes_touched(before: Scene, now: Scene) -> set[str] | None:
    old, new = before.region, now.region
    if old.nodes.keys() != new.nodes.keys():
        return None
    keys: set[str] = {*differing(old.nodes, new.nodes), *differing(old.liveness, new.liveness)}
    sessions = differing(old.sessions, new.sessions)
    keys.update(sessions)
    parts: set[str] = {*differing(old.devices, new.devices), *differing(old.health, new.health)}
    keys |= {part.partition("/")[0] for part in parts | differing(old.cordons, new.cordons)}
    return keys & new.nodes.keys()


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


def _device_row(scene: Scene, key: str) -> Inputs:
    region, name = scene.region, DeviceId(key)
    device = region.devices[name]
    node_cordoned = device.record.node in region.cordons
    return device, region.health.get(name), region.cordons.get(name), node_cordoned, scene.device_jobs.get(name, "")


def _device_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    return ((name, _device_row(scene, name)) for name in scene.region.devices)


def _devices_touched(before: Scene, now: Scene) -> set[str] | None:
    old, new = before.region, now.region
    if old.devices.keys() != new.devices.keys():
        return None
    keys: set[str] = {*differing(old.devices, new.devices), *differing(old.health, new.health)}
    cordoned = differing(old.cordons, new.cordons)
    keys |= cordoned
    nodes = {target for target in cordoned if "/" not in target}
    if nodes:
        keys.update(name for name in new.devices if name.partition("/")[0] in nodes)
    held_by_others = changed_values(before.device_jobs, now.device_jobs)
    keys.update(held_by_others)
    return keys & new.devices.keys()


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
        ("region", "leader", "in_doubt", "lost"),
        lambda s: (
            s.world.regions,
            s.region.budgets,
            s.region.replicas,
            s.leader,
            s.world.grants,
            s.world.losses,
        ),
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
        _nodes_touched,
        _node_row,
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
        _devices_touched,
        _device_row,
    ),
)
