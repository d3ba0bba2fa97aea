"""Which jobs each node owns, kept current by the mirror; and who is woken when what a node should run has changed.

With thousands of streams a look by each of them at all jobs on each change would be what the replica does all day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from controlplane.shell.mirror import Changed, Mirror
from failover.domain.gang import nodes_of
from gridkeeper.ids import JobId, NodeId


class Orders:
    """One per replica. ``world``: the mirror of the global store."""

    def __init__(self, world: Mirror) -> None:
        self._world = world
        self._nodes_of: dict[JobId, tuple[NodeId, ...]] = {}
        self._jobs_of: dict[NodeId, set[JobId]] = {}
        self._waiting: dict[NodeId, list[asyncio.Event]] = {}
        world.listen(("ownership", "runs", "leader"), self._heard)

    def jobs_of(self, node: NodeId) -> list[JobId]:
        """Jobs whose ownership record names the node, sorted. A gang's names several."""
        return sorted(self._jobs_of.get(node, ()))

    @contextmanager
    def waiting(self, node: NodeId, event: asyncio.Event) -> Iterator[None]:
        """Meanwhile ``event`` is set when an ownership of the node, a run of a job that it owns, or the global leader
        has changed."""
        self._waiting.setdefault(node, []).append(event)
        try:
            yield
        finally:
            self._waiting[node].remove(event)
            if not self._waiting[node]:
                del self._waiting[node]

    def _heard(self, changed: Changed) -> None:
        woken: set[NodeId] = set(self._waiting) if "leader" in changed else set()
        for name in changed.get("ownership", ()):
            woken |= self._move(JobId(name))
        for name in changed.get("runs", ()):
            woken.update(self._nodes_of.get(JobId(name.partition("/")[0]), ()))
        self._wake(woken)

    def _move(self, job: JobId) -> set[NodeId]:
        """The nodes that it concerns: where the job was, and where it is."""
        before, held = self._nodes_of.pop(job, ()), self._world.newest("ownership", job)
        after = nodes_of(held.record) if held else ()
        for node in before:
            if node not in after:
                self._jobs_of[node].discard(job)
                if not self._jobs_of[node]:
                    del self._jobs_of[node]
        if after:
            self._nodes_of[job] = after
        for node in after:
            self._jobs_of.setdefault(node, set()).add(job)
        return {*before, *after}

    def _wake(self, nodes: Collection[NodeId]) -> None:
        for node in sorted(nodes):  # in an order that is the same in every run of the simulator
            for event in self._waiting.get(node, ()):
                event.set()
