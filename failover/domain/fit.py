"""What a migration asks a region for, and whether what was reserved for it is still good. Pure."""

from __future__ import annotations

from failover.domain.eligible import barred, drained_devices, eligible
from failover.domain.evidence import open_incidents
from failover.domain.holders import Holders, Room
from failover.domain.places import DEFAULT_WEIGHTS, Found, NoRoom, Place, Request, place
from gridkeeper.decision import Guard, Versioned, guards_of
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import PlacementWeights
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, ReservationRecord
from gridkeeper.snapshot import GlobalState, RegionState


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


def request_of(state: RegionState, world: GlobalState, spec: JobSpec, migration: MigrationRecord) -> Request:
    """What a migration asks this region for. The node that the job is to leave is taken last."""
    owner = world.ownership.get(migration.job)
    here = owner is not None and owner.record.region == state.region
    last = frozenset({owner.record.node}) if owner is not None and here else frozenset[NodeId]()
    return Request(migration.job, max(1, spec.devices), 1, spec.model, blamed(state, world, migration), last)


def find_place(
    state: RegionState,
    world: GlobalState,
    spec: JobSpec,
    migration: MigrationRecord,
    room: Room,
    holders: Holders,
    weights: PlacementWeights = DEFAULT_WEIGHTS,
) -> Found | NoRoom:
    """A place for a migration that comes here, with what else was considered."""
    return place(state, request_of(state, world, spec, migration), room, holders, weights)


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
