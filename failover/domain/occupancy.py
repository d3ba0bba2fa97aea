"""Who holds which devices of a region, as both stores say. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from failover.domain.eligible import eligible
from failover.domain.holders import Holders, Room
from failover.domain.indexes import released, run_of
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId
from gridkeeper.memo import differing
from gridkeeper.records.fleet import NodeRecord
from gridkeeper.records.jobs import TERMINAL_JOB, JobRecord, OwnershipRecord, ReservationRecord, RunRecord
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.timings import Timings


def occupied(state: RegionState, world: GlobalState, mono_ms: int, timings: Timings) -> tuple[Room, Holders]:
    """Jobs with a reservation and jobs whose owning epoch may still be alive here hold their devices; and the room
    that they leave. Good until the next call: what a decision assumed in them is undone by it."""
    kept = state.memo.of(_Newest)
    if kept.of != (state.region, timings):
        kept.of, kept.occupancy = (state.region, timings), _Occupancy(timings)
    return kept.occupancy.at(state, world, mono_ms)


class _Occupancy:
    """Kept from look to look: only jobs and nodes of which something has changed are looked at anew, and owners that
    time alone may release."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._holders = Holders()
        self._room = Room({}, self._holders)
        self._revoked: set[JobId] = set()
        self._reservations: Mapping[JobId, Versioned[ReservationRecord]] = {}
        self._jobs: Mapping[JobId, Versioned[JobRecord]] = {}
        self._ownership: Mapping[JobId, Versioned[OwnershipRecord]] = {}
        self._runs: Mapping[str, Versioned[RunRecord]] = {}
        self._eligible: Mapping[NodeId, list[DeviceId]] = {}
        self._nodes: Mapping[NodeId, Versioned[NodeRecord]] = {}

    def at(self, state: RegionState, world: GlobalState, mono_ms: int) -> tuple[Room, Holders]:
        changed = self._revoked | self._holders.assumed
        changed.update(differing(self._reservations, state.reservations))
        changed.update(differing(self._jobs, world.jobs))
        changed.update(differing(self._ownership, world.ownership))
        changed.update(JobId(name.partition("/")[0]) for name in differing(self._runs, world.runs))
        for job in changed:
            self._holders.put(job, self._holds(state, world, job, mono_ms))
        fit = eligible(state)
        for node in {*differing(self._eligible, fit), *differing(self._nodes, state.nodes)}:
            self._room.put(node, fit.get(node, ()), size_of(state, node))
        self._nodes = state.nodes
        self._reservations, self._eligible = state.reservations, fit
        self._jobs, self._ownership, self._runs = world.jobs, world.ownership, world.runs
        return self._room, self._holders

    def _holds(self, state: RegionState, world: GlobalState, job: JobId, mono_ms: int) -> Mapping[DeviceId, int]:
        reservation, owner = state.reservations.get(job), world.ownership.get(job)
        held = dict.fromkeys(reservation.record.devices, int(reservation.revision)) if reservation else {}
        self._revoked.discard(job)
        if owner is None or owner.record.region != state.region:
            return held
        record = world.jobs.get(job)
        if record is not None and record.record.state in TERMINAL_JOB:
            return held
        if owner.record.revoke is not None:
            self._revoked.add(job)
        if not released(world, owner, run_of(world, job, owner.record.epoch), mono_ms, self._timings):
            held.update(dict.fromkeys(owner.record.devices, 0))
        return held


def size_of(state: RegionState, node: NodeId) -> int:
    """How many devices its agent says that the node has."""
    record = state.nodes.get(node)
    return len(record.record.devices) if record else 0


class _Newest:
    """The occupancy, and of which region with which timings."""

    def __init__(self) -> None:
        self.of: tuple[RegionId, Timings] | None = None
        self.occupancy = _Occupancy(Timings())
