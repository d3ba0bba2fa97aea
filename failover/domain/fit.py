"""Which devices of a region a job may be given. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from failover.domain.evidence import open_incidents
from failover.domain.holders import Holders, Room
from failover.domain.indexes import living_owners
from gridkeeper.decision import Guard, Versioned, guards_of
from gridkeeper.hearing import heard
from gridkeeper.ids import DeviceId, NodeId, RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.faults import DrainRecord, DrainState, ReplicaRecord
from gridkeeper.records.fleet import (
    CordonRecord,
    DeviceRecord,
    HealthRecord,
    HealthState,
    LivenessRecord,
    NodeState,
    SessionRecord,
)
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, ReservationRecord
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.timings import Timings

BARRED_BY_DRAIN = frozenset(
    {DrainState.PLANNED, DrainState.ADMITTED, DrainState.EVACUATING, DrainState.REFUSED, DrainState.EXPIRED}
)
"""A drain in one of these states keeps new work off its device; a refused one too (rule 7)."""

HEALTHY = (HealthState.HEALTHY,)
USABLE = (HealthState.HEALTHY, HealthState.SUSPECT)


@dataclass(frozen=True, slots=True)
class Place:
    """All of a job's devices, on one node."""

    node: NodeId
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why there is no place, as a sentence."""

    sentence: str


def barred(state: RegionState, device: DeviceId) -> str:
    """Why nothing new is placed on this device; "" if it may be. What is missing or does not decode is unknown, and
    unknown is not healthy."""
    return _out(state, device, HEALTHY)


def usable(state: RegionState, device: DeviceId) -> bool:
    """It can run work: as ``barred``, but a suspect device still counts."""
    return not _out(state, device, USABLE)


def silent(state: RegionState, node: NodeId) -> bool:
    """Its session has ended, or the replica that held it is gone: not judged yet, but no place for new work."""
    return heard(state, node) is False


def _out(state: RegionState, device: DeviceId, good: tuple[HealthState, ...]) -> str:
    record = state.devices.get(device)
    if record is None:
        return "it is not in the inventory"
    node = record.record.node
    unread = state.suspect_keys and state.suspect_keys.intersection(relied_keys(RegionKeys(state.region), node, device))
    if unread:
        return f"{min(unread)} does not decode"
    why = _node_out(state, node)
    if why:
        return why
    if device in state.cordons:
        return f"{device} is cordoned"
    if not record.record.present:
        return "it is missing"
    health = state.health.get(device)
    if health is None or not any(health.record.state is state for state in good):
        return f"it is {health.record.state.value if health else 'of unknown health'}"
    if health.record.uuid and record.record.uuid != health.record.uuid:
        return "another card than the one that was judged is in it"
    return ""


def _node_out(state: RegionState, node: NodeId) -> str:
    liveness = state.liveness.get(node)
    if liveness is None or liveness.record.state is not NodeState.ALIVE:
        return f"node {node} is {liveness.record.state.value if liveness else 'not known to be alive'}"
    if silent(state, node):
        return f"node {node} is not heard now"
    return f"{node} is cordoned" if node in state.cordons else ""


def relied_keys(keys: RegionKeys, node: NodeId, device: DeviceId) -> tuple[str, ...]:
    """The keys that ``barred`` reads, as far as their change must undo a placement."""
    return (
        keys.liveness(node),
        keys.cordon(node),
        keys.cordon(device),
        keys.device(device),
        keys.health(device),
    )


def relied_guards(state: RegionState, place: Place) -> tuple[Guard, ...]:
    """Guards on everything that made these devices eligible."""
    keys = RegionKeys(state.region)
    pairs: list[tuple[str, Versioned[object] | None]] = [
        (keys.liveness(place.node), state.liveness.get(place.node)),
        (keys.cordon(place.node), state.cordons.get(place.node)),
    ]
    for device in place.devices:
        pairs += [
            (keys.cordon(device), state.cordons.get(device)),
            (keys.device(device), state.devices.get(device)),
            (keys.health(device), state.health.get(device)),
        ]
    return guards_of(pairs)


def drained_devices(state: RegionState) -> frozenset[DeviceId]:
    """Devices that a drain keeps new work off."""
    return state.memo.once(_drained_devices, state.drains)


def _drained_devices(drains: Mapping[str, Versioned[DrainRecord]]) -> frozenset[DeviceId]:
    return frozenset(d.record.device for d in drains.values() if d.record.state in BARRED_BY_DRAIN)


def eligible(state: RegionState) -> Mapping[NodeId, list[DeviceId]]:
    """Devices that may take new work, taken or not, by node, in order of the nodes' names."""
    return _every(state)[0]


def usable_count(state: RegionState) -> int:
    """How many devices are ``usable``."""
    return _every(state)[1]


def _every(state: RegionState) -> tuple[Mapping[NodeId, list[DeviceId]], int]:
    return state.memo.once(
        _look_at_all, state.region, state.devices, state.health, state.liveness, state.sessions, state.replicas,
        state.cordons, state.drains, state.suspect_keys,
    )  # fmt: skip


def _look_at_all(
    region: RegionId,
    devices: Mapping[DeviceId, Versioned[DeviceRecord]],
    health: Mapping[DeviceId, Versioned[HealthRecord]],
    liveness: Mapping[NodeId, Versioned[LivenessRecord]],
    sessions: Mapping[NodeId, Versioned[SessionRecord]],
    replicas: Mapping[str, Versioned[ReplicaRecord]],
    cordons: Mapping[str, Versioned[CordonRecord]],
    drains: Mapping[str, Versioned[DrainRecord]],
    suspect_keys: frozenset[str],
) -> tuple[Mapping[NodeId, list[DeviceId]], int]:
    """``eligible`` and ``usable_count``; no more of a state counts than what is handed in."""
    state = RegionState(
        region, devices=devices, health=health, liveness=liveness, sessions=sessions, replicas=replicas,
        cordons=cordons, drains=drains, suspect_keys=suspect_keys,
    )  # fmt: skip
    drained, nodes, count = drained_devices(state), dict[NodeId, list[DeviceId]](), 0
    out_of_question: dict[NodeId, bool] = {}
    for device, record in devices.items():
        node, held = record.record.node, health.get(device)
        if node not in out_of_question:  # what holds for a whole node is asked once
            out_of_question[node] = not suspect_keys and bool(_node_out(state, node))
        if out_of_question[node] or held is None or _out(state, device, USABLE):
            continue
        count += 1
        if held.record.state is HealthState.HEALTHY and device not in drained:
            nodes.setdefault(node, []).append(device)
    return dict(sorted(nodes.items())), count


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """``gpu10`` after ``gpu9``."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for char in f"{name}\0":
        if char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, char))
    return tuple(parts)


def occupied(state: RegionState, world: GlobalState, mono_ms: int, timings: Timings) -> Holders:
    """Jobs with a reservation, and jobs whose owning epoch may still be alive here."""
    holders = Holders()
    for job, reservation in state.reservations.items():
        holders.add(job, reservation.record.devices, reservation.revision)
    for ownership in living_owners(world, mono_ms, timings):
        if ownership.record.region == state.region:
            holders.add(ownership.record.job, ownership.record.devices, 0)
    return holders


def blamed(state: RegionState, world: GlobalState, migration: MigrationRecord) -> frozenset[DeviceId]:
    """Source devices that this migration must not come back to: those with an open incident, and all of them when the
    job is to leave while it runs. (What a drain takes out is barred for everybody.)"""
    owner = world.ownership.get(migration.job)
    if owner is None or owner.record.region != state.region or migration.kind is MigrationKind.START:
        return frozenset()
    if migration.kind is MigrationKind.PLANNED:
        return frozenset(owner.record.devices)
    suspects = {i.subject for i in open_incidents(state, owner.record.node, owner.record.devices)}
    if owner.record.node in suspects:
        return frozenset(owner.record.devices)
    return frozenset(d for d in owner.record.devices if d in suspects)


def find_place(
    state: RegionState, world: GlobalState, spec: JobSpec, migration: MigrationRecord, room: Room, holders: Holders
) -> Place | NoRoom:
    """Devices for the whole gang on one node.

    Among the nodes with room: not the source node, then fewest open incidents, then the fewest free devices left over
    (so that large gaps stay together), then by name.
    """
    excluded = blamed(state, world, migration)
    owner = world.ownership.get(migration.job)
    source_node = owner.record.node if owner is not None and owner.record.region == state.region else NodeId("")
    need = max(1, spec.devices)
    own = {state.devices[d].record.node for d in holders.by_job.get(migration.job, ()) if d in state.devices}

    def free(node: NodeId) -> list[DeviceId]:
        devices = room.candidates.get(node, ()) if node in own else room.free(node)
        return [
            d
            for d in devices
            if d not in excluded
            and not holders.others(d, migration.job)
            and holders.by_device.get(d, {}).get(migration.job) != 0
            and (not spec.model or state.devices[d].record.model == spec.model)
        ]

    best: tuple[tuple[int, int, int, str], Place] | None = None
    special = sorted({*own, source_node})
    for node in chain(special, room.nodes(need)):
        devices = free(node)
        if len(devices) < need:
            continue
        chosen = tuple(sorted(devices, key=_natural)[:need])
        troubled = sum(1 for _ in open_incidents(state, node, chosen))
        score = (int(node == source_node), troubled, len(devices) - len(chosen), str(node))
        if best is None or score < best[0]:
            best = (score, Place(node, chosen))
        if not troubled and not spec.model and node not in special:
            break  # those that follow leave more free devices over, or come later by name
    if best is not None:
        return best[1]
    most = max((len(free(node)) for node in own), default=0)
    for count, node in room.fullest_first():
        if count <= most:
            break
        most = max(most, len(free(node)))
    model = f" of model {spec.model}" if spec.model else ""
    return NoRoom(f"no node of {state.region} has {need} free healthy devices{model} together (most: {most})")


def unfit(
    state: RegionState,
    spec: JobSpec,
    reservation: Versioned[ReservationRecord],
    holders: Holders,
    excluded: frozenset[DeviceId],
) -> str:
    """Why a reservation that no epoch uses yet is no longer good; "" if it is."""
    record = reservation.record
    if len(record.devices) != max(1, spec.devices):
        return f"{len(record.devices)} devices are reserved, {spec.devices} are needed"
    drained = drained_devices(state)
    for device in record.devices:
        why = barred(state, device) or ("a drain keeps new work off it" if device in drained else "")
        if why:
            return f"{device}: {why}"
        if device in excluded:
            return f"{device}: the job is to leave it"
        others = holders.others(device, record.job, reservation.revision)
        if others:
            return f"{device}: {', '.join(others)} holds it"
    return ""
