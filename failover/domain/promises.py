"""What keeps a region's jobs alive while it does not reach the global store: the promises of all the others. Pure.

The global store is where a job's next owner is decided, so who does not see it must not renew (rule 4.1), unless nobody
can decide anything. Each region therefore keeps, in its own store, a *fence* against every region: an extent of the
global store. The order that safety rests on:

* Whoever takes a job over for R having passed reckons R from when it saw, in the store of *its own* region, the fence
  against the job's region raised to the revision of the revoke intent (``waiting_since``).
* A promise is a linearizable read of that fence, and is refused to an asker whose view of the global store ends before
  it: such an asker may not know of the intent.
* A replica acknowledges renewals on promises only if every region, its own among them, has promised, and for S from
  when it began to ask. So at the last of these moments no region had raised its fence, and the agent that it answers
  has ended the job by S + F after it: before R has passed since any fence.
* Who may decide is who is asked: a region takes jobs of another one over only if the other's grant names it
  (``GrantRecord.peers``), and a grant names only regions whose own grant lies below the fence that the region has
  against itself. A replica with an older view, which might not ask the new region, is refused by its own region: but
  only from then on. So R is reckoned from when the grant was seen to name the decider, if that was later.

A grant that is revoked raises the fence like an intent: a human's word that a region is lost ends its jobs, too.

A fence that is not there, or does not decode, is no low one: the region's store may be new, or have lost it, and with
it what was refused. Nothing is promised until a leader has raised one to all that the global store holds, read by
quorum after the loss was seen: whatever the lost one was raised for had been committed before.
"""

from __future__ import annotations

from collections.abc import Mapping

from gridkeeper.decision import ABSENT, Decision, Guard, Now, Put, Versioned
from gridkeeper.ids import Extent, JobId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.memo import differing
from gridkeeper.ports.peers import Ask
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.records.regions import FenceRecord, PromiseRecord
from gridkeeper.snapshot import Failsafe, GlobalState
from gridkeeper.timings import Timings

WRITTEN_PER_FENCE = 4
"""A promise that is repeated is written anew this often within one F: for the others of the region to see."""


def waiting_since(world: GlobalState, ownership: Versioned[OwnershipRecord]) -> int | None:
    """This process's clock from which R is reckoned before the revoked owner counts as gone: when it had seen the
    intent, the fence, and that the owner's region asks ours. None: not yet."""
    failsafe = world.failsafe
    if failsafe is None:
        return ownership.seen_ms
    region = ownership.record.region
    asks_ms = asks_us_since(world, failsafe, region)
    if asks_ms is None or KEYS.meta in world.suspect_keys:
        return None  # without the store's generation its revisions say nothing
    intent = Extent(world.generation, int(ownership.revision))
    for raised, seen_ms in failsafe.raised.get(region, ()):
        if raised >= intent:
            return max(seen_ms, ownership.seen_ms, asks_ms)
    return None


def asks_us_since(world: GlobalState, failsafe: Failsafe, region: RegionId) -> int | None:
    """From when on, by this process's clock, the region renews nothing on promises without ours; None: it may. One that
    never held a grant renews nothing at all; of a grant that does not decode nobody knows whom it names."""
    grant = world.grants.get(region)
    if region == failsafe.here or (grant is None and KEYS.grant(region) not in world.suspect_keys):
        return 0
    if grant is None or failsafe.here not in grant.record.peers:
        return None
    return failsafe.named.get(region)


def peers_to_name(world: GlobalState, region: RegionId) -> tuple[RegionId, ...]:
    """Regions that every replica of ``region``, ours, certainly asks: those below its fence against itself."""
    fence = world.failsafe.fences.get(region) if world.failsafe else None
    below = _extent(fence.record) if fence and KEYS.meta not in world.suspect_keys else Extent()
    others = ((other, grant) for other, grant in sorted(world.grants.items()) if other != region)
    return tuple(other for other, grant in others if Extent(world.generation, int(grant.created)) <= below)


def decide_fences(world: GlobalState) -> tuple[Decision, ...]:
    """Raise each fence of our region to the newest intent against the region. For the region's own store; harmless
    whoever writes it, since a fence that is too high only makes others stop. Intents that are gone by now, because the
    job has its next owner, do not show: so one that is missing begins at all that is seen."""
    failsafe = world.failsafe
    if failsafe is None or not world.fresh or KEYS.meta in world.suspect_keys:
        return ()
    keys, decisions = RegionKeys(failsafe.here), []
    for region, revision in sorted(world.memo.of(_Newest).at(world).items()):
        old = failsafe.fences.get(region)
        if (old and _extent(old.record) >= Extent(world.generation, revision)) or not revision:
            continue
        if old is None:
            revision = max(revision, int(world.revision))
        record = FenceRecord(region, world.generation, revision)
        put = Put(keys.fence(region), record, old.revision if old else failsafe.torn.get(region, ABSENT))
        sentence = f"{failsafe.here} promises {region} nothing any more below revision {revision} of the global store"
        decisions.append(Decision("promise.fence", sentence, (put,), (), f"region/{region}", audit=False))
    return tuple(decisions)


def begins_anew(decisions: tuple[Decision, ...], failsafe: Failsafe) -> bool:
    """Whether one of them raises a fence whose height is not known: ``world`` must then show all that was committed
    before ``failsafe`` was taken, or the new one may be lower than what it replaces."""
    known = {RegionKeys(failsafe.here).fence(region) for region in failsafe.fences}
    return any(write.key not in known for decision in decisions for write in decision.writes)


class _Newest:
    """Per region, the newest revision of the global store that a replica of it must have seen to go on: kept from look
    to look, since it never falls and few jobs change at a time."""

    def __init__(self) -> None:
        self._generation = 0
        self._ownership: Mapping[JobId, Versioned[OwnershipRecord]] | None = None
        self._newest: dict[RegionId, int] = {}

    def at(self, world: GlobalState) -> Mapping[RegionId, int]:
        if self._generation != world.generation:
            self._generation, self._ownership, self._newest = world.generation, None, {}
        for job in differing(self._ownership, world.ownership):
            owner = world.ownership.get(job)
            if owner is not None and owner.record.revoke is not None:
                self._rise(owner.record.region, int(owner.revision))
        self._ownership = world.ownership
        joined = max((int(grant.created) for grant in world.grants.values()), default=0)
        for region, grant in world.grants.items():
            self._rise(region, max(joined, int(grant.revision) if grant.record.revoked else 0))
        return self._newest

    def _rise(self, region: RegionId, revision: int) -> None:
        self._newest[region] = max(self._newest.get(region, 0), revision)


def _extent(fence: FenceRecord) -> Extent:
    return Extent(fence.generation, fence.revision)


def refused(here: RegionId, ask: Ask, fence: FenceRecord | None) -> str:
    """Why our region, whose fence against the asker's was just read, does not promise; "": it does."""
    if fence is None:
        return f"{here} has no fence against {ask.region} yet; its leader raises one when it reads the global store"
    if _extent(fence) > ask.seen:
        return (
            f"{here} has raised its fence against {ask.region} to revision {fence.revision} of the global store, and "
            f"{ask.replica} has seen it up to {ask.seen.revision}"
        )
    return ""


def decide_promise_record(
    here: RegionId,
    ask: Ask,
    fence: Versioned[FenceRecord],
    last: Versioned[PromiseRecord] | None,
    timings: Timings,
    now: Now,
) -> Decision | None:
    """Make a promise that was given known to our region, unless it was a moment ago: while it is repeated, the asker's
    region is not lost. Nothing is recorded for who asks in vain elsewhere, or it would never be given up."""
    if ask.region == here or not ask.alive:
        return None
    if last is not None and now.mono_ms - last.seen_ms < timings.fence_ms // WRITTEN_PER_FENCE:
        return None
    keys = RegionKeys(here)
    record = PromiseRecord(ask.region, ask.replica, ask.seen.generation, ask.seen.revision, now.ledger_ms)
    sentence = (
        f"{ask.region} does not reach the global store ({ask.replica} asks) and is promised that {here} takes none of "
        f"its jobs over for R = {timings.takeover_ms} ms"
    )
    put = Put(keys.promise(ask.region), record, last.revision if last else ABSENT)
    guards = (Guard(keys.fence(ask.region), fence.revision),)
    anew = last is None or now.mono_ms - last.seen_ms >= timings.takeover_ms
    return Decision("promise.give", sentence, (put,), guards, f"region/{ask.region}", audit=anew)


def promised_ms(world: GlobalState, region: RegionId) -> int | None:
    """This process's clock when it last saw our region promise the other one; None: never."""
    promise = world.failsafe.promises.get(region) if world.failsafe else None
    return promise.seen_ms if promise else None
