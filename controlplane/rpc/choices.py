"""Pure: among which places a migration was decided, with their scores and what left others out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from failover.domain.fit import find_place, request_of
from failover.domain.indexes import LANDED, is_active
from failover.domain.leftout import nodes_left_out
from failover.domain.placement import rated
from failover.domain.places import Found
from failover.domain.regions import considered, weigh_regions
from failover.domain.scoring import MOST_LEFT_OUT
from gridkeeper.decision import Now
from gridkeeper.ids import MigrationId
from gridkeeper.kinds import reference
from gridkeeper.records.jobs import Candidate, MigrationRecord, MigrationState
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Link

STEP = "place.score"


def choices(
    names: Iterable[MigrationId], region: RegionState, world: GlobalState, settings: Settings, now: Now
) -> Iterator[Link]:
    """Of each of these migrations."""
    for name in names:
        held = world.migrations.get(name)
        if held is not None:
            yield from _recorded(held.record)
            yield from _considered_now(held.record, region, world, settings, now)


def _recorded(migration: MigrationRecord) -> Iterator[Link]:
    """As the migration's record keeps them: regions when one was asked, nodes when the ownership moved."""
    moved = [stage.at_ms for stage in migration.stages if stage.name == MigrationState.OWNERSHIP_MOVED.value]
    yield from _links(migration, "region", migration.regions, migration.requested_ms)
    if moved:
        yield from _links(migration, "node", migration.places, moved[0])


def _considered_now(
    migration: MigrationRecord, region: RegionState, world: GlobalState, settings: Settings, now: Now
) -> Iterator[Link]:
    """What would be chosen now, of a migration that has no place yet: regions, and the nodes of this region if it is
    the one that is asked."""
    job = world.jobs.get(migration.job)
    if job is None or not is_active(migration) or migration.state in LANDED:
        return
    spec, policy = job.record.spec, settings.policy.placement
    if not migration.target_region:
        options = weigh_regions(spec, world, migration, policy)
        yield from _links(migration, "region", considered(options), now.ledger_ms)
    elif migration.target_region == region.region:
        room, holders = rated(region, world, settings, now)
        found = find_place(region, world, spec, migration, room, holders, policy.weights)
        fitting = found.considered if isinstance(found, Found) else ()
        out = nodes_left_out(region, request_of(region, world, spec, migration, holders), holders)
        yield from _links(migration, "node", (*fitting, *out[:MOST_LEFT_OUT]), now.ledger_ms)
        if len(out) > MOST_LEFT_OUT:
            sentence = f"{len(out) - MOST_LEFT_OUT} more nodes are left out"
            yield _link(migration, now.ledger_ms, sentence)


def _links(migration: MigrationRecord, what: str, candidates: Iterable[Candidate], at_ms: int) -> Iterator[Link]:
    for candidate in candidates:
        if candidate.refused:
            sentence = f"{what} {candidate.name} is left out: {candidate.refused}"
        else:
            sentence = f"{what} {candidate.name} scores {candidate.total} of 1000 ({candidate.scores})"
        yield _link(migration, at_ms, sentence)


def _link(migration: MigrationRecord, at_ms: int, sentence: str) -> Link:
    return Link(step=STEP, object=reference(api_pb2.KIND_MIGRATION, migration.id), at_ms=at_ms, sentence=sentence)
