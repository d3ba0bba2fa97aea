"""What the global leader does: jobs' lives, migrations, ownership, the division of budgets, the jobs' ledger."""

from __future__ import annotations

import logging

from controlplane.domain.escrow import decide_escrow
from controlplane.domain.sla import decide_job_ledger
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all, lead_loop
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.states import global_state
from failover.domain.jobs import decide_jobs
from failover.domain.migrate import decide_migrations
from failover.domain.retention import decide_retention
from gridkeeper.ids import ReplicaId
from gridkeeper.ports.clock import Clock

log = logging.getLogger("gridkeeper.worldwide")


class GlobalLeader:
    """One term of leading the global store."""

    def __init__(
        self, replica: ReplicaId, fence: Fence, world: Mirror, applier: Applier, policies: PolicyInForce, clock: Clock
    ) -> None:
        self._actor = f"machine/{replica}"
        self._fence = fence
        self._world = world
        self._applier = applier
        self._policies = policies
        self._clock = clock
        booked = [v.record.since_ms for v in world.kind("accounts").values()]
        self._time = LedgerTime(clock, max(booked, default=0))

    async def run(self) -> None:
        """Until cancelled."""
        await lead_loop("global", self._tick, (self._world,), self._clock)

    async def _tick(self) -> bool:
        if not self._world.fresh:
            return False
        wrote = False
        for decide in (decide_jobs, decide_migrations, decide_escrow, decide_job_ledger, decide_retention):
            decisions = decide(global_state(self._world), self._policies.settings(), self._time.now())
            wrote |= await apply_all(decisions, self._applier, self._actor, self._fence)
        return wrote
