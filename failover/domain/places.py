"""Which devices of a region a job is given: nodes are filtered, those that are left are scored. Pure.

The one entry is ``place``: so many members, each with so many devices on a node of its own; a job of one node is a gang
of one. Filters (room, health, model, what the job is to leave, who holds what) decide first, and no score brings back
what they leave out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, islice

from failover.domain.domains import LEVELS, NEARNESS, domain_of
from failover.domain.holders import Holders, Room, Shelf
from failover.domain.scoring import FULL, MOST_FITTING, Mark, candidate, weighed
from gridkeeper.ids import DeviceId, JobId, NodeId
from gridkeeper.policy.model import PlacementWeights
from gridkeeper.records.jobs import Candidate
from gridkeeper.snapshot import RegionState

DEFAULT_WEIGHTS = PlacementWeights()


@dataclass(frozen=True, slots=True)
class Request:
    """``members`` nodes with ``devices`` each. ``avoid``: devices that are not given. ``last``: nodes that are only
    given if there is no other. ``beside``: nodes of members that stay, near which the new ones should be; they are not
    given."""

    job: JobId
    devices: int
    members: int = 1
    model: str = ""
    avoid: frozenset[DeviceId] = frozenset()
    last: frozenset[NodeId] = frozenset()
    beside: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """All devices of one member, on one node."""

    node: NodeId
    devices: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A place for each member, and the best of what was considered: nodes, or for a gang the domains to choose from,
    the chosen one first."""

    places: tuple[Place, ...]
    considered: tuple[Candidate, ...]

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Of all members, rank by rank."""
        return tuple(device for place in self.places for device in place.devices)


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why there is no place, as a sentence."""

    sentence: str


@dataclass(frozen=True, slots=True)
class _Fit:
    """A node that has what is asked for. In order of ``rank`` the best comes first."""

    rank: tuple[int, int, NodeId]  # last resorts later, then by score, then by name
    node: NodeId
    free: tuple[DeviceId, ...]
    marks: tuple[Mark, ...]


def place(
    state: RegionState, request: Request, room: Room, holders: Holders, weights: PlacementWeights
) -> Found | NoRoom:
    """The best place for all members together; for none of them if there is not one for each."""
    search = _Search(state, request, room, holders, weights)
    if request.members == 1 and not request.beside:
        best = tuple(islice(search.fitting(), MOST_FITTING))
        if best:
            return Found((search.chosen(best[0]),), tuple(candidate(fit.node, fit.marks) for fit in best))
    else:
        found = search.gang()
        if found is not None:
            return found
    return NoRoom(search.why_not())


class _Search:
    """One request against one room."""

    def __init__(
        self, state: RegionState, request: Request, room: Room, holders: Holders, weights: PlacementWeights
    ) -> None:
        self._state = state
        self._request = request
        self._room = room
        self._holders = holders
        self._weights = weights
        own = {state.devices[d].record.node for d in holders.by_job.get(request.job, ()) if d in state.devices}
        self._own = frozenset(node for node in own if node in room.candidates)
        """Nodes where the job holds something already: their devices are free for it."""
        self._apart = frozenset(node for node in {*own, *request.last} if node in room.candidates)
        """Nodes that are not what their shelf says."""

    def free(self, node: NodeId) -> list[DeviceId]:
        """What the job could be given there."""
        devices = self._room.candidates.get(node, ()) if node in self._own else self._room.free(node)
        request, state = self._request, self._state
        if node in request.beside:
            return []
        return [
            d
            for d in devices
            if d not in request.avoid
            and not self._holders.others(d, request.job)
            and self._holders.by_device.get(d, {}).get(request.job) != 0
            and (not request.model or state.devices[d].record.model == request.model)
        ]

    def chosen(self, fit: _Fit) -> Place:
        return Place(fit.node, tuple(sorted(fit.free, key=_natural)[: self._request.devices]))

    def fitting(self) -> Iterator[_Fit]:
        """Nodes that pass all filters, the best first. Nodes on one shelf are equally good, so only as many are looked
        at as are asked for."""
        apart = sorted(filter(None, map(self._apart_fit, self._apart)), key=_rank)
        return merge(apart, self._others(), key=_rank)

    def _others(self) -> Iterator[_Fit]:
        shelves = [(self._marks(shelf), nodes) for shelf, nodes in self._room.shelves(self._request.devices)]
        shelves.sort(key=_worth, reverse=True)
        for _, equal in groupby(shelves, key=_worth):
            yield from merge(*(self._on_shelf(marks, nodes) for marks, nodes in equal), key=_rank)

    def _on_shelf(self, marks: tuple[Mark, ...], nodes: Sequence[NodeId]) -> Iterator[_Fit]:
        score = weighed(marks)
        for node in nodes:
            if node in self._apart:
                continue
            free = self.free(node)
            if len(free) >= self._request.devices:
                yield _Fit((0, -score, node), node, tuple(free), marks)

    def _apart_fit(self, node: NodeId) -> _Fit | None:
        free = self.free(node)
        if len(free) < self._request.devices:
            return None
        marks = self._marks(self._room.shelf(node)._replace(free=len(free)))
        return _Fit((int(node in self._request.last), -weighed(marks), node), node, tuple(free), marks)

    def _marks(self, shelf: Shelf) -> tuple[Mark, ...]:
        weights = self._weights
        return (
            Mark("health", shelf.health, weights.health),
            Mark("incidents", shelf.incidents, weights.incidents),
            Mark("packing", FULL * self._request.devices // shelf.free, weights.packing),
        )

    # -- gangs -----------------------------------------------------------------------------------------------------

    def gang(self) -> Found | None:
        """Of each domain the best nodes; of the domains the one whose nodes are best, nearness included. A gang that
        stays together in a smaller domain is also in the larger ones, so only the smallest counts."""
        request = self._request
        members: dict[tuple[int, str], list[_Fit]] = {}
        staying = [self._domains(node) for node in request.beside]
        for fit in self.fitting():
            mine = self._domains(fit.node)
            for level, domain in enumerate(mine):
                if not domain or any(stays[level] != domain for stays in staying):
                    continue
                group = members.setdefault((level, domain), [])
                if len(group) < request.members:
                    group.append(fit)
        options = [
            (self._gang_marks(group, level), level, domain, group)
            for (level, domain), group in members.items()
            if len(group) == request.members
        ]
        options.sort(key=lambda o: (sum(f.rank[0] for f in o[3]), -weighed(o[0]), o[1], o[2], o[3][0].node))
        if not options:
            return None
        best = options[0][3]
        told = tuple(candidate(f"{LEVELS[level]} {domain}", marks) for marks, level, domain, _ in options)
        return Found(tuple(self.chosen(fit) for fit in best), told[:MOST_FITTING])

    def _domains(self, node: NodeId) -> tuple[str, ...]:
        record = self._state.nodes.get(node)
        if record is None:
            return ("", "", "", str(self._state.region))
        return tuple(domain_of(record.record, level) for level in LEVELS)

    def _gang_marks(self, group: Sequence[_Fit], level: int) -> tuple[Mark, ...]:
        columns = zip(*(fit.marks for fit in group), strict=True)
        means = tuple(Mark(c[0].criterion, sum(m.points for m in c) // len(c), c[0].weight) for c in columns)
        return (*means, Mark("topology", NEARNESS[LEVELS[level]], self._weights.topology))

    # -- refusals --------------------------------------------------------------------------------------------------

    def why_not(self) -> str:
        """Without numbers that change by themselves while the answer stays no."""
        request, region = self._request, self._state.region
        model = f" of model {request.model}" if request.model else ""
        if request.members > 1 or request.beside:
            count = sum(1 for _ in self.fitting())
            near = f" beside {', '.join(request.beside)}" if request.beside else ""
            need = f"{request.members} nodes" if request.members > 1 else "1 node"
            return (
                f"{region} has not {need} with {request.devices} free healthy devices{model} each{near} ({count} have)"
            )
        most = max((len(self.free(node)) for node in self._own), default=0)
        for count, node in self._room.fullest_first():
            if count <= most:
                break
            most = max(most, len(self.free(node)))
        return f"no node of {region} has {request.devices} free healthy devices{model} together (most: {most})"


def _rank(fit: _Fit) -> tuple[int, int, NodeId]:
    return fit.rank


def _worth(shelf: tuple[tuple[Mark, ...], Sequence[NodeId]]) -> int:
    return weighed(shelf[0])


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
