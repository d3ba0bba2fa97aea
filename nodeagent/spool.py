"""Events on disk until the control plane has them: appended durably, sent with their age, dropped when acknowledged.

(node, spool id, sequence) names an event for ever. Whenever sequences cannot simply go on, the spool *rolls over*: what
is pending goes into a new log with a new random id, from sequence 1, and the stream says hello anew. That is so when
the log is full (counts of equal events are merged, then the oldest are dropped and one ``OVERFLOW`` event says so),
when the disk does not take it (the log is then in memory, and each message says "spool unwritable"), when it does
again, and when the server knows another cursor than ours (its store was restored, or our disk was). Events under way at
that moment may arrive under both ids, and so may those that a log on an unwritable disk still holds if the agent dies
before the disk is better; at no other time is an event doubled or lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Set
from dataclasses import dataclass, field

from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.disk import DiskError, DiskLog
from gridkeeper.records.fleet import EventKind
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentEvent, EventBatch
from nodeagent.dedupe import Admitted
from nodeagent.disklog import LogSource
from nodeagent.spooled import (
    MEMORY_BYTES,
    OF,
    OVERFLOW_SPOOL,
    MemoryLog,
    Spooled,
    from_bytes,
    is_notice,
    merged,
    to_bytes,
)

log = logging.getLogger("gridkeeper.agent.spool")

BATCH = 64
"""Events per batch: one transaction of the control plane."""
MAX_MESSAGE = 1_024
MAX_AGE_MS = 366 * 24 * 3600 * 1000
DISK_LIMIT_MS = 5_000
"""A disk that has not answered by then counts as unwritable."""
RETRY_MS = 10_000
"""Between two looks whether an unwritable disk takes records again."""
OVERFLOW_DAMAGE = 3
"""Code of the ``OVERFLOW`` event "records on disk were damaged"."""
ROOM = 4
"""A spool is made anew at (1 - 1/ROOM) of its limit and may then fill half of that."""


@dataclass(slots=True)
class SpoolCounters:
    appended: int = 0
    acknowledged: int = 0
    dropped: int = 0
    rollovers: int = 0


@dataclass(slots=True)
class _Kept:
    sequence: int
    spooled: Spooled


@dataclass(slots=True)
class Spool:
    """Open one with ``open_spool``."""

    source: LogSource
    clock: Clock
    rng: Rng
    boot_id: str
    max_bytes: int
    log: DiskLog
    unwritable: str = ""  # why the log is in memory; "" = it is on disk
    counters: SpoolCounters = field(default_factory=SpoolCounters)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: deque[_Kept] = field(default_factory=deque)
    _last: int = 0
    _retry_ms: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> str:
        return self.log.id

    @property
    def depth(self) -> int:
        return len(self._kept)

    @property
    def last(self) -> int:
        return self._last

    @property
    def oldest_age_ms(self) -> int:
        """0 when empty."""
        return self._age(self._kept[0].spooled)[0] if self._kept else 0

    async def append(self, admitted: Admitted, job: str = "", trace: str = "") -> int:
        """Durable on return (or flagged as not durable). ``trace``: its W3C traceparent; "" = a fresh one. Returns its
        sequence."""
        event = AgentEvent(
            slot=admitted.slot,
            kind=records_pb2.EventKind.Value(f"EVENT_KIND_{admitted.kind.name}"),
            code=admitted.code,
            message=admitted.message[:MAX_MESSAGE],
            sources=admitted.sources,
            count=admitted.count,
            pid=admitted.pid,
            job=job,
            trace=trace or f"00-{self.rng.token(16)}-{self.rng.token(8)}-01",
        )
        async with self._turn:
            await self._append(self._dated(event, admitted.seen_ms))
            self.counters.appended += 1
            self.changed.set()
            return self._last

    def _dated(self, event: AgentEvent, seen_ms: int) -> Spooled:
        return Spooled(event, seen_ms, self.clock.wall_ms() - (self.clock.mono_ms() - seen_ms), self.boot_id)

    async def _append(self, spooled: Spooled) -> None:
        if self.unwritable and self.clock.mono_ms() >= self._retry_ms:
            await self._back_to_disk()
        data = to_bytes(spooled)
        while True:  # at most twice: what the disk refuses, memory has room for once it was compacted
            limit = MEMORY_BYTES if self.unwritable else self.max_bytes
            if self.log.size_bytes + len(data) > limit - limit // ROOM:
                await self._compact()
            try:
                await self._on_disk(self.log.append([data]))
                break
            except DiskError as error:
                if self.unwritable:
                    raise
                self._to_memory(str(error))
        self._last += 1
        self._kept.append(_Kept(self._last, spooled))

    async def _on_disk(self, work: Awaitable[None]) -> None:
        """Raises ``DiskError``, also when the disk does not answer."""
        try:
            async with asyncio.timeout(DISK_LIMIT_MS / 1000):
                await work
        except TimeoutError:
            raise DiskError(f"spool: the disk has not answered for {DISK_LIMIT_MS} ms") from None

    def pending(self, after: int, slots: Set[str]) -> EventBatch:
        """The next events after sequence ``after``, at most ``BATCH``, with their ages as of now. An event of a slot
        that is not in ``slots`` (those of the hello) is sent as one of the node that names the slot."""
        batch = EventBatch()
        start = after + 1 - self._kept[0].sequence if self._kept else 0
        for index in range(max(0, start), min(len(self._kept), max(0, start) + BATCH)):
            kept = self._kept[index]
            event = batch.events.add()
            event.CopyFrom(kept.spooled.event)
            event.sequence = kept.sequence
            event.age_ms, flag = self._age(kept.spooled)
            if event.slot and event.slot not in slots:
                flag += f"slot {event.slot}, which is not in the inventory: "
                event.slot = ""
            if self.unwritable:
                flag += f"spool unwritable: {self.unwritable[:120]}: "
            event.message = (flag + event.message)[:MAX_MESSAGE]
        return batch

    def _age(self, spooled: Spooled) -> tuple[int, str]:
        """(age now, words for the message). Of an earlier boot only bounds are known: at least this boot's uptime."""
        if spooled.boot_id == self.boot_id:
            age, flag = self.clock.mono_ms() - spooled.seen_ms, ""
        else:
            age = max(self.clock.wall_ms() - spooled.wall_ms, self.clock.mono_ms())
            flag = "seen before a reboot, dated by the wall clock: "
        return min(max(0, age), MAX_AGE_MS), flag

    async def ack(self, sequence: int) -> None:
        """Everything up to ``sequence`` is durable at the control plane."""
        async with self._turn:
            sequence = min(sequence, self._last)
            while self._kept and self._kept[0].sequence <= sequence:
                self._kept.popleft()
                self.counters.acknowledged += 1
            try:
                await self._on_disk(self.log.release(sequence))
            except DiskError as error:
                log.warning(
                    "Acknowledged events stay on disk until the next acknowledgement, and may be sent again: %s", error
                )

    async def welcome(self, acked: int) -> bool:
        """Take the server's cursor for this spool. False: it does not fit, the spool has a new id now; say hello with
        it on a new stream."""
        async with self._turn:
            before_first = self._kept[0].sequence - 1 if self._kept else self._last
            if before_first <= acked <= self._last:
                fits = True
            else:
                fits = False
                log.warning("The server knows cursor %d, ours is %d to %d.", acked, before_first, self._last)
                await self._roll_over([kept.spooled for kept in self._kept], "the server's cursor does not fit")
        if fits:
            await self.ack(acked)
        return fits

    async def _compact(self) -> None:
        """Merge, then drop the oldest, until half is free."""
        limit = MEMORY_BYTES if self.unwritable else self.max_bytes
        everything = merged(k.spooled for k in self._kept)
        earlier = [spooled for spooled in everything if is_notice(spooled)]
        kept = [spooled for spooled in everything if not is_notice(spooled)]
        sizes = [len(to_bytes(spooled)) for spooled in kept]
        total, dropped = sum(sizes), 0
        while dropped < len(kept) and total > limit // 2:
            total -= sizes[dropped]
            dropped += 1
        count = sum(spooled.event.count for spooled in kept[:dropped])
        self.counters.dropped += count
        if dropped:
            lost = {spooled.event.slot or "the node" for spooled in kept[:dropped]}
            for notice in earlier:
                lost.update(notice.event.message.partition(OF)[2].split(", "))
                count += notice.event.count
            message = f"spool full: dropped the {count} oldest events{OF}{', '.join(sorted(lost))}"
            earlier = [self._notice(OVERFLOW_SPOOL, message, count)]
        kept = [*kept[dropped:], *earlier]
        await self._roll_over(kept, "it was full")

    def _notice(self, code: int, message: str, count: int) -> Spooled:
        event = AgentEvent(
            kind=records_pb2.EventKind.Value(f"EVENT_KIND_{EventKind.OVERFLOW.name}"),
            code=code,
            message=message[:MAX_MESSAGE],
            sources=["spool"],
            count=count,
            trace=f"00-{self.rng.token(16)}-{self.rng.token(8)}-01",
        )
        return self._dated(event, self.clock.mono_ms())

    async def _roll_over(self, events: list[Spooled], why: str) -> None:
        """A new log with ``events``; in memory if the disk does not take it."""
        log.warning("The spool is made anew with %d pending events: %s.", len(events), why)
        records = [to_bytes(spooled) for spooled in events]
        fresh: DiskLog
        if self.unwritable:
            fresh = MemoryLog(self.rng.token(8), records)
        else:
            try:
                async with asyncio.timeout(DISK_LIMIT_MS / 1000):
                    fresh = await self.source.replace(records)
            except (DiskError, TimeoutError) as error:
                self._give_up_disk(str(error) or "the disk does not answer")
                fresh = MemoryLog(self.rng.token(8), records)
        self._take(fresh, events)

    def _take(self, fresh: DiskLog, events: list[Spooled]) -> None:
        self.counters.rollovers += 1
        self.log = fresh
        self._last = len(events)
        self._kept = deque(_Kept(n, spooled) for n, spooled in enumerate(events, 1))
        self.changed.set()

    def _give_up_disk(self, why: str) -> None:
        log.error("The spool cannot be written (%s): events are sent without being kept first.", why)
        self.unwritable = why
        self._retry_ms = self.clock.mono_ms() + RETRY_MS

    def _to_memory(self, why: str) -> None:
        if not self.unwritable:
            self._give_up_disk(why)
        events = [kept.spooled for kept in self._kept]
        self._take(MemoryLog(self.rng.token(8), [to_bytes(spooled) for spooled in events]), events)

    async def _back_to_disk(self) -> None:
        events = [kept.spooled for kept in self._kept]
        try:
            async with asyncio.timeout(DISK_LIMIT_MS / 1000):
                fresh = await self.source.replace([to_bytes(spooled) for spooled in events])
        except (DiskError, TimeoutError):
            self._retry_ms = self.clock.mono_ms() + RETRY_MS
            return
        log.info("The spool can be written again.")
        self.unwritable = ""
        self._take(fresh, events)

    async def run(self) -> None:
        """For ever: return to a disk that takes records again, also when no event comes. Until then the log that was
        left there holds events that were acknowledged under another id, and a crash would send them again."""
        while True:
            await self.clock.sleep(RETRY_MS)
            async with self._turn:
                if self.unwritable and self.clock.mono_ms() >= self._retry_ms:
                    await self._back_to_disk()

    async def close(self) -> None:
        await self.log.close()


async def open_spool(source: LogSource, clock: Clock, rng: Rng, boot_id: str, max_bytes: int) -> Spool:
    """The spool with what an earlier agent left in it. A disk that cannot even be read is an unwritable one. ``source``
    must bound its logs at ``max_bytes`` or more."""
    why, kept, damaged = "", [], 0
    found: DiskLog
    try:
        found = await source.open()
        kept = found.read()
    except DiskError as error:
        why = str(error)
        found = MemoryLog(rng.token(8))
    spool = Spool(source, clock, rng, boot_id, max_bytes, found)
    if why:
        spool._give_up_disk(why)
    events: list[Spooled] = []
    for sequence, data in kept:
        spooled = from_bytes(data)
        if spooled is None:
            damaged += 1
            continue
        events.append(spooled)
        spool._kept.append(_Kept(sequence, spooled))
    spool._last = found.last
    if damaged:
        events.append(spool._notice(OVERFLOW_DAMAGE, f"{damaged} events were unreadable on disk and are lost", damaged))
        await spool._roll_over(events, "records were damaged")
    return spool
