"""Which devices of a region a job is given. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from failover.domain.eligible import barred, drained_devices, eligible
from failover.domain.evidence import open_incidents
from failover.domain.holders import Holders, Room
from gridkeeper.decision import Guard, Versioned, guards_of
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, ReservationRecord
from gridkeeper.snapshot import GlobalState, RegionState


@dataclass(frozen=True, slots=True)
class Place:
    """All of a job's devices, on one node."""

    node: NodeId
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why there is no place, as a sentence."""

    sentence: str


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
    fit = eligible(state).get(record.node, ())
    for device in record.devices:
        if device not in fit:
            drained = "a drain keeps new work off it" if device in drained_devices(state) else ""
            return f"{device}: {barred(state, device) or drained}"
        if device in excluded:
            return f"{device}: the job is to leave it"
        others = holders.others(device, record.job, reservation.revision)
        if others:
            return f"{device}: {', '.join(others)} holds it"
    return ""
