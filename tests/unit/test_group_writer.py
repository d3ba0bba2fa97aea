"""Writes of many streams that go into the store together: each gets its own answer, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from chaos.simulate.clock import SimRng
from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.writer import GroupWriter
from gridkeeper.decision import ABSENT, Decision, Guard, Put
from gridkeeper.ids import NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.store import StoreError, StoreUnavailable, TooLarge
from gridkeeper.records.fleet import LivenessRecord, NodeState
from tests.unit.test_mirror_and_apply import Bench, virtual

KEYS = RegionKeys(RegionId("east"))


def wish(node: str, expected: Revision = ABSENT, reason: str = "heard", *guards: Guard) -> Decision:
    record = LivenessRecord(NodeId(node), NodeState.ALIVE, 1, reason)
    return Decision(
        "health.step", reason, (Put(KEYS.liveness(NodeId(node)), record, expected),), guards, f"node/{node}"
    )


class Watched(Applier):
    """The real applier, which tells what went together, and can be held up or made to fail before it writes."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.store, bench.mirror, KEYS.audit, SimRng(2), bench.clock.wall_ms)
        self.went: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: dict[str, Exception] = {}  # subject -> what a transaction that holds it raises
        self.largest = 1_000

    async def apply_together(self, decisions: Sequence[Decision], actor: str, fence: Fence | None) -> Revision:
        subjects = [d.subject.removeprefix("node/") for d in decisions]
        self.went.append(subjects)
        self.begun.release()
        await self.gate.wait()
        for subject in subjects:
            if subject in self.fails:
                raise self.fails[subject]
        if len(subjects) > self.largest:
            raise TooLarge("split the transaction")
        return await super().apply_together(decisions, actor, fence)


async def held_up(applier: Watched, writer: GroupWriter, *later: Decision) -> list[asyncio.Future[Revision]]:
    """What is asked for while the first write is under way: the first, and ``later``, all waiting."""
    applier.gate.clear()
    tasks = [asyncio.ensure_future(writer.apply(wish("first")))]
    await applier.begun.acquire()
    tasks += [asyncio.ensure_future(writer.apply(decision)) for decision in later]
    await asyncio.sleep(0)
    return tasks


def reasons(b: Bench) -> dict[str, str]:
    return {name: held.record.reason for name, held in b.mirror.kind("liveness").items()}


@virtual
async def test_what_comes_meanwhile_goes_together_and_each_gets_the_revision(b: Bench) -> None:
    """Protects: hundreds of streams cost one round trip, and what one was told is there is there."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, *(wish(f"n{i}") for i in range(20)))
    applier.gate.set()
    first, *others = await asyncio.gather(*tasks)
    assert applier.went == [["first"], [f"n{i}" for i in range(20)]]
    assert set(others) == {others[0]} and others[0] > first
    await writer.caught_up(others[0])
    assert len(reasons(b)) == 21
    assert await b.audits() == 21, "each has its audit entry"


@virtual
async def test_writes_of_one_key_are_never_in_one_transaction(b: Bench) -> None:
    """Protects: the second of two on one revision conflicts, and is not merged or applied over the first."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, wish("n1", ABSENT, "one"), wish("n1", ABSENT, "two"), wish("n2"))
    applier.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(r, Conflict) for r in results] == [False, False, True, False]
    await writer.caught_up(max(r for r in results if isinstance(r, int)))
    assert reasons(b) == {"first": "heard", "n1": "one", "n2": "heard"}


@virtual
async def test_a_conflict_is_the_answer_to_its_own_decision_and_to_no_other(b: Bench) -> None:
    """Protects: one stream that decided on older state, by a write or by what it rests on, holds up no other."""
    await b.put(LivenessRecord(NodeId("n1"), NodeState.ALIVE, 1, "there"), ABSENT)
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    stale = Guard(KEYS.liveness(NodeId("n1")), Revision(1))
    wishes = [wish(f"m{i}") for i in range(7)]
    wishes[2], wishes[5] = wish("m2", Revision(1)), wish("m5", ABSENT, "rests on old state", stale)
    tasks = await held_up(applier, writer, *wishes)
    applier.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [i for i, r in enumerate(results[1:]) if isinstance(r, Conflict)] == [2, 5]
    await writer.caught_up(max(r for r in results if isinstance(r, int)))
    assert sorted(reasons(b)) == ["first", "m0", "m1", "m3", "m4", "m6", "n1"]


@virtual
async def test_what_is_too_large_together_is_written_apart(b: Bench) -> None:
    """Protects: large records of several streams do not make a transaction that nobody can write."""
    applier = Watched(b)
    applier.largest = 3
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, *(wish(f"n{i}") for i in range(10)), wish("big"))
    applier.fails["big"] = TooLarge("1 GiB")
    applier.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [int] * 11 + [TooLarge]


@virtual
async def test_a_store_that_is_away_is_told_to_each_and_tried_once(b: Bench) -> None:
    """Protects: a group is not taken apart (and sent again) because the store does not answer; the next write goes."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, wish("n1"), wish("n2"))
    applier.fails["n1"] = StoreUnavailable("gone")
    applier.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(r, StoreError) for r in results] == [False, True, True] and len(applier.went) == 2
    applier.fails.clear()
    assert await writer.apply(wish("n1"))


@virtual
async def test_a_fault_of_ours_in_one_write_leaves_nobody_waiting(b: Bench) -> None:
    """Protects: an error that is none of the store's reaches who asked, as itself; those behind it are written."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, wish("n1", ABSENT, "one"), wish("n1", ABSENT, "two"), wish("n2"))
    applier.fails["first"] = ValueError("a bug")
    applier.gate.set()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [ValueError, int, Conflict, int]


@virtual
async def test_when_the_replica_ends_nobody_waits_for_ever(b: Bench) -> None:
    """Protects: all that was asked for ends with the writing, also what stood in a later group of the same batch."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer)
    tasks += [asyncio.ensure_future(writer.apply(wish("n1", ABSENT, reason))) for reason in ("one", "two")]
    await asyncio.sleep(0)
    applier.gate.set()
    await tasks[0]
    applier.gate.clear()
    await applier.begun.acquire()
    late = asyncio.ensure_future(writer.apply(wish("n3")))
    await asyncio.sleep(0)
    (writing,) = [t for t in asyncio.all_tasks() if "GroupWriter._write" in repr(t.get_coro())]
    writing.cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks[1:], late, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError] * 3


@virtual
async def test_who_gives_up_waiting_does_not_undo_the_write(b: Bench) -> None:
    """Protects: a stream that ends while its write is under way takes nobody else's with it."""
    applier = Watched(b)
    writer = GroupWriter(applier, "machine/a")
    tasks = await held_up(applier, writer, wish("n1"), wish("n2"))
    tasks[1].cancel()
    applier.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [int, asyncio.CancelledError, int]
    await writer.caught_up(Revision(int(results[2])))  # type: ignore[arg-type]
    assert sorted(reasons(b)) == ["first", "n1", "n2"]
