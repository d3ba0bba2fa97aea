"""The checker of the ledger, on good and bad histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gridkeeper.records.books import AccountRecord, EntryRecord, Totals, UptimeClass
from tests.unit.handmade import (
    LOCAL,
    Book,
    begun,
    only,
)

MONTH = "2026-01"
T0 = 1_767_225_600_000
SCOPE = "device/east-1/gpu0"
NONE = Totals(0, 0, 0, 0, 0)


def account(since: int, sequence: int, totals: Totals = NONE, **changes: Any) -> AccountRecord:
    record = AccountRecord(SCOPE, MONTH, T0, sequence, UptimeClass.UP, T0 + since, "", totals)
    return replace(record, **changes)


def entry(sequence: int, since: int, until: int, uptime: UptimeClass = UptimeClass.UP, **changes: Any) -> EntryRecord:
    record = EntryRecord(SCOPE, sequence, MONTH, T0 + since, T0 + until, uptime, "", ())
    return replace(record, **changes)


def booked(*steps: tuple[AccountRecord, tuple[EntryRecord, ...]]) -> Book:
    """A new account, then each step in a transaction of its own."""
    book = begun()
    book.led(10, "east", {LOCAL.account(SCOPE): account(0, 0)})
    for at_ms, (record, entries) in enumerate(steps, 20):
        records: dict[str, Any] = {LOCAL.account(SCOPE): record}
        records.update({LOCAL.entry(SCOPE, e.sequence): e for e in entries})
        book.led(at_ms, "east", records)
    return book


def test_a_ledger_that_adds_up_is_right() -> None:
    down = replace(NONE, up_ms=100, down_ms=50)
    steps = (
        (account(100, 1, replace(NONE, up_ms=100), current=UptimeClass.DOWN), (entry(1, 0, 100),)),
        (account(150, 2, down), (entry(2, 100, 150, UptimeClass.DOWN),)),
    )
    assert booked(*steps).wrong() == []


def test_a_new_month_begins_with_nothing_booked() -> None:
    turn = 31 * 86_400_000
    february = account(turn, 1, NONE, month="2026-02", opened_ms=T0 + turn)
    assert booked((february, (entry(1, 0, turn),))).wrong() == []
    kept = replace(february, totals=replace(NONE, up_ms=turn))
    assert any("are not those of its entries" in text for text in booked((kept, (entry(1, 0, turn),))).wrong())


@pytest.mark.parametrize(
    ("record", "entries", "words"),
    [
        (account(100, 1, replace(NONE, up_ms=90)), (entry(1, 10, 100),), "does not follow"),
        (account(100, 2, replace(NONE, up_ms=100)), (entry(2, 0, 100),), "does not follow"),
        (account(100, 1, replace(NONE, up_ms=99)), (entry(1, 0, 100),), "are not those of its entries"),
        (account(100, 1, replace(NONE, down_ms=100)), (entry(1, 0, 100),), "are not those of its entries"),
        (account(110, 1, replace(NONE, up_ms=100)), (entry(1, 0, 100),), "its entries end at"),
        (account(100, 0, replace(NONE, up_ms=100)), (), "its entries end at"),
        (account(0, 1), (entry(1, 0, 0),), "does not follow"),
    ],
)
def test_gaps_overlaps_and_wrong_sums_are_found(
    record: AccountRecord, entries: tuple[EntryRecord, ...], words: str
) -> None:
    found = booked((record, entries)).wrong()
    assert any(words in text for text in found), found


def test_an_entry_that_is_rewritten_and_one_without_an_account_are_found() -> None:
    book = booked((account(100, 1, replace(NONE, up_ms=100)), (entry(1, 0, 100),)))
    book.led(50, "east", {LOCAL.entry(SCOPE, 1): entry(1, 0, 100, UptimeClass.EXCLUDED)})
    only(book, "ledger", "is rewritten")
    other = booked()
    other.led(50, "east", {LOCAL.entry(SCOPE, 1): entry(1, 0, 100)})
    only(other, "ledger", "without its account")


def test_an_account_that_is_born_with_time_is_found() -> None:
    book = begun()
    book.led(10, "east", {LOCAL.account(SCOPE): account(100, 0, replace(NONE, up_ms=100))})
    only(book, "ledger", "a new account has booked time")
