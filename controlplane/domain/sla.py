"""The uptime ledger: a fold of what the records say into accounts and closed intervals. Pure.

Per scope and month, up + degraded + down + excluded + unknown = elapsed, in integer ms, without gap or overlap: an
entry ends where the next begins, and the account holds the interval that is still open.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction

from controlplane.domain import uptime
from controlplane.domain.uptime import Standing, Step
from gridkeeper.decision import Decision, Draft, Now, Versioned
from gridkeeper.ids import DeviceId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.memo import differing
from gridkeeper.records.books import AccountRecord, EntryRecord, Totals, UptimeClass
from gridkeeper.records.fleet import CordonRecord, HealthRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings

MAX_WRITES = 100
"""Accounts and entries per transaction, below etcd's 128 operations. An account and its entries stay together: one per
month that has ended, should nobody have led for so long."""

MAX_REFS = 8

ZERO = Totals(0, 0, 0, 0, 0)


def month_of(ms: int) -> str:
    """``2026-11``, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m")


@functools.cache
def month_end(month: str) -> int:
    """The first ms after a month."""
    year, number = (int(part) for part in month.split("-"))
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * 1000


def add(totals: Totals, kind: UptimeClass, ms: int) -> Totals:
    """Totals with ``ms`` booked under a class."""
    field = f"{kind.value}_ms"
    return replace(totals, **{field: getattr(totals, field) + ms})


def totals_at(account: AccountRecord, now_ms: int) -> Totals:
    """The month so far, the open interval up to ``now_ms`` included."""
    return add(account.totals, account.current, max(0, now_ms - account.since_ms))


def elapsed(totals: Totals) -> int:
    return totals.up_ms + totals.degraded_ms + totals.down_ms + totals.excluded_ms + totals.unknown_ms


def uptime_of(totals: Totals) -> Fraction | None:
    """(up + degraded) / (up + degraded + down), exact; None when nothing was in service. Unknown and excluded time are
    in neither part, and are shown beside it."""
    served = totals.up_ms + totals.degraded_ms
    whole = served + totals.down_ms
    return Fraction(served, whole) if whole else None


def opened(scope: str, standing: Standing, at_ms: int) -> AccountRecord:
    """A new account. It begins now: nothing is booked for a time that nobody watched."""
    return AccountRecord(
        scope, month_of(at_ms), at_ms, 0, standing.uptime, at_ms, standing.reason, ZERO, standing.refs[:MAX_REFS]
    )


def fold(account: AccountRecord, standing: Standing, now_ms: int) -> tuple[AccountRecord, tuple[EntryRecord, ...]]:
    """Book what has become certain: months that ended, and a change of class at the time at which it happened. A time
    that is not after the last change, or is yet to come, cannot be that of this change (the end of a maintenance
    leaves no date behind): then it counts from now."""
    if standing.uptime is account.current and not standing.refs and now_ms < month_end(account.month):
        return account, ()  # nearly all accounts nearly always
    entries: list[EntryRecord] = []
    if standing.uptime is not account.current:
        dated = account.since_ms < standing.since_ms <= now_ms
        at_ms = standing.since_ms if dated else max(now_ms, account.since_ms)
        account = _turn_months(account, at_ms, entries)
        account = _book(account, at_ms, entries)
        account = replace(account, current=standing.uptime, reason=standing.reason, refs=())
    account = _turn_months(account, now_ms, entries)
    refs = tuple(dict.fromkeys((*account.refs, *standing.refs)))[:MAX_REFS]
    return (account if refs == account.refs else replace(account, refs=refs)), tuple(entries)


def _turn_months(account: AccountRecord, until_ms: int, entries: list[EntryRecord]) -> AccountRecord:
    """Close every month that has ended by ``until_ms``."""
    while month_end(account.month) <= until_ms:
        account = _book(account, month_end(account.month), entries)
        account = replace(account, month=month_of(account.since_ms), opened_ms=account.since_ms, totals=ZERO)
    return account


def _book(account: AccountRecord, until_ms: int, entries: list[EntryRecord]) -> AccountRecord:
    """Close the open interval at ``until_ms``; an empty one leaves no entry."""
    if until_ms <= account.since_ms:
        return account
    entry = EntryRecord(
        scope=account.scope,
        sequence=account.sequence + 1,
        month=account.month,
        from_ms=account.since_ms,
        until_ms=until_ms,
        uptime=account.current,
        reason=account.reason,
        refs=account.refs,
    )
    entries.append(entry)
    totals = add(account.totals, account.current, until_ms - account.since_ms)
    return replace(account, sequence=entry.sequence, since_ms=until_ms, totals=totals)


OF_DEVICE = "device/"

Book = tuple[str, tuple[Step, ...], Versioned[AccountRecord] | None]
"""Scope, what held up to which times (the last is now), and the account as it is."""


def _decide(
    books: Iterable[Book],
    now: Now,
    account_key: Callable[[str], str],
    entry_key: Callable[[str, int], str],
) -> tuple[Decision, ...]:
    decisions: list[Decision] = []
    draft, scopes = Draft(), list[str]()
    for scope, steps, old in books:
        entries: tuple[EntryRecord, ...] = ()
        if old is None:
            account = opened(scope, steps[-1][0], now.ledger_ms)
        else:
            account = old.record
            for standing, at_ms in steps:
                account, more = fold(account, standing, at_ms)
                entries += more
            if account is old.record or account == old.record:
                continue
        if scopes and len(draft.puts) + 1 + len(entries) > MAX_WRITES:
            decisions.append(_decision(draft, scopes))
            draft, scopes = Draft(), []
        draft.put(account_key(scope), account, old)
        for entry in entries:
            draft.put(entry_key(scope, entry.sequence), entry, None)
        scopes.append(scope)
    if scopes:
        decisions.append(_decision(draft, scopes))
    return tuple(decisions)


def _decision(draft: Draft, scopes: list[str]) -> Decision:
    named = scopes[0] if len(scopes) == 1 else f"{scopes[0]} and {len(scopes) - 1} more"
    return Decision("ledger.append", f"booked {named}", draft.writes(), subject=f"sla/{scopes[0]}", audit=False)


@dataclass(slots=True)
class _Settled:
    """Per device the standing of its health record, and the devices whose account may have something to book: thousands
    of devices do not change from one look to the next."""

    _standings: dict[DeviceId, Standing] = field(default_factory=dict)
    _health: Mapping[DeviceId, Versioned[HealthRecord]] = field(default_factory=dict)
    _cordons: Mapping[str, Versioned[CordonRecord]] = field(default_factory=dict)
    _accounts: Mapping[str, Versioned[AccountRecord]] = field(default_factory=dict)
    _open: set[DeviceId] = field(default_factory=set)
    _until_ms: int = 0

    def standings(self, state: RegionState) -> Mapping[DeviceId, Standing]:
        """Another object whenever one of them is another."""
        if state.health is self._health and state.cordons is self._cordons:
            return self._standings
        same = state.cordons is self._cordons
        changed = differing(self._health, state.health) if same else {*self._health, *state.health}
        standings = dict(self._standings)
        for device in changed:
            held = state.health.get(device)
            if held is None:
                standings.pop(device, None)
                self._open.discard(device)
            else:
                standings[device] = uptime.of_device(state, held.record)
                self._open.add(device)
        self._standings, self._health, self._cordons = standings, state.health, state.cordons
        return standings

    def unsettled(self, state: RegionState, now_ms: int) -> list[tuple[DeviceId, str]]:
        """Devices, sorted, with their scopes, whose account may have something to book; the rest have not. Call
        ``standings`` first."""
        if now_ms >= self._until_ms:
            self._until_ms = month_end(month_of(now_ms))
            self._open.update(self._standings)
        for scope in differing(self._accounts, state.accounts):
            device = DeviceId(scope.removeprefix(OF_DEVICE))
            if scope.startswith(OF_DEVICE) and device in self._standings:
                self._open.add(device)
        self._accounts, found = state.accounts, list[tuple[DeviceId, str]]()
        for device in sorted(self._open):
            scope = f"{OF_DEVICE}{device}"
            account, standing = state.accounts.get(scope), self._standings[device]
            if account is not None and fold(account.record, standing, now_ms) == (account.record, ()):
                self._open.discard(device)
            else:
                found.append((device, scope))
        return found


def decide_ledger(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """The devices' and the region's accounts (region store). A device whose health is not readable is left alone."""
    keys, kept, windows = RegionKeys(state.region), state.memo.of(_Settled), uptime.announced(state)
    standings = kept.standings(state)
    covered = {
        device: (*windows.get(device, ()), *windows.get(health.record.node, ()))
        for device, health in (state.health.items() if windows else ())
        if device in windows or health.record.node in windows
    }
    books: list[Book] = [
        (scope, ((standings[device], now.ledger_ms),), state.accounts.get(scope))
        for device, scope in kept.unsettled(state, now.ledger_ms)
        if device not in covered
    ]
    under_maintenance: dict[DeviceId, Standing] = {}
    for device, covering in sorted(covered.items()):
        scope = f"{OF_DEVICE}{device}"
        account = state.accounts.get(scope)
        since_ms = account.record.since_ms if account else now.ledger_ms
        steps = uptime.through(covering, standings[device], since_ms, now.ledger_ms)
        books.append((scope, steps, account))
        under_maintenance[device] = steps[-1][0]
    shown = {**standings, **under_maintenance} if under_maintenance else standings
    region = state.memo.once(uptime.of_region, shown, len(state.devices), settings)
    if region is not None:
        scope = f"region/{state.region}"
        books.append((scope, ((region, now.ledger_ms),), state.accounts.get(scope)))
    if state.suspect_keys:
        books = [book for book in books if keys.account(book[0]) not in state.suspect_keys]
    return _decide(books, now, keys.account, keys.entry)


def decide_job_ledger(world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """The jobs' accounts (global store)."""
    books: list[Book] = []
    stepping = uptime.stepping(world)
    for job, record in sorted(world.jobs.items()):
        scope = f"job/{job}"
        standing = uptime.of_job(world, record.record, now.ledger_ms, job in stepping or scope in world.accounts)
        if standing is not None and KEYS.account(scope) not in world.suspect_keys:
            books.append((scope, ((standing, now.ledger_ms),), world.accounts.get(scope)))
    return _decide(books, now, KEYS.account, KEYS.entry)
