"""A budget over all regions, divided so that no two regions can spend the same place (architecture §4.7). Pure.

    global leader   escrow/fleet              who may hold how much        ─┐
    region's leader share-acks/fleet/<region> what it promises to stay under ◀┘   (global store)
                    shares/fleet              what it spends from               (its own store)

At every moment, for each region: ``share held ≤ promise``, and over all regions the sum of the larger of what the
escrow gives and what is promised is at most ``limit``. So what is spent never exceeds it, whoever is cut off:

- To grow, a region promises first, in a transaction that compares the escrow record (so that it still gives that much),
  and takes the share only then.
- To shrink, it gives the share back first, as far as it is not spent, and lowers its promise only then.
- The global leader lowers one region's share and raises another's only by what the promises leave free, in a
  transaction that compares all of them.
- A region's leader writes promises under its grant, so one that was followed by another cannot lower the new one's.
- A newer escrow revision marks what is newer: a share is raised only on a promise newer than the one it follows.
- Cut off from the global store, a region goes on with what it holds, and nobody takes that away.

The denominator is what each region's leader counted in its own inventory and wrote beside its promise. When the fleet
shrinks, ``limit`` follows as the promises are lowered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from controlplane.domain.budget import Book, limit_of
from controlplane.domain.scopes import FLEET
from failover.domain.grants import grant_guard
from gridkeeper.decision import ABSENT, Decision, Guard, Now, Put
from gridkeeper.ids import RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.faults import DrainState
from gridkeeper.records.limits import EscrowRecord, EscrowShare, ShareRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings

REBALANCE_MS = 10_000
"""Places move between regions at most this often, so that need that comes and goes does not chase them around."""
GIVEN_UP_MS = 30_000
"""A region that has not answered to a smaller share for this long is cut off: others are asked."""


def fleet_policy(settings: Settings) -> BudgetPolicy | None:
    return next((policy for policy in settings.policy.budgets if policy.kind == FLEET), None)


def _suspect(world: GlobalState) -> bool:
    """A promise or a division that does not decode: how much is given away is unknown, so nothing moves."""
    prefixes = (KEYS.escrow(FLEET), f"{KEYS.prefix('share-acks')}{FLEET}/")
    return any(key.startswith(prefixes) for key in world.suspect_keys)


# -- the global leader ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Region:
    """One region as its last promise says it. ``given``: its share now."""

    name: RegionId
    given: int
    promised: int
    used: int
    wanted: int
    total: int


def decide_escrow(world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Divide the fleet's budget anew when fleet, policy or need have changed."""
    policy, old = fleet_policy(settings), world.escrow.get(FLEET)
    if _suspect(world) or (policy is None and old is None):
        return ()
    regions = _regions(world, old.record if old else None)
    if not regions:
        return ()  # no region's leader has said how many devices it has
    total = sum(region.total for region in regions)
    wanted = limit_of(policy, total) if policy else 0
    shares = _divided(regions, wanted, old.record if old else None, now)
    moved = any(shares[region.name] != region.given for region in regions)
    limit = max(wanted, sum(max(shares[region.name], region.promised) for region in regions))
    record = EscrowRecord(
        FLEET,
        limit,
        total,
        tuple(EscrowShare(region.name, shares[region.name]) for region in regions),
        now.ledger_ms if moved or old is None else old.record.moved_ms,
    )
    if old is not None and record == old.record:
        return ()
    acks = world.share_acks
    guards = tuple(
        Guard(KEYS.share_ack(FLEET, region.name), ack.revision)
        for region in regions
        if (ack := acks.get(_ack_name(region.name))) is not None
    )
    told = ", ".join(f"{share.region} {share.amount}" for share in record.shares) or "nobody"
    sentence = f"the fleet's budget is {limit} of {total} devices: {told}"
    put = Put(KEYS.escrow(FLEET), record, old.revision if old else ABSENT)
    return (Decision("budget.divide", sentence, (put,), guards, f"escrow/{FLEET}", audit=moved),)


def _ack_name(region: str) -> str:
    return f"{FLEET}/{region}"


def _regions(world: GlobalState, old: EscrowRecord | None) -> list[_Region]:
    given = {share.region: share.amount for share in old.shares} if old else {}
    acks = {v.record.region: v.record for v in world.share_acks.values() if v.record.budget == FLEET}
    found = []
    for name in sorted({*given, *acks}):
        ack = acks.get(name)
        found.append(
            _Region(
                name,
                given.get(name, 0),
                ack.amount if ack else 0,
                ack.used if ack else 0,
                ack.wanted if ack else 0,
                ack.total if ack else 0,
            )
        )
    return found


def _divided(regions: list[_Region], wanted: int, old: EscrowRecord | None, now: Now) -> dict[RegionId, int]:
    """The next shares. Steps, in this order: fit the limit, give out what is free, move by need."""
    shares = {region.name: region.given for region in regions}
    fair = _proportional(regions, wanted)
    excess = sum(shares.values()) - wanted
    for region in sorted(regions, key=lambda r: (r.given - max(fair[r.name], r.used), r.name), reverse=True):
        spare = max(0, shares[region.name] - max(fair[region.name], region.used))
        taken = min(spare, max(0, excess))
        shares[region.name] -= taken
        excess -= taken
    for region in sorted(regions, key=lambda r: (shares[r.name] - fair[r.name], r.name), reverse=True):
        taken = min(max(0, shares[region.name] - fair[region.name]), max(0, excess))
        shares[region.name] -= taken
        excess -= taken
    rested = old is None or now.ledger_ms - old.moved_ms >= REBALANCE_MS
    free = wanted - sum(max(shares[region.name], region.promised) for region in regions)
    if free > 0:
        _give_out(regions, shares, fair, free)
    elif rested:
        _lend(regions, shares, old, now)
    return shares


def _proportional(regions: list[_Region], limit: int) -> dict[RegionId, int]:
    """By inventory; what is left over by rounding goes to the largest remainders."""
    total = sum(region.total for region in regions)
    if total <= 0:
        return {region.name: 0 for region in regions}
    exact = {region.name: limit * region.total for region in regions}
    shares = {name: value // total for name, value in exact.items()}
    left = limit - sum(shares.values())
    for name in sorted(exact, key=lambda name: (-(exact[name] % total), name))[:left]:
        shares[name] += 1
    return shares


def _need(region: _Region, share: int) -> int:
    """Places that it lacks for drains that it had to refuse."""
    return max(0, region.used + region.wanted - share) if region.wanted else 0


def _give_out(regions: list[_Region], shares: dict[RegionId, int], fair: Mapping[RegionId, int], free: int) -> None:
    """To those in need first, one place each in turn, then up to the fair share."""

    def needed(region: _Region) -> int:
        return _need(region, shares[region.name])

    def below_fair(region: _Region) -> int:
        return fair[region.name] - shares[region.name]

    for lacks in (needed, below_fair):
        while free > 0 and (lacking := [region for region in regions if lacks(region) > 0]):
            region = max(lacking, key=lambda r: (lacks(r), r.name))
            shares[region.name] += 1
            # A place that the region promised to stay under anyway costs nothing new.
            free -= shares[region.name] > region.promised


def _lend(regions: list[_Region], shares: dict[RegionId, int], old: EscrowRecord | None, now: Now) -> None:
    """Nothing is free: ask regions without need for half of what they do not use. It is given on once they have lowered
    their promises."""
    patient = old is not None and now.ledger_ms - old.moved_ms < GIVEN_UP_MS
    pending = sum(max(0, r.promised - shares[r.name]) for r in regions) if patient else 0
    lacking = sum(_need(region, shares[region.name]) for region in regions) - pending
    answering = [r for r in regions if not r.wanted and r.promised <= shares[r.name]]
    for region in sorted(answering, key=lambda r: (r.used - shares[r.name], r.name)):
        spare = shares[region.name] - region.used
        if lacking <= 0 or spare <= 0:
            break
        given = min(lacking, ceil(spare / 2))
        shares[region.name] -= given
        lacking -= given


# -- a region's leader ------------------------------------------------------------------------------------------------


def decide_share(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """What the region holds, in its own store: raised to a promise that is newer, lowered as the escrow asks.

    Only for a leader that holds the region's grant: a promise of an earlier leader may still be on its way."""
    keys = RegionKeys(state.region)
    escrow, ack = world.escrow.get(FLEET), world.share_acks.get(_ack_name(state.region))
    unread = keys.share(FLEET) in state.suspect_keys or keys.budget(FLEET) in state.suspect_keys
    if escrow is None or ack is None or unread or _suspect(world) or not world.fresh:
        return ()
    held = state.shares.get(FLEET)
    amount, follows = (held.record.amount, held.record.escrow_revision) if held else (0, 0)
    if escrow.revision < follows:
        return ()  # an old view
    given, promise = _given(escrow.record, state.region), ack.record
    if given < amount:
        spent = len(Book.of(state, settings, now).drained(FLEET)) if fleet_policy(settings) else 0
        after, marks = max(given, min(spent, amount)), int(escrow.revision)
    elif promise.amount > amount and promise.escrow_revision > follows:
        after = min(promise.amount, given)
        marks = promise.escrow_revision if promise.amount <= given else int(escrow.revision)
    else:
        return ()
    if (after, marks) == (amount, follows):
        return ()
    record = ShareRecord(FLEET, state.region, after, marks)
    put = Put(keys.share(FLEET), record, held.revision if held else ABSENT)
    budget = state.budgets.get(FLEET)
    guard = Guard(keys.budget(FLEET), budget.revision if budget else ABSENT)
    sentence = f"{state.region} holds {after} places of the fleet's budget ({amount} before; it is given {given})"
    return (Decision("budget.share", sentence, (put,), (guard,), f"region/{state.region}", audit=after != amount),)


def decide_promise(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """The region's promise in the global store, with what it needs, under its grant."""
    grant, keys = grant_guard(world, state.region), RegionKeys(state.region)
    policy, ack = fleet_policy(settings), world.share_acks.get(_ack_name(state.region))
    if grant is None or not world.fresh or _suspect(world) or keys.share(FLEET) in state.suspect_keys:
        return ()
    if policy is None and ack is None:
        return ()
    escrow, held = world.escrow.get(FLEET), state.shares.get(FLEET)
    amount, follows = (held.record.amount, held.record.escrow_revision) if held else (0, 0)
    if escrow is not None and escrow.revision < follows:
        return ()
    old = ack.record if ack else ShareRecord(FLEET, state.region, 0, 0)
    promised, marks = old.amount, old.escrow_revision
    if escrow is not None:
        given = _given(escrow.record, state.region)
        if given >= amount and (promised < given or (promised > given and marks <= follows)):
            promised, marks = given, int(escrow.revision)
        elif given < amount < promised and follows == escrow.revision:
            promised, marks = amount, int(escrow.revision)
    used, wanted, total = _figures(state, settings, now) if policy else (0, 0, 0)
    record = replace(old, amount=promised, escrow_revision=marks, used=used, wanted=wanted, total=total)
    if ack is not None and record == ack.record:
        return ()
    guards = [grant]
    if promised != old.amount:
        assert escrow is not None, "a promise follows an escrow record"
        guards.append(Guard(KEYS.escrow(FLEET), escrow.revision))
    put = Put(KEYS.share_ack(FLEET, state.region), record, ack.revision if ack else ABSENT)
    sentence = f"{state.region} promises to hold at most {promised} of the fleet's budget; it uses {used}" + (
        f" and lacks places for {wanted} drains" if wanted else ""
    )
    audit = promised != old.amount
    return (Decision("budget.promise", sentence, (put,), tuple(guards), f"region/{state.region}", audit=audit),)


def _given(escrow: EscrowRecord, region: RegionId) -> int:
    return next((share.amount for share in escrow.shares if share.region == region), 0)


def _figures(state: RegionState, settings: Settings, now: Now) -> tuple[int, int, int]:
    """Places used, drains refused for want of one, and devices of the inventory."""
    book = Book.of(state, settings, now)
    refused = (d.record for d in state.drains.values() if d.record.state is DrainState.REFUSED)
    wanted = sum(1 for record in refused if FLEET in record.budgets)
    return len(book.used(FLEET)), wanted, book.line(FLEET).total
