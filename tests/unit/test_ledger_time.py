"""Ledger time goes on from what was written, whatever the wall clock of the new leader says."""

from __future__ import annotations

import asyncio

import pytest

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from controlplane.shell.ledgertime import LedgerTime, latest_written
from gridkeeper.ids import RegionId
from gridkeeper.keys import RegionKeys, region_root
from gridkeeper.records.faults import BudgetRecord
from gridkeeper.records.limits import BreakerRecord, BreakerState
from tests.fixtures.grid import Kept, MemoryStore

EAST = RegionId("east")
KEYS = RegionKeys(EAST)
LATER_MS = 1_900_000_000_000
"""Ahead of every clock here: the leader before had a fast one."""


@pytest.mark.parametrize(
    ("key", "record"),
    [
        (KEYS.breaker("region"), BreakerRecord("region", BreakerState.CLOSED, LATER_MS, "", (), (), 1)),
        (KEYS.breaker("region"), BreakerRecord("region", BreakerState.HALF_OPEN, 5, "", (), (LATER_MS,), 1)),
        (KEYS.budget("region@1h"), BudgetRecord("region@1h", (), 2, 8, (5, LATER_MS))),
    ],
    ids=["a breaker's change", "what passed it", "a window"],
)
def test_a_leader_with_a_slower_clock_goes_on_after_what_limits_drains(key: str, record: object) -> None:
    """Protects: a breaker counts from its last change on; a leader that began before that would count nothing for as
    long as the two clocks differ."""

    async def main() -> None:
        store, clock = MemoryStore(), SimClock(asyncio.get_running_loop())
        store.put(key, record)
        time = LedgerTime(clock, latest_written(Kept(store, region_root(EAST))))
        assert time.now().ledger_ms == LATER_MS > clock.wall_ms()
        await clock.sleep(1_000)
        assert time.now().ledger_ms == LATER_MS + 1_000

    run_virtual(main())


def test_an_empty_region_begins_with_the_wall_clock() -> None:
    """Protects: there is nothing to go on from, so nothing is made up."""

    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        assert latest_written(Kept(MemoryStore(), region_root(EAST))) == 0
        assert LedgerTime(clock, 0).now().ledger_ms == clock.wall_ms()

    run_virtual(main())
