"""Deleting chunks beside uploads that go on.

Protects rule 2: whatever order upload and sweep take, a checkpoint whose upload succeeded is whole.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from chaos.simulate.checkpoints import DiskTree, SimCheckpointStore
from failover.checkpoint.directory import DirectoryBlobs
from failover.checkpoint.layout import CHUNKS, CONDEMNED, UPLOADS
from failover.checkpoint.store import open_store
from failover.checkpoint.sweep import DEAD_MS
from failover.checkpoint.upload import Upload
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore, Manifest

JOB, EPOCH = JobId("train"), Epoch(1, 3)


class FastClock:
    """Sleeps take no time, and time goes on by what was slept, while ``go`` is set."""

    def __init__(self) -> None:
        self.now = 0
        self.go = asyncio.Event()
        self.go.set()

    def mono_ms(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return self.now

    async def sleep(self, ms: float) -> None:
        if ms >= 60_000:  # an upload's heart: it is dead in these tests unless it is beaten by hand
            await asyncio.Event().wait()
        await self.go.wait()
        self.now += int(ms)
        await asyncio.sleep(0)


def keep_all(manifest: Manifest, digest: str) -> bool:
    return False


def checkpoint(root: Path, step: int, *parts: bytes) -> Path:
    directory = root / f"step-{step}"
    directory.mkdir()
    for number, part in enumerate(parts):
        (directory / f"part{number}").write_bytes(part)
    return directory


@pytest.fixture(params=["local", "simulated"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    if request.param == "local":
        return open_store(str(tmp_path / "store"), FastClock())
    return SimCheckpointStore(DiskTree())


async def test_only_what_nothing_names_is_deleted(store: CheckpointStore, tmp_path: Path) -> None:
    shared, old, new = os.urandom(1000), os.urandom(1000), os.urandom(1000)
    first, _ = await store.put(JOB, 1, EPOCH, checkpoint(tmp_path, 1, shared, old))
    second, _ = await store.put(JOB, 2, EPOCH, checkpoint(tmp_path, 2, shared, new))
    assert (await store.sweep(keep_all)).chunks == 0
    await store.remove(JOB, 1, first)
    await store.remove(JOB, 1, first)
    swept = await store.sweep(keep_all)
    assert (swept.chunks, swept.bytes) == (1, 1000)
    await store.verify(JOB, 2, second)
    with pytest.raises(CheckpointError, match="no manifest"):
        await store.manifest(JOB, 1, first)


async def test_orphans_go_and_the_others_stay(store: CheckpointStore, tmp_path: Path) -> None:
    dead, _ = await store.put(JOB, 1, Epoch(1, 2), checkpoint(tmp_path, 1, os.urandom(1000)))
    live, _ = await store.put(JOB, 2, EPOCH, checkpoint(tmp_path, 2, os.urandom(1000)))
    swept = await store.sweep(lambda manifest, digest: manifest.epoch < EPOCH and digest == dead)
    assert (swept.manifests, swept.chunks) == (1, 1)
    await store.verify(JOB, 2, live)


async def test_a_manifest_that_cannot_be_read_stops_the_sweep(tmp_path: Path) -> None:
    """Protects: what an altered manifest names is not known, so nothing is taken for unused."""
    store = open_store(str(tmp_path / "store"), FastClock())
    first, _ = await store.put(JOB, 1, EPOCH, checkpoint(tmp_path, 1, os.urandom(1000)))
    second, _ = await store.put(JOB, 2, EPOCH, checkpoint(tmp_path, 2, os.urandom(1000)))
    await store.remove(JOB, 1, first)
    [path] = (tmp_path / "store" / "manifests").rglob("*.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="altered"):
        await store.sweep(keep_all)
    path.write_bytes(whole)
    await store.verify(JOB, 2, second)
    assert (await store.sweep(keep_all)).chunks == 1


class Hands:
    """An upload in slow motion beside a sweep: over the store's own parts."""

    def __init__(self, root: Path) -> None:
        self.clock = FastClock()
        self.store = open_store(str(root), self.clock)
        self.blobs = DirectoryBlobs(root)

    def upload(self) -> Upload:
        return Upload(self.blobs, self.store._chunks, self.store._threads, FastClock())

    def chunks(self) -> int:
        return sum(1 for _ in self.blobs.walk(CHUNKS))

    async def until(self, name: str) -> None:
        while self.blobs.size(name) < 0:  # noqa: ASYNC110 (a file appears; nobody sets an event)
            await asyncio.sleep(0)


async def test_a_sweep_waits_for_uploads_and_spares_what_they_used(tmp_path: Path) -> None:
    """The upload began before the sweep and rests on a chunk that nothing names: its manifest comes in time."""
    hands, data = Hands(tmp_path / "store"), os.urandom(1000)
    source = checkpoint(tmp_path, 1, data)
    first, manifest = await hands.store.put(JOB, 1, EPOCH, source)
    await hands.store.remove(JOB, 1, first)
    async with hands.upload() as upload:
        assert upload.have(manifest.files[0].chunks[0], 1000)
        hands.clock.go.clear()
        sweep = asyncio.ensure_future(hands.store.sweep(keep_all))
        await hands.until(CONDEMNED)
        await hands.store._finish(upload, manifest)
    hands.clock.go.set()
    swept = await sweep
    assert swept.chunks == 0
    await hands.store.verify(JOB, 1, first)
    assert hands.blobs.size(CONDEMNED) == -1 and list(hands.blobs.walk(UPLOADS)) == []


async def test_an_upload_that_began_later_uses_nothing_that_is_condemned(tmp_path: Path) -> None:
    hands, data = Hands(tmp_path / "store"), os.urandom(1000)
    source = checkpoint(tmp_path, 1, data)
    first, _ = await hands.store.put(JOB, 1, EPOCH, source)
    await hands.store.remove(JOB, 1, first)
    async with hands.upload():
        hands.clock.go.clear()
        sweep = asyncio.ensure_future(hands.store.sweep(keep_all))
        await hands.until(CONDEMNED)
        with pytest.raises(CheckpointError, match="being deleted"):
            await hands.store.put(JOB, 2, EPOCH, source)
    hands.clock.go.set()
    assert (await sweep).chunks == 1
    again, _ = await hands.store.put(JOB, 2, EPOCH, source)
    await hands.store.verify(JOB, 2, again)


async def test_a_dead_upload_is_not_waited_for_and_fails_if_it_wakes(tmp_path: Path) -> None:
    """Protects: an uploader that was frozen for longer than the sweep waits never claims success."""
    hands, data = Hands(tmp_path / "store"), os.urandom(1000)
    first, manifest = await hands.store.put(JOB, 1, EPOCH, checkpoint(tmp_path, 1, data))
    await hands.store.remove(JOB, 1, first)
    with pytest.raises(CheckpointError, match="silent"):
        async with hands.upload() as upload:
            assert upload.have(manifest.files[0].chunks[0], 1000)
            assert (await hands.store.sweep(keep_all)).chunks == 1
            assert hands.chunks() == 0
            await hands.store._finish(upload, manifest)
    assert DEAD_MS == 600_000


async def test_a_sweep_that_died_is_taken_over(tmp_path: Path) -> None:
    hands = Hands(tmp_path / "store")
    first, _ = await hands.store.put(JOB, 1, EPOCH, checkpoint(tmp_path, 1, os.urandom(1000)))
    await hands.store.remove(JOB, 1, first)
    hands.blobs.publish((hands.blobs.stage(CONDEMNED, b'{"token": "gone", "digests": []}'),))
    assert (await hands.store.sweep(keep_all)).chunks == 1
    assert hands.blobs.size(CONDEMNED) == -1
