"""The fences of this replica's region, as this process has seen them raised, and who raises them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from controlplane.shell.apply import Applier
from controlplane.shell.leader import TICK_MS, apply_all
from controlplane.shell.mirror import Changed, Mirror
from controlplane.shell.states import global_state
from failover.domain.promises import begins_anew, decide_fences
from gridkeeper.decision import Versioned
from gridkeeper.ids import Extent, RegionId, ReplicaId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError
from gridkeeper.records.jobs import GrantRecord
from gridkeeper.records.regions import FenceRecord
from gridkeeper.snapshot import Failsafe, GlobalState
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.fences")

Raised = tuple[tuple[Extent, int], ...]


class Fences:
    """``leads``: whether this replica leads its region or the world; only then does anybody wait for a fence."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        local: Mirror,
        world: Mirror,
        applier: Applier,
        leads: Callable[[], bool],
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._region = region
        self._actor = f"machine/{replica}"
        self._local = local
        self._world = world
        self._applier = applier
        self._leads = leads
        self._clock = clock
        self._timings = timings
        self._raised: dict[RegionId, Raised] = {}
        self._named: dict[RegionId, int] = {}
        local.listen(("fences",), self._heard)
        world.listen(("grants",), self._heard_grants)

    def _heard(self, changed: Changed) -> None:
        for region in map(RegionId, sorted(changed.get("fences", ()))):
            held: Versioned[FenceRecord] | None = self._local.newest("fences", region)
            if held is None:  # deleted, or it does not decode: whoever waits for it begins anew
                self._raised.pop(region, None)
            else:
                extent = Extent(held.record.generation, held.record.revision)
                self._raised[region] = self._with(self._raised.get(region, ()), extent, held.seen_ms)

    def _heard_grants(self, changed: Changed) -> None:
        for region in map(RegionId, sorted(changed.get("grants", ()))):
            held: Versioned[GrantRecord] | None = self._world.newest("grants", region)
            if held is None or self._region not in held.record.peers:
                self._named.pop(region, None)
            else:
                self._named.setdefault(region, held.seen_ms)

    def _with(self, raised: Raised, extent: Extent, seen_ms: int) -> Raised:
        """Bounded: of all that has stood for R already, only the newest matters."""
        if raised and raised[-1][0] == extent:
            return raised
        if raised and raised[-1][0] > extent:  # its store was restored from a backup
            return ((extent, seen_ms),)
        old = [i for i, (_, at) in enumerate(raised) if seen_ms - at >= self._timings.takeover_ms]
        return (*raised[old[-1] if old else 0 :], (extent, seen_ms))

    def failsafe(self) -> Failsafe:
        """For every snapshot of the global store on which a job's next owner may be decided."""
        fences: Any = self._local.kind("fences")
        promises: Any = self._local.kind("promises")
        torn = {RegionId(name): revision for name, revision in self._local.torn("fences").items()}
        return Failsafe(self._region, fences, dict(self._raised), promises, dict(self._named), torn)

    def world(self) -> GlobalState:
        """The global store with what this region's store has to say to it."""
        return global_state(self._world, self.failsafe())

    async def run(self) -> None:
        """Raise fences as soon as there are intents, for ever."""
        while True:
            if self._leads() and self._local.fresh and self._world.fresh:
                try:
                    await self._raise()
                except StoreError as error:
                    log.warning("the fences of %s wait for its store: %s", self._region, error)
                    await self._clock.sleep(TICK_MS)
            await self._world.wait_stirred(TICK_MS)

    async def _raise(self) -> None:
        failsafe = self.failsafe()
        decisions = decide_fences(global_state(self._world, failsafe))
        if begins_anew(decisions, failsafe):
            # Somebody who saw more than this process does may have raised what is lost.
            if not await self._world.catch_up(TICK_MS):
                return
            decisions = decide_fences(global_state(self._world, failsafe))
        await apply_all(decisions, self._applier, self._actor, None)
