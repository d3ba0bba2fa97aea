"""The migration machine: one step of each active migration per look at the world. Pure; decided by the global leader.

Every step is one transaction that compares the migration's revision and all it relied on, so that another replica can
take over between any two of them. What the machine never does: give a job a new owner before the old epoch is
confirmed stopped or R has passed since this process saw the durable revoke intent (``indexes.released``); a state after
``FENCING`` is the durable proof that some leader has waited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from failover.domain.births import ended
from failover.domain.gang import is_broken
from failover.domain.indexes import (
    LANDED,
    confirmed_stopped,
    is_active,
    living_devices,
    released,
    run_key,
    run_of,
    succeeded,
    unreadable,
    wants_to_run,
)
from failover.domain.landing import follow_start, move_ownership, stamped
from failover.domain.late import decide_corrections
from failover.domain.targets import Ask, Ready, Wait, ask_elsewhere, seek_target
from failover.domain.turns import Turns, first_come
from gridkeeper.decision import Decision, Delete, Draft, Guard, Now, Put, Versioned, guards_of
from gridkeeper.ids import DeviceId, RegionId, node_of
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    JobRecord,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OfferRecord,
    OwnershipRecord,
    Revoke,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, Settings

COPY_PATIENCE = 4
"""A copy that has not arrived after this many R is sought elsewhere, if another region already has the checkpoint."""


def decide_migrations(world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """At most one decision per active migration, late facts of those that are done, and offers that nobody wants any
    more deleted."""
    if not world.fresh:
        return ()
    taken: set[tuple[RegionId, DeviceId]] = set()
    turns = Turns(world, settings.policy.moves)
    decisions: list[Decision] = []
    active = [migration for migration in world.migrations.values() if is_active(migration.record)]
    for migration in sorted(active, key=lambda migration: first_come(world.jobs, migration.record)):
        decision = _one(world, migration, settings, now, taken, turns)
        if decision is not None:
            decisions.append(decision)
    return (*decisions, *decide_corrections(world), *_stale_offers(world))


def _one(
    world: GlobalState,
    migration: Versioned[MigrationRecord],
    settings: Settings,
    now: Now,
    taken: set[tuple[RegionId, DeviceId]],
    turns: Turns,
) -> Decision | None:
    record = migration.record
    if unreadable(world, record.job):
        return None
    job, owner = world.jobs.get(record.job), world.ownership.get(record.job)
    expected = record.target_epoch if record.state in LANDED else record.source_epoch
    wrong = ""
    if job is None:
        wrong = f"there is no job {record.job}"
    elif job.record.migration != record.id:
        wrong = f"{record.job} is moved by migration {job.record.migration or 'none'}"
    elif owner is not None and owner.record.epoch != expected:
        wrong = f"{record.job} is owned at epoch {owner.record.epoch}, not {expected}"
    elif owner is None and record.kind is not MigrationKind.START:
        wrong = f"nobody owns {record.job}"
    if job is None or wrong:
        put = Put(KEYS.migration(record.id), ended(record, MigrationState.FAILED, wrong, now), migration.revision)
        sentence = f"migration {record.id} failed: {wrong}"
        guards = guards_of([(KEYS.job(record.job), job), (KEYS.ownership(record.job), owner)])
        return Decision("migrate.confirm", sentence, (put,), guards, f"migration/{record.id}", (), record.trace)
    if not wants_to_run(world, record.job):
        return None  # the job's own decision stops it and closes the migration
    run = run_of(world, record.job, record.source_epoch)
    return _Step(world, settings, now, job, owner, run, migration, taken, turns).decide()


@dataclass(frozen=True, slots=True)
class _Step:
    """One migration with what it depends on, as seen in one snapshot. ``run``: of the source epoch."""

    world: GlobalState
    settings: Settings
    now: Now
    job: Versioned[JobRecord]
    owner: Versioned[OwnershipRecord] | None
    run: Versioned[RunRecord] | None
    migration: Versioned[MigrationRecord]
    taken: set[tuple[RegionId, DeviceId]]
    turns: Turns

    @property
    def record(self) -> MigrationRecord:
        return self.migration.record

    def decide(self) -> Decision | None:
        state = self.record.state
        match state:
            case MigrationState.PLANNED:
                return self._planned()
            case MigrationState.PRE_COPYING:
                return self._pre_copying()
            case MigrationState.STOPPING:
                return self._stopping()
            case MigrationState.FENCING:
                return self._fencing()
            case MigrationState.SOURCE_FENCED | MigrationState.COPYING | MigrationState.VERIFIED:
                return self._bring()
            case MigrationState.OWNERSHIP_MOVED | MigrationState.STARTING | MigrationState.RUNNING:
                return follow_start(self.world, self.migration, self.settings, self.now)
            case MigrationState.DONE | MigrationState.CANCELLED | MigrationState.ROLLED_BACK | MigrationState.FAILED:
                return None
        assert_never(state)

    def _planned(self) -> Decision | None:
        if self.owner is None:
            return self._bring()
        if self.record.kind is not MigrationKind.PLANNED:
            return self._fence(self.owner, self.record.reason)
        if confirmed_stopped(self.run) or is_broken(self.run):
            return self._source_crashed(self.owner)
        target = self._seek()
        if isinstance(target, Ask):
            return self._asked(target)
        if isinstance(target, Wait) or self.run is None or self.turns.waits(self.record):
            return None
        self.turns.given(self.record)
        region = target.offer.record.region
        if region == self.owner.record.region and self._copied(region):
            return self._stop(self.owner, target.offer, "it stays in its region: there is nothing to copy ahead")
        draft = Draft()
        request = self.job.record.spec.handles_sigusr1 and self.run.record.first_step >= 0
        if request:
            wanted = replace(self.owner.record, checkpoint_request=self.owner.record.checkpoint_request + 1)
            draft.put(KEYS.ownership(self.record.job), wanted, self.owner)
        changed = self._aimed(MigrationState.PRE_COPYING, target.offer)
        extra = ", and a checkpoint is asked for" if request else ""
        sentence = (
            f"{self.record.job} goes to {', '.join(target.offer.record.devices)} in {target.offer.record.region}; "
            f"its newest checkpoint is copied ahead while it runs{extra}"
        )
        return self._advance("migrate.precopy", sentence, changed, draft, self._offer_guard(target.offer))

    def _pre_copying(self) -> Decision | None:
        if self.owner is None:
            return None
        if confirmed_stopped(self.run) or is_broken(self.run):
            return self._source_crashed(self.owner)
        target = self._seek()
        if isinstance(target, Ask):
            back = replace(target, record=stamped(target.record, MigrationState.PLANNED, self.now))
            return self._asked(back)
        if isinstance(target, Wait):
            return None
        limit = self.settings.timings.takeover_ms
        copied = self._copied(target.offer.record.region)
        if not copied and self._copy_goes_on(limit):
            return None
        late = f"copying ahead has not come on for {limit} ms, or takes longer than {COPY_PATIENCE} times that"
        ahead = "its newest checkpoint is at the target" if copied else late
        return self._stop(self.owner, target.offer, ahead)

    def _copied(self, region: RegionId) -> bool:
        """There is no checkpoint that is not in the region."""
        head = self.world.heads.get(self.record.job)
        return head is None or region in head.record.regions

    def _stop(self, owner: Versioned[OwnershipRecord], offer: Versioned[OfferRecord], ahead: str) -> Decision:
        draft = Draft()
        draft.put(KEYS.ownership(self.record.job), replace(owner.record, desired=Desired.STOP), owner)
        sentence = (
            f"{self.record.job} epoch {self.record.source_epoch} on {self.record.source_node} is asked for a last "
            f"checkpoint and to exit ({ahead}): {self.record.reason}"
        )
        changed = self._aimed(MigrationState.STOPPING, offer)
        return self._advance("executor.stop", sentence, changed, draft, self._offer_guard(offer))

    def _copy_goes_on(self, limit_ms: int) -> bool:
        """The record has changed lately (a copy that comes on says so in it), and the copy has not taken for ever: each
        checkpoint that the job writes meanwhile is one more to copy."""
        still = self.now.mono_ms - self.migration.seen_ms < limit_ms
        return still and self.now.ledger_ms - self.record.stages[-1].at_ms < COPY_PATIENCE * limit_ms

    def _stopping(self) -> Decision | None:
        if self.owner is None:
            return None
        if self.run is not None and confirmed_stopped(self.run):
            if succeeded(self.run):
                return None  # it finished by itself just then: the job's own decision closes the migration
            if not self.run.record.stopped_by_us:
                return self._source_crashed(self.owner)
            changed = replace(
                stamped(self.record, MigrationState.COPYING, self.now), last_source_step=self.run.record.last_step
            )
            sentence = (
                f"{self.record.job} epoch {self.record.source_epoch} is confirmed stopped on "
                f"{self.record.source_node} after step {self.run.record.last_step}; the rest is copied"
            )
            return self._advance("migrate.precopy", sentence, changed, Draft(), self._source_guards())
        waited = self.now.mono_ms - self.migration.seen_ms
        limit = self.owner.record.spec.grace_ms + 2 * self.settings.timings.fence_ms
        if waited < limit:
            return None
        why = f"its stop is not confirmed {waited} ms after it was asked (grace + 2 F = {limit} ms)"
        return self._fence(self.owner, why)

    def _source_crashed(self, owner: Versioned[OwnershipRecord]) -> Decision | None:
        """The source ended before it was asked to: what was a planned move is a recovery now."""
        if succeeded(self.run):
            return None
        return self._fence(owner, f"epoch {owner.record.epoch} ended by itself before it was stopped by us")

    def _fence(self, owner: Versioned[OwnershipRecord], why: str) -> Decision:
        """Make the revoke intent durable; at once known as fenced if the source's end is confirmed already."""
        draft = Draft()
        guards = list(guards_of([(run_key(self.record.job, self.record.source_epoch), self.run)]))
        over = released(self.world, owner, self.run, self.now.mono_ms, self.settings.timings)
        if owner.record.revoke is None:
            alive = self.run is not None and self.run.record.phase is RunPhase.RUNNING
            withdrawable = alive and self.record.silent_revision > 0
            intent = Revoke(self.record.id, why, self.now.ledger_ms, withdrawable)
            draft.put(KEYS.ownership(self.record.job), replace(owner.record, revoke=intent), owner)
        else:
            guards.append(Guard(KEYS.ownership(self.record.job), owner.revision))
        changed = stamped(self.record, MigrationState.FENCING, self.now)
        if self.record.kind is MigrationKind.PLANNED:
            changed = replace(changed, kind=MigrationKind.RECOVERY, reason=f"{self.record.reason}; {why}")
        if over:
            changed = self._fenced(changed)
        wait = over or f"no start elsewhere for R = {self.settings.timings.takeover_ms} ms unless its stop is confirmed"
        sentence = f"epoch {owner.record.epoch} of {self.record.job} on {owner.record.node} is revoked: {why}; {wait}"
        return self._advance("executor.stop", sentence, changed, draft, tuple(guards))

    def _fenced(self, record: MigrationRecord) -> MigrationRecord:
        last = self.run.record.last_step if self.run else record.last_source_step
        return replace(stamped(record, MigrationState.SOURCE_FENCED, self.now), last_source_step=last)

    def _fencing(self) -> Decision | None:
        if self.owner is None:
            return None
        if self.owner.record.revoke is None:
            return self._fence(self.owner, self.record.reason)
        over = released(self.world, self.owner, self.run, self.now.mono_ms, self.settings.timings)
        if over:
            sentence = f"{self.record.job} may start elsewhere: {over}"
            return self._advance("executor.stop", sentence, self._fenced(self.record), Draft(), self._source_guards())
        target = self._seek()  # devices are found while the fence is waited for
        return self._asked(target) if isinstance(target, Ask) else None

    def _bring(self) -> Decision | None:
        """The old epoch is over, or there was none: find devices, bring the checkpoint, move the ownership."""
        target, head = self._seek(), self.world.heads.get(self.record.job)
        if isinstance(target, Ask):
            return self._asked(target)
        if isinstance(target, Wait):
            return None
        if self.turns.waits(self.record):
            return None
        self.turns.given(self.record)
        offer = target.offer
        region = offer.record.region
        if head is None or (self.record.state is MigrationState.VERIFIED and region in head.record.regions):
            return self._move(offer)
        guards = guards_of([(KEYS.head(self.record.job), head)])
        if region in head.record.regions:
            sentence = (
                f"checkpoint step {head.record.step} of {self.record.job} ({head.record.digest[:12]}) is verified in "
                f"{region}"
            )
            changed = self._aimed(MigrationState.VERIFIED, offer)
            if changed.copy is not None:
                arrived = replace(changed.copy, bytes_here=changed.copy.bytes_total, eta_ms=0)
                changed = replace(changed, copy=arrived)
            return self._advance("verify.manifest", sentence, changed, Draft(), (*guards, *self._offer_guard(offer)))
        if self.record.state is not MigrationState.COPYING:
            where = ", ".join(head.record.regions)
            sentence = f"checkpoint step {head.record.step} of {self.record.job} is copied from {where} to {region}"
            changed = self._aimed(MigrationState.COPYING, offer)
            return self._advance("migrate.precopy", sentence, changed, Draft(), (*guards, *self._offer_guard(offer)))
        limit = COPY_PATIENCE * self.settings.timings.takeover_ms
        if self.now.mono_ms - self.migration.seen_ms < limit:
            return None
        why = f"checkpoint step {head.record.step} did not arrive within {limit} ms"
        ask = ask_elsewhere(self.world, self.job.record.spec, self.record, why, self.settings.policy.placement)
        if ask is None or ask.record.target_region not in head.record.regions:
            return None
        return self._asked(ask)

    def _move(self, offer: Versioned[OfferRecord]) -> Decision | None:
        wanted = {(offer.record.region, device) for device in offer.record.devices}
        living = living_devices(self.world, self.now.mono_ms, self.settings.timings)
        occupied = any(living.get(device, set()) - {self.record.job} for device in wanted)
        if offer.record.address and any(node_of(device) == offer.record.node for _, device in self.taken):
            return None  # where another gang may just be given the port that this one would choose: next look
        if occupied or wanted & self.taken:
            return None  # the offer is older than that owner, or the other way round: one of them goes
        self.taken.update(wanted)
        return move_ownership(self.world, self.job, self.migration, offer, self.now)

    def _seek(self) -> Ready | Ask | Wait:
        return seek_target(self.world, self.job.record.spec, self.migration, self.settings, self.now)

    def _asked(self, ask: Ask) -> Decision:
        record = ask.record
        elsewhere = record.target_region != self.record.target_region
        if elsewhere and record.state in (MigrationState.COPYING, MigrationState.VERIFIED):
            record = stamped(record, MigrationState.SOURCE_FENCED, self.now)  # over another link, in another turn
        elif record.state is MigrationState.VERIFIED:
            record = stamped(record, MigrationState.COPYING, self.now)
        old = self.world.offers.get(record.id)
        draft = Draft()
        if old is not None:
            draft.delete(KEYS.offer(record.id), old)
        return self._advance("place.reserve", ask.sentence, record, draft, ())

    def _aimed(self, state: MigrationState, offer: Versioned[OfferRecord]) -> MigrationRecord:
        changed = stamped(self.record, state, self.now)
        return replace(changed, target_node=offer.record.node, target_devices=offer.record.devices)

    def _offer_guard(self, offer: Versioned[OfferRecord]) -> tuple[Guard, ...]:
        return guards_of([(KEYS.offer(self.record.id), offer), (KEYS.job(self.record.job), self.job)])

    def _source_guards(self) -> tuple[Guard, ...]:
        return guards_of(
            [
                (KEYS.ownership(self.record.job), self.owner),
                (run_key(self.record.job, self.record.source_epoch), self.run),
            ]
        )

    def _advance(
        self, step: str, sentence: str, changed: MigrationRecord, draft: Draft, guards: tuple[Guard, ...]
    ) -> Decision:
        draft.put(KEYS.migration(self.record.id), changed, self.migration)
        cited = tuple(name for name in (self.record.drain, self.record.incident) if name)
        name = f"migration/{self.record.id}"
        return Decision(step, sentence, draft.writes(), guards, name, cited, self.record.trace)


def _stale_offers(world: GlobalState) -> tuple[Decision, ...]:
    """Offers whose migration has ended or is gone."""
    decisions: list[Decision] = []
    for name, offer in sorted(world.offers.items()):
        migration = world.migrations.get(name)
        if KEYS.migration(name) in world.suspect_keys:
            continue
        if migration is not None and is_active(migration.record) and migration.record.state not in LANDED:
            continue
        sentence = f"the offer of {offer.record.region} for migration {name} is not wanted any more"
        delete = Delete(KEYS.offer(name), offer.revision)
        guards = guards_of([(KEYS.migration(name), migration)])
        decisions.append(Decision("place.release", sentence, (delete,), guards, f"migration/{name}", audit=False))
    return tuple(decisions)
