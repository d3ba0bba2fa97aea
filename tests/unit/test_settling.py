"""Protects: a month is closed once, by whoever leads, in each contract's time zone, whatever dies between two writes
and however late the events are; what is learned later is booked once; heads name the one before them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.library import run
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster
from controlplane.domain.settlement import months_due, outstanding
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.settling import Settling
from controlplane.store.archive import open_archive
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.failpoint import Failpoints, NoFailpoints
from gridkeeper.ids import RegionId, ReplicaId, Revision
from gridkeeper.keys import KEYS, RegionKeys, region_root
from gridkeeper.ports.archive import ArchiveUnavailable
from gridkeeper.ports.store import PutOp
from gridkeeper.records.books import AccountRecord, EntryRecord, Totals, UptimeClass
from gridkeeper.records.documents import DocumentKind, DocumentRecord
from gridkeeper.records.faults import LeaderRecord
from gridkeeper.records.settlement import (
    AdjustmentRecord,
    Cause,
    ClosingRecord,
    ExclusionRecord,
    LedgerHeadRecord,
    ScopeChange,
)
from gridkeeper.sla.closing import Adjustment
from gridkeeper.sla.document import shipped_text
from gridkeeper.sla.months import month_window
from gridkeeper.snapshot import Settings

HOUR = 3_600_000
EAST = RegionId("east")
HERE = RegionKeys(EAST)
GPU = "device/n1/gpu0"
MONTH = month_window("2026-09", "UTC")
UP, DOWN = UptimeClass.UP, UptimeClass.DOWN


class Died(BaseException):
    """As by kill -9."""


class DieAt(Failpoints):
    def __init__(self, where: str) -> None:
        self.where = where

    def hit(self, names: Iterable[str]) -> None:
        if self.where in tuple(names):
            self.where = ""
            raise Died


class MemoryArchive:
    """``fails``: calls that are refused from now on."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fails = 0

    async def keep(self, name: str, data: bytes) -> None:
        if self.fails:
            self.fails -= 1
            raise ArchiveUnavailable(f"{name}: the disk is full")
        assert self.files.setdefault(name, data) == data, "a name stands for one content"

    async def read(self, name: str) -> bytes:
        if name not in self.files:
            raise ArchiveUnavailable(f"{name}: there is none")
        return self.files[name]


class World:
    """One region and the global store; the month September 2026 is over, and it is October 1st, 03:00 UTC."""

    def __init__(self, now_ms: int = MONTH.until_ms + 3 * HOUR) -> None:
        loop = asyncio.get_running_loop()
        self.clock = SimClock(loop)
        self.clock.step(now_ms - self.clock.wall_ms())
        self.cluster = SimCluster(self.clock, SimRng(7))
        self.store = self.cluster.client("test")
        self.archive = MemoryArchive()
        self.tasks: list[asyncio.Task[None]] = []

    async def put(self, *pairs: tuple[str, object]) -> None:
        result = await self.store.txn([], [PutOp(key, codec.encode(record)) for key, record in pairs])
        assert result.succeeded

    async def contract(self, zone: str) -> None:
        text = shipped_text("aws").replace("zone: UTC", f"zone: {zone}")
        assert f"zone: {zone}" in text
        record = DocumentRecord(DocumentKind.CONTRACT, f"c-{zone[:3].lower()}", 1, text, "", "ann", 1, "")
        await self.put((KEYS.document("contract", record.name), record))

    async def book(
        self, scope: str, *spans: tuple[int, UptimeClass], open_from: int, current: UptimeClass = UP
    ) -> None:
        """Entries (from, class) of a scope, in hours of September, and its account."""
        keys = KEYS if scope.startswith("job/") else HERE
        ends = [begin for begin, _ in spans[1:]] + [open_from]
        for number, ((begin, kind), end) in enumerate(zip(spans, ends, strict=True), 1):
            entry = EntryRecord(
                scope, number, "2026-09", MONTH.from_ms + begin * HOUR, MONTH.from_ms + end * HOUR, kind, "", ()
            )
            await self.put((keys.entry(scope, number), entry))
        since = MONTH.from_ms + open_from * HOUR
        account = AccountRecord(scope, "2026-09", since, len(spans), current, since, "", Totals(0, 0, 0, 0, 0))
        await self.put((keys.account(scope), account))

    async def lead(
        self, region: RegionId | None = EAST, failpoints: Failpoints | None = None, signs: bool = False
    ) -> Settling:
        """A new leader, with everything read anew."""
        local = Mirror(self.store, region_root(EAST) if region else KEYS.root, self.clock)
        world = Mirror(self.store, KEYS.root, self.clock)
        for mirror in {local, world}:
            self.tasks.append(asyncio.ensure_future(mirror.run()))
            await mirror.wait_loaded()
        keys = HERE if region else KEYS
        await self.put((keys.leader, LeaderRecord(ReplicaId("a"), "a:1", 1)))
        held, _ = await self.store.get(keys.leader)
        assert held is not None
        applier = Applier(self.store, local, keys.audit, SimRng(3), self.clock.wall_ms, failpoints or NoFailpoints())
        return Settling(
            region, keys, self.store, local, world, applier, "machine/a", Fence(keys.leader, held.create_revision),
            self.archive, (lambda receipt: replace(receipt, signature="s")) if signs else None, Settings, self.clock,
            LedgerTime(self.clock),
        )  # fmt: skip

    async def records(self, kind: type, prefix: str) -> list[object]:
        page = await self.store.range(prefix)
        return [codec.decode(kind, kv.value) for kv in page.items]

    async def closings(self) -> list[ClosingRecord]:
        return await self.records(ClosingRecord, HERE.prefix("closings"))  # type: ignore[return-value]

    async def adjustments(self) -> list[AdjustmentRecord]:
        return await self.records(AdjustmentRecord, HERE.prefix("adjustments"))  # type: ignore[return-value]

    def segment(self, closing: ClosingRecord) -> list[tuple[str, int, int, str]]:
        frame = pl.read_parquet(io.BytesIO(self.archive.files[closing.segment]))
        begin = closing.from_ms
        return [
            (scope, (first - begin) // HOUR, (end - begin) // HOUR, kind)
            for scope, first, end, kind in frame.select("scope", "from_ms", "until_ms", "uptime").iter_rows()
        ]


def exclusion(number: int, begin: int, end: int, retracts: int = 0, scope: str = GPU) -> ExclusionRecord:
    return ExclusionRecord(
        number, scope, Cause.CUSTOMER, MONTH.from_ms + begin * HOUR, MONTH.from_ms + end * HOUR, "ann", 1, "theirs", (),
        retracts, "",
    )  # fmt: skip


def test_a_month_is_closed_once_and_what_comes_later_is_booked_once() -> None:
    async def main() -> None:
        world = World()
        await world.contract("UTC")
        await world.book(GPU, (0, UP), (100, DOWN), (110, UP), open_from=720)
        settling = await world.lead()
        for _ in range(2):
            await settling.look()
        (closed,) = await world.closings()
        assert (closed.zone, closed.month, closed.scopes, closed.books) == ("UTC", "2026-09", 1, "region/east")
        assert world.segment(closed) == [(GPU, 0, 100, "up"), (GPU, 100, 110, "down"), (GPU, 110, 720, "up")]
        assert await world.adjustments() == []
        await world.put((KEYS.exclusion(1), exclusion(1, 100, 104)))
        await world.clock.sleep(10)
        for leader in (settling, await world.lead()):
            await leader.look()
            (booked,) = await world.adjustments()
            assert (booked.sequence, booked.month, booked.booked_in) == (1, "2026-09", "2026-10")
            change = Totals(0, 0, -4 * HOUR, 4 * HOUR, 0)
            assert booked.changes == (ScopeChange(GPU, change),)
        await world.put((KEYS.exclusion(2), exclusion(2, 100, 104, retracts=1)))
        await world.clock.sleep(10)
        await leader.look()
        back = (await world.adjustments())[1]
        assert back.changes == (ScopeChange(GPU, Totals(0, 0, 4 * HOUR, -4 * HOUR, 0)),), "a retraction is booked too"
        (after,) = await world.closings()
        assert after == replace(closed, adjustments=2, exclusions=2), "the segment is the same for ever"

    run_virtual(main())


def test_each_time_zone_has_its_months_and_an_interval_that_goes_on_is_cut() -> None:
    async def main() -> None:
        world = World(MONTH.until_ms + HOUR)  # in Berlin, two hours ahead, the month is over for three hours
        await world.contract("UTC")
        await world.contract("Europe/Berlin")
        await world.book(GPU, (0, UP), open_from=100, current=DOWN)
        settling = await world.lead()
        await settling.look()
        (berlin,) = await world.closings()
        assert (berlin.zone, berlin.until_ms) == ("Europe/Berlin", MONTH.until_ms - 2 * HOUR)
        assert world.segment(berlin) == [(GPU, 2, 102, "up"), (GPU, 102, 720, "down")]
        world.clock.step(HOUR)
        await (await world.lead()).look()
        assert [one.zone for one in await world.closings()] == ["Europe/Berlin", "UTC"]

    run_virtual(main())


def test_an_event_that_came_too_late_is_an_adjustment() -> None:
    """The interval that went on when Berlin's month was closed turns out to have ended before that."""

    async def main() -> None:
        world = World()
        await world.contract("Europe/Berlin")
        await world.book(GPU, (0, UP), open_from=100, current=UP)
        await (await world.lead()).look()
        await world.book(GPU, (0, UP), (100, UP), (710, DOWN), open_from=725)
        await (await world.lead()).look()
        (booked,) = await world.adjustments()
        assert booked.changes == (ScopeChange(GPU, Totals(-8 * HOUR, 0, 8 * HOUR, 0, 0)),)
        await (await world.lead()).look()
        assert len(await world.adjustments()) == 1

    run_virtual(main())


@pytest.mark.parametrize("where", ["archive", "ledger.close.before", "ledger.close.after"])
def test_who_dies_while_closing_is_followed_by_one_who_goes_on(where: str) -> None:
    async def main() -> None:
        world = World()
        await world.contract("UTC")
        await world.book(GPU, (0, UP), open_from=720)
        first = await world.lead(failpoints=DieAt(where))
        if where == "archive":
            world.archive.fails = 1
            with pytest.raises(ArchiveUnavailable, match="the disk is full"):
                await first.look()
            assert await world.closings() == [], "nothing names what was not kept"
        else:
            with pytest.raises(Died):
                await first.look()
        await (await world.lead()).look()
        (closed,) = await world.closings()
        assert world.segment(closed) == [(GPU, 0, 720, "up")] and len(world.archive.files) == 1

    run_virtual(main())


@pytest.mark.parametrize("where", ["ledger.adjust.before", "ledger.adjust.after"])
def test_who_dies_while_booking_leaves_no_adjustment_out_and_none_twice(where: str) -> None:
    async def main() -> None:
        world = World()
        await world.contract("UTC")
        scopes = [f"device/n{number:04d}/gpu0" for number in range(600)]
        for scope in scopes:
            await world.book(scope, (0, DOWN), open_from=720)
        await (await world.lead()).look()
        await world.put((KEYS.exclusion(1), exclusion(1, 0, 1, scope="region/east")))
        with pytest.raises(Died):
            await (await world.lead(failpoints=DieAt(where))).look()
        await (await world.lead()).look()
        booked = await world.adjustments()
        assert [one.sequence for one in booked] == [1, 2]
        assert sorted(change.scope for one in booked for change in one.changes) == scopes
        assert (await world.closings())[0].exclusions == 1

    run_virtual(main())


def test_a_leader_that_was_replaced_closes_nothing() -> None:
    async def main() -> None:
        world = World()
        await world.contract("UTC")
        await world.book(GPU, (0, UP), open_from=720)
        old = await world.lead()
        old._fence = Fence(HERE.leader, old._fence.term + 1)
        await old.look()
        assert await world.closings() == []

    run_virtual(main())


def test_a_clock_that_is_ahead_closes_no_month_early() -> None:
    async def main() -> None:
        world = World(MONTH.until_ms - 10 * HOUR)
        await world.contract("UTC")
        await world.book(GPU, (0, UP), open_from=100)
        settling = await world.lead()
        world.clock.step(24 * HOUR)  # stepped forward while it leads: the ledger's time did not move
        await settling.look()
        assert await world.closings() == []
        settling = await world.lead()
        world.clock.step(-24 * HOUR)  # elected while it was ahead, and set right since
        await settling.look()
        assert await world.closings() == []

    run_virtual(main())


def test_nothing_is_closed_on_books_that_do_not_decode() -> None:
    async def main() -> None:
        world = World()
        await world.contract("UTC")
        await world.book(GPU, (0, UP), open_from=720)
        await world.store.txn([], [PutOp(HERE.account("device/n9/gpu0"), b"\xff\xff")])
        await (await world.lead()).look()
        assert await world.closings() == []

    run_virtual(main())


def test_heads_are_signed_each_day_and_chained() -> None:
    async def main() -> None:
        world = World(MONTH.from_ms + 30 * HOUR)
        await world.book(GPU, (0, UP), (4, DOWN), open_from=5)
        settling = await world.lead(signs=True)
        for _ in range(2):
            await settling.look()
        world.clock.step(24 * HOUR)
        await (await world.lead(signs=True)).look()
        first, second = await world.records(LedgerHeadRecord, HERE.prefix("ledger-heads"))
        assert isinstance(first, LedgerHeadRecord) and isinstance(second, LedgerHeadRecord)
        assert (first.day, second.day) == ("2026-09-01", "2026-09-02")
        assert (first.previous, second.previous) == ("", first.digest)
        assert len(world.archive.files) == 2 and f'"{GPU}"'.encode() in world.archive.files[first.receipt]

    run_virtual(main())


def test_months_that_are_due() -> None:
    day = 24 * HOUR
    due = months_due(["UTC"], {}, MONTH.until_ms + 3 * HOUR, 2 * HOUR)
    assert len(due) == 13 and due[-1] == ("UTC", "2026-09") and due[0] == ("UTC", "2025-09")
    assert months_due(["UTC"], {}, MONTH.until_ms + HOUR, 2 * HOUR)[-1] == ("UTC", "2026-08")
    closed = {f"UTC/{month}": Versioned(None, Revision(1), Revision(1), 0) for _, month in due}
    assert months_due(["UTC"], closed, MONTH.until_ms + 3 * day, 2 * HOUR) == ()  # type: ignore[arg-type]


def test_what_was_booked_is_not_booked_again() -> None:
    change = Totals(-4, 0, 4, 0, 0)
    half = AdjustmentRecord("UTC", "2026-09", 1, "2026-10", 1, (ScopeChange("a", Totals(-1, 0, 1, 0, 0)),), "global")
    wanted = (Adjustment("2026-09", "a", change),)
    assert outstanding(wanted, ()) == (ScopeChange("a", change),)
    assert outstanding(wanted, (half,)) == (ScopeChange("a", Totals(-3, 0, 3, 0, 0)),)
    assert outstanding((), (half,)) == (ScopeChange("a", Totals(1, 0, -1, 0, 0)),)


async def test_the_archive_keeps_what_it_was_given(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path / "ledger"))
    for _ in range(2):
        await archive.keep("region/east/UTC/2026-09-abc.parquet", b"segment")
    assert await open_archive(str(tmp_path / "ledger")).read("region/east/UTC/2026-09-abc.parquet") == b"segment"
    with pytest.raises(ArchiveUnavailable, match="2026-10"):
        await archive.read("region/east/UTC/2026-10-abc.parquet")


@pytest.mark.parametrize(("seed", "rough"), [(1, False), (1, True)])
def test_a_whole_grid_closes_a_month_while_leaders_change(seed: int, rough: bool) -> None:
    outcome = run("month-end", seed, rough)
    assert outcome.good, [claim.text for claim in outcome.false] + [str(v) for v in outcome.violations]
