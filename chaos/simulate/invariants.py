"""The safety rules of the architecture as checkers. Pure: a history in, violations out.

This module: who may run a job (rule 1) and which checkpoint is the newest (rule 2). ``chaos.simulate.bookkeeping``:
acknowledgements, leaders, drains' evidence and the ledger (rules 3 to 6). ``chaos.simulate.limits``: budgets, escrow
and breakers (rule 7). ``check`` runs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from chaos.simulate import bookkeeping, limits
from chaos.simulate.history import GLOBAL_STORE, Commit, Entry, Gone, Renewed, Started, Stepped, Stored
from chaos.simulate.replay import Changed, Moment, replay
from chaos.simulate.violation import Violation
from failover.domain.gang import nodes_of
from gridkeeper.ids import Epoch, JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import CheckpointRecord, GrantRecord, HeadRecord, OwnershipRecord, RunPhase, RunRecord
from gridkeeper.records.regions import FenceRecord
from gridkeeper.snapshot import Settings

Checker = Callable[[tuple[Moment, ...], Settings], Iterator[Violation]]


def check(entries: Iterable[Entry], settings: Settings) -> tuple[Violation, ...]:
    """All violations of all invariants, in order of time."""
    moments = replay(entries)
    found = [violation for checker in ALL for violation in checker(moments, settings)]
    return tuple(sorted(found, key=lambda violation: violation.at_ms))


def one_owner(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """Epochs of one job never overlap, and each has at most one process per node; epochs only grow; after the first
    sign of a newer epoch an older one does no step; no device serves two jobs at once."""
    alive: dict[tuple[str, JobId, Epoch], tuple[str, ...]] = {}
    highest: dict[JobId, Epoch] = {}
    started: set[tuple[str, JobId, Epoch]] = set()
    for moment in moments:
        match moment.entry:
            case Started(at_ms, node, job, epoch, devices):
                for (other_node, other_job, other_epoch), other_devices in alive.items():
                    if other_job == job and (other_epoch != epoch or other_node == node):
                        yield Violation(
                            at_ms,
                            "one owner",
                            f"{job} starts on {node} at epoch {epoch} while epoch {other_epoch} lives on {other_node}",
                        )
                    elif other_job != job and (shared := set(devices) & set(other_devices)):
                        yield Violation(
                            at_ms,
                            "one owner",
                            f"{job} starts on {', '.join(sorted(shared))}, which {other_job} still uses",
                        )
                if (node, job, epoch) in started or (job in highest and epoch < highest[job]):
                    yield Violation(at_ms, "one owner", f"{job} starts at epoch {epoch} after {highest[job]}")
                started.add((node, job, epoch))
                highest[job] = max(epoch, highest.get(job, epoch))
                alive[node, job, epoch] = devices
            case Stepped(at_ms, node, job, epoch, step):
                if (node, job, epoch) not in alive:
                    yield Violation(
                        at_ms, "one owner", f"{job} epoch {epoch} does step {step} on {node}, where it does not live"
                    )
                if epoch < highest.get(job, epoch):
                    yield Violation(
                        at_ms, "one owner", f"{job} epoch {epoch} does step {step} after epoch {highest[job]} started"
                    )
            case Gone(_, node, job, epoch):
                alive.pop((node, job, epoch), None)


@dataclass(slots=True)
class _Ownership:
    """What is known of one job's ownership. ``valid``: the (node, epoch) pairs for which a renewal may be acknowledged
    -> until when that was so (None: it still is). ``barred``: the same pairs -> the revision of the intent, or of the
    verdict on the region, that ended it. ``revoked``: the revision of the intent."""

    epoch: Epoch | None = None
    nodes: dict[Epoch, tuple[NodeId, ...]] = field(default_factory=dict)
    regions: dict[Epoch, str] = field(default_factory=dict)
    barred: dict[tuple[str, Epoch], int] = field(default_factory=dict)
    revoked: dict[Epoch, int] = field(default_factory=dict)
    stopped: dict[Epoch, int] = field(default_factory=dict)
    valid: dict[tuple[str, Epoch], int | None] = field(default_factory=dict)
    record: OwnershipRecord | None = None


@dataclass(slots=True)
class _Fences:
    """When the first of all regions promised a region nothing any more below a revision of the global store: until then
    it may renew without having seen what happened there."""

    raised: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # region -> (revision, when), in order

    def take(self, moment: Moment) -> None:
        if isinstance(moment.entry, Commit) and moment.entry.store != GLOBAL_STORE:
            for change in moment.changes:
                if change.kind == "fences" and isinstance(change.new, FenceRecord):
                    self.raised.setdefault(change.new.region, []).append((change.new.revision, moment.at_ms))

    def since(self, region: str, revision: int) -> int | None:
        """None: not yet."""
        return next((at_ms for raised, at_ms in self.raised.get(region, ()) if raised >= revision), None)


def takeover(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """A job gets a new epoch, and starts, only after its last one was confirmed stopped, or R after a region raised its
    fence to the intent to revoke it; only the owner starts it; only an intent for silence alone is withdrawn; a renewal
    is acknowledged only for an epoch that, less than S ago, owned the job without an intent, or with one to which no
    region had raised its fence."""
    jobs: dict[JobId, _Ownership] = {}
    fences = _Fences()
    for moment in moments:
        now = moment.at_ms
        fences.take(moment)
        for change in _global(moment, "ownership"):
            yield from _owned(jobs.setdefault(JobId(change.name), _Ownership()), change, moment, fences, settings)
        for change in _global(moment, "grants"):
            _granted(jobs, change, moment)
        for change in _global(moment, "runs"):
            run: RunRecord | None = change.new
            if run is not None and run.phase is RunPhase.EXITED and run.stop_confirmed:
                jobs.setdefault(run.job, _Ownership()).stopped.setdefault(run.epoch, now)
            before: RunRecord | None = change.old
            if before is not None and before.phase is RunPhase.EXITED and (run is None or run != before):
                yield Violation(now, "takeover", f"the run {change.name} changes after it has ended")
        match moment.entry:
            case Started(_, node, job, epoch):
                owner = jobs.get(job, _Ownership())
                if node not in owner.nodes.get(epoch, ()):
                    yield Violation(now, "takeover", f"{node} starts {job} epoch {epoch}, which it never owned")
                for older in sorted(owner.nodes):
                    if older < epoch and not _over(owner, older, now, fences, settings):
                        yield Violation(
                            now, "takeover", f"{job} epoch {epoch} starts on {node}, and epoch {older} may still live"
                        )
            case Renewed(_, replica, node, job, epoch):
                owner = jobs.get(job, _Ownership())
                until = owner.valid.get((node, epoch), -1)
                barred = owner.barred.get((node, epoch))
                if until is not None and until >= 0 and barred is not None:
                    until = fences.since(owner.regions[epoch], barred)
                if until is not None and (until < 0 or now - until >= settings.timings.stale_ms):
                    when = f"since {now - until} ms" if until >= 0 else "and never was"
                    yield Violation(
                        now,
                        "takeover",
                        f"{replica} acknowledges {job} epoch {epoch} to {node}, which is not its to renew {when}",
                    )


def _owned(
    owner: _Ownership, change: Changed, moment: Moment, fences: _Fences, settings: Settings
) -> Iterator[Violation]:
    assert isinstance(moment.entry, Commit)
    now, revision = moment.at_ms, moment.entry.revision
    record: OwnershipRecord | None = change.new
    if record is None:
        yield Violation(now, "takeover", f"the ownership of {change.name} is deleted")
        return
    old: OwnershipRecord | None = change.old
    if old is not None and record.epoch < old.epoch:
        yield Violation(now, "takeover", f"the epoch of {record.job} falls from {old.epoch} to {record.epoch}")
    elif old is not None and record.epoch == old.epoch:
        if (record.node, record.devices) != (old.node, old.devices):
            yield Violation(now, "takeover", f"epoch {record.epoch} of {record.job} moves from {old.node}")
        if old.revoke is not None and record.revoke is None:
            # R runs anew from the next intent: a wait for this one counts for nothing.
            owner.revoked.pop(record.epoch, None)
            if not old.revoke.withdrawable:
                intent = f"the intent to revoke epoch {record.epoch} of {record.job}"
                yield Violation(now, "takeover", f"{intent} is withdrawn, though silence was not its only cause")
    elif old is not None and not _over(owner, old.epoch, now, fences, settings):
        yield Violation(
            now, "takeover", f"{record.job} is given epoch {record.epoch} while epoch {old.epoch} may still live"
        )
    for place, until in owner.valid.items():
        if until is None:
            owner.valid[place] = now
    for place in _places(record):
        if record.revoke is None:
            owner.valid[place] = None
            owner.barred.pop(place, None)
        else:
            owner.revoked.setdefault(record.epoch, revision)
            owner.barred.setdefault(place, revision)
    owner.epoch = record.epoch
    owner.record = record
    owner.nodes[record.epoch] = nodes_of(record)
    owner.regions[record.epoch] = record.region


def _places(record: OwnershipRecord) -> tuple[tuple[str, Epoch], ...]:
    """Where renewals of it may come from: each member of a gang renews for itself."""
    return tuple((node, record.epoch) for node in nodes_of(record))


def _granted(jobs: dict[JobId, _Ownership], change: Changed, moment: Moment) -> None:
    """While a region's grant is revoked, nothing of it is to be renewed."""
    assert isinstance(moment.entry, Commit)
    grant: GrantRecord | None = change.new
    if grant is None:
        return
    for owner in jobs.values():
        held = owner.record
        if held is None or held.region != grant.region:
            continue
        for place in _places(held):
            if grant.revoked and owner.valid.get(place, 0) is None:
                owner.valid[place] = moment.at_ms
                owner.barred[place] = moment.entry.revision
            elif not grant.revoked and held.revoke is None:
                owner.valid[place] = None
                owner.barred.pop(place, None)


def _over(owner: _Ownership, epoch: Epoch, now: int, fences: _Fences, settings: Settings) -> bool:
    if owner.stopped.get(epoch, now + 1) <= now:
        return True
    revoked = owner.revoked.get(epoch)
    fenced = fences.since(owner.regions[epoch], revoked) if revoked is not None else None
    return fenced is not None and now - fenced >= settings.timings.takeover_ms


def heads(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """The newest checkpoint of a job never goes back, names only what each region it names has stored, and is moved
    only by the epoch that owns the job, in a transaction that compares the ownership."""
    stored: set[tuple[str, JobId, int, str]] = set()
    checkpoints: dict[str, CheckpointRecord | None] = {}
    owners: dict[JobId, tuple[Epoch, int]] = {}
    for moment in moments:
        if isinstance(moment.entry, Stored):
            stored.add((moment.entry.region, moment.entry.job, moment.entry.step, moment.entry.digest))
        for change in _global(moment, "checkpoints"):
            checkpoints[change.key] = change.new
        for change in _global(moment, "heads"):
            yield from _head(moment, change, stored, checkpoints, owners)
        for change in _global(moment, "ownership"):
            assert isinstance(moment.entry, Commit)
            if change.new is not None:
                owners[change.new.job] = (change.new.epoch, moment.entry.revision)


def _head(
    moment: Moment,
    change: Changed,
    stored: set[tuple[str, JobId, int, str]],
    checkpoints: dict[str, CheckpointRecord | None],
    owners: dict[JobId, tuple[Epoch, int]],
) -> Iterator[Violation]:
    now, head, old = moment.at_ms, change.new, change.old
    if head is None:
        yield Violation(now, "head", f"the head of {change.name} is deleted")
        return
    assert isinstance(head, HeadRecord) and isinstance(moment.entry, Commit)
    name = f"{head.job} step {head.step} ({head.digest[:12]})"
    for region in head.regions:
        if (region, head.job, head.step, head.digest) not in stored:
            yield Violation(now, "head", f"the head names {name} in {region}, which has not stored it")
    if old is not None and (head.step, head.epoch, head.digest) == (old.step, old.epoch, old.digest):
        if not set(old.regions) <= set(head.regions):
            yield Violation(now, "head", f"the head {name} loses a region")
        return
    if old is not None and (head.step <= old.step or head.epoch < old.epoch):
        yield Violation(
            now, "head", f"the head goes from step {old.step} of {old.epoch} to {head.step} of {head.epoch}"
        )
    record = checkpoints.get(KEYS.checkpoint(head.job, head.step))
    if record is None or record.digest != head.digest:
        yield Violation(now, "head", f"the head names {name}, of which there is no checkpoint record")
    epoch, revision = owners.get(head.job, (Epoch(0, 0), 0))
    if head.epoch != epoch:
        yield Violation(now, "head", f"epoch {head.epoch} moves the head to {name} while epoch {epoch} owns the job")
    compared = any(
        held.key == KEYS.ownership(head.job) and held.revision == revision and not held.create
        for held in moment.entry.guards
    )
    if not compared:
        yield Violation(now, "head", f"the head moves to {name} without comparing the ownership")


def _global(moment: Moment, kind: str) -> Iterator[Changed]:
    if isinstance(moment.entry, Commit) and moment.entry.store == GLOBAL_STORE:
        yield from (change for change in moment.changes if change.kind == kind)


ALL: tuple[Checker, ...] = (
    one_owner,
    takeover,
    heads,
    bookkeeping.acknowledged_once,
    bookkeeping.leaders_guarded,
    limits.never_too_much,
    limits.escrowed,
    limits.breakers_hold,
    bookkeeping.drains_cite_evidence,
    bookkeeping.ledger_balances,
)
