"""Who holds which device, and where there is room. Pure; built per decision, and kept in step as devices are given."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gridkeeper.ids import DeviceId, JobId, NodeId

FUTURE = 1 << 62
"""Later than every revision."""


@dataclass(slots=True)
class Holders:
    """Who holds each device, and since which revision of the region's store. An owner whose processes may be alive
    holds since 0: nothing comes before it. Of two reservations the earlier one holds: offers are made in the order of
    revisions, so the later one was never offered."""

    by_device: dict[DeviceId, dict[JobId, int]] = field(default_factory=dict)
    by_job: dict[JobId, set[DeviceId]] = field(default_factory=dict)
    room: Room | None = None

    def add(self, job: JobId, devices: tuple[DeviceId, ...], since: int) -> None:
        for device in devices:
            held = self.by_device.setdefault(device, {})
            if self.room is not None and not held:
                self.room.take(device)
            held[job] = min(held.get(job, since), since)
            self.by_job.setdefault(job, set()).add(device)

    def drop(self, job: JobId, devices: tuple[DeviceId, ...]) -> None:
        """Its reservation is given up; a living owner's hold stays."""
        for device in devices:
            held = self.by_device.get(device, {})
            if held.get(job):
                del held[job]
                self.by_job[job].discard(device)
                if self.room is not None and not held:
                    self.room.give(device)

    def others(self, device: DeviceId, job: JobId, before: int = FUTURE) -> list[JobId]:
        """Other jobs that hold it since before ``before``."""
        return sorted(j for j, since in self.by_device.get(device, {}).items() if j != job and since < before)


class Room:
    """Devices that nobody holds, by node. ``candidates``: see ``fit.eligible``; ``holders`` keeps this in step."""

    def __init__(self, candidates: Mapping[NodeId, list[DeviceId]], holders: Holders) -> None:
        self.candidates = candidates
        self._node_of: dict[DeviceId, NodeId] = {}
        self._free: dict[NodeId, set[DeviceId]] = {}
        self._by_count: dict[int, list[NodeId]] = {}
        held = holders.by_device
        for node, devices in sorted(candidates.items()):
            free = {device for device in devices if not held.get(device)}
            self._free[node] = free
            self._by_count.setdefault(len(free), []).append(node)
            for device in devices:
                self._node_of[device] = node
        holders.room = self

    def free(self, node: NodeId) -> list[DeviceId]:
        """In the order of ``candidates``."""
        free = self._free.get(node, set())
        return [device for device in self.candidates.get(node, ()) if device in free]

    def counts(self) -> list[int]:
        """How many devices of a node are free, of all nodes: one number each."""
        return [count for count, nodes in self._by_count.items() for _ in nodes]

    def nodes(self, least: int) -> Iterator[NodeId]:
        """Nodes with at least so many free devices: those with the fewest first, then by name."""
        for count in sorted(self._by_count):
            if count >= least:
                yield from self._by_count[count]

    def fullest_first(self) -> Iterator[tuple[int, NodeId]]:
        """All nodes, those with the most free devices first."""
        for count in sorted(self._by_count, reverse=True):
            for node in self._by_count[count]:
                yield count, node

    def take(self, device: DeviceId) -> None:
        self._change(device, free=False)

    def give(self, device: DeviceId) -> None:
        self._change(device, free=True)

    def _change(self, device: DeviceId, free: bool) -> None:
        node = self._node_of.get(device)
        if node is None:
            return
        held = self._free[node]
        self._by_count[len(held)].remove(node)
        if free:
            held.add(device)
        else:
            held.discard(device)
        insort(self._by_count.setdefault(len(held), []), node)
