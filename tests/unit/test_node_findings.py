"""Which findings are about a node: against a look at all of them each time."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster
from controlplane.shell.mirror import Mirror
from controlplane.shell.nodefindings import NodeFindings
from gridkeeper import codec
from gridkeeper.ids import DeviceId, FindingId, NodeId, RegionId
from gridkeeper.keys import RegionKeys, region_root
from gridkeeper.ports.store import DeleteOp, PutOp
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import FindingRecord

EAST = RegionId("east")
KEYS = RegionKeys(EAST)
NODES = tuple(NodeId(f"n{number}") for number in range(3))
NAMES = tuple(FindingId(f"f{number}") for number in range(4))


def finding(name: FindingId, node: NodeId) -> FindingRecord:
    return FindingRecord(
        name, EAST, node, DeviceId(f"{node}/gpu0"), Scope.DEVICE, "memory", "xid-48", Severity.FATAL, Action.DRAIN, "?",
        (), 7, "nvidia-xid", 1, True, "",
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from((*NODES, None, "corrupt"))), max_size=20))
def test_it_says_what_a_look_at_all_says(writes: list[tuple[FindingId, NodeId | None]]) -> None:
    """Protects: no evidence against a checkpoint is overlooked because the index lost it or gave it to another node."""

    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        store = cluster.client("a")
        mirror = Mirror(store, region_root(EAST), clock)
        following = asyncio.ensure_future(mirror.run())
        await mirror.wait_loaded()
        index = NodeFindings(mirror)
        for name, node in writes:
            key = KEYS.finding(name)
            if node is None:
                op: PutOp | DeleteOp = DeleteOp(key)
            else:
                op = PutOp(key, b"\xff" if node == "corrupt" else codec.encode(finding(name, node)))
            done = await store.txn((), (op,))
            assert await mirror.wait_revision(done.revision, 5_000)
            for each in NODES:
                everything = mirror.kind("findings")
                assert index.of(each) == {n: everything[n] for n in everything if everything[n].record.node == each}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await cluster.close()

    run_virtual(main())
