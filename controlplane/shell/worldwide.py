"""What the global leader does: jobs' lives, migrations, ownership, the division of budgets, the jobs' ledger."""

from __future__ import annotations

import logging

from controlplane.domain.escrow import decide_escrow
from controlplane.domain.sla import decide_job_ledger
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.fences import Fences
from controlplane.shell.leader import apply_all, lead_loop
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.policies import PolicyInForce
from failover.domain.jobs import decide_jobs
from failover.domain.losses import decide_losses
from failover.domain.migrate import decide_migrations
from failover.domain.retention import decide_retention
from gridkeeper.decision import Decision, Now
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.ports.clock import Clock
from gridkeeper.snapshot import GlobalState, Settings

log = logging.getLogger("gridkeeper.worldwide")


class GlobalLeader:
    """One term of leading the global store."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        fence: Fence,
        world: Mirror,
        applier: Applier,
        policies: PolicyInForce,
        fences: Fences,
        clock: Clock,
    ) -> None:
        self._region = region
        self._actor = f"machine/{replica}"
        self._fence = fence
        self._world = world
        self._applier = applier
        self._policies = policies
        self._fences = fences
        self._clock = clock
        booked = [v.record.since_ms for v in world.kind("accounts").values()]
        self._time = LedgerTime(clock, max(booked, default=0))
        self._steady_ms = self._ticked_ms = clock.mono_ms()

    async def run(self) -> None:
        """Until cancelled."""
        await lead_loop("global", self._tick, (self._world,), self._clock)

    async def _tick(self) -> bool:
        now = self._clock.mono_ms()
        if now - self._ticked_ms >= self._policies.settings().timings.fence_ms or not self._world.fresh:
            self._steady_ms = now  # this process or the store was away: silence meanwhile proves nothing
        self._ticked_ms = now
        if not self._world.fresh:
            return False
        wrote = False
        for decide in (
            self._losses,
            decide_jobs,
            decide_migrations,
            decide_escrow,
            decide_job_ledger,
            decide_retention,
        ):
            decisions = decide(self._fences.world(), self._policies.settings(), self._time.now(self._steady_ms))
            wrote |= await apply_all(decisions, self._applier, self._actor, self._fence)
        return wrote

    def _losses(self, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
        return decide_losses(world, settings, now, self._region)
