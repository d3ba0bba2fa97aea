"""Invariants of what is written: acknowledgements, leaders' writes, drains' evidence, the uptime ledger. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, replace

from chaos.simulate.history import GLOBAL_STORE, Acked, Commit, Injected
from chaos.simulate.replay import Changed, Moment
from chaos.simulate.violation import Violation
from gridkeeper.ids import DeviceId, NodeId, RegionId, SpoolId, node_of
from gridkeeper.keys import KEYS, RegionKeys, event_id
from gridkeeper.records.books import AccountRecord, EntryRecord
from gridkeeper.records.faults import DrainRecord, DrainState, FindingRecord
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord
from gridkeeper.snapshot import Settings

REGION_LEADER = frozenset(
    {"liveness", "health", "incidents", "drains", "budgets", "breakers", "shares", "detector", "reservations"}
    | {"accounts", "entries", "closings", "adjustments", "ledger-heads", "slo-hours", "slo-alerts"}
)
"""Region store: what only its leader writes, unless a human asked (the audit entry beside it then names them)."""
GLOBAL_LEADER = frozenset(
    {"ownership", "accounts", "entries", "escrow", "closings", "adjustments", "ledger-heads", "slo-hours", "slo-alerts"}
)
GRANTED = frozenset({"jobs", "migrations", "offers", "share-acks"})
"""Global store: what its leader writes, or a region's leader under its grant, or a human."""
MACHINE = "machine"
DAEMON = "machine/"


def acknowledged_once(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """Every event up to an acknowledged sequence is in the store when that is said, and each is written once."""
    written: set[str] = set()
    for moment in moments:
        for change in moment.changes:
            if change.kind == "events" and change.new is not None:
                if change.key in written:
                    yield Violation(moment.at_ms, "acknowledged once", f"event {change.name} is written twice")
                written.add(change.key)
        ack = moment.entry
        if isinstance(ack, Acked):
            keys = RegionKeys(RegionId(ack.region))
            for sequence in range(1, ack.sequence + 1):
                name = event_id(NodeId(ack.node), SpoolId(ack.spool), sequence)
                if keys.event(name) not in written:
                    yield Violation(
                        moment.at_ms, "acknowledged once", f"{ack.replica} acknowledges {name}, which is not stored"
                    )


def leaders_guarded(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """Whatever a leader writes is guarded by its term (the create revision of the leader key as it is), what a region's
    leader writes to the global store by its grant (of ownership it only withdraws an intent); terms of a grant only
    grow."""
    terms: dict[str, int] = {}
    grants: dict[str, int] = {}
    for moment in moments:
        commit = moment.entry
        if not isinstance(commit, Commit):
            continue
        is_global = commit.store == GLOBAL_STORE
        leader = KEYS.leader if is_global else RegionKeys(RegionId(commit.store)).leader
        wanted = GLOBAL_LEADER | GRANTED if is_global else REGION_LEADER
        acts = [change for change in moment.changes if change.kind in wanted]
        led = sorted({change.kind for change in acts})
        held = {(guard.key, guard.revision, guard.create) for guard in commit.guards}
        by_term = commit.store in terms and (leader, terms[commit.store], True) in held
        by_grant = any((key, revision, False) in held for key, revision in grants.items())
        granted = is_global and by_grant and all(change.kind in GRANTED or _withdraws(change) for change in acts)
        if led and not by_term and not granted and not _by_hand(moment):
            yield Violation(
                commit.at_ms, "leaders guarded", f"{', '.join(led)} of {commit.store} written without the current term"
            )
        for change in moment.changes:
            if change.key == leader:
                if change.new is None:
                    terms.pop(commit.store, None)
                else:
                    terms[commit.store] = change.created
            if is_global and change.kind == "grants":
                grants[change.key] = commit.revision
                if change.old is not None and not _follows(change.old, change.new):
                    yield Violation(commit.at_ms, "leaders guarded", f"the grant {change.name} goes back")


def _follows(old: GrantRecord, new: GrantRecord | None) -> bool:
    """A later term, or the same one extended or revoked."""
    if new is None:
        return False
    return new.term > old.term or (new.term == old.term and new.replica == old.replica)


def _withdraws(change: Changed) -> bool:
    """The one change of an ownership that a region's leader makes: its node came back in time."""
    if not isinstance(change.old, OwnershipRecord) or not change.old.revoke or not change.old.revoke.withdrawable:
        return False
    return bool(change.new == replace(change.old, revoke=None))


def _by_hand(moment: Moment) -> bool:
    return any(c.kind == "audit" and c.new is not None and not c.new.actor.startswith(DAEMON) for c in moment.changes)


def drains_cite_evidence(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """A drain by the machine cites findings that are there and active, each resting on stored events or on metrics,
    and at least one about hardware that is at fault (never on silence alone); its admission compares the revision of
    the health record that it was decided on."""
    findings: dict[str, FindingRecord] = {}
    events: set[str] = set()
    at_fault: set[DeviceId] = set()
    revisions: dict[str, int] = {}
    for moment in moments:
        if isinstance(moment.entry, Injected) and moment.entry.device:
            at_fault.add(DeviceId(moment.entry.device))
        for change in moment.changes:
            if change.kind == "findings" and change.new is not None:
                findings[change.new.id] = change.new
            elif change.kind == "events":
                events.add(change.name)
        for change in moment.changes:
            drain: DrainRecord | None = change.new if change.kind == "drains" else None
            if drain is None or drain.state is not DrainState.ADMITTED or drain.requested_by != MACHINE:
                continue
            assert isinstance(moment.entry, Commit)
            yield from _cited(moment.at_ms, drain, findings, events, at_fault)
            health = RegionKeys(drain.region).health(drain.device)
            expected = (health, revisions.get(health, 0), False)
            if expected not in {(guard.key, guard.revision, guard.create) for guard in moment.entry.guards}:
                yield Violation(moment.at_ms, "evidence", f"drain {drain.id} does not compare the health record")
        if isinstance(moment.entry, Commit):
            revisions.update((c.key, moment.entry.revision) for c in moment.changes if c.kind == "health")


def _cited(
    at_ms: int, drain: DrainRecord, findings: dict[str, FindingRecord], events: set[str], at_fault: set[DeviceId]
) -> Iterator[Violation]:
    cited = [findings[name] for name in drain.evidence if name in findings]
    for name in drain.evidence:
        if name not in findings and name not in events and "=" not in name:
            yield Violation(at_ms, "evidence", f"drain {drain.id} cites {name}, which is not in the store")
    if not any(finding.active for finding in cited):
        yield Violation(at_ms, "evidence", f"drain {drain.id} of {drain.device} cites no active finding")
    for finding in cited:
        if not any(name in events or "=" in name for name in finding.evidence):
            yield Violation(at_ms, "evidence", f"finding {finding.id} rests on no event and no metric")
    faulty = {*at_fault, *map(node_of, at_fault)}
    if not any((finding.device or finding.node) in faulty for finding in cited):
        yield Violation(at_ms, "evidence", f"drain {drain.id} takes out {drain.device}, whose hardware has no fault")


def ledger_balances(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """Per scope: entries follow each other without gap or overlap, none is ever rewritten, and the account's totals are
    exactly the entries of its month, up to where the open interval begins."""
    for moment in moments:
        entries: dict[str, list[EntryRecord]] = {}
        for change in moment.changes:
            if change.kind == "entries":
                if change.old is not None or change.new is None:
                    yield Violation(moment.at_ms, "ledger", f"entry {change.name} is rewritten")
                else:
                    entries.setdefault(change.new.scope, []).append(change.new)
        for change in moment.changes:
            if change.kind == "accounts" and change.new is not None:
                booked = sorted(entries.pop(change.new.scope, []), key=lambda entry: entry.sequence)
                yield from _balance(moment.at_ms, change.old, change.new, booked)
        for scope in entries:
            yield Violation(moment.at_ms, "ledger", f"entries of {scope} without its account")


def _balance(
    at_ms: int, old: AccountRecord | None, new: AccountRecord, entries: list[EntryRecord]
) -> Iterator[Violation]:
    def wrong(what: str) -> Violation:
        return Violation(at_ms, "ledger", f"{new.scope}: {what}")

    if old is None:
        if entries or new.since_ms != new.opened_ms or any(astuple(new.totals)):
            yield wrong("a new account has booked time")
        return
    at, sequence = old.since_ms, old.sequence
    totals, opened = dict(_classes(old)), old.opened_ms
    month = old.month
    for entry in entries:
        if entry.from_ms != at or entry.until_ms <= entry.from_ms or entry.sequence != sequence + 1:
            yield wrong(f"entry {entry.sequence} from {entry.from_ms} to {entry.until_ms} does not follow {at}")
        if entry.month != month:
            totals, opened, month = dict.fromkeys(totals, 0), entry.from_ms, entry.month
        totals[entry.uptime.value] += entry.until_ms - entry.from_ms
        at, sequence = entry.until_ms, entry.sequence
    if new.month != month:
        totals, opened = dict.fromkeys(totals, 0), at
    if (new.since_ms, new.sequence, new.opened_ms) != (at, sequence, opened):
        yield wrong(f"the account stands at {new.since_ms}, entry {new.sequence}; its entries end at {at}, {sequence}")
    if dict(_classes(new)) != totals:
        yield wrong(f"totals {dict(_classes(new))} are not those of its entries, {totals}")
    if sum(totals.values()) != new.since_ms - new.opened_ms:
        yield wrong(f"{sum(totals.values())} ms are booked of {new.since_ms - new.opened_ms} ms that have passed")


def _classes(account: AccountRecord) -> Iterator[tuple[str, int]]:
    totals = account.totals
    yield from (
        ("up", totals.up_ms),
        ("degraded", totals.degraded_ms),
        ("down", totals.down_ms),
        ("excluded", totals.excluded_ms),
        ("unknown", totals.unknown_ms),
    )
