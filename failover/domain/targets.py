"""The search for a target: which region is asked, and what its answer means. Pure.

One region is asked at a time (``target_region``, ``attempt``); its answer is an offer for that attempt. A refusal, or
silence for R, moves on to the next region; when all have refused, the last one's offer may still turn into devices as
soon as room appears there, and every R another round is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from failover.domain.indexes import current_offer, refused_regions
from failover.domain.regions import barred_from, choose_region, considered, holds_grant, no_region, weigh_regions
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import NodeId
from gridkeeper.policy.model import PlacementPolicy
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, MigrationState, OfferRecord
from gridkeeper.snapshot import GlobalState, Settings
from gridkeeper.timings import Timings


@dataclass(frozen=True, slots=True)
class Ready:
    """The target region has reserved these devices."""

    offer: Versioned[OfferRecord]


@dataclass(frozen=True, slots=True)
class Ask:
    """Another region is to be asked: the migration with its new target, and why."""

    record: MigrationRecord
    sentence: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do but wait; the sentence says for what."""

    sentence: str


def seek_target(
    world: GlobalState, spec: JobSpec, migration: Versioned[MigrationRecord], settings: Settings, now: Now
) -> Ready | Ask | Wait:
    """Where the search stands."""
    record, timings, policy = migration.record, settings.timings, settings.policy.placement
    if not record.target_region:
        return _ask(world, spec, record, "", policy)
    offer = current_offer(world, record)
    if not holds_grant(world, record.target_region):
        return _ask(world, spec, record, f"region {record.target_region} does not hold its grant any more", policy)
    barred = barred_from(spec, record.target_region, policy)
    if barred:  # it was asked by a leader that had an older policy
        return _ask(world, spec, record, f"{record.target_region} may not have it any more: {barred}", policy)
    refusal = _refusal(offer.record, spec) if offer else ""
    if offer is not None and not refusal:
        return Ready(offer)
    waited = now.mono_ms - migration.seen_ms
    if offer is not None:
        why = refusal
        if _may_change_at_home(spec, record, waited, timings):
            return Wait(f"waits for room: {why}")
    elif waited >= timings.takeover_ms:
        why = f"no answer from {record.target_region} within {timings.takeover_ms} ms"
    else:
        return Wait(f"waits for the answer of region {record.target_region}")
    entry = f"{record.target_region}: {why}"
    before = refused_regions(record)
    others = tuple(r for r in record.refused if not r.startswith(f"{record.target_region}:"))
    refused = replace(record, refused=(*others, entry))
    following = choose_region(spec, world, refused, policy)
    if following is None or following == record.target_region:
        if offer is None and following == record.target_region:
            return _ask(world, spec, refused, why, policy)  # asked anew: the answer may have been lost with its leader
        return Wait(f"waits for room: {why}")
    if following in before and waited < timings.takeover_ms:
        return Wait(f"waits for room: {'; '.join((*others, entry))}")
    return _ask(world, spec, refused, why, policy)


def _refusal(offer: OfferRecord, spec: JobSpec) -> str:
    """Why it is a no; "" if it is none. A region whose version knows no gangs offers one member's devices."""
    if offer.refusal or len(offer.devices) == spec.all_devices:
        return offer.refusal
    return f"it offers {len(offer.devices)} of {spec.all_devices} devices"


def _may_change_at_home(spec: JobSpec, record: MigrationRecord, waited_ms: int, timings: Timings) -> bool:
    """A gang leaves its region only if it must. While its old epoch is fenced, its good members' agents look for a
    replica that renews it, and are not heard in between: such a no is not the last word, and nothing could start."""
    if spec.members == 1 or record.target_region != record.source_region:
        return False
    fenced_first = record.kind is MigrationKind.RECOVERY and record.state is MigrationState.FENCING
    return fenced_first or waited_ms < timings.settle_ms


def _ask(world: GlobalState, spec: JobSpec, record: MigrationRecord, why: str, policy: PlacementPolicy) -> Ask | Wait:
    options = weigh_regions(spec, world, record, policy)
    if not options or options[0].refused:
        return Wait(f"waits for room: {no_region(options, spec)}")
    region = options[0].region
    changed = replace(
        record,
        target_region=region,
        target_node=NodeId(""),
        target_devices=(),
        attempt=record.attempt + 1,
        refused=tuple(r for r in record.refused if not r.startswith(f"{region}:")),
        regions=considered(options),
    )
    because = f", since {why}" if why else ""
    return Ask(changed, f"region {region} is asked for devices for {record.job} (attempt {changed.attempt}){because}")


def first_ask(world: GlobalState, spec: JobSpec, record: MigrationRecord, policy: PlacementPolicy) -> Ask | None:
    """The first target of a migration that begins now; None: nothing has room, it begins without."""
    asked = _ask(world, spec, record, "", policy)
    return asked if isinstance(asked, Ask) else None


def ask_elsewhere(
    world: GlobalState, spec: JobSpec, record: MigrationRecord, why: str, policy: PlacementPolicy
) -> Ask | None:
    """Give the present target up for another region; None if there is no other."""
    others = tuple(r for r in record.refused if not r.startswith(f"{record.target_region}:"))
    refused = replace(record, refused=(*others, f"{record.target_region}: {why}"))
    asked = _ask(world, spec, refused, why, policy)
    return asked if isinstance(asked, Ask) and asked.record.target_region != record.target_region else None
