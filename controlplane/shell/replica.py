"""One replica of a region's control plane, from ports: the same object runs for real and under simulation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import gridkeeper
from controlplane.domain.fleet import FleetTable
from controlplane.domain.suspicion import LocalHealth
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.fences import Fences
from controlplane.shell.frontdoor import FrontDoor
from controlplane.shell.ingest import Ingest
from controlplane.shell.jobfeed import JobFeed
from controlplane.shell.ledgertime import LedgerTime, latest_written
from controlplane.shell.mirror import Mirror
from controlplane.shell.notices import LogNotifier, Notices
from controlplane.shell.objectives import Objectives
from controlplane.shell.ownerview import OwnerView
from controlplane.shell.paging import Paging
from controlplane.shell.peerwatch import PeerShell
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.probing import ProbeDesk
from controlplane.shell.promises import Promiser, Promises
from controlplane.shell.regional import RegionalLeader
from controlplane.shell.rulewatch import RuleWatch
from controlplane.shell.sessioncare import SessionCare
from controlplane.shell.settling import Settling, Sign
from controlplane.shell.silence import Beat
from controlplane.shell.worldwide import GlobalLeader
from controlplane.store.election import Election, LeasedKey
from failover.checkpoint.collector import Collector
from failover.checkpoint.replicate import Replicator
from failover.checkpoint.scrubber import Scrubber
from failover.domain.handover import decided_elsewhere
from gridkeeper import codec
from gridkeeper.decision import ABSENT
from gridkeeper.failpoint import Failpoints
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.keys import KEYS, RegionKeys, region_root
from gridkeeper.policy.model import LivenessPolicy
from gridkeeper.ports.archive import Archive
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.jobs import CheckpointStore
from gridkeeper.ports.notify import Notifier, Pager
from gridkeeper.ports.peers import OtherRegions
from gridkeeper.ports.store import Compare, OutcomeUnknown, PutOp, Store, StoreUnavailable
from gridkeeper.ports.tickets import TicketDesk
from gridkeeper.records.books import MetaRecord
from gridkeeper.records.faults import LeaderRecord, ReplicaRecord
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.replica")

RETRY_MS = 500
FAILED_MS = 5_000
"""A replica whose decisions failed by an error of ours stays out of elections this long."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything a replica touches."""

    clock: Clock
    rng: Rng
    region_store: Store
    global_store: Store
    checkpoints: Mapping[RegionId, CheckpointStore]
    others: OtherRegions
    notifier: Notifier | None = None
    tickets: TicketDesk | None = None
    failpoints: Failpoints | None = None
    archive: Archive | None = None
    sign: Sign | None = None
    pager: Pager | None = None


class Replica:
    """``address``: where agents and clients reach it."""

    def __init__(self, region: RegionId, replica: ReplicaId, address: str, ports: Ports, settings: Settings) -> None:
        self.region = region
        self.replica = replica
        self._timings = settings.timings
        self._address = address
        self._ports = ports
        clock, rng, timings = ports.clock, ports.rng, settings.timings
        self._keys = RegionKeys(region)
        self.local = Mirror(ports.region_store, region_root(region), clock)
        self.world = Mirror(ports.global_store, KEYS.root, clock)
        self.policies = PolicyInForce(region, self.local, self.world, settings)
        self._local_applier = Applier(
            ports.region_store, self.local, self._keys.audit, rng, clock.wall_ms, ports.failpoints
        )
        self._world_applier = Applier(ports.global_store, self.world, KEYS.audit, rng, clock.wall_ms, ports.failpoints)
        self.table = FleetTable()
        self.view = OwnerView(ports.global_store, region, clock, timings)
        self.promiser = Promiser(
            region, replica, self.view, ports.region_store, self.local, self._local_applier, clock, timings
        )  # fmt: skip
        self._promises = Promises(region, replica, address, self.view, self.promiser, ports.others, clock, timings)
        self._fences = Fences(
            region, replica, self.local, self.world, self._local_applier,
            lambda: self.leads_region or self.leads_world, clock, timings,
        )  # fmt: skip
        jobs = JobFeed(
            region,
            replica,
            self.local,
            self.world,
            self.view,
            self._world_applier,
            ports.checkpoints[region],
            clock,
            timings,
        )
        self._beat = Beat(LocalHealth(clock.mono_ms()), self._liveness, clock)
        self.ingest = Ingest(
            region, replica, ports.region_store, self.local, self._local_applier, self.table, jobs, clock, rng, timings,
            self._liveness, self._beat,
        )  # fmt: skip
        self._care = SessionCare(
            region, replica, ports.region_store, self.local, self.ingest.streams, clock, timings
        )  # fmt: skip
        self._probes = ProbeDesk(region, ports.region_store, self.local, self.ingest.streams, self._liveness, clock)
        self.ingest.probe_answered = self._probes.answered
        self._rules = RuleWatch(
            region,
            replica,
            self.table,
            self.local,
            self.world,
            self._local_applier,
            self.policies,
            clock,
            rng,
            self.ingest.heard_age_ms,
        )
        self._peers = PeerShell(
            region, replica, self.table, self.ingest.streams, self.local, self.world, self._local_applier, clock, rng,
            self.policies.settings,
        )  # fmt: skip
        self._replicator = Replicator(region, ports.checkpoints, clock)
        self._scrubber = Scrubber(region, ports.checkpoints.get(region), clock)
        self._collector = Collector(region, ports.checkpoints.get(region))
        self._notices = Notices(ports.notifier or LogNotifier())
        self.front = FrontDoor(
            region, replica, self.local, self.world, self._local_applier, self._world_applier,
            {"region": ports.region_store, "global": ports.global_store}, self.table, self.ingest, self.policies, clock,
        )  # fmt: skip
        self.leads_region = False
        self.leads_world = False
        self._handed_over_ms: dict[str, int] = {}

    def _liveness(self) -> LivenessPolicy:
        """In force now: the policy may change at any time."""
        return self.policies.settings().policy.liveness

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._run()
        finally:
            await self.ingest.stop()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.local.run())
            group.create_task(self.world.run())
            group.create_task(self.view.run())
            group.create_task(self._keep("the questions to other regions", self._promises.run))
            group.create_task(self._beat.run())
            await self.local.wait_loaded()
            await self._found(self._ports.region_store, self._keys.meta, f"region/{self.region}")
            group.create_task(self._present())
            group.create_task(self._keep("the rules over telemetry", self._rules.run))
            group.create_task(self._keep("the comparison of peers", self._peers.run))
            group.create_task(self._keep("the care for sessions", self._care.run))
            group.create_task(self._keep("the watch over silence", self.ingest.silence.run))
            group.create_task(self._keep("the repairs of hosts", self.ingest.host.run))
            group.create_task(self._keep("the gates of batch systems", self.ingest.gates.run))
            group.create_task(self._keep("the questions to peers", self._probes.run))
            group.create_task(self._keep("the fences", self._fences.run))
            group.create_task(
                self._campaign(self._ports.region_store, self._keys.leader, self._lead_region, self.world)
            )
            await self.world.wait_loaded()
            await self._found(self._ports.global_store, KEYS.meta, "global")
            group.create_task(self._campaign(self._ports.global_store, KEYS.leader, self._lead_world, self.local))

    async def _found(self, store: Store, key: str, role: str) -> None:
        """Create the store's header if this is its first use. Epochs begin with its generation."""
        meta = codec.encode(MetaRecord(1, role, self._ports.clock.wall_ms()))
        while True:
            try:
                await store.txn([Compare(key, ABSENT)], [PutOp(key, meta)])
                return
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("%s waits for its store: %s", key, error)
                await self._ports.clock.sleep(RETRY_MS)

    async def _keep(self, what: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what the replica can do without for a while: its failure is said and it begins anew, since renewals must
        go on being answered."""
        while True:
            task = asyncio.ensure_future(run())
            try:
                await asyncio.wait((task,))
            finally:
                task.cancel()
            log.critical("%s of %s failed", what, self.replica, exc_info=task.exception())
            await self._ports.clock.sleep(FAILED_MS)

    async def _present(self) -> None:
        """Keep replicas/<id> alive under a lease: a node whose replica is gone is not heard."""
        record = ReplicaRecord(
            self.replica, self.region, self._address, self._address, gridkeeper.__version__, self._ports.clock.wall_ms()
        )
        key = LeasedKey(
            self._ports.region_store,
            self._keys.replica(self.replica),
            codec.encode(record),
            self._timings.lease_ttl_s,
            self._ports.clock,
        )
        await key.run()

    async def _campaign(self, store: Store, key: str, lead: Callable[[Fence], Awaitable[None]], needs: Mirror) -> None:
        """Stand for election for ever; lead while elected. Everything written is fenced by the term anyway.

        ``needs``: leading needs the other store too. Who is cut off from it lets others stand first, and hands over to
        them, but leads if nobody else does: a region goes on judging its devices on its own, and what the world's
        leader can do without its own region's store, which holds its fences, is better than nothing. So does who leads
        the world and may not decide on a job that a leader of another region could decide on.
        """
        clock = self._ports.clock
        while True:
            if self._hampered(needs):
                await clock.sleep(2_000 * self._timings.lease_ttl_s)
            record = LeaderRecord(self.replica, self._address, clock.wall_ms())
            election = Election(store, key, codec.encode(record), self._timings.lease_ttl_s, clock)
            leadership = await election.campaign()
            if needs.fresh and self._hampered(needs) and self._rested(key):
                # It has become hampered while it waited, and those of the other regions stand, too.
                self._handed_over_ms[key] = clock.mono_ms()
                await leadership.resign()
                continue
            log.info("%s leads %s, term %d", self.replica, key, leadership.term)
            leading = asyncio.ensure_future(lead(Fence(key, leadership.term)))
            lost = asyncio.ensure_future(leadership.lost.wait())
            outshone = asyncio.ensure_future(self._outshone(key, needs))
            try:
                await asyncio.wait((leading, lost, outshone), return_when=asyncio.FIRST_COMPLETED)
                failure = leading.exception() if leading.done() else None
                log.warning("%s no longer leads %s", self.replica, key)
            finally:
                for task in (leading, lost, outshone):
                    task.cancel()
                await asyncio.gather(leading, lost, outshone, return_exceptions=True)
                await leadership.resign()
            if failure is not None:
                # Another replica may do better. This one goes on answering renewals: without them, every job ends.
                log.critical("%s failed while it led %s", self.replica, key, exc_info=failure)
                await clock.sleep(FAILED_MS)

    async def _outshone(self, key: str, needs: Mirror) -> None:
        """Until this replica has been hampered for F while another one lives that may lead instead. Not again before
        four R have passed: the other one may be no better off."""
        clock, timings = self._ports.clock, self._timings
        since: int | None = None
        while True:
            now = clock.mono_ms()
            why = self._hampered(needs)
            since = since or now if why else None
            others = any(name != self.replica for name in self.local.kind("replicas"))
            if needs is self.local:
                others = any(name != self.region for name in self.world.kind("grants"))
            if others and self._rested(key) and since is not None and now - since >= timings.fence_ms:
                self._handed_over_ms[key] = now
                log.warning("%s hands over %s: %s", self.replica, key, why)
                return
            await clock.sleep(RETRY_MS)

    def _rested(self, key: str) -> bool:
        """Whether it may be handed over (again)."""
        last_ms = self._handed_over_ms.get(key)
        return last_ms is None or self._ports.clock.mono_ms() - last_ms >= 4 * self._timings.takeover_ms

    def _hampered(self, needs: Mirror) -> str:
        """Why another one would do better as a leader who ``needs`` that store; "": none would."""
        if not needs.fresh:
            return f"{'its own' if needs is self.local else 'the global'} store is not heard from here"
        if needs is self.local:
            return decided_elsewhere(self._fences.world(), self._ports.clock.mono_ms(), self._timings)
        return ""

    async def _lead_region(self, fence: Fence) -> None:
        # The leader key's own revision is the point from which the mirror shows everything earlier leaders wrote.
        while not await self.local.wait_revision(fence.term, 1_000):
            pass
        self.leads_region = True
        try:
            leader = RegionalLeader(
                self.region, self.replica, fence, self.local, self.world, self._local_applier, self._world_applier,
                self._replicator, self._scrubber, self._collector, self._notices, self.policies, self._ports.clock,
                self._beat.steady_ms, self._fences, self._ports.tickets,
            )  # fmt: skip
            await self._with_duties(leader.run(), fence, self.region)
        finally:
            self.leads_region = False

    async def _lead_world(self, fence: Fence) -> None:
        while not await self.world.wait_revision(fence.term, 1_000):
            pass
        self.leads_world = True
        try:
            leader = GlobalLeader(
                self.region, self.replica, fence, self.world, self._world_applier, self.policies, self._fences,
                self._ports.clock,
            )  # fmt: skip
            await self._with_duties(leader.run(), fence, None)
        finally:
            self.leads_world = False

    async def _with_duties(self, leading: Coroutine[Any, Any, None], fence: Fence, region: RegionId | None) -> None:
        """Lead, and beside that measure objectives, tell of their alerts, and settle that store's ledger."""
        ports, local, actor = self._ports, self.local if region else self.world, f"machine/{self.replica}"
        keys, applier = (self._keys, self._local_applier) if region else (KEYS, self._world_applier)
        store = ports.region_store if region else ports.global_store
        books, settings = f"region/{region}" if region else "global", self.policies.settings
        time = LedgerTime(ports.clock, latest_written(local))
        objectives = Objectives(
            region, keys, local, self.world, applier, actor, fence, settings, ports.clock, time
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            group.create_task(leading)
            group.create_task(self._keep("the measuring of objectives", objectives.run))
            if ports.pager is not None:
                paging = Paging(books, keys, local, applier, actor, fence, ports.pager, settings, ports.clock)
                group.create_task(self._keep("the telling of alerts", paging.run))
            if ports.archive is not None:
                settling = Settling(
                    region, keys, store, local, self.world, applier, actor, fence, ports.archive, ports.sign, settings,
                    ports.clock, time,
                )  # fmt: skip
                group.create_task(self._keep("the settlement of the ledger", settling.run))
