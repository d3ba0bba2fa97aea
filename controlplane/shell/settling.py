"""Closes months, books adjustments and signs daily heads of one store's ledger: a duty of its leader, beside leading.

Nothing here waits for anything that others wait for. A segment or a receipt is kept in the archive first, under its
digest, and only then named by a record: who dies in between leaves an inert file. Time is the ledger's, and never ahead
of the wall clock: a clock that was ahead at an election closes no month early.
"""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import polars as pl
from blake3 import blake3

from controlplane.domain import settlement
from controlplane.domain.settlement import Keys
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from gridkeeper import codec
from gridkeeper.configfile import ConfigError
from gridkeeper.ids import RegionId
from gridkeeper.ports.archive import Archive, ArchiveUnavailable
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import Store, StoreError
from gridkeeper.records.books import AccountRecord, EntryRecord
from gridkeeper.records.documents import DocumentKind
from gridkeeper.records.settlement import AdjustmentRecord, ClosingRecord, ExclusionRecord
from gridkeeper.sla import closing
from gridkeeper.sla.books import frame_of, read_frame
from gridkeeper.sla.document import parse_contract
from gridkeeper.sla.exclusions import statements
from gridkeeper.sla.months import month_window
from gridkeeper.sla.receipts import BadReceipt, Receipt, chains_of, exclusions_chain
from gridkeeper.sla.spans import Window
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.settling")

LOOK_MS = 10_000
AGAIN_MS = 6 * 3_600_000
"""A closed month is compared with the ledger so often, and at once when an exclusion of it is recorded."""
PAGE = 500

R = TypeVar("R")
Sign = Callable[[Receipt], Receipt]


class Incomplete(Exception):
    """Something of the ledger does not decode; nothing is closed or signed on what is left."""


class Settling:
    """Of one term. ``region`` None: of the global store. ``sign`` None: heads are not signed."""

    def __init__(
        self,
        region: RegionId | None,
        keys: Keys,
        store: Store,
        local: Mirror,
        world: Mirror,
        applier: Applier,
        actor: str,
        fence: Fence,
        archive: Archive,
        sign: Sign | None,
        settings: Callable[[], Settings],
        clock: Clock,
        time: LedgerTime,
    ) -> None:
        self._region = region
        self._books = f"region/{region}" if region else "global"
        self._keys = keys
        self._store = store
        self._local = local
        self._world = world
        self._applier = applier
        self._actor = actor
        self._fence = fence
        self._archive = archive
        self._sign = sign
        self._settings = settings
        self._clock = clock
        self._time = time
        self._documents: Any = None  # of which ``_known`` are the zones
        self._known: frozenset[str] = frozenset()
        self._empty: set[tuple[str, str]] = set()  # months without an entry
        self._compared: dict[str, tuple[int, int]] = {}  # closing -> when, up to which exclusion

    async def run(self) -> None:
        """For ever. What cannot be done now is tried again at the next look."""
        while True:
            try:
                await self.look()
            except (StoreError, ArchiveUnavailable) as error:
                log.warning("the settlement of %s waits: %s", self._books, error)
            except (Incomplete, BadReceipt, ConfigError) as error:
                log.error("the settlement of %s cannot go on: %s", self._books, error)
            await self._clock.sleep(LOOK_MS)

    async def look(self) -> None:
        """Whatever is due. Raises what ``run`` tells."""
        if not self._local.fresh or not self._world.fresh or self._torn():
            return
        for zone, month in settlement.months_due(self._zones(), self._closings(), self._now(), self._grace()):
            if (zone, month) not in self._empty:
                await self._close(zone, month)
        for name in sorted(self._closings()):
            await self._adjust(name)
        day = settlement.day_due(self._local.kind("ledger-heads"), self._now()) if self._sign else ""
        if day and self._sign:
            await self._head(day, self._sign)

    def _now(self) -> int:
        return min(self._time.now().ledger_ms, self._clock.wall_ms())

    def _grace(self) -> int:
        return self._settings().policy.settlement.close_after_ms

    def _torn(self) -> bool:
        roots = ("exclusions/", "closings/", "documents/", "accounts/", "ledger-heads/")
        keys = (*self._local.suspect, *self._world.suspect)
        return any(f"/{root}" in key for key in keys for root in roots)

    def _closings(self) -> Any:
        return self._local.kind("closings")

    def _zones(self) -> frozenset[str]:
        """Of the contracts in force."""
        documents = self._world.kind("documents")
        if documents is not self._documents:
            self._documents, self._known = (
                documents,
                frozenset(
                    parse_contract(held.record.text, f"contract {held.record.name}").zone
                    for held in documents.values()
                    if held.record.kind is DocumentKind.CONTRACT
                ),
            )
        return self._known

    def _log(self) -> tuple[ExclusionRecord, ...]:
        return tuple(held.record for held in self._world.kind("exclusions").values())

    async def _close(self, zone: str, month: str) -> None:
        window, events = month_window(month, zone), self._log()
        frame = closing.clipped(await self._ledger(window, events), window)
        if frame.is_empty():
            self._empty.add((zone, month))
            return
        out = io.BytesIO()
        frame.write_parquet(out)
        data = out.getvalue()
        name = f"{self._books}/{zone}/{month}-{blake3(data).hexdigest()}.parquet"
        await self._archive.keep(name, data)
        decision = settlement.close(
            self._keys, self._books, zone, month, window, name, frame.height, frame["scope"].n_unique(),
            max((event.sequence for event in events), default=0), self._actor, self._time.now().ledger_ms,
        )  # fmt: skip
        await apply_all([decision], self._applier, self._actor, self._fence)

    async def _adjust(self, name: str) -> None:
        held, events = self._closings()[name], self._log()
        last = max((event.sequence for event in events), default=0)
        when, known = self._compared.get(name, (-AGAIN_MS, -1))
        now_ms = self._clock.mono_ms()
        fresh = known < last and settlement.concerned(held.record, events)
        if self._now() - held.record.until_ms > settlement.ADJUSTED_MS or (now_ms - when < AGAIN_MS and not fresh):
            return
        record: ClosingRecord = held.record
        window = Window(record.from_ms, record.until_ms)
        before = await self._segment(record)
        after = await self._ledger(window, events)
        wanted = closing.adjustments(record.month, before, after, window)
        while True:
            booked = [
                one async for one in self._read(AdjustmentRecord, "adjustments", f"{record.zone}/{record.month}/")
            ]
            changes = settlement.outstanding(wanted, booked)
            if not changes:
                break
            held = self._closings()[name]
            decision = settlement.adjust(self._keys, held, changes, last, self._time.now().ledger_ms)
            if not await apply_all([decision], self._applier, self._actor, self._fence):
                return  # another leader, or the mirror is behind: at the next look
        self._compared[name] = (now_ms, last)

    async def _segment(self, record: ClosingRecord) -> pl.DataFrame:
        data = await self._archive.read(record.segment)
        if str(blake3(data).hexdigest()) not in record.segment:
            raise Incomplete(f"{record.segment} is not what was closed: its content has another digest; restore it")
        return read_frame(io.BytesIO(data), record.segment)

    async def _head(self, day: str, sign: Sign) -> None:
        """Of the month so far."""
        heads = self._local.kind("ledger-heads")
        window = month_window(day[:7], "UTC")
        entries = [entry async for entry in self._entries(window)]
        chains = chains_of(frame_of(entries))
        events = exclusions_chain(self._log()) if self._region is None else None
        previous = heads[max(heads)].record.digest if heads else ""
        receipt = sign(
            Receipt(
                self._time.now().ledger_ms, window.from_ms, window.until_ms, previous,
                (*chains, events) if events else chains,
            )
        )  # fmt: skip
        text = receipt.text().encode()
        name = f"{self._books}/heads/{day}-{blake3(text).hexdigest()}.json"
        await self._archive.keep(name, text)
        decision = settlement.head(self._keys, self._books, day, heads, receipt, name)
        await apply_all([decision], self._applier, self._actor, self._fence)

    async def _ledger(self, window: Window, events: Iterable[ExclusionRecord]) -> pl.DataFrame:
        """Entries, intervals that go on, and what is excluded. The accounts are looked at first: an interval that is
        closed between the two is then told by its entry; the other way round it would be in neither."""
        accounts: list[AccountRecord] = [held.record for held in self._local.kind("accounts").values()]
        entries = [entry async for entry in self._entries(window)]
        numbers = {(entry.scope, entry.sequence) for entry in entries}
        frame = frame_of([*entries, *settlement.going_on(accounts, numbers, self._now())])
        scopes = frame["scope"].unique().to_list()
        region_of = {scope: str(self._region or "") for scope in scopes}
        return frame.vstack(statements(events, scopes, region_of))

    async def _entries(self, window: Window) -> AsyncIterator[EntryRecord]:
        async for entry in self._read(EntryRecord, "entries", ""):
            if entry.until_ms > window.from_ms and entry.from_ms < window.until_ms:
                yield entry

    async def _read(self, record: type[R], kind: str, under: str) -> AsyncIterator[R]:
        """All of a kind that is not mirrored, a page at a time. Raises ``Incomplete``."""
        prefix, after, more = self._keys.prefix(kind) + under, "", True
        while more:
            page = await self._store.range(prefix, after=after, limit=PAGE)
            for kv in page.items:
                after = kv.key
                try:
                    yield codec.decode(record, kv.value)
                except codec.CorruptRecord as error:
                    raise Incomplete(f"{kv.key}: {error}") from error
            more = page.more
