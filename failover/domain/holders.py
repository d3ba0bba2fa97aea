"""Who holds which device, and where there is room. Kept in step as devices are given."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from failover.domain.scoring import FULL
from gridkeeper.ids import DeviceId, JobId, NodeId

FUTURE = 1 << 62
"""Later than every revision."""


@dataclass(slots=True)
class Holders:
    """Who holds each device, and since which revision of the region's store. An owner whose processes may be alive
    holds since 0: nothing comes before it. Of two reservations the earlier one holds: offers are made in the order of
    revisions, so the later one was never offered. ``assumed``: jobs of which a decision has said something here that is
    not written yet."""

    by_device: dict[DeviceId, dict[JobId, int]] = field(default_factory=dict)
    by_job: dict[JobId, set[DeviceId]] = field(default_factory=dict)
    room: Room | None = None
    assumed: set[JobId] = field(default_factory=set)

    def add(self, job: JobId, devices: tuple[DeviceId, ...], since: int) -> None:
        self.assumed.add(job)
        for device in devices:
            before = self.by_device.get(device, {}).get(job, since)
            self._set(job, device, min(before, since))

    def drop(self, job: JobId, devices: tuple[DeviceId, ...]) -> None:
        """Its reservation is given up; a living owner's hold stays."""
        self.assumed.add(job)
        for device in devices:
            if self.by_device.get(device, {}).get(job):
                self._unset(job, device)

    def put(self, job: JobId, holds: Mapping[DeviceId, int]) -> None:
        """All that the job holds, and nothing else."""
        self.assumed.discard(job)
        for device in self.by_job.get(job, set()) - holds.keys():
            self._unset(job, device)
        for device, since in holds.items():
            self._set(job, device, since)

    def _set(self, job: JobId, device: DeviceId, since: int) -> None:
        held = self.by_device.setdefault(device, {})
        if self.room is not None and not held:
            self.room.take(device)
        held[job] = since
        self.by_job.setdefault(job, set()).add(device)

    def _unset(self, job: JobId, device: DeviceId) -> None:
        held, mine = self.by_device[device], self.by_job[job]
        del held[job]
        mine.discard(device)
        if not mine:
            del self.by_job[job]
        if not held:
            del self.by_device[device]
            if self.room is not None:
                self.room.give(device)

    def others(self, device: DeviceId, job: JobId, before: int = FUTURE) -> list[JobId]:
        """Other jobs that hold it since before ``before``."""
        held = self.by_device.get(device)
        if not held or (len(held) == 1 and job in held):
            return []
        return sorted(j for j, since in held.items() if j != job and since < before)


class Shelf(NamedTuple):
    """Nodes that placement finds equally good: so many free devices, and the same points for health (good devices among
    all that the node has) and for the absence of incidents (see ``domains``)."""

    free: int
    health: int
    incidents: int


class Room:
    """Devices that nobody holds, by node. ``candidates``: see ``eligible.eligible``; ``holders`` keeps this in step."""

    def __init__(self, candidates: Mapping[NodeId, list[DeviceId]], holders: Holders) -> None:
        self.candidates: dict[NodeId, list[DeviceId]] = {}
        self._holders = holders
        self._node_of: dict[DeviceId, NodeId] = {}
        self._free: dict[NodeId, set[DeviceId]] = {}
        self._sizes: dict[NodeId, int] = {}
        self._points: Mapping[NodeId, int] = {}
        self._shelves: dict[Shelf, list[NodeId]] = {}
        for node, devices in sorted(candidates.items()):
            self.put(node, devices, len(devices))
        holders.room = self

    def put(self, node: NodeId, devices: Sequence[DeviceId], size: int) -> None:
        """All candidates of a node that has ``size`` devices."""
        if node in self._free:
            self._take_off(node)
            del self._free[node], self._sizes[node]
        for device in self.candidates.pop(node, ()):
            del self._node_of[device]
        if devices:
            self.candidates[node] = list(devices)
            self._node_of.update(dict.fromkeys(devices, node))
            self._free[node] = {device for device in devices if not self._holders.by_device.get(device)}
            self._sizes[node] = max(size, len(devices))
            insort(self._shelves.setdefault(self.shelf(node), []), node)

    def rate(self, points: Mapping[NodeId, int]) -> None:
        """``points`` of nodes with incidents in their domain; all others have ``FULL``."""
        if points is self._points:
            return
        moved = [
            node
            for node in {*self._points, *points}
            if node in self._free and self._points.get(node, FULL) != points.get(node, FULL)
        ]
        for node in moved:
            self._take_off(node)
        self._points = points
        for node in moved:
            insort(self._shelves.setdefault(self.shelf(node), []), node)

    def shelf(self, node: NodeId) -> Shelf:
        """Where a node with candidates stands."""
        health = FULL * len(self.candidates[node]) // self._sizes[node]
        return Shelf(len(self._free[node]), health, self._points.get(node, FULL))

    def free(self, node: NodeId) -> list[DeviceId]:
        """In the order of ``candidates``."""
        free = self._free.get(node, set())
        return [device for device in self.candidates.get(node, ()) if device in free]

    def counts(self) -> list[int]:
        """How many devices of a node are free, of all nodes: one number each."""
        return [shelf.free for shelf, nodes in self._shelves.items() for _ in nodes]

    def shelves(self, least: int) -> Iterator[tuple[Shelf, Sequence[NodeId]]]:
        """Nodes with at least so many free devices, in order of name on each shelf."""
        return ((shelf, nodes) for shelf, nodes in self._shelves.items() if shelf.free >= least)

    def fullest_first(self) -> Iterator[tuple[int, NodeId]]:
        """All nodes, those with the most free devices first."""
        for shelf in sorted(self._shelves, reverse=True):
            for node in self._shelves[shelf]:
                yield shelf.free, node

    def take(self, device: DeviceId) -> None:
        self._change(device, free=False)

    def give(self, device: DeviceId) -> None:
        self._change(device, free=True)

    def _change(self, device: DeviceId, free: bool) -> None:
        node = self._node_of.get(device)
        if node is None:
            return
        self._take_off(node)
        if free:
            self._free[node].add(device)
        else:
            self._free[node].discard(device)
        insort(self._shelves.setdefault(self.shelf(node), []), node)

    def _take_off(self, node: NodeId) -> None:
        shelf = self.shelf(node)
        nodes = self._shelves[shelf]
        del nodes[bisect_left(nodes, node)]
        if not nodes:
            del self._shelves[shelf]
