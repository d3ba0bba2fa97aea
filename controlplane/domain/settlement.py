"""Closing months, booking what is learned later, signing daily heads: what one store's leader writes of it. Pure.

    month over → (grace) → closed: segment kept, then its record → adjustments, each in the month that is open then

A closing or a head is one record that is created once. Adjustments are numbered by their closing's count, which moves
in the same transaction, so none is booked twice; what is to be booked is the difference to what has been, so one that
was lost between two writes is found again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gridkeeper.decision import ABSENT, Decision, Guard, Put, Versioned
from gridkeeper.keys import GlobalKeys, RegionKeys
from gridkeeper.records.books import AccountRecord, EntryRecord, Totals
from gridkeeper.records.settlement import (
    AdjustmentRecord,
    ClosingRecord,
    ExclusionRecord,
    LedgerHeadRecord,
    ScopeChange,
)
from gridkeeper.sla.closing import NOTHING, Adjustment
from gridkeeper.sla.months import month_of, month_window
from gridkeeper.sla.receipts import Receipt
from gridkeeper.sla.spans import Window, difference, sum_of

Keys = RegionKeys | GlobalKeys
MONTHS_BACK = 13
"""A month that ended longer ago is not closed any more."""
ADJUSTED_MS = 400 * 86_400_000
"""A closed month is looked at so long after its end: as long as exclusions of it may be recorded."""
SCOPES_PER_ADJUSTMENT = 500
DAY_MS = 86_400_000


def months_due(
    zones: Iterable[str], closings: Mapping[str, Versioned[ClosingRecord]], now_ms: int, grace_ms: int
) -> tuple[tuple[str, str], ...]:
    """(zone, month) of months that are over for so long and not closed, the oldest first."""
    found = []
    for zone in sorted(set(zones)):
        month = month_of(now_ms, zone)
        for _ in range(MONTHS_BACK):
            month = month_of(month_window(month, zone).from_ms - 1, zone)
            window = month_window(month, zone)
            if window.until_ms + grace_ms <= now_ms and f"{zone}/{month}" not in closings:
                found.append((window.until_ms, zone, month))
    return tuple((zone, month) for _, zone, month in sorted(found))


def going_on(
    accounts: Iterable[AccountRecord], numbers: Collection[tuple[str, int]], now_ms: int
) -> tuple[EntryRecord, ...]:
    """Intervals that are not over, up to now. ``numbers``: of entries, (scope, sequence): what has been closed since
    the account was looked at is among them."""
    return tuple(
        EntryRecord(
            account.scope, account.sequence + 1, account.month, account.since_ms, now_ms, account.current,
            account.reason, account.refs,
        )
        for account in accounts
        if account.since_ms < now_ms and (account.scope, account.sequence + 1) not in numbers
    )  # fmt: skip


def close(
    keys: Keys, books: str, zone: str, month: str, window: Window, segment: str, entries: int, scopes: int,
    exclusions: int, actor: str, now_ms: int,
) -> Decision:  # fmt: skip
    record = ClosingRecord(
        zone, month, window.from_ms, window.until_ms, actor, now_ms, segment, entries, scopes, exclusions, 0, books
    )
    sentence = f"{month} of {zone} is closed for {books}: {entries} entries of {scopes} scopes in {segment}"
    write = Put(keys.closing(zone, month), record, ABSENT)
    return Decision("ledger.close", sentence, (write,), subject=f"closing/{books}/{zone}/{month}")


def concerned(closing: ClosingRecord, log: Iterable[ExclusionRecord]) -> bool:
    """The log has events of that month that it does not know."""
    return any(
        event.sequence > closing.exclusions and event.from_ms < closing.until_ms and event.until_ms > closing.from_ms
        for event in log
    )


def outstanding(wanted: Sequence[Adjustment], booked: Iterable[AdjustmentRecord]) -> tuple[ScopeChange, ...]:
    """What is still to be booked, by scope."""
    done: dict[str, Totals] = {}
    for record in booked:
        for one in record.changes:
            done[one.scope] = sum_of(done.get(one.scope, NOTHING), one.change)
    target = {one.scope: one.change for one in wanted}
    changes = (
        ScopeChange(scope, difference(target.get(scope, NOTHING), done.get(scope, NOTHING)))
        for scope in sorted(target.keys() | done.keys())
    )
    return tuple(change for change in changes if change.change != NOTHING)


def adjust(
    keys: Keys, held: Versioned[ClosingRecord], changes: Sequence[ScopeChange], exclusions: int, now_ms: int
) -> Decision:
    """Book the first of the changes; the last of them also notes which exclusions are in them."""
    closing = held.record
    first, rest = tuple(changes[:SCOPES_PER_ADJUSTMENT]), changes[SCOPES_PER_ADJUSTMENT:]
    number, booked_in = closing.adjustments + 1, month_of(now_ms, closing.zone)
    record = AdjustmentRecord(closing.zone, closing.month, number, booked_in, now_ms, first, closing.books)
    moved = replace(closing, adjustments=number, exclusions=closing.exclusions if rest else exclusions)
    writes = (
        Put(keys.adjustment(closing.zone, closing.month, number), record, ABSENT),
        Put(keys.closing(closing.zone, closing.month), moved, held.revision),
    )
    sentence = (
        f"{booked_in} books adjustment {number} of {closing.month} ({closing.zone}) for {closing.books}: "
        f"{first[0].scope}{f' and {len(first) - 1} more' if len(first) > 1 else ''}"
    )
    return Decision(
        "ledger.adjust", sentence, writes, subject=f"closing/{closing.books}/{closing.zone}/{closing.month}"
    )


def day_due(heads: Mapping[str, Versioned[LedgerHeadRecord]], now_ms: int) -> str:
    """The day (UTC) that ended last, if it has no head; "": it has. Days that nobody signed in time have none: a head
    speaks for what the books held when it was issued."""
    day = (datetime.fromtimestamp(now_ms // 1000, UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    return "" if any(known >= day for known in heads) else day


def head(
    keys: Keys, books: str, day: str, heads: Mapping[str, Versioned[LedgerHeadRecord]], receipt: Receipt, name: str
) -> Decision:
    """``receipt``: names the newest head's; ``name``: of its file."""
    record = LedgerHeadRecord(
        day, receipt.issued_ms, receipt.digest(), receipt.previous, name, len(receipt.chains), books
    )
    guards: tuple[Guard, ...] = ()
    if heads:
        last = max(heads)
        guards = (Guard(keys.ledger_head(last), heads[last].revision),)
    sentence = f"the ledger of {books} as of {day} is signed: {len(receipt.chains)} scopes in {name}"
    return Decision(
        "ledger.sign", sentence, (Put(keys.ledger_head(day), record, ABSENT),), guards, f"ledger-head/{books}/{day}"
    )
