"""Promises between regions, from both ends: given to others from this region's store, and asked of all others while
the global store is away (``failover.domain.promises`` says why that is safe)."""

from __future__ import annotations

import asyncio
import logging

from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.ownerview import OwnerView
from failover.domain.promises import decide_promise_record, refused
from gridkeeper import codec
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.peers import Ask, NoAnswer, OtherRegions
from gridkeeper.ports.store import Store, StoreError
from gridkeeper.records.jobs import GrantRecord
from gridkeeper.records.regions import FenceRecord
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.promises")


class Promiser:
    """Answers for its region. Each answer is a read of the region's store by quorum. To another replica of its own
    region it says no while it reads the global store itself: agents are to come here, where checkpoints are committed,
    too."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        view: OwnerView,
        store: Store,
        local: Mirror,
        applier: Applier,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._region = region
        self._replica = replica
        self._view = view
        self._actor = f"machine/{replica}"
        self._store = store
        self._local = local
        self._applier = applier
        self._clock = clock
        self._timings = timings

    async def answer(self, ask: Ask) -> str:
        """Why it does not promise; "": it does."""
        neighbour = ask.region == self._region and ask.replica != self._replica
        if neighbour and self._view.read_age_ms < self._timings.stale_ms:
            return f"{self._replica} of the same region reads the global store"
        try:
            return await self._answer(ask)
        except (StoreError, codec.CorruptRecord) as error:
            return f"{self._region} does not know its own fence: {error}"
        except Conflict:
            return f"{self._region} raises its fence against {ask.region} just now; ask again"

    async def _answer(self, ask: Ask) -> str:
        kv, _ = await self._store.get(RegionKeys(self._region).fence(ask.region))
        now_ms = self._clock.mono_ms()
        record = codec.decode(FenceRecord, kv.value) if kv is not None else None
        refusal = refused(self._region, ask, record)
        if refusal or kv is None or record is None:
            return refusal
        fence = Versioned(record, kv.mod_revision, kv.create_revision, now_ms)
        last = self._local.newest("promises", ask.region)
        now = Now(now_ms, self._clock.wall_ms())
        decision = decide_promise_record(self._region, ask, fence, last, self._timings, now)
        if decision is not None:
            await self._applier.caught_up(await self._applier.apply(decision, self._actor, None))
        return ""


class Promises:
    """What this replica renews on while its view of the global store ages: asks every region, its own included, several
    times within S. One silent or unwilling region is enough for the view to go on ageing, or one replica of its own
    region that is better off. ``address``: its own."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        address: str,
        view: OwnerView,
        own: Promiser,
        others: OtherRegions,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._region = region
        self._replica = replica
        self._address = address
        self._view = view
        self._own = own
        self._others = others
        self._clock = clock
        self._timings = timings
        self._period_ms = max(50, timings.stale_ms // 4)
        self._answered: dict[RegionId, str] = {}
        self.living = False
        """The last round of questions was answered by all, and the global store has not been read since."""

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._view.read_age_ms < self._timings.stale_ms // 2:
                self._say(False, "the global store is read again")
            else:
                await self._round()
            await self._clock.sleep(self._period_ms)

    async def _round(self) -> None:
        """Ask everybody once."""
        asked_ms, extent, grant = self._clock.mono_ms(), self._view.extent, self._view.grant
        others = self._view.others()
        if extent is None or grant is None or grant.revoked:
            return
        if any(other is None for other in others.values()):
            self._say(False, "the grant of a region does not decode, so it is not known who is to be asked")
            return
        ask = Ask(self._region, self._replica, extent, self._view.age_ms < self._timings.stale_ms)
        refusals = await asyncio.gather(
            self._own.answer(ask),
            *(self._of(other, ask) for other in others.values() if other),
            *(self._objection(address, ask) for address in grant.addresses if address != self._address),
        )
        why = "; ".join(refusal for refusal in refusals if refusal)
        if not why:
            self._view.promised(extent, asked_ms)
        self._say(not why, why)

    async def _of(self, grant: GrantRecord, ask: Ask) -> str:
        """What a region answers, by the first of its replicas that does; the one that did last is asked first. What
        this replica knows of addresses is as old as its view of the global store: who answers there may by now be of
        another region, or always was, if the address means something else over here. It cannot promise for this one."""
        silent = f"{grant.region} has no replica that could be asked"
        for address in sorted(grant.addresses, key=lambda address: address != self._answered.get(grant.region)):
            try:
                answer = await self._others.ask(grant.region, address, ask, self._period_ms)
            except NoAnswer as error:
                silent = f"{grant.region} does not answer: {error}"
                continue
            if answer.region == grant.region:
                self._answered[grant.region] = address
                return answer.refusal
            silent = f"{address}, where {grant.region} is said to be, is of region {answer.region or '(none said)'}"
        return silent

    async def _objection(self, address: str, ask: Ask) -> str:
        """Of another replica of the same region; one that is silent has none."""
        try:
            answer = await self._others.ask(self._region, address, ask, self._period_ms)
        except NoAnswer:
            return ""
        return answer.refusal if answer.region == self._region else ""

    def _say(self, living: bool, why: str) -> None:
        """Once per change."""
        if living and not self.living:
            log.warning(
                "the global store is not reached from %s; its jobs go on by the promises of all other regions, and no "
                "checkpoint of theirs is committed",
                self._replica,
            )
        elif self.living and not living:
            log.warning("%s renews on promises no longer: %s", self._replica, why)
        self.living = living
