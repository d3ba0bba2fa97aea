"""How many jobs move at once: a migration that is over the policy's limit waits for its turn. Pure.

A migration has its turn from the moment when it begins to cost something (a planned move: when it is copied ahead; a
recovery: when its source is fenced and its checkpoint is brought) until the job runs at the target. First starts need
none. Turns are counted on the leader's own view, which holds all that leaders before it have written; whoever has one
keeps it, whatever the policy becomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gridkeeper.decision import Versioned
from gridkeeper.ids import JobId, MigrationId, RegionId
from gridkeeper.policy.model import LinkPolicy, MovePolicy
from gridkeeper.records.jobs import JobRecord, MigrationKind, MigrationRecord, MigrationState
from gridkeeper.snapshot import GlobalState

HOLDS_A_TURN = frozenset(
    {
        MigrationState.PRE_COPYING,
        MigrationState.STOPPING,
        MigrationState.COPYING,
        MigrationState.VERIFIED,
        MigrationState.OWNERSHIP_MOVED,
        MigrationState.STARTING,
    }
)

Link = tuple[RegionId, RegionId]


def link_policy(policy: MovePolicy, source: RegionId, target: RegionId) -> LinkPolicy:
    """What holds for moves and copies from one region to another."""
    named = (link for link in policy.links if (link.source, link.target) == (source, target))
    return next(named, LinkPolicy(source, target, policy.per_link, policy.link_bytes_per_s))


class Turns:
    """Who moves now, and who may begin to. ``given`` is told of each turn that one look at the world gives."""

    def __init__(self, world: GlobalState, policy: MovePolicy) -> None:
        self._policy = policy
        held = world.memo.once(_held, world.migrations)
        self._by_link = Counter(held)
        self._all = sum(held.values())

    def waits(self, migration: MigrationRecord) -> str:
        """Why a migration that has a target and no turn yet must wait; "" if it may begin. The sentence changes only
        with the policy."""
        if not needs_turn(migration):
            return ""
        policy, link = self._policy, _link(migration)
        if policy.at_once and self._all >= policy.at_once:
            return f"waits for its turn: the policy lets {policy.at_once} jobs move at once"
        if link[0] == link[1]:
            return ""
        most = link_policy(policy, *link).at_once
        if most and self._by_link[link] >= most:
            return f"waits for its turn: the policy lets {most} jobs move from {link[0]} to {link[1]} at once"
        return ""

    def given(self, migration: MigrationRecord) -> None:
        if needs_turn(migration):
            self._all += 1
            self._by_link[_link(migration)] += 1


def needs_turn(migration: MigrationRecord) -> bool:
    """It costs something and does not count yet."""
    return migration.kind is not MigrationKind.START and migration.state not in HOLDS_A_TURN


def first_come(
    jobs: Mapping[JobId, Versioned[JobRecord]], migration: MigrationRecord
) -> tuple[int, bool, int, MigrationId]:
    """Whose turn comes first: the job of higher priority, then who is down already, then who has waited longest."""
    job = jobs.get(migration.job)
    priority = job.record.spec.priority if job else 0
    return (-priority, migration.kind is MigrationKind.PLANNED, migration.requested_ms, migration.id)


def _link(migration: MigrationRecord) -> Link:
    return migration.source_region, migration.target_region


def _held(migrations: Mapping[MigrationId, Versioned[MigrationRecord]]) -> Counter[Link]:
    found: Counter[Link] = Counter()
    for migration in migrations.values():
        record = migration.record
        if record.kind is not MigrationKind.START and record.state in HOLDS_A_TURN:
            found[_link(record)] += 1
    return found
