"""The spool: nothing acknowledged to the agent is lost, ages are true, and a bad disk never stops events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.disk import SimDisk
from chaos.simulate.loop import run_virtual
from gridkeeper.records.fleet import EventKind
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentEvent
from nodeagent.dedupe import Admitted
from nodeagent.spool import RETRY_MS, Spool, open_spool
from nodeagent.spooled import merged

SLOTS = {"gpu0", "gpu1"}


class World:
    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.rng = SimRng(1)
        self.max_bytes = max_bytes
        self.disk = SimDisk(self.clock, self.rng.child("disk"), max_bytes)

    async def open(self, boot: str = "boot-1") -> Spool:
        return await open_spool(self.disk, self.clock, self.rng, boot, self.max_bytes)

    def admitted(self, code: int, slot: str = "gpu0", count: int = 1, message: str = "NVRM: Xid") -> Admitted:
        now = self.clock.mono_ms()
        return Admitted(slot, EventKind.XID, code, message, ("nvml",), count, 0, now, now, "", False)


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def events(spool: Spool, after: int = 0) -> list[AgentEvent]:
    return list(spool.pending(after, SLOTS).events)


def all_events(spool: Spool) -> list[AgentEvent]:
    found: list[AgentEvent] = []
    while batch := events(spool, found[-1].sequence if found else 0):
        found += batch
    return found


@virtual
async def test_events_wait_with_growing_age_until_acknowledged() -> None:
    world = World()
    spool = await world.open()
    assert await spool.append(world.admitted(48), job="train") == 1
    await world.clock.sleep(5_000)
    assert await spool.append(world.admitted(63)) == 2
    first, second = events(spool)
    assert (first.sequence, first.code, first.job) == (1, 48, "train")
    assert 5_000 <= first.age_ms <= 5_010
    assert second.age_ms <= 10
    assert len(first.trace) == 55
    assert first.trace != second.trace
    await world.clock.sleep(1_000)
    assert events(spool)[0].age_ms >= 6_000, "the age is that of the sending, not of the first sending"
    await spool.ack(1)
    assert [e.sequence for e in events(spool)] == [2]
    assert spool.depth == 1


@virtual
async def test_a_crash_keeps_what_was_appended() -> None:
    world = World()
    spool = await world.open()
    for code in range(100):
        await spool.append(world.admitted(code))
    await spool.ack(10)
    world.disk.crash()
    again = await world.open()
    assert again.id == spool.id
    batch = events(again)
    assert [e.sequence for e in batch] == list(range(11, 75)), "64 per batch, in order, without gaps"
    assert [e.sequence for e in events(again, 74)] == list(range(75, 101))
    assert await again.append(world.admitted(7)) == 101


@virtual
async def test_across_a_reboot_the_wall_clock_dates_and_the_message_says_so() -> None:
    """The boot-time clock began anew, so only bounds are known: at least this boot's uptime."""
    world = World()
    spool = await world.open()
    await spool.append(world.admitted(48))
    await world.clock.sleep(60_000)
    again = await world.open("boot-2")
    (event,) = events(again)
    assert event.age_ms >= max(60_000, world.clock.mono_ms())
    assert event.message.startswith("seen before a reboot")


@virtual
async def test_a_full_spool_merges_counts_before_it_drops_anything() -> None:
    world = World(max_bytes=20_000)
    spool = await world.open()
    first_id = spool.id
    for n in range(200):
        await spool.append(world.admitted(48 + n % 2, slot=f"gpu{n % 2}"))
    kept = all_events(spool)
    assert sum(e.count for e in kept) == 200, "nothing is lost"
    assert len(kept) < 200
    assert not [e for e in kept if e.kind == records_pb2.EVENT_KIND_OVERFLOW]
    assert spool.id != first_id, "sequences cannot go on, so it is another spool"
    assert [e.sequence for e in kept] == list(range(1, len(kept) + 1))
    assert spool.log.size_bytes < 20_000


@virtual
async def test_a_spool_full_of_different_faults_drops_the_oldest_and_says_so() -> None:
    world = World(max_bytes=20_000)
    spool = await world.open()
    for code in range(500):
        await spool.append(world.admitted(code))
        assert events(spool)
    everything = all_events(spool)
    notices = [e for e in everything if e.kind == records_pb2.EVENT_KIND_OVERFLOW]
    assert len(notices) == 1
    assert "gpu0" in notices[0].message
    codes = [e.code for e in everything if e.kind == records_pb2.EVENT_KIND_XID]
    assert codes[-1] == 499
    assert codes == list(range(codes[0], 500)), "the newest are kept"
    assert notices[0].count == codes[0], "every dropped one is counted"


@virtual
async def test_an_unwritable_disk_flags_events_and_heals() -> None:
    """Full, read-only or gone: events still go out, and say that they were not kept first."""
    world = World()
    spool = await world.open()
    await spool.append(world.admitted(48))
    disk_id = spool.id
    world.disk.read_only = True
    await spool.append(world.admitted(63))
    assert spool.id != disk_id
    assert [e.code for e in events(spool)] == [48, 63]
    assert all(e.message.startswith("spool unwritable: ") for e in events(spool))
    world.disk.read_only = False
    await world.clock.sleep(RETRY_MS)
    await spool.append(world.admitted(94))
    assert [e.code for e in events(spool)] == [48, 63, 94]
    assert not any("unwritable" in e.message for e in events(spool))
    world.disk.crash()
    again = await world.open()
    assert [e.code for e in events(again)] == [48, 63, 94]


@virtual
async def test_what_was_acknowledged_while_the_disk_was_unwritable_is_not_sent_again_after_a_crash() -> None:
    """Though no event comes after the disk is better: the log that it left on the disk must not be taken up again."""
    world = World()
    spool = await world.open()
    await spool.append(world.admitted(48))
    old = spool.id
    world.disk.read_only = True
    await spool.append(world.admitted(63))
    await spool.ack(2)
    work = asyncio.ensure_future(spool.run())
    await world.clock.sleep(3 * RETRY_MS)
    world.disk.read_only = False
    await world.clock.sleep(2 * RETRY_MS)
    work.cancel()
    assert not spool.unwritable
    world.disk.crash()
    again = await world.open()
    assert events(again) == []
    assert again.id != old


@virtual
async def test_a_disk_that_is_unwritable_at_start_does_not_stop_the_agent() -> None:
    world = World()
    world.disk.read_only = True
    spool = await world.open()
    await spool.append(world.admitted(48))
    assert [e.code for e in events(spool)] == [48]


@virtual
async def test_a_server_that_lost_the_cursor_gets_everything_pending_under_a_new_id() -> None:
    """A restored store knows less than we released: sequences would have a gap, so it is another spool."""
    world = World()
    spool = await world.open()
    for code in range(5):
        await spool.append(world.admitted(code))
    await spool.ack(3)
    assert await spool.welcome(4), "more than we knew: acknowledged"
    assert [e.sequence for e in events(spool)] == [5]
    old = spool.id
    assert not await spool.welcome(0)
    assert spool.id != old
    assert [(e.sequence, e.code) for e in events(spool)] == [(1, 4)]
    assert await spool.welcome(0)
    assert not await spool.welcome(9), "a cursor beyond what we ever had"


@virtual
async def test_everything_acknowledged_then_restarted_goes_on_counting() -> None:
    world = World()
    spool = await world.open()
    await spool.append(world.admitted(48))
    await spool.ack(1)
    world.disk.crash()
    again = await world.open()
    assert await again.welcome(1)
    assert await again.append(world.admitted(63)) == 2


@virtual
async def test_an_event_of_an_unknown_slot_is_sent_as_one_of_the_node() -> None:
    world = World()
    spool = await world.open()
    await spool.append(world.admitted(79, slot="gpu9"))
    (event,) = events(spool)
    assert event.slot == ""
    assert "gpu9" in event.message


def test_merging_keeps_order_counts_and_sources() -> None:
    async def run() -> None:
        world = World()
        spool = await world.open()
        for code in (48, 63, 48):
            await spool.append(world.admitted(code, count=2))
        found = merged(kept.spooled for kept in spool._kept)
        assert [(s.event.code, s.event.count) for s in found] == [(48, 4), (63, 2)]

    run_virtual(run())
