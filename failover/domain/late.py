"""Facts about a migration that arrive after it was written down as done. Pure; decided by the global leader.

The last step of a source that nobody could confirm as stopped is only what was last heard of it: when its node comes
back and reports the end, the work lost is known. And a run that told of no step in time may tell of one yet. Only the
job's newest migration is corrected, so at most one per job, and each fact once.
"""

from __future__ import annotations

from dataclasses import replace

from failover.domain.indexes import confirmed_stopped, run_key, run_of, unreadable
from failover.domain.landing import began_ms, cited, lost_ms
from gridkeeper.decision import Decision, Put, Versioned, guards_of
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import MigrationRecord, MigrationState
from gridkeeper.snapshot import GlobalState


def decide_corrections(world: GlobalState) -> tuple[Decision, ...]:
    """At most one decision per job."""
    if not world.fresh:
        return ()
    decisions: list[Decision] = []
    for job, record in sorted(world.jobs.items()):
        migration = world.migrations.get(record.record.migration)
        if migration is None or unreadable(world, job):
            continue
        decision = _loss(world, migration) or _first_step(world, migration)
        if decision is not None:
            decisions.append(decision)
    return tuple(decisions)


def _loss(world: GlobalState, migration: Versioned[MigrationRecord]) -> Decision | None:
    record = migration.record
    if not record.rpo_at_least or record.state is not MigrationState.DONE:
        return None
    source = run_of(world, record.job, record.source_epoch)
    if source is None or not confirmed_stopped(source):
        return None
    last = max(record.last_source_step, source.record.last_step)
    steps = max(0, last - record.resume_step)
    name = KEYS.checkpoint_name(record.job, record.resume_step)
    checkpoint = world.checkpoints.get(name)
    known = checkpoint is not None or record.resume_step < 0
    lost = lost_ms(source, began_ms(source, checkpoint) if known else 0, steps)
    changed = replace(record, last_source_step=last, rpo_steps=steps, rpo_ms=lost, rpo_at_least=False)
    sentence = (
        f"epoch {record.source_epoch} of {record.job} is confirmed stopped on {record.source_node} after step {last}: "
        f"migration {record.id} lost {steps} steps (at least {record.rpo_steps}, as was known)"
    )
    return _corrected(migration, changed, sentence, run_key(record.job, record.source_epoch), source)


def _first_step(world: GlobalState, migration: Versioned[MigrationRecord]) -> Decision | None:
    record = migration.record
    run = run_of(world, record.job, record.target_epoch)
    if record.state is not MigrationState.DONE or record.rto_ms >= 0 or run is None or run.record.first_step < 0:
        return None
    changed = replace(record, rto_ms=max(0, run.record.first_step_ms - record.fault_ms))
    sentence = (
        f"the first step ({run.record.first_step}) of epoch {record.target_epoch} of {record.job} is known now: "
        f"{changed.rto_ms} ms after {record.fault_ms}"
    )
    return _corrected(migration, changed, sentence, run_key(record.job, record.target_epoch), run)


def _corrected(
    migration: Versioned[MigrationRecord], changed: MigrationRecord, sentence: str, key: str, run: Versioned[object]
) -> Decision:
    put = Put(KEYS.migration(changed.id), changed, migration.revision)
    guards = guards_of([(key, run)])
    name = f"migration/{changed.id}"
    return Decision("migrate.confirm", sentence, (put,), guards, name, cited(changed), changed.trace)
