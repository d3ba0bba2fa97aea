"""Which jobs may have a process on a device. Pure.

A job is off a device only for a reason that cannot be undone: the run of the owning epoch is confirmed stopped (its
whole process tree is gone), or the ownership has moved on to an epoch elsewhere, which happens only after a confirmed
stop or after R past a durable revoke intent (architecture §4.1). A reservation for an epoch that does not own the job
yet counts as present: a process may be about to start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from failover.domain.indexes import confirmed_stopped, run_of
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.memo import differing
from gridkeeper.records.jobs import TERMINAL_MIGRATION, OwnershipRecord, ReservationRecord
from gridkeeper.snapshot import GlobalState, RegionState


@dataclass(frozen=True, slots=True)
class Presence:
    """``jobs``: may have a process there. ``released``: one sentence per job that was there and certainly is not now.
    ``unknown``: why nothing can be concluded; ""."""

    jobs: frozenset[JobId]
    released: tuple[str, ...]
    unknown: str


def jobs_on(state: RegionState, world: GlobalState, device: DeviceId) -> Presence:
    """What both stores say of one device of this region."""
    jobs: set[JobId] = set()
    released: list[str] = []
    named = state.memo.of(_ByDevice).at(state, world)
    for job in sorted(named.owned.get((state.region, device), ())):
        owner = world.ownership[job].record
        if stopped(world, job, owner.epoch):
            released.append(f"{job} epoch {owner.epoch} is confirmed stopped")
        else:
            jobs.add(job)
    for job in sorted(named.reserved.get(device, ())):
        reservation = state.reservations[job]
        held, migration = world.ownership.get(job), world.migrations.get(reservation.record.migration)
        owns = held is not None and held.record.migration == reservation.record.migration
        over = migration is not None and migration.record.state in TERMINAL_MIGRATION
        if not owns and not over:
            jobs.add(job)
    return Presence(frozenset(jobs), tuple(released), _unknown(state, world))


@dataclass(slots=True)
class _ByDevice:
    """Which jobs name a device, kept from look to look: only jobs of which something has changed are looked at anew."""

    ownership: Mapping[JobId, Versioned[OwnershipRecord]] = field(default_factory=dict)
    reservations: Mapping[JobId, Versioned[ReservationRecord]] = field(default_factory=dict)
    owned: dict[tuple[RegionId, DeviceId], set[JobId]] = field(default_factory=dict)
    reserved: dict[DeviceId, set[JobId]] = field(default_factory=dict)

    def at(self, state: RegionState, world: GlobalState) -> _ByDevice:
        for job in differing(self.ownership, world.ownership):
            before, after = self.ownership.get(job), world.ownership.get(job)
            _move(
                self.owned,
                job,
                [(before.record.region, device) for device in before.record.devices] if before else (),
                [(after.record.region, device) for device in after.record.devices] if after else (),
            )
        for job in differing(self.reservations, state.reservations):
            was, now = self.reservations.get(job), state.reservations.get(job)
            _move(self.reserved, job, was.record.devices if was else (), now.record.devices if now else ())
        self.ownership, self.reservations = world.ownership, state.reservations
        return self


K = TypeVar("K")


def _move(held: dict[K, set[JobId]], job: JobId, before: Iterable[K], after: Iterable[K]) -> None:
    for key in before:
        held[key].discard(job)
        if not held[key]:
            del held[key]
    for key in after:
        held.setdefault(key, set()).add(job)


def stopped(world: GlobalState, job: JobId, epoch: Epoch) -> bool:
    """The agent confirmed that the whole process tree of that epoch is gone."""
    return confirmed_stopped(run_of(world, job, epoch))


def _unknown(state: RegionState, world: GlobalState) -> str:
    if not world.fresh:
        return "the global store cannot be reached, so nobody knows which jobs are on it"
    if not world.suspect_keys and not state.suspect_keys:
        return ""
    owned = KEYS.prefix("ownership")
    reserved = RegionKeys(state.region).prefix("reservations")
    bad = next((key for key in sorted(world.suspect_keys) if key.startswith(owned)), "")
    bad = bad or next((key for key in sorted(state.suspect_keys) if key.startswith(reserved)), "")
    return f"{bad} does not decode, so nobody knows which devices it names" if bad else ""
