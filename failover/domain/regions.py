"""Which region a job goes to. Pure."""

from __future__ import annotations

from failover.domain.indexes import confirmed_stopped, refused_regions, run_of
from gridkeeper.ids import RegionId
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord
from gridkeeper.snapshot import GlobalState


def choose_region(spec: JobSpec, world: GlobalState, migration: MigrationRecord) -> RegionId | None:
    """The region to ask next; None: none can take it.

    A region counts if it holds its grant, is not in doubt about its own fleet, the job may run there and a human did
    not ask for another one. It needs room as last published; the source region of an ended run is asked in any case,
    because the job's own devices come free there. Order: not refused before (then the one that refused longest ago),
    where the job should rather be (see ``is_displaced``), regions with room before those without, where its newest
    checkpoint already is, most room, name.
    """
    refused = refused_regions(migration)
    need = max(1, spec.devices)
    away = spec.prefer_other_region and is_displaced(world, migration)
    head = world.heads.get(migration.job)
    ranked: list[tuple[tuple[int, int, int, int, int, str], RegionId]] = []
    for region, published in world.regions.items():
        if migration.wanted_region and region != migration.wanted_region:
            continue
        if (spec.regions and region not in spec.regions) or not holds_grant(world, region) or published.record.in_doubt:
            continue
        is_source = region == migration.source_region
        roomy = published.record.largest_free >= need
        if not roomy and not (is_source and migration.kind is not MigrationKind.PLANNED):
            continue
        near = head is None or region in head.record.regions
        rank = (
            refused.index(region) + 1 if region in refused else 0,
            int(is_source is away) if migration.source_region else 0,
            int(not roomy),
            int(not near),
            -published.record.largest_free,
            str(region),
        )
        ranked.append((rank, region))
    return min(ranked)[1] if ranked else None


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


def no_region(spec: JobSpec, migration: MigrationRecord) -> str:
    """Why ``choose_region`` found none, as a sentence without numbers that change by themselves."""
    need = max(1, spec.devices)
    if migration.wanted_region:
        return f"region {migration.wanted_region} has no node with {need} free devices (as asked by hand)"
    where = f"of {', '.join(spec.regions)}" if spec.regions else "at all"
    return f"no region {where} has a node with {need} free devices"
