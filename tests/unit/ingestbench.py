"""Two replicas of one region on a simulated cluster, and frames as agents send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chaos.simulate.checkpoints import MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.network import SimAgentSession, SimNetwork
from chaos.simulate.store import SimCluster
from controlplane.shell.replica import Ports, Replica
from gridkeeper import codec
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import KEYS as WORLD
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.document import digest_of, policy_text
from gridkeeper.policy.model import Policy
from gridkeeper.ports.jobs import Manifest
from gridkeeper.ports.link import parts
from gridkeeper.ports.store import PutOp
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import EventRecord, SessionRecord
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.snapshot import Settings
from gridkeeper.telemetry import SCHEMA_VERSION
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentEvent,
    AgentFrame,
    ControlFrame,
    DeviceInfo,
    EventBatch,
    Hello,
)
from tests.unit.failover_world import spec_of

EAST = RegionId("east")
KEYS = RegionKeys(EAST)


def hello(node: str = "n1", **changes: object) -> AgentFrame:
    values: dict[str, object] = {
        "node": node,
        "region": "east",
        "rack": "r1",
        "boot_id": "boot",
        "spool": "spool1",
        "agent_version": "0",
        "metric_schema": SCHEMA_VERSION,
        "devices": [DeviceInfo(slot=f"gpu{i}", uuid=f"GPU-{node}-{i}", vendor="nvidia") for i in range(2)],
    }
    values.update(changes)
    return AgentFrame(hello=Hello(**values))  # type: ignore[arg-type]


def xid(sequence: int, **changes: object) -> AgentEvent:
    values: dict[str, object] = {
        "sequence": sequence,
        "slot": "gpu0",
        "kind": records_pb2.EVENT_KIND_XID,
        "code": 13,
        "message": "NVRM: Xid 13",
        "sources": ["nvml"],
        "count": 1,
        "age_ms": 5,
    }
    values.update(changes)
    return AgentEvent(**values)  # type: ignore[arg-type]


def events(*items: AgentEvent) -> AgentFrame:
    return AgentFrame(events=EventBatch(events=items))


class SlowToVerify(SimCheckpointStore):
    slow: asyncio.Event | None = None

    async def verify(self, job: JobId, step: int, digest: str) -> Manifest:
        if self.slow:
            await self.slow.wait()
        return await super().verify(job, step, digest)


class Bench:
    """Two replicas of one region on one simulated cluster."""

    def __init__(self) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.cluster = SimCluster(self.clock, SimRng(1))
        self.network = SimNetwork(self.clock, SimRng(2))
        self.replicas: list[Replica] = []
        self.checkpoints: list[SlowToVerify] = []
        self.reader = self.cluster.client("test")
        for name in ("a", "b"):
            store = self.cluster.client(name)
            self.checkpoints.append(SlowToVerify(MemoryTree()))
            checkpoints = {EAST: self.checkpoints[-1]}
            others = self.network.regions(name)
            ports = Ports(self.clock, SimRng(name), store, self.cluster.client(f"{name}-global"), checkpoints, others)
            replica = Replica(EAST, ReplicaId(name), name, ports, Settings(timings=SHORT))
            self.replicas.append(replica)
            self.network.listen(name, replica.ingest.serve)

    async def open(self, frame: AgentFrame, to: str = "a", node: str = "n1") -> SimAgentSession:
        session = await self.network.connect(node, "east", to)
        await session.send(frame)
        return session

    async def stored(self) -> list[EventRecord]:
        page = await self.reader.range(KEYS.prefix("events"))
        return [codec.decode(EventRecord, kv.value) for kv in page.items]

    async def adopt(self, policy: Policy, version: int = 2) -> None:
        """The region's copy of the policy says this from now on."""
        text = policy_text(policy)
        record = PolicyRecord(version, text, digest_of(text), "user/ann", 0, "a test")
        await self.reader.txn([], [PutOp(KEYS.policy, codec.encode(record))])

    async def own(self, job: str, number: int) -> None:
        """Ownership of that epoch by n1."""
        record = OwnershipRecord(
            JobId(job), Epoch(1, number), EAST, NodeId("n1"), (DeviceId("n1/gpu0"),), Desired.RUN, 0, None, -1, "",
            MigrationId("m"), spec_of(job), "",
        )  # fmt: skip
        done = await self.reader.txn([], [PutOp(WORLD.ownership(JobId(job)), codec.encode(record))])
        for replica in self.replicas:
            await replica.world.wait_revision(done.revision, 5_000)

    async def session_open(self, node: str) -> bool:
        kv, _ = await self.reader.get(KEYS.prefix("sessions") + node)
        return kv is not None and codec.decode(SessionRecord, kv.value).open


async def until(session: SimAgentSession, frame: str) -> ControlFrame:
    """The next frame of a kind."""
    while True:
        for got in parts(await session.receive()):
            if got.WhichOneof("frame") == frame:
                return got


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    b = Bench()
    running = [asyncio.ensure_future(r.run()) for r in b.replicas]
    await asyncio.gather(*(r.local.wait_loaded() for r in b.replicas))
    try:
        yield b
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for name, replica in zip("ab", b.replicas, strict=True):
            b.network.silence(name)
            await b.network.ended(name)
            await replica.ingest.stop()  # again, as a process does: for the streams that have ended since
        await b.cluster.close()
