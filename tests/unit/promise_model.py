"""A small, hostile world around the real rules of promises: three regions, one job, clocks of different speed, messages
that are slow or lost, and a region that loses the global store.

Everything that decides is the real code (``failover.domain``); the model only moves bytes and time. ``east`` owns the
job. Its replica ``e2`` answers the job's agent and loses the global store early, its leader ``e1`` later or never;
``west`` is there from the start, ``north`` joins some time. One of the three regions decides who is next.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from failover.domain.fencing import may_acknowledge
from failover.domain.indexes import released
from failover.domain.promises import decide_fences, peers_to_name, refused
from gridkeeper.decision import Put, Versioned
from gridkeeper.ids import DeviceId, Epoch, Extent, JobId, MigrationId, NodeId, RegionId, ReplicaId, Revision
from gridkeeper.ports.peers import Ask
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord, Revoke
from gridkeeper.records.regions import FenceRecord
from gridkeeper.snapshot import Failsafe, GlobalState
from gridkeeper.timings import Timings
from tests.unit.failover_world import spec_of

EAST, WEST, NORTH = RegionId("east"), RegionId("west"), RegionId("north")
JOB, NODE, EPOCH = JobId("train"), NodeId("e1"), Epoch(1, 1)
TIGHT = Timings(stale_ms=1_000, fence_ms=5_000, takeover_ms=6_300, clock_ratio=1.05, renewal_ms=300)
"""No slack at all: R = (S + F) × ρ."""
STEP_MS = 50
END_MS = 40_000


@dataclass(frozen=True)
class Rules:
    """What a test may weaken."""

    refuse: Callable[[RegionId, Ask, FenceRecord | None], str] = refused
    release: Callable[..., str] = released
    name: Callable[[GlobalState, RegionId], tuple[RegionId, ...]] = peers_to_name
    asked: Callable[[frozenset[RegionId]], frozenset[RegionId]] = lambda regions: regions


@dataclass
class Region:
    """One region's own store and what its leader's mirrors show of both."""

    name: RegionId
    fence: dict[RegionId, Versioned[FenceRecord]] = field(default_factory=dict)
    shown: dict[RegionId, Versioned[FenceRecord]] = field(default_factory=dict)
    raised: dict[RegionId, tuple[tuple[Extent, int], ...]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)  # key@revision of the global store -> when this mirror saw it
    named: dict[RegionId, int] = field(default_factory=dict)


class Model:
    def __init__(self, seed: int, rules: Rules) -> None:
        self.dice = Random(seed)
        self.rules = rules
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.number = 0
        roll = self.dice
        self.decider = roll.choice((EAST, WEST, NORTH))
        slow = 1 + roll.random() * 0.05
        self.agent_rate, self.decider_rate = 1 / slow, 1.05 / slow  # at most ρ apart
        self.view_rate = 1 / slow
        self.blind_ms = roll.randrange(1_500, 5_000)  # e2 reads the global store no longer
        self.joins_ms = roll.choice((0, self.blind_ms + roll.randrange(0, 3_000)))
        self.intent_ms = self.joins_ms + roll.randrange(1_000, 6_000)
        self.loss = roll.choice((0.0, 0.05, 0.4))
        # How slow at most: questions and answers, renewals, and per region the way of a fence into the store and back.
        self.asks_ms, self.renewals_ms = roll.choice((50, 300, 900)), roll.choice((50, 300, 2_000))
        self.fences_ms = {name: roll.choice((50, 300, 6_000)) for name in (EAST, WEST, NORTH)}
        # From when the leader of a region does not see the global store.
        cuts = (END_MS, self.intent_ms - 500, self.joins_ms + 500)
        self.cut_ms = {name: roll.choice(cuts) for name in (EAST, WEST, NORTH)}
        self.cut_ms[self.decider] = END_MS
        # From when until when leaders of regions that do not decide see nothing, or their stores take no writes:
        # R and more after the intent.
        heals_ms = self.intent_ms + TIGHT.takeover_ms + roll.randrange(0, 2_000)
        self.away = range(self.joins_ms - 500, heals_ms) if roll.random() < 0.25 else range(0)
        self.blind = roll.random() < 0.5
        # the global store
        self.revision = 10
        self.grants: dict[RegionId, Versioned[GrantRecord]] = {}
        for region in (EAST, WEST):
            self._grant(region, ())
        owner = OwnershipRecord(
            JOB, EPOCH, EAST, NODE, (DeviceId("e1/gpu0"),), Desired.RUN, 0, None, -1, "", MigrationId("m"),
            spec_of("train"), "",
        )  # fmt: skip
        self.owner = self._versioned(owner, None)
        # the regions
        self.regions = {name: Region(name) for name in (EAST, WEST, NORTH)}
        # e2's view
        self.view = (Extent(), self.owner, frozenset[RegionId](), -1)
        self.promised_ms = -1
        # the job
        self.ends_ms = 5_000
        self.dead = False
        self.taken_ms = -1
        self.renewed_by_promise = 0

    # -- plumbing

    def later(self, do: Callable[[], None], most_ms: int) -> None:
        """After a random while."""
        self.number += 1
        delay = self.dice.randrange(0, most_ms + 1)
        heapq.heappush(self.queue, (self.now + delay, self.number, do))

    def lost(self) -> bool:
        return self.dice.random() < self.loss

    def _versioned(self, record: object, old: Versioned[object] | None) -> Versioned[object]:  # type: ignore[misc]
        self.revision += 1
        created = old.created if old else Revision(self.revision)
        return Versioned(record, Revision(self.revision), created, 0)

    def _grant(self, region: RegionId, peers: tuple[RegionId, ...]) -> None:
        record = GrantRecord(region, 1, ReplicaId(f"{region}-r"), 1, peers=peers)
        self.grants[region] = self._versioned(record, self.grants.get(region))  # type: ignore[assignment]

    # -- what happens

    def run(self) -> Model:
        """To the end. ``overlap`` says how it went."""
        for self.now in range(0, END_MS, STEP_MS):
            while self.queue and self.queue[0][0] <= self.now:
                heapq.heappop(self.queue)[2]()
            self.dead = self.dead or self.now >= self.ends_ms
            if self.dead and (self.taken_ms >= 0 or self.now > self.intent_ms + 3 * TIGHT.takeover_ms):
                break
            self._step()
        return self

    @property
    def overlap_ms(self) -> int:
        """How long the old owner lived after the job was given away; ≤ 0: not at all."""
        return self.ends_ms - self.taken_ms if self.taken_ms >= 0 else 0

    def _step(self) -> None:
        if self.now >= self.joins_ms and NORTH not in self.grants:
            self._grant(NORTH, ())
        if self.now >= self.intent_ms and self.owner.record.revoke is None:
            revoked = replace(self.owner.record, revoke=Revoke(MigrationId("m"), "wanted elsewhere", 0, False))
            self.owner = self._versioned(revoked, self.owner)  # type: ignore[assignment]
        if self.now % 250 == 0:
            self._look()
        if self.now % 300 == 0:
            self._renew()
        for region in self.regions.values():
            if self.dice.random() < 0.3:
                self._lead(region)

    def _look(self) -> None:
        """e2 reads the global store, or asks everybody."""
        began = self.now
        if began < self.blind_ms:
            seen = (Extent(1, self.revision), self.owner, frozenset(self.grants), began)
            self.later(lambda: self._saw(seen), 400)
            return
        extent, _, known, read_ms = self.view
        if extent == Extent() or self.now - read_ms < 500:
            return
        ask = Ask(EAST, ReplicaId("e2"), extent, True)
        answers: dict[RegionId, str | None] = {}
        asked = self.rules.asked(known)

        def arrives(region: RegionId) -> None:
            fence = self.regions[region].fence.get(EAST)
            refusal = self.rules.refuse(region, ask, fence.record if fence else None)
            if not self.lost():
                self.later(lambda: answered(region, refusal), self.asks_ms)

        def answered(region: RegionId, refusal: str) -> None:
            answers[region] = refusal
            if set(answers) == set(asked) and not any(answers.values()):
                self.promised_ms = max(self.promised_ms, began)

        for region in sorted(asked):
            if not self.lost():
                self.later(lambda region=region: arrives(region), self.asks_ms)  # type: ignore[misc]

    def _saw(self, seen: tuple[Extent, Versioned[OwnershipRecord], frozenset[RegionId], int]) -> None:
        if seen[3] > self.view[3]:
            self.view = seen

    def _renew(self) -> None:
        sent = self.now
        if self.dead:
            return

        def arrives() -> None:
            _, owner, _, read_ms = self.view
            age = round((self.now - max(read_ms, self.promised_ms)) * self.view_rate)
            if read_ms >= 0 and may_acknowledge(owner, NODE, EPOCH, age, True, TIGHT):
                by_promise = self.now - read_ms >= TIGHT.stale_ms
                self.later(lambda: acknowledged(by_promise), self.renewals_ms)

        def acknowledged(by_promise: bool) -> None:
            if not self.dead and self.now < self.ends_ms:
                self.ends_ms = max(self.ends_ms, sent + round(TIGHT.fence_ms / self.agent_rate))
                self.renewed_by_promise += by_promise

        self.later(arrives, self.renewals_ms)

    def _lead(self, region: Region) -> None:
        """Its leader looks: raises fences, names peers, and, if it is the one, decides."""
        if region.name not in self.grants or self.now >= self.cut_ms[region.name]:
            return
        away = region.name != self.decider and self.now in self.away
        if away and self.blind:
            return
        clock = round(self.now * self.decider_rate)

        def first(key: str, held: Versioned[object]) -> int:
            return region.seen.setdefault(f"{key}@{held.revision}", clock)

        if region.name in self.grants[EAST].record.peers:
            region.named.setdefault(EAST, clock)
        else:
            region.named.pop(EAST, None)
        world = GlobalState(
            revision=Revision(self.revision),
            ownership={JOB: replace(self.owner, seen_ms=first("owner", self.owner))},
            grants={name: replace(grant, seen_ms=first(name, grant)) for name, grant in self.grants.items()},
            failsafe=Failsafe(region.name, dict(region.shown), dict(region.raised), named=dict(region.named)),
        )
        for decision in () if away else decide_fences(world):
            if not self.lost():
                put = decision.writes[0]
                self.later(lambda put=put: self._raise(region, put), self.fences_ms[region.name])  # type: ignore[misc]
        if region.name == EAST:
            peers = self.rules.name(world, EAST)
            if peers != self.grants[EAST].record.peers:
                self._grant(EAST, peers)
        decides = region.name == self.decider and self.taken_ms < 0
        if decides and self.rules.release(world, world.ownership[JOB], None, clock, TIGHT):
            self.taken_ms = self.now

    def _raise(self, region: Region, put: Put) -> None:
        """A fence arrives at the region's store; its mirrors hear of it later."""
        record: FenceRecord = put.record
        old = region.fence.get(record.region)
        if (old.revision if old else 0) != put.expected:
            return
        fence = Versioned(record, Revision((old.revision if old else 0) + 1), Revision(1), 0)
        region.fence[record.region] = fence

        def shown() -> None:
            known = region.shown.get(record.region)
            if known is not None and known.revision >= fence.revision:
                return
            region.shown[record.region] = fence
            extent, clock = Extent(record.generation, record.revision), round(self.now * self.decider_rate)
            region.raised[record.region] = (*region.raised.get(record.region, ()), (extent, clock))

        self.later(shown, self.fences_ms[region.name])
