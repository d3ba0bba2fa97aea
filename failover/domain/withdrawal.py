"""A node that comes back in time keeps its jobs. Pure; decided by the region's leader, written to the *global* store.

A silent node's job is revoked at once, so that R starts early; but an agent that restarts within F has killed nothing
and its job lives on. While nobody has waited out the intent, it is withdrawn: one transaction clears it and ends the
migration. Why that is safe (rule 4.1):

- Nobody has started the job elsewhere, and nobody can: the transaction compares the ownership and the migration, and so
  does the one that moves the ownership; of the two, one fails. The migration is neither fenced nor further, so no
  durable proof that somebody has waited outlives the intent.
- R does not run on: it counts from the revision of the ownership that carries an intent (``indexes.released``), and the
  next intent is a new revision. So whatever is renewed from now on is fenced before R after that intent.
- Only an epoch whose run is RUNNING is given back, never one that is still to start; so what renewals may keep alive is
  the process that was there all along. If the agent has fenced it meanwhile, its report says so, and the usual recovery
  from a stop follows. F after the intent it certainly has: from then on nothing is withdrawn.
- It is withdrawn on a later revision of the node's liveness than the one that it was asked on, and asked again only on
  a silence after that: while the node's state stands, neither follows the other.
"""

from __future__ import annotations

from dataclasses import replace

from failover.domain.births import MACHINE, ended
from failover.domain.gang import nodes_of
from failover.domain.indexes import run_key, run_of
from failover.domain.landing import stamped
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned, guards_of
from gridkeeper.hearing import heard
from gridkeeper.ids import NodeId
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import NodeState
from gridkeeper.records.jobs import (
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    RunPhase,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings

THEN = "; then node "
"""Joins the reason of a planned move and the silence that made a recovery of it."""

NOT_FENCED = frozenset({MigrationState.PLANNED, MigrationState.FENCING})


def withdraw(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    ownership: Versioned[OwnershipRecord],
    migration: Versioned[MigrationRecord],
    grant: Guard,
) -> Decision | None:
    """The transaction that gives the job back to its node; None: there is no such case, or it is too late.

    A recovery is cancelled. One that was a planned move before the silence becomes a planned move again.
    """
    owner, record = ownership.record, migration.record
    if record.state not in NOT_FENCED or not record.silent_revision or owner.epoch != record.source_epoch:
        return None
    nodes, run = nodes_of(owner), run_of(world, owner.job, owner.epoch)
    if not all(_alive(state, node) for node in nodes):
        return None
    if max(state.liveness[node].revision for node in nodes) <= record.silent_revision:
        return None  # a gang: the snapshot that has a later word of any of its nodes has that of the silent one too
    if run is None or run.record.phase is not RunPhase.RUNNING:
        return None
    if owner.desired is not Desired.RUN or not _open(ownership, record, settings, now):
        return None
    back = f"node {', '.join(nodes)} is heard again and epoch {owner.epoch} still runs there"
    if record.drain or record.requested_by != MACHINE:
        reason = record.reason.partition(THEN)[0]
        changed = replace(record, kind=MigrationKind.PLANNED, silent_revision=0, reason=reason)
        changed = stamped(changed, MigrationState.PLANNED, now)
        sentence = f"migration {record.id} is a planned move again: {back}; {reason}"
    else:
        reason = f"{record.reason}; withdrawn: {back}, so {owner.job} stays"
        changed = ended(record, MigrationState.CANCELLED, reason, now)
        sentence = f"migration {record.id} is cancelled: {back}, so {owner.job} stays"
    draft = Draft()
    draft.put(KEYS.migration(record.id), changed, migration)
    guards = [grant, *guards_of([(run_key(owner.job, owner.epoch), run)])]
    if owner.revoke is None:
        guards.append(Guard(KEYS.ownership(owner.job), ownership.revision))
    else:
        draft.put(KEYS.ownership(owner.job), replace(owner, revoke=None), ownership)
        sentence = f"{sentence}; the revoke intent is withdrawn"
    name = f"migration/{record.id}"
    return Decision("migrate.plan", sentence, draft.writes(), tuple(guards), name, (), record.trace)


def _alive(state: RegionState, node: NodeId) -> bool:
    liveness = state.liveness.get(node)
    return liveness is not None and liveness.record.state is NodeState.ALIVE and heard(state, node) is not False


def _open(ownership: Versioned[OwnershipRecord], record: MigrationRecord, settings: Settings, now: Now) -> bool:
    """No intent yet, or this migration's own, and the agent need not have fenced the job since."""
    intent = ownership.record.revoke
    if intent is None:
        return True
    waited = now.mono_ms - ownership.seen_ms
    return intent.withdrawable and intent.migration == record.id and waited < settings.timings.fence_ms
