"""Devices for jobs that come to this region. Pure; decided by the region's leader.

What spans both stores is a saga: devices are reserved here first (``decide_reservations``, region store), then offered
(``decide_offers``, global store), and only then does the global leader move the ownership on to them, comparing the
offer's revision. A reservation that its migration no longer wants, or that is no longer good, is released once its
offer is gone: until then the ownership may move on to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from failover.domain.domains import incident_points
from failover.domain.eligible import usable_count
from failover.domain.fit import blamed, find_place, relied_guards, unfit
from failover.domain.grants import grant_guard
from failover.domain.holders import FUTURE, Holders, Room
from failover.domain.indexes import LANDED, active_migrations, current_offer, is_active, unreadable, wants_to_run
from failover.domain.occupancy import occupied
from failover.domain.places import Found, NoRoom
from gridkeeper.decision import ABSENT, Decision, Delete, Guard, Now, Put, Versioned
from gridkeeper.hearing import in_doubt
from gridkeeper.ids import DeviceId, JobId, NodeId, ReplicaId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.fleet import LivenessRecord, NodeState
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    MigrationRecord,
    OfferRecord,
    OwnershipRecord,
    RegionRecord,
    ReservationRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings

EVERYWHERE = frozenset({"", "0.0.0.0", "::"})
"""A node that listens on all of its addresses says none of them."""
PUBLISH_EVERY_MS = 500
"""As often as a leader ticks when nothing happens. What is chosen by it is asked for and answered anyway."""


def decide_reservations(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Reserve for migrations that come here, restore what the owners here hold, release the rest (region store)."""
    if not world.fresh:
        return ()
    keys = RegionKeys(state.region)
    coming = _coming(state, world)
    room, holders = rated(state, world, settings, now)
    here = {job for job, owner in world.ownership.items() if owner.record.region == state.region}
    decisions: list[Decision] = []
    for job in sorted({*coming, *here, *state.reservations}):
        if keys.reservation(job) in state.suspect_keys or unreadable(world, job):
            continue
        held = state.reservations.get(job)
        decision = None
        if job in coming:
            migration = coming[job].record
            spec = world.jobs[job].record.spec
            good = held is not None and held.record.migration == migration.id
            if held is not None and good and not unfit(state, spec, held, holders, blamed(state, world, migration)):
                continue
            if held is not None and _offered(world, held.record):
                continue
            found = find_place(state, world, spec, migration, room, holders, settings.policy.placement.weights)
            if isinstance(found, Found):
                decision = _reserve(state, job, migration, found, held, now)
                _rehold(holders, job, held, found.devices)
        elif held is not None and _offered(world, held.record):
            continue
        if decision is None:
            decision = _settle(state, world, job, held, holders, now)
        if decision is not None:
            decisions.append(decision)
    return tuple(decisions)


def rated(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Room, Holders]:
    """``occupied``, with the room rated by what went wrong lately."""
    room, holders = occupied(state, world, now.mono_ms, settings.timings)
    room.rate(incident_points(state, settings.policy.placement.incidents_ms, now))
    return room, holders


def _offered(world: GlobalState, held: ReservationRecord) -> bool:
    """The global leader may move the ownership on to these devices at any moment: the offer is withdrawn first
    (``decide_offers``). Released before, they would look empty to a drain while a job is about to start on them."""
    migration = world.migrations.get(held.migration)
    if migration is None or not is_active(migration.record) or migration.record.state in LANDED:
        return False
    offer = current_offer(world, migration.record)
    return offer is not None and not offer.record.refusal and bool(set(offer.record.devices) & set(held.devices))


def _coming(state: RegionState, world: GlobalState) -> dict[JobId, Versioned[MigrationRecord]]:
    """Migrations that wait for devices in this region."""
    return {
        job: migration
        for job, migration in active_migrations(world).items()
        if migration.record.target_region == state.region
        and migration.record.state not in LANDED
        and wants_to_run(world, job)
    }


def _reserve(
    state: RegionState,
    job: JobId,
    migration: MigrationRecord,
    found: Found,
    held: Versioned[ReservationRecord] | None,
    now: Now,
) -> Decision:
    node, devices = found.places[0].node, found.devices
    record = ReservationRecord(job, migration.id, node, devices, now.ledger_ms, found.considered)
    key = RegionKeys(state.region).reservation(job)
    sentence = f"{', '.join(devices)} reserved for {job} (migration {migration.id}, attempt {migration.attempt})"
    put = Put(key, record, held.revision if held else ABSENT)
    guards = relied_guards(state, devices)
    return Decision("place.reserve", sentence, (put,), guards, f"job/{job}", (migration.id,), migration.trace)


def _rehold(
    holders: Holders, job: JobId, held: Versioned[ReservationRecord] | None, devices: tuple[DeviceId, ...]
) -> None:
    if held is not None:
        holders.drop(job, held.record.devices)
    holders.add(job, devices, FUTURE - 1)


def _settle(
    state: RegionState,
    world: GlobalState,
    job: JobId,
    held: Versioned[ReservationRecord] | None,
    holders: Holders,
    now: Now,
) -> Decision | None:
    """What the job holds here when nothing new is found for it: the devices it owns, until it has left or ended."""
    owner = _owner_here(state, world, job)
    key = RegionKeys(state.region).reservation(job)
    if owner is None:
        if held is None:
            return None
        holders.drop(job, held.record.devices)
        sentence = f"{', '.join(held.record.devices)} released: {_why_left(world, job)}"
        return Decision("place.release", sentence, (Delete(key, held.revision),), (), f"job/{job}")
    if held is not None and (held.record.node, held.record.devices) == (owner.node, owner.devices):
        return None
    if any(holders.others(device, job) for device in owner.devices):
        return None  # it has left them in fact, and another job was given them
    record = ReservationRecord(job, owner.migration, owner.node, owner.devices, now.ledger_ms)
    sentence = f"{', '.join(owner.devices)} held for {job}, which owns them at epoch {owner.epoch}"
    put = Put(key, record, held.revision if held else ABSENT)
    return Decision("place.reserve", sentence, (put,), (), f"job/{job}", (), owner.trace)


def _owner_here(state: RegionState, world: GlobalState, job: JobId) -> OwnershipRecord | None:
    """The ownership that sits in this region, of a job that has not ended."""
    owner, record = world.ownership.get(job), world.jobs.get(job)
    if owner is None or owner.record.region != state.region:
        return None
    ended = record is not None and record.record.state in TERMINAL_JOB
    return None if ended else owner.record


def _why_left(world: GlobalState, job: JobId) -> str:
    record, owner = world.jobs.get(job), world.ownership.get(job)
    if record is None:
        return f"there is no job {job}"
    if record.record.state in TERMINAL_JOB:
        return f"{job} has {record.record.state.value}"
    if owner is None:
        return f"no migration of {job} wants them"
    return f"{job} is owned by {owner.record.region} at epoch {owner.record.epoch}"


def decide_offers(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Answer each migration that comes here: the devices reserved for it, or why there is no room (global store)."""
    grant, held_grant = grant_guard(world, state.region), world.grants.get(state.region)
    coming = _coming(state, world)
    if not world.fresh or grant is None or held_grant is None or not coming:
        return ()
    room, holders = rated(state, world, settings, now)
    decisions: list[Decision] = []
    for job, migration in sorted(coming.items()):
        offer_key = KEYS.offer(migration.record.id)
        if unreadable(world, job):
            continue
        answer = _answer(state, world, migration.record, room, holders, held_grant.record.term, settings)
        old = world.offers.get(migration.record.id)
        guards = (grant, Guard(KEYS.migration(migration.record.id), migration.revision))
        name = f"migration/{migration.record.id}"
        if answer is None:
            if old is not None and not old.record.refusal:
                sentence = f"{state.region} takes back its offer to {job}: its devices are no longer good"
                delete = Delete(offer_key, old.revision)
                decisions.append(Decision("place.offer", sentence, (delete,), guards, name, (), migration.record.trace))
            continue
        if old is not None and replace(old.record, term=answer.term) == answer:
            continue
        sentence = (
            f"{state.region} cannot take {job}: {answer.refusal}"
            if answer.refusal
            else f"{state.region} offers {', '.join(answer.devices)} to {job} (migration {migration.record.id})"
        )
        put = Put(offer_key, answer, old.revision if old else ABSENT)
        decisions.append(Decision("place.offer", sentence, (put,), guards, name, (), migration.record.trace))
    return tuple(decisions)


def _answer(
    state: RegionState,
    world: GlobalState,
    migration: MigrationRecord,
    room: Room,
    holders: Holders,
    term: int,
    settings: Settings,
) -> OfferRecord | None:
    """None: there is room, and the reservation is still to be made."""
    spec = world.jobs[migration.job].record.spec
    held = state.reservations.get(migration.job)
    if (
        held is not None
        and held.record.migration == migration.id
        and not unfit(state, spec, held, holders, blamed(state, world, migration))
    ):
        node, devices, places = held.record.node, held.record.devices, held.record.places
        address = _address(state, node) if spec.members > 1 else ""
        return OfferRecord(migration.id, migration.attempt, state.region, node, devices, "", term, places, address)
    found = find_place(state, world, spec, migration, room, holders, settings.policy.placement.weights)
    if isinstance(found, NoRoom):
        return OfferRecord(migration.id, migration.attempt, state.region, NodeId(""), (), found.sentence, term)
    return None


def _address(state: RegionState, node: NodeId) -> str:
    """Where other nodes reach this one: as it tells its peers, else by its name."""
    record = state.nodes.get(node)
    host = record.record.probe_address.rpartition(":")[0].strip("[]") if record else ""
    return str(node) if host in EVERYWHERE else host


def published_region(
    state: RegionState, world: GlobalState, settings: Settings, now: Now, leader: ReplicaId
) -> Decision | None:
    """The region's capacity for the global leader to choose by, when it has changed (global store), but not for each
    device of a thousand that come or go together."""
    grant = grant_guard(world, state.region)
    if not world.fresh or grant is None or KEYS.region(state.region) in world.suspect_keys:
        return None
    old = world.regions.get(state.region)
    if old is not None and old.record.leader == leader and now.ledger_ms - old.record.updated_ms < PUBLISH_EVERY_MS:
        return None
    free = occupied(state, world, now.mono_ms, settings.timings)[0].counts()
    record = RegionRecord(
        region=state.region,
        leader=leader,
        nodes=len(state.nodes),
        nodes_alive=state.memo.once(_alive, state.liveness),
        devices=len(state.devices),
        usable=usable_count(state),
        free=sum(free),
        largest_free=max(free, default=0),
        in_doubt=in_doubt(state, settings),
        updated_ms=now.ledger_ms,
    )
    if old is not None and replace(old.record, updated_ms=record.updated_ms) == record:
        return None
    sentence = f"region {state.region}: {record.free} of {record.devices} devices are free"
    put = Put(KEYS.region(state.region), record, old.revision if old else ABSENT)
    return Decision("region.publish", sentence, (put,), (grant,), f"region/{state.region}", audit=False)


def _alive(liveness: Mapping[NodeId, Versioned[LivenessRecord]]) -> int:
    return sum(1 for node in liveness.values() if node.record.state is NodeState.ALIVE)
