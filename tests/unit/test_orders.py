"""Which jobs a node owns, and who is woken when that changes: against a look at all ownership records each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster
from controlplane.shell.mirror import Mirror
from controlplane.shell.orders import Orders
from gridkeeper import codec
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import KEYS
from gridkeeper.ports.store import DeleteOp, PutOp
from gridkeeper.records.faults import LeaderRecord
from gridkeeper.records.jobs import Desired, OwnershipRecord, RunPhase, RunRecord
from tests.unit.failover_parts import spec_of

NODES = tuple(NodeId(f"n{number}") for number in range(3))
JOBS = tuple(JobId(f"j{number}") for number in range(4))
EAST = RegionId("east")


class Bench:
    """A global store with its mirror; one event per node that waits for its orders."""

    def __init__(self) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.cluster = SimCluster(self.clock, SimRng(1))
        self.store = self.cluster.client("a")
        self.mirror = Mirror(self.store, KEYS.root, self.clock)
        self.events = {node: asyncio.Event() for node in NODES}

    async def write(self, key: str, value: bytes | None) -> None:
        op = DeleteOp(key) if value is None else PutOp(key, value)
        result = await self.store.txn((), (op,))
        assert await self.mirror.wait_revision(result.revision, 5_000)

    async def own(self, job: JobId, node: NodeId | None) -> None:
        await self.write(KEYS.ownership(job), None if node is None else codec.encode(owner(job, node)))

    def woken(self) -> set[NodeId]:
        """Since it was last asked."""
        found = {node for node, event in self.events.items() if event.is_set()}
        for event in self.events.values():
            event.clear()
        return found

    def seen(self, node: NodeId) -> list[JobId]:
        """By a look at all."""
        return sorted(job for job, held in self.mirror.kind("ownership").items() if held.record.node == node)


def owner(job: JobId, node: NodeId) -> OwnershipRecord:
    return OwnershipRecord(
        job, Epoch(1, 1), EAST, node, (DeviceId(f"{node}/gpu0"),), Desired.RUN, 0, None, -1, "", MigrationId("m"),
        spec_of(job), "",
    )  # fmt: skip


def run_of(job: JobId, node: NodeId, step: int) -> RunRecord:
    return RunRecord(
        job, Epoch(1, 1), EAST, node, RunPhase.RUNNING, 0, 0, False, False, -1, 0, step, 1, 2, 1, 0, 0.5, ""
    )


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    following = asyncio.ensure_future(made.mirror.run())
    await made.mirror.wait_loaded()
    try:
        yield made
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await made.cluster.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(JOBS), st.sampled_from((*NODES, None, "corrupt"))), max_size=20))
def test_it_says_what_a_look_at_all_says_and_wakes_whom_it_concerns(moves: list[tuple[JobId, NodeId | None]]) -> None:
    """Protects: no job is lost, kept or given to two nodes, however ownership moves, goes, or cannot be read; the node
    that a job left is woken like the one that it came to, and nobody else."""

    async def main() -> None:
        async with bench() as b:
            orders = Orders(b.mirror)
            with ExitStack() as stack:
                for node, event in b.events.items():
                    stack.enter_context(orders.waiting(node, event))
                for job, to in moves:
                    before = {node for node in NODES if job in orders.jobs_of(node)}
                    if to == "corrupt":
                        await b.write(KEYS.ownership(job), b"\xff")
                    else:
                        await b.own(job, to)
                    after = {node for node in NODES if job in orders.jobs_of(node)}
                    assert [orders.jobs_of(node) for node in NODES] == [b.seen(node) for node in NODES]
                    assert b.woken() == before | after

    run_virtual(main())


def test_what_was_there_before_it_is_known() -> None:
    """Protects: a replica that starts late, or follows another, sends the orders of all jobs that there are."""

    async def main() -> None:
        async with bench() as b:
            await b.own(JOBS[1], NODES[0])
            await b.own(JOBS[0], NODES[0])
            orders = Orders(b.mirror)
            assert orders.jobs_of(NODES[0]) == [JOBS[0], JOBS[1]] and orders.jobs_of(NODES[1]) == []

    run_virtual(main())


def test_a_run_wakes_the_node_of_its_job_and_a_new_leader_everybody() -> None:
    """Protects: commands follow what a run does, and carry a new leader's term at once; other runs wake nobody."""

    async def main() -> None:
        async with bench() as b:
            orders = Orders(b.mirror)
            with ExitStack() as stack:
                for node, event in b.events.items():
                    stack.enter_context(orders.waiting(node, event))
                await b.own(JOBS[0], NODES[1])
                assert b.woken() == {NODES[1]}
                await b.write(KEYS.run(JOBS[0], 1, 1), codec.encode(run_of(JOBS[0], NODES[0], 9)))
                assert b.woken() == {NODES[1]}, "the owner's, whoever reported the run"
                await b.write(KEYS.run(JOBS[3], 1, 1), codec.encode(run_of(JOBS[3], NODES[0], 9)))
                assert b.woken() == set()
                await b.write(KEYS.leader, codec.encode(LeaderRecord(ReplicaId("a"), "a", 0)))
                assert b.woken() == set(NODES)

    run_virtual(main())


def test_each_stream_of_a_node_is_woken_and_only_while_it_waits() -> None:
    """Protects: an old stream that ends does not take the new one's waking with it, and leaves nothing behind."""

    async def main() -> None:
        async with bench() as b:
            orders, old, new = Orders(b.mirror), asyncio.Event(), asyncio.Event()
            with orders.waiting(NODES[0], new):
                with orders.waiting(NODES[0], old):
                    await b.own(JOBS[0], NODES[0])
                    assert old.is_set() and new.is_set()
                old.clear()
                new.clear()
                await b.own(JOBS[1], NODES[0])
                assert new.is_set() and not old.is_set()
            new.clear()
            await b.own(JOBS[2], NODES[0])
            assert not new.is_set() and orders.jobs_of(NODES[0]) == list(JOBS[:3])

    run_virtual(main())
