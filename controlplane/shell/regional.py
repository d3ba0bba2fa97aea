"""What the leader of a region does: judge its devices, drain them, reserve for jobs, ask for moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from controlplane.domain.escrow import decide_promise, decide_share
from controlplane.domain.policies import decide_policy
from controlplane.domain.region import MOST_AGAIN, STAGES, Decide, Stage, disjoint
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.fences import Fences
from controlplane.shell.leader import TICK_MS, apply_all, lead_loop
from controlplane.shell.ledgertime import LedgerTime, latest_written
from controlplane.shell.mirror import Mirror
from controlplane.shell.notices import Notices
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.states import region_state
from controlplane.shell.tickets import Tickets
from failover.checkpoint.collector import Collector
from failover.checkpoint.replicate import Replicator, record_progress
from failover.checkpoint.scrubber import Scrubber
from failover.domain.grants import decide_grant
from failover.domain.placement import decide_offers, decide_reservations, published_region
from failover.domain.requests import decide_requests
from gridkeeper.decision import Decision
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.policy.model import CheckpointPolicy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError
from gridkeeper.ports.tickets import TicketDesk
from gridkeeper.snapshot import GlobalState, Settings

log = logging.getLogger("gridkeeper.regional")

COPY_IDLE_MS = 500
COPY_TOLD_MS = 1_000
TEND_IDLE_MS = 1_000
Tend = Callable[[GlobalState, CheckpointPolicy, int], Awaitable[Sequence[Decision]]]


class RegionalLeader:
    """One term of leading one region."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        fence: Fence,
        local: Mirror,
        world: Mirror,
        local_applier: Applier,
        world_applier: Applier,
        replicator: Replicator,
        scrubber: Scrubber,
        collector: Collector,
        notices: Notices,
        policies: PolicyInForce,
        clock: Clock,
        steady_ms: Callable[[], int],
        fences: Fences,
        desk: TicketDesk | None = None,
    ) -> None:
        self._region = region
        self._replica = replica
        self._actor = f"machine/{replica}"
        self._fence = fence
        self._local = local
        self._world = world
        self._local_applier = local_applier
        self._world_applier = world_applier
        self._replicator = replicator
        self._scrubber = scrubber
        self._collector = collector
        self._notices = notices
        self._policies = policies
        self._idle: dict[Stage, tuple[tuple[object, ...], int]] = {}  # looked at in vain: at what, and when
        self._clock = clock
        self._steady_ms = steady_ms
        self._fences = fences
        self._time = LedgerTime(clock, latest_written(local))
        self._tickets = (
            Tickets(region, fence, self._actor, local, local_applier, desk, policies.settings, clock, self._time)
            if desk
            else None
        )

    @property
    def _settings(self) -> Settings:
        return self._policies.settings()

    async def run(self) -> None:
        """Until cancelled. Judging devices never waits for the global store: they are two loops."""
        async with asyncio.TaskGroup() as group:
            group.create_task(lead_loop(f"region {self._region}", self._judge, (self._local, self._world), self._clock))
            group.create_task(
                lead_loop(f"moves of {self._region}", self._move, (self._local, self._world), self._clock)
            )
            group.create_task(self._copy())
            group.create_task(self._tell_copies())
            group.create_task(self._tend(self._scrubber.look))
            group.create_task(self._tend(self._collector.look))
            if self._tickets:
                group.create_task(self._tickets.run())

    async def _judge(self) -> bool:
        """The region store's decisions; these go on while the global store is away."""
        copy = decide_policy(region_state(self._region, self._local), self._fences.world())
        wrote = await apply_all(copy, self._local_applier, self._actor, self._fence) if self._local.fresh else False
        for stage in STAGES:
            inputs, now_ms = self._inputs(stage), self._clock.mono_ms()
            if self._rests(stage, inputs, now_ms):
                continue
            decided, once = await self._decide(stage.decide)
            if decided:  # if the world had moved on, it is decided again, whatever it is that has moved
                self._idle.pop(stage, None)
            else:
                self._idle[stage] = (inputs, now_ms)
            wrote |= once
            for _ in range(MOST_AGAIN):
                if stage.more is None or not once:
                    break
                _, once = await self._decide(stage.more)
        await self._notices.look(region_state(self._region, self._local))
        return wrote

    def _inputs(self, stage: Stage) -> tuple[object, ...]:
        kinds = tuple(self._local.kind(kind) for kind in stage.reads)
        return (*kinds, self._local.one("policy"), self._local.suspect)

    def _rests(self, stage: Stage, inputs: tuple[object, ...], now_ms: int) -> bool:
        """Nothing was to be done, and since then nothing has come that bears on it: only its timers go on. While jobs
        move by the hundred, devices and nodes are not all judged anew for each of their steps."""
        last = self._idle.get(stage)
        if not stage.reads or last is None or now_ms - last[1] >= TICK_MS:
            return False
        return all(before is after for before, after in zip(last[0], inputs, strict=True))

    async def _decide(self, decide: Decide) -> tuple[bool, bool]:
        """On the newest state. (There was something to do, or nothing could be decided; something was written.)"""
        if not self._local.fresh:
            return True, False
        state, world = region_state(self._region, self._local), self._fences.world()
        decisions = disjoint(decide(state, world, self._settings, self._time.now(self._steady_ms())))
        return bool(decisions), await apply_all(decisions, self._local_applier, self._actor, self._fence)

    async def _move(self) -> bool:
        """What spans both stores: reservations here first, then the global store under the region's grant."""
        if not self._local.fresh or not self._world.fresh:
            return False
        wrote = await self._hold_grant()
        state, world = region_state(self._region, self._local), self._fences.world()
        grant = world.grants.get(self._region)
        if grant is None or grant.record.term != self._fence.term or grant.record.revoked:
            return wrote
        now = self._time.now()
        reserve = decide_reservations(state, world, self._settings, now)
        wrote |= await apply_all(reserve, self._local_applier, self._actor, self._fence)
        state, world = region_state(self._region, self._local), self._fences.world()
        spend = decide_share(state, world, self._settings, now)
        wrote |= await apply_all(spend, self._local_applier, self._actor, self._fence)
        state, world = region_state(self._region, self._local), self._fences.world()
        decisions = list(decide_promise(state, world, self._settings, now))
        decisions += decide_requests(state, world, self._settings, now)
        decisions += decide_offers(state, world, self._settings, now)
        capacity = published_region(state, world, self._settings, now, self._replica)
        if capacity:
            decisions.append(capacity)
        return wrote | await apply_all(decisions, self._world_applier, self._actor, None)

    async def _hold_grant(self) -> bool:
        """The region's grant in the global store, under this term."""
        world, now = self._fences.world(), self._time.now()
        addresses = tuple(sorted(held.record.api_address for held in self._local.kind("replicas").values()))
        decision = decide_grant(self._region, world, self._settings, now, self._fence.term, self._replica, addresses)
        return await apply_all([decision] if decision else [], self._world_applier, self._actor, None)

    async def _copy(self) -> None:
        """Bring checkpoints into this region's store and record where they are verified."""
        while True:
            copied = False
            if self._world.fresh:
                try:
                    copied = await self._copy_once()
                except StoreError as error:
                    log.warning("copies into %s wait for the global store: %s", self._region, error)
            if not copied:
                await self._world.wait_moved(COPY_IDLE_MS)

    async def _copy_once(self) -> bool:
        world = self._fences.world()
        decisions = await self._replicator.copy(world, self._settings.policy)
        grant = world.grants.get(self._region)
        if grant is None or not decisions:
            return False
        return await apply_all(decisions, self._world_applier, self._actor, None)

    async def _tell_copies(self) -> None:
        """How far the copy is that a migration waits for, now and then: a short one is never told of."""
        while True:
            await self._clock.sleep(COPY_TOLD_MS)
            copying = self._replicator.copying
            if copying is None or not copying.task.urgent or not self._world.fresh:
                continue
            decision = record_progress(self._fences.world(), self._region, copying, self._time.now())
            try:
                await apply_all([decision] if decision else [], self._world_applier, self._actor, None)
            except StoreError as error:
                log.warning("how far a copy is waits for the global store: %s", error)

    async def _tend(self, look: Tend) -> None:
        """Care for what this region's checkpoint store holds already, for ever, and record what comes of it."""
        while True:
            world = self._fences.world()
            grant = world.grants.get(self._region)
            if self._world.fresh and grant is not None and grant.record.term == self._fence.term:
                decisions = await look(world, self._settings.policy.checkpoints, self._time.now().ledger_ms)
                try:
                    await apply_all(decisions, self._world_applier, self._actor, None)
                except StoreError as error:
                    log.warning("checkpoints of %s: what was found waits for the global store: %s", self._region, error)
            await self._clock.sleep(TEND_IDLE_MS)
