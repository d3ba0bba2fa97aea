"""The checkers of windows, escrow and breakers, on good and bad histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos.simulate.history import GLOBAL_STORE
from chaos.simulate.invariants import check
from gridkeeper.ids import DeviceId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, Policy
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import DrainState
from gridkeeper.records.limits import BreakerRecord, BreakerState, EscrowRecord, EscrowShare, ShareRecord
from tests.unit.handmade import EAST, GPU0, GPU1, LOCAL, SETTINGS, Book, begun
from tests.unit.test_invariants_books import device, drain

TRIP = BreakerPolicy("region", drains=2, fraction=0.0, within_ms=1_000, trickle=1, trickle_ms=500)


def wrong(book: Book, *budgets: BudgetPolicy, breakers: tuple[BreakerPolicy, ...] = ()) -> list[str]:
    settings = replace(SETTINGS, policy=Policy(budgets=budgets, breakers=breakers))
    found = (f"{v.invariant}: {v.sentence}" for v in check(book.entries, settings))
    return [text for text in found if not text.startswith("evidence")]


def admitted(book: Book, name: DeviceId, at_ms: int, **changes: Any) -> None:
    stages = (Stamp("planned", at_ms), Stamp("admitted", at_ms))
    record = drain(name, stages=stages, planned_ms=at_ms, state=DrainState.ADMITTED, **changes)
    book.led(at_ms, "east", {LOCAL.drain(record.id): record})


def fleet() -> Book:
    book = begun()
    book.commit(10, "east", {LOCAL.device(d): device(d) for d in (GPU0, GPU1, DeviceId("east-1/gpu2"))})
    return book


@pytest.mark.parametrize(("second", "count"), [(1_099, 1), (1_101, 0)])
def test_more_drains_within_a_window_than_its_budget_allows_are_found(second: int, count: int) -> None:
    """Protects: the checker sees windows, and their end."""
    book = fleet()
    admitted(book, GPU0, 100)
    admitted(book, GPU1, second)
    assert len(wrong(book, BudgetPolicy("region", 0.0, 1, window_ms=1_000))) == count


def share(region: str, amount: int) -> EscrowShare:
    return EscrowShare(RegionId(region), amount)


def divided(book: Book, at_ms: int, limit: int, *shares: EscrowShare) -> None:
    book.led(at_ms, GLOBAL_STORE, {KEYS.escrow("fleet"): EscrowRecord("fleet", limit, 4, shares)})


def promised(book: Book, at_ms: int, region: RegionId, amount: int) -> None:
    book.led(at_ms, GLOBAL_STORE, {KEYS.share_ack("fleet", region): ShareRecord("fleet", region, amount, 2)})


HALF = BudgetPolicy("fleet", 0.5, 1)


def test_promise_then_share_is_right_and_the_other_order_is_found() -> None:
    """Protects: the checker asks for the promise before the share."""
    book = begun()
    divided(book, 10, 2, share("east", 1), share("west", 1))
    promised(book, 20, EAST, 1)
    book.led(30, "east", {LOCAL.share("fleet"): ShareRecord("fleet", EAST, 1, 2)})
    assert wrong(book, HALF) == []
    book.led(40, "east", {LOCAL.share("fleet"): ShareRecord("fleet", EAST, 2, 2)})
    assert wrong(book, HALF) == ["escrow: east holds 2 places and promised to hold 1"]


def test_places_given_away_twice_are_found() -> None:
    """Protects: what a region promised still counts when its share was lowered."""
    book = begun()
    divided(book, 10, 2, share("east", 2))
    promised(book, 20, EAST, 2)
    divided(book, 30, 2, share("east", 1), share("west", 1))
    assert wrong(book, HALF) == ["escrow: 3 places may be held of 2"]


def test_a_limit_beyond_policy_is_found() -> None:
    """Protects: the limit in force cannot be written up."""
    book = begun()
    divided(book, 10, 3, share("east", 3))
    assert wrong(book, HALF) == ["escrow: the limit is 3 where 2 are allowed"]


def test_a_machine_drain_through_an_open_breaker_is_found_and_a_humans_is_not() -> None:
    """Protects: open means none."""
    book = fleet()
    book.led(50, "east", {LOCAL.breaker("region"): BreakerRecord("region", BreakerState.OPEN, 50, "", (), (), 1)})
    admitted(book, GPU0, 100, requested_by="user/ann")
    assert wrong(book, breakers=(TRIP,)) == []
    admitted(book, GPU1, 200)
    assert wrong(book, breakers=(TRIP,)) == ["breaker: east-1/gpu1 is drained while the breaker of region is open"]


def test_a_burst_that_no_breaker_stopped_is_found() -> None:
    """Protects: the checker counts by itself."""
    book = fleet()
    for number in range(3):
        admitted(book, DeviceId(f"east-1/gpu{number}"), 100 + number)
    assert wrong(book, breakers=(TRIP,)) == ["breaker: east-1/gpu2 is drained though 3 were wanted in region of 2"]


def test_more_than_the_trickle_through_a_half_open_breaker_is_found() -> None:
    """Protects: half-open means few."""
    book = fleet()
    book.led(50, "east", {LOCAL.breaker("region"): BreakerRecord("region", BreakerState.HALF_OPEN, 50, "", (), (), 1)})
    admitted(book, GPU0, 100)
    admitted(book, GPU1, 700)
    assert wrong(book, breakers=(TRIP,)) == []
    admitted(book, DeviceId("east-1/gpu2"), 800)
    assert "breaker: more than 1 pass the half-open breaker of region" in wrong(book, breakers=(TRIP,))
