"""Which region a job goes to. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from failover.domain.indexes import confirmed_stopped, refused_regions, run_of
from failover.domain.scoring import FULL, MOST_FITTING, MOST_LEFT_OUT, Mark, candidate, left_out, weighed
from gridkeeper.ids import RegionId
from gridkeeper.policy.model import PlacementPolicy, PlacementWeights, RegionTerms
from gridkeeper.records.jobs import Candidate, JobSpec, MigrationKind, MigrationRecord, RegionRecord
from gridkeeper.snapshot import GlobalState


@dataclass(frozen=True, slots=True)
class Option:
    """A region as a target. ``refused``: the filter that leaves it out; "": it fits. In order of ``rank`` the best
    comes first."""

    region: RegionId
    refused: str
    rank: tuple[int, int, int, int, RegionId] = (0, 0, 0, 0, RegionId(""))
    marks: tuple[Mark, ...] = ()


def choose_region(
    spec: JobSpec, world: GlobalState, migration: MigrationRecord, policy: PlacementPolicy
) -> RegionId | None:
    """The region to ask next; None: none can take it."""
    best = weigh_regions(spec, world, migration, policy)
    return best[0].region if best and not best[0].refused else None


def considered(options: Sequence[Option]) -> tuple[Candidate, ...]:
    """As a migration's record keeps them."""
    fit = [candidate(o.region, o.marks) for o in options if not o.refused]
    out = [left_out(o.region, o.refused) for o in options if o.refused]
    return (*fit[:MOST_FITTING], *out[:MOST_LEFT_OUT])


def weigh_regions(
    spec: JobSpec, world: GlobalState, migration: MigrationRecord, policy: PlacementPolicy
) -> tuple[Option, ...]:
    """All regions: those that fit, the best first, then those that are left out.

    A region fits if it holds its grant, is not in doubt about its own fleet, the job may run there and a human did not
    ask for another one. It needs room as last published; the source region of an ended run is asked in any case,
    because the job's own devices come free there, and a gang's because its good members stay where they are. Order: not
    refused before (then the one that refused longest ago), where the job should rather be (a gang where it is; else see
    ``is_displaced``), regions with room before those without, then by score and name.
    """
    refused = refused_regions(migration)
    need, gang = max(1, spec.devices), spec.members > 1
    away = spec.prefer_other_region and not gang and is_displaced(world, migration)
    head = world.heads.get(migration.job)
    terms = {terms.region: terms for terms in policy.regions}
    out: list[Option] = []
    fit: list[tuple[RegionRecord, bool]] = []
    for region, published in sorted(world.regions.items()):
        record = published.record
        roomy = record.largest_free >= need and (not gang or record.free >= spec.all_devices)
        comes_free = region == migration.source_region and (gang or migration.kind is not MigrationKind.PLANNED)
        why = _left_out(spec, world, migration, record, policy)
        if not why and not roomy and not comes_free:
            why = (
                f"no {spec.members} nodes there have {need} free devices each"
                if gang
                else f"no node there has {need} free devices"
            )
        if why:
            out.append(Option(region, why))
        else:
            fit.append((record, roomy))
    dearest = max((terms[r.region].price for r, _ in fit if r.region in terms), default=0.0)
    options: list[Option] = []
    for record, roomy in fit:
        region = record.region
        near = head is None or region in head.record.regions
        marks = (
            Mark("checkpoint", FULL if near else 0, policy.weights.checkpoint),
            *_marks(record, terms.get(region, RegionTerms(region)), dearest, need, policy.weights),
        )
        rank = (
            refused.index(region) + 1 if region in refused else 0,
            int((region == migration.source_region) is away) if migration.source_region else 0,
            int(not roomy),
            -weighed(marks),
            region,
        )
        options.append(Option(region, "", rank, marks))
    options.sort(key=lambda option: option.rank)
    return (*options, *out)


def _left_out(
    spec: JobSpec, world: GlobalState, migration: MigrationRecord, record: RegionRecord, policy: PlacementPolicy
) -> str:
    region = record.region
    if migration.wanted_region and region != migration.wanted_region:
        return f"{migration.requested_by} asked for {migration.wanted_region}"
    barred = barred_from(spec, region, policy)
    if barred:
        return barred
    if not holds_grant(world, region):
        return "it does not hold its grant"
    return "too much of it looks dead at once, so it is in doubt about its own fleet" if record.in_doubt else ""


def barred_from(spec: JobSpec, region: RegionId, policy: PlacementPolicy) -> str:
    """Why neither the job nor its checkpoints may be in a region, whatever happens; "" if they may."""
    if spec.regions and region not in spec.regions:
        return f"the job's spec allows only {', '.join(spec.regions)}"
    if spec.residency and not any(t.region == region and spec.residency in t.residency for t in policy.regions):
        return f"the policy does not list it with residency {spec.residency}"
    return ""


def _marks(
    record: RegionRecord, terms: RegionTerms, dearest: float, need: int, weights: PlacementWeights
) -> Iterator[Mark]:
    """What is known of a region. An unknown price counts as the dearest one among those that are considered."""
    price, highest = _micro(terms.price or dearest), _micro(dearest)
    yield Mark("capacity", FULL * record.usable // record.devices if record.devices else 0, weights.capacity)
    yield Mark("price", FULL * (highest - price) // highest if highest else FULL, weights.price)
    yield Mark("spot", FULL - _micro(terms.spot_risk) // FULL, weights.spot)
    yield Mark("room", FULL * max(0, record.free - need) // max(1, record.free), weights.room)


def holds_grant(world: GlobalState, region: RegionId) -> bool:
    """It has a grant that is not revoked."""
    grant = world.grants.get(region)
    return grant is not None and not grant.record.revoked


def is_displaced(world: GlobalState, migration: MigrationRecord) -> bool:
    """The place is to blame: a drain, an incident or a node's silence. A process that merely crashed is not displaced
    and rather starts again where its checkpoint is."""
    if migration.kind is MigrationKind.START:
        return False
    if migration.kind is MigrationKind.PLANNED or migration.drain or migration.incident:
        return True
    return not confirmed_stopped(run_of(world, migration.job, migration.source_epoch))


def _micro(value: float) -> int:
    """Millionths, so that nothing depends on how fractions are rounded."""
    return round(value * 1_000_000)


def no_region(options: Sequence[Option], spec: JobSpec) -> str:
    """Why none fits, as a sentence without numbers that change by themselves."""
    need = max(1, spec.devices)
    told = "; ".join(f"{option.region}: {option.refused}" for option in options[:MOST_LEFT_OUT])
    nodes = "a node" if spec.members == 1 else f"{spec.members} nodes"
    return f"no region has {nodes} with {need} free devices for it" + (f" ({told})" if told else "")
