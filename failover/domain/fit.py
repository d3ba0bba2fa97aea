"""What a migration asks a region for, and whether what was reserved for it is still good. Pure."""

from __future__ import annotations

from failover.domain.eligible import barred, drained_devices, eligible
from failover.domain.evidence import open_incidents
from failover.domain.gang import members_of, nodes_of
from failover.domain.holders import Holders, Room
from failover.domain.places import DEFAULT_WEIGHTS, Found, NoRoom, Place, Request, place
from gridkeeper.decision import Guard, Versioned, guards_of
from gridkeeper.ids import DeviceId, node_of
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import PlacementWeights
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, ReservationRecord
from gridkeeper.snapshot import GlobalState, RegionState

MOST_GUARDS = 120
"""A store compares 128 keys in a transaction (etcd's ``--max-txn-ops``), the reservation and the leader's key among
them."""


def relied_guards(state: RegionState, devices: tuple[DeviceId, ...]) -> tuple[Guard, ...]:
    """Guards on everything that made these devices eligible. None for a gang that is larger than a transaction: what
    has changed before its reservation was written is found by ``unfit``, which is asked of the state that has the
    reservation before anything is offered."""
    keys = RegionKeys(state.region)
    pairs: list[tuple[str, Versioned[object] | None]] = []
    for node in dict.fromkeys(map(node_of, devices)):
        pairs += [(keys.liveness(node), state.liveness.get(node)), (keys.cordon(node), state.cordons.get(node))]
    for device in devices:
        pairs += [
            (keys.cordon(device), state.cordons.get(device)),
            (keys.device(device), state.devices.get(device)),
            (keys.health(device), state.health.get(device)),
        ]
    return guards_of(pairs) if len(pairs) <= MOST_GUARDS else ()


def blamed(state: RegionState, world: GlobalState, migration: MigrationRecord) -> frozenset[DeviceId]:
    """Source devices that this migration must not come back to: those with an open incident, and all of them when the
    job is to leave while it runs; of a gang that leaves for a drain, all but what is out of order, since its good
    members stay. (What a drain takes out is barred for everybody.)"""
    owner = world.ownership.get(migration.job)
    if owner is None or owner.record.region != state.region or migration.kind is MigrationKind.START:
        return frozenset()
    gang = owner.record.spec.members > 1
    if migration.kind is MigrationKind.PLANNED and not (gang and migration.drain):
        return frozenset(owner.record.devices)
    suspects = {i.subject for i in open_incidents(state, owner.record.node, owner.record.devices)}
    return frozenset(d for d in owner.record.devices if d in suspects or node_of(d) in suspects)


def staying(
    state: RegionState, world: GlobalState, spec: JobSpec, migration: MigrationRecord, holders: Holders
) -> dict[int, Place]:
    """By rank: the members of a gang that are well, and keep their place. Their processes end before the new epoch
    starts there. A job on one node has none: when it moves, all of it does."""
    owner = world.ownership.get(migration.job)
    if spec.members == 1 or owner is None or owner.record.region != state.region:
        return {}
    if migration.kind is MigrationKind.START:
        return {}
    bad, fit = blamed(state, world, migration), eligible(state)
    found: dict[int, Place] = {}
    for member in members_of(owner.record.devices)[: spec.members]:
        good = [
            device
            for device in member.devices
            if device in fit.get(member.node, ()) and device not in bad and not holders.others(device, migration.job)
        ]
        if len(good) == len(member.devices) == max(1, spec.devices):
            found[member.rank] = Place(member.node, member.devices)
    return found


def request_of(
    state: RegionState, world: GlobalState, spec: JobSpec, migration: MigrationRecord, holders: Holders
) -> Request:
    """What a migration asks this region for. The nodes that the job is to leave are taken last, and spares of a gang
    are sought near the members that stay."""
    owner = world.ownership.get(migration.job)
    stay = tuple(place.node for place in staying(state, world, spec, migration, holders).values())
    last = nodes_of(owner.record) if owner is not None and owner.record.region == state.region else ()
    return Request(
        job=migration.job,
        devices=max(1, spec.devices),
        members=spec.members - len(stay),
        model=spec.model,
        avoid=blamed(state, world, migration),
        last=frozenset(last) - frozenset(stay),
        beside=stay,
    )


def find_place(
    state: RegionState,
    world: GlobalState,
    spec: JobSpec,
    migration: MigrationRecord,
    room: Room,
    holders: Holders,
    weights: PlacementWeights = DEFAULT_WEIGHTS,
) -> Found | NoRoom:
    """A place for each member of a job that comes here, by rank, with what else was considered."""
    stay = staying(state, world, spec, migration, holders)
    if len(stay) == spec.members:
        return Found(tuple(stay[rank] for rank in range(spec.members)), ())
    found = place(state, request_of(state, world, spec, migration, holders), room, holders, weights)
    if isinstance(found, NoRoom):
        return found
    new = iter(found.places)
    return Found(tuple(stay[rank] if rank in stay else next(new) for rank in range(spec.members)), found.considered)


def unfit(
    state: RegionState,
    spec: JobSpec,
    reservation: Versioned[ReservationRecord],
    holders: Holders,
    excluded: frozenset[DeviceId],
) -> str:
    """Why a reservation that no epoch uses yet is no longer good; "" if it is."""
    record = reservation.record
    if len(record.devices) != spec.all_devices:
        return f"{len(record.devices)} devices are reserved, {spec.all_devices} are needed"
    fit = eligible(state)
    for device in record.devices:
        if device not in fit.get(node_of(device), ()):
            drained = "a drain keeps new work off it" if device in drained_devices(state) else ""
            return f"{device}: {barred(state, device) or drained}"
        if device in excluded:
            return f"{device}: the job is to leave it"
        others = holders.others(device, record.job, reservation.revision)
        if others:
            return f"{device}: {', '.join(others)} holds it"
    return ""
