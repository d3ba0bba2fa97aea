"""One checkpoint of many parts, as a replica takes them in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.simulate.checkpoints import FileData, MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimRng
from chaos.simulate.loop import run_virtual
from controlplane.shell.apply import Applier
from controlplane.shell.parts import Parts
from controlplane.shell.runs import gang_record
from controlplane.shell.writer import GroupWriter
from failover.checkpoint.manifest import joined
from failover.domain.gang import folded
from gridkeeper import codec
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.ports.jobs import CheckpointError, Manifest, ManifestFile
from gridkeeper.ports.store import PutOp
from gridkeeper.records.jobs import RunPhase, RunRecord
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentFrame, CheckpointReady, Workload
from tests.fixtures import records
from tests.unit.ingestbench import EAST, bench, hello, until
from tests.unit.ingestbench import KEYS as KEYS_EAST

JOB, EPOCH = JobId("train"), Epoch(1, 1)
MINE, OTHER = NodeId("n1"), NodeId("n2")


def test_a_part_is_suspect_if_evidence_speaks_against_any_member() -> None:
    """Protects: what one member computes wrongly is in the parts of all; a whole of which the faulty member's part came
    before the evidence, and the others' after it, is not resumed from."""

    async def main() -> None:
        async with bench() as b:
            owner = records.ownership(devices=(f"{MINE}/gpu0", f"{OTHER}/gpu0"))
            owner = replace(owner, spec=replace(owner.spec, nodes=2), rendezvous="n1:20000")
            told = Workload(
                job=JOB, epoch=records_pb2.Epoch(generation=1, number=1), phase=records_pb2.RUN_PHASE_RUNNING
            )
            run = gang_record(told, None, owner, EAST, MINE, 1)
            error = replace(records.finding(subject=f"{OTHER}/gpu0"), node=OTHER, device=DeviceId(f"{OTHER}/gpu0"))
            error = replace(error, code="xid-95", active=True)
            puts = {
                KEYS.ownership(JOB): owner,
                KEYS.run(JOB, 1, 1): run,
                KEYS_EAST.finding(error.id): error,
            }
            done = await b.reader.txn([], [PutOp(key, codec.encode(record)) for key, record in puts.items()])
            for mirror in (b.replicas[0].world, b.replicas[0].local):
                await mirror.wait_revision(done.revision, 5_000)
            tree = MemoryTree({Path("/n1/step-3"): {"shard-0": FileData(0o600, b"0")}})
            disk = SimCheckpointStore(tree)
            digest, _ = await disk.put(JOB, 3, EPOCH, Path("/n1/step-3"), part=True)
            await b.checkpoints[0].copy_from(disk, JOB, 3, digest)
            session = await b.open(hello())
            await until(session, "welcome")
            ready = CheckpointReady(job=JOB, epoch=told.epoch, step=3, digest=digest)
            await session.send(AgentFrame(checkpoint=ready))
            for _ in range(100):
                await b.clock.sleep(50)
                held = b.replicas[0].world.newest("runs", KEYS.run_name(JOB, 1, 1))
                assert held is not None
                noted: RunRecord = held.record
                if noted.members[0].part_step == 3:
                    break
            assert noted.members[0].part_step == 3 and noted.members[0].part_suspect

    run_virtual(main())


def test_what_rank_0_ends_with_is_refused_if_the_others_ended_with_what_is_suspect() -> None:
    """Protects: a suspect checkpoint is no head, yet it is done with. The newer part never becomes whole, and a gang
    that has finished would be taken for one that hangs."""

    async def main() -> None:
        async with bench() as b:
            owner = records.ownership(devices=(f"{MINE}/gpu0", f"{OTHER}/gpu0"))
            owner = replace(owner, spec=replace(owner.spec, nodes=2), rendezvous="n1:20000")
            epoch = records_pb2.Epoch(generation=1, number=1)
            told = Workload(job=JOB, epoch=epoch, phase=records_pb2.RUN_PHASE_RUNNING)
            run = gang_record(told, None, owner, EAST, MINE, 1)
            done = replace(run.members[1], reported=True, phase=RunPhase.EXITED, stop_confirmed=True, ended_ms=9)
            members = (replace(run.members[0], part_step=3), replace(done, part_step=3))
            written = replace(records.checkpoint(step=3), suspect=True)
            puts = {
                KEYS.ownership(JOB): owner,
                KEYS.run(JOB, 1, 1): folded(run, members),
                KEYS.checkpoint(JOB, 3): written,
            }
            txn = await b.reader.txn([], [PutOp(key, codec.encode(record)) for key, record in puts.items()])
            await b.replicas[0].world.wait_revision(txn.revision, 5_000)
            disk = SimCheckpointStore(MemoryTree({Path("/n1/step-5"): {"shard-0": FileData(0o600, b"0")}}))
            digest, _ = await disk.put(JOB, 5, EPOCH, Path("/n1/step-5"), part=True)
            await b.checkpoints[0].copy_from(disk, JOB, 5, digest)
            session = await b.open(hello())
            await until(session, "welcome")
            ready = CheckpointReady(job=JOB, epoch=epoch, step=5, digest=digest)
            await session.send(AgentFrame(checkpoint=ready))
            async with asyncio.timeout(20):
                ack = (await until(session, "checkpoint_ack")).checkpoint_ack
            assert (ack.step, ack.committed, ack.retry) == (5, False, False) and "rank 1" in ack.refusal

    run_virtual(main())


def test_a_part_of_a_gang_whose_record_names_no_members_is_not_taken() -> None:
    """Protects: a record that a version wrote which knows no gangs; the stream of the node, and its other jobs."""

    async def main() -> None:
        async with bench() as b:
            plain = replace(records.run(), node=MINE, phase=RunPhase.RUNNING, stop_confirmed=False)
            assert plain.members == () and plain.epoch == EPOCH
            txn = await b.reader.txn([], [PutOp(KEYS.run(JOB, 1, 1), codec.encode(plain))])
            world = b.replicas[0].world
            await world.wait_revision(txn.revision, 5_000)
            disk = SimCheckpointStore(MemoryTree({Path("/n1/step-5"): {"shard-0": FileData(0o600, b"0")}}))
            digest, _ = await disk.put(JOB, 5, EPOCH, Path("/n1/step-5"), part=True)
            applier = Applier(b.reader, world, KEYS.audit, SimRng(3), b.clock.wall_ms)
            parts = Parts(world, GroupWriter(applier, "test"), disk, b.clock)
            epoch = records_pb2.Epoch(generation=1, number=1)
            ready = CheckpointReady(job=JOB, epoch=epoch, step=5, digest=digest)
            assert await parts.take(MINE, ready, gang=True, suspect=lambda: False) is None

    run_virtual(main())


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("__0_0.distcp", "__1_0.distcp"), "without its .metadata"),
        (("model/model-00001-of-00003.safetensors", "model/model-00003-of-00003.safetensors"), "00002-of-00003"),
        ((".metadata", "__0_0.distcp"), ""),
        (("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), ""),
        (("shard-0", "shard-1"), ""),
    ],
)
def test_a_whole_that_lacks_a_member_s_files_is_no_checkpoint(names: tuple[str, ...], missing: str) -> None:
    """Protects: each part may be stored as it is, so the join is the first to see that a rank wrote nothing."""
    parts = [Manifest(JOB, 3, EPOCH, (ManifestFile(name, 0, 0o600, ()),)) for name in names]
    if not missing:
        assert [file.path for file in joined(JOB, 3, EPOCH, parts).files] == sorted(names)
        return
    with pytest.raises(CheckpointError, match=missing):
        joined(JOB, 3, EPOCH, parts)


@pytest.mark.parametrize("other", [Manifest(JOB, 4, EPOCH, ()), Manifest(JOB, 3, Epoch(1, 2), ())])
def test_parts_of_another_step_or_epoch_are_not_joined(other: Manifest) -> None:
    """Protects: no checkpoint that is half of one step, or half of what a fenced epoch wrote."""
    with pytest.raises(CheckpointError, match="rank 1"):
        joined(JOB, 3, EPOCH, [Manifest(JOB, 3, EPOCH, ()), other])
