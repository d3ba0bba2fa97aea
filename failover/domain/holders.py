"""Who holds which device, and where there is room. Kept in step as devices are given."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


class Room:
    """Devices that nobody holds, by node. ``candidates``: see ``eligible.eligible``; ``holders`` keeps this in step."""

    def __init__(self, candidates: Mapping[NodeId, list[DeviceId]], holders: Holders) -> None:
        self.candidates: dict[NodeId, list[DeviceId]] = {}
        self._holders = holders
        self._node_of: dict[DeviceId, NodeId] = {}
        self._free: dict[NodeId, set[DeviceId]] = {}
        self._by_count: dict[int, list[NodeId]] = {}
        for node, devices in sorted(candidates.items()):
            self.put(node, devices)
        holders.room = self

    def put(self, node: NodeId, devices: Sequence[DeviceId]) -> None:
        """All candidates of a node."""
        before = self._free.pop(node, None)
        if before is not None:
            self._by_count[len(before)].remove(node)
        for device in self.candidates.pop(node, ()):
            del self._node_of[device]
        if devices:
            self.candidates[node] = list(devices)
            self._node_of.update(dict.fromkeys(devices, node))
            free = self._free[node] = {device for device in devices if not self._holders.by_device.get(device)}
            insort(self._by_count.setdefault(len(free), []), node)

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
