"""The conformance suite of the ``CheckpointStore`` port: on real directories, on an S3 server, and in memory.

It protects rule 2: nothing incomplete, altered or hostile is ever taken for a checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import obstore
import pytest

from chaos.simulate.checkpoints import DiskTree, SimCheckpointStore
from failover.checkpoint import manifest as canonical
from failover.checkpoint.manifest import CHUNK_BYTES, digest_of
from failover.checkpoint.objects import ObjectBlobs
from failover.checkpoint.store import open_store
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore, Manifest, ManifestFile
from tests.fixtures.s3 import CREDENTIALS, make_bucket, s3_server, url_of

JOB, EPOCH, BUCKET = JobId("train"), Epoch(1, 3), "checkpoints"


class Bench(Protocol):
    """A store under test with the hands of a saboteur."""

    store: CheckpointStore

    def other(self) -> Bench: ...

    def chunk(self, digest: str, data: bytes | None) -> None:
        """Replace a chunk's bytes; None: it is gone."""
        ...

    def manifest(self, step: int, digest: str, data: bytes) -> None: ...

    def visible(self) -> int:
        """How many manifests there are."""
        ...

    def stamp(self) -> object:
        """Changes when any chunk is written."""
        ...


@dataclass
class LocalBench:
    root: Path

    def __post_init__(self) -> None:
        self.store: CheckpointStore = open_store(str(self.root))

    def other(self) -> LocalBench:
        return LocalBench(self.root.with_name(self.root.name + "-other"))

    def path_of(self, digest: str) -> Path:
        """Where a chunk is, compressed or not."""
        [path] = (self.root / "chunks" / digest[:2]).glob(f"{digest}*")
        return path

    def chunk(self, digest: str, data: bytes | None) -> None:
        path = self.path_of(digest)
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    def manifest(self, step: int, digest: str, data: bytes) -> None:
        directory = self.root / "manifests" / JOB
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{step:020d}.{digest}.json").write_bytes(data)

    def visible(self) -> int:
        return sum(1 for path in (self.root / "manifests").rglob("*") if path.is_file())

    def stamp(self) -> object:
        paths = (self.root / "chunks").rglob("*")
        return sorted((str(p), p.stat().st_ino, p.stat().st_mtime_ns) for p in paths if p.is_file())


class S3Bench:
    """``prefix``: each bench has its own in the bucket."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self._endpoint, self._prefix = endpoint, prefix
        self.blobs = ObjectBlobs(url_of(endpoint, BUCKET, prefix))
        self.store: CheckpointStore = open_store(url_of(endpoint, BUCKET, prefix))

    def other(self) -> S3Bench:
        return S3Bench(self._endpoint, f"{self._prefix}-other")

    def chunk(self, digest: str, data: bytes | None) -> None:
        [blob] = [blob for blob in self.blobs.walk(f"chunks/{digest[:2]}/") if digest in blob.name]
        self.blobs.remove(blob.name)
        if data is not None:
            self.blobs.stage(blob.name, data)

    def manifest(self, step: int, digest: str, data: bytes) -> None:
        self.blobs.stage(f"manifests/{JOB}/{step:020d}.{digest}.json", data)

    def visible(self) -> int:
        return sum(1 for _ in self.blobs.walk("manifests/"))

    def stamp(self) -> object:
        found = obstore.list(
            obstore.store.from_url(f"s3://{BUCKET}/{self._prefix}", **self._how()), "chunks/"
        ).collect()
        return sorted((item["path"], item["e_tag"], item["last_modified"]) for item in found)

    def _how(self) -> dict[str, Any]:
        return {"endpoint": self._endpoint, "client_options": {"allow_http": True}}


class SimBench:
    def __init__(self) -> None:
        self.sim = SimCheckpointStore(DiskTree())
        self.store: CheckpointStore = self.sim

    def other(self) -> SimBench:
        return SimBench()

    def chunk(self, digest: str, data: bytes | None) -> None:
        del self.sim.chunks[digest]
        if data is not None:
            self.sim.chunks[digest] = data

    def manifest(self, step: int, digest: str, data: bytes) -> None:
        self.sim.manifests[(JOB, step, digest)] = data

    def visible(self) -> int:
        return len(self.sim.manifests)

    def stamp(self) -> object:
        return len(self.sim.written)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server with a bucket."""
    with pytest.MonkeyPatch.context() as environment, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        make_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(params=["local", "s3", "simulated"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "s3":
        return S3Bench(request.getfixturevalue("s3"), f"grid/{tmp_path.name}")
    return LocalBench(tmp_path / "store") if request.param == "local" else SimBench()


def checkpoint(root: Path, name: str = "step-5", **extra: bytes) -> Path:
    """A directory with two chunks and a bit in one file, an empty file and a nested one."""
    directory = root / name
    (directory / "shards").mkdir(parents=True)
    (directory / "model.bin").write_bytes(b"a" * CHUNK_BYTES + b"b" * CHUNK_BYTES + b"tail")
    (directory / "shards" / "rank0.pt").write_bytes(b"weights")
    (directory / "empty").write_bytes(b"")
    for path, data in extra.items():
        (directory / path).write_bytes(data)
    (directory / "model.bin").chmod(0o640)
    return directory


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


async def test_what_was_put_comes_back_bit_by_bit(bench: Bench, tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, source)
    assert await bench.store.verify(JOB, 5, digest) == manifest
    assert manifest.size_bytes == 2 * CHUNK_BYTES + 4 + 7
    target = tmp_path / "resume" / "step-5"
    await bench.store.fetch(JOB, 5, digest, target)
    assert content(target) == content(source)
    await bench.store.fetch(JOB, 5, digest, target)  # it is there already: nothing to do
    assert [p.name for p in target.parent.iterdir()] == ["step-5"], "nothing is left beside it"


async def test_fetch_refuses_a_directory_with_another_content(bench: Bench, tmp_path: Path) -> None:
    digest, _ = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    target = tmp_path / "resume"
    await bench.store.fetch(JOB, 5, digest, target)
    (target / "shards" / "rank0.pt").write_bytes(b"WEIGHTS")
    with pytest.raises(CheckpointError, match="exists"):
        await bench.store.fetch(JOB, 5, digest, target)


async def test_put_is_idempotent_and_writes_only_what_is_new(bench: Bench, tmp_path: Path) -> None:
    first, _ = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    before = bench.stamp()
    again, _ = await bench.store.put(JOB, 5, EPOCH, tmp_path / "step-5")
    assert (again, bench.visible()) == (first, 1)
    assert bench.stamp() == before, "present chunks were written again"
    later, manifest = await bench.store.put(JOB, 6, EPOCH, checkpoint(tmp_path, "step-6", optimizer=b"new"))
    assert later != first
    assert bench.stamp() != before
    assert {f.path for f in manifest.files} == {"empty", "model.bin", "optimizer", "shards/rank0.pt"}


async def test_the_digest_depends_on_job_step_epoch_and_every_byte(bench: Bench, tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    digests = {
        (await bench.store.put(JOB, 5, EPOCH, source))[0],
        (await bench.store.put(JOB, 6, EPOCH, source))[0],
        (await bench.store.put(JOB, 5, Epoch(1, 4), source))[0],
        (await bench.store.put(JobId("other"), 5, EPOCH, source))[0],
    }
    (source / "empty").write_bytes(b"\0")
    digests.add((await bench.store.put(JOB, 5, EPOCH, source))[0])
    assert len(digests) == 5


@pytest.mark.parametrize("damage", ["torn", "altered", "missing", "emptied"])
async def test_a_damaged_chunk_is_found_and_healed_by_the_next_put(bench: Bench, tmp_path: Path, damage: str) -> None:
    source = checkpoint(tmp_path)
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, source)
    victim = next(f for f in manifest.files if f.path == "model.bin").chunks[1]
    good = b"b" * CHUNK_BYTES
    forms = {"torn": good[:1000], "altered": b"c" + good[1:], "missing": None, "emptied": b""}
    bench.chunk(victim, forms[damage])
    with pytest.raises(CheckpointError, match=victim):
        await bench.store.verify(JOB, 5, digest)
    target = tmp_path / "resume" / "step-5"
    with pytest.raises(CheckpointError, match=victim):
        await bench.store.fetch(JOB, 5, digest, target)
    assert not target.exists()
    assert not list(tmp_path.glob("resume/*")), "a part of it appeared"
    await bench.store.put(JOB, 5, EPOCH, source)
    await bench.store.verify(JOB, 5, digest)


async def test_an_altered_or_missing_manifest_is_refused(bench: Bench, tmp_path: Path) -> None:
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    bench.manifest(5, digest, canonical.encode(replace(manifest, epoch=Epoch(1, 4))))
    for call in (bench.store.manifest, bench.store.verify):
        with pytest.raises(CheckpointError, match="altered"):
            await call(JOB, 5, digest)
    with pytest.raises(CheckpointError, match="no manifest"):
        await bench.store.manifest(JOB, 5, "0" * 64)
    with pytest.raises(CheckpointError, match="no manifest"):
        await bench.store.manifest(JOB, 7, digest)


async def test_a_manifest_under_another_step_or_job_is_refused(bench: Bench, tmp_path: Path) -> None:
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    bench.manifest(9, digest, canonical.encode(manifest))
    with pytest.raises(CheckpointError, match="is of train step 5"):
        await bench.store.verify(JOB, 9, digest)


HOSTILE: tuple[tuple[str, Callable[[ManifestFile], tuple[ManifestFile, ...]]], ...] = (
    ("parent", lambda f: (replace(f, path="../escape"),)),
    ("absolute", lambda f: (replace(f, path="/etc/escape"),)),
    ("inner parent", lambda f: (replace(f, path="a/../../escape"),)),
    ("dot", lambda f: (replace(f, path="."),)),
    ("empty", lambda f: (replace(f, path=""),)),
    ("nul", lambda f: (replace(f, path="a\0b"),)),
    ("backslash", lambda f: (replace(f, path="..\\escape"),)),
    ("twice", lambda f: (f, f)),
    ("file and directory", lambda f: (replace(f, path="a"), replace(f, path="a/b"))),
    ("setuid", lambda f: (replace(f, mode=0o4755),)),
    ("too few chunks", lambda f: (replace(f, chunks=()),)),
    ("no digest", lambda f: (replace(f, chunks=("../../../etc/passwd",)),)),
    ("two lengths", lambda f: (f, replace(f, path="z", size_bytes=f.size_bytes - 1))),
)


@pytest.mark.parametrize(("name", "spoil"), HOSTILE, ids=[name for name, _ in HOSTILE])
async def test_a_hostile_manifest_writes_nothing_anywhere(
    bench: Bench, tmp_path: Path, name: str, spoil: Callable[[ManifestFile], tuple[ManifestFile, ...]]
) -> None:
    _, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    small = next(f for f in manifest.files if f.path == "shards/rank0.pt")
    data = canonical.encode(Manifest(JOB, 5, EPOCH, spoil(small)))
    digest = digest_of(data)
    bench.manifest(5, digest, data)
    target = tmp_path / "deep" / "er" / "resume"
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: bench.store.verify(JOB, 5, digest),
        lambda: bench.store.fetch(JOB, 5, digest, target),
        lambda: bench.other().store.copy_from(bench.store, JOB, 5, digest),
    ]
    for call in calls:
        with pytest.raises(CheckpointError):
            await call()
    assert not target.exists()
    assert not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format":2}', b'{"format":1}']
)
async def test_bytes_that_are_no_manifest_are_refused(bench: Bench, data: bytes) -> None:
    bench.manifest(5, digest_of(data), data)
    with pytest.raises(CheckpointError, match="does not parse"):
        await bench.store.manifest(JOB, 5, digest_of(data))


async def test_names_and_digests_that_lead_elsewhere_are_refused(bench: Bench, tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="job"):
        await bench.store.put(JobId("../../x"), 5, EPOCH, source)
    with pytest.raises(CheckpointError, match="negative"):
        await bench.store.put(JOB, -1, EPOCH, source)
    for digest in ("../../../etc/passwd", "", "A" * 64, "0" * 63):
        with pytest.raises(CheckpointError, match="digest"):
            await bench.store.manifest(JOB, 5, digest)
        with pytest.raises(CheckpointError, match="digest"):
            await bench.store.read_chunk(digest)


@pytest.mark.parametrize("form", ["link", "directory link", "fifo"])
async def test_links_and_special_files_in_a_checkpoint_are_refused(bench: Bench, tmp_path: Path, form: str) -> None:
    source = checkpoint(tmp_path)
    if form == "fifo":
        os.mkfifo(source / "odd")
    else:
        (source / "odd").symlink_to("/etc/passwd" if form == "link" else "/etc")
    with pytest.raises(CheckpointError, match="odd"):
        await bench.store.put(JOB, 5, EPOCH, source)
    assert bench.visible() == 0


async def test_a_missing_directory_is_an_error_that_names_it(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        await bench.store.put(JOB, 5, EPOCH, tmp_path / "nowhere")


async def test_an_interrupted_put_leaves_nothing_visible(bench: Bench, tmp_path: Path) -> None:
    """Cancelled after more and more turns of the loop, until one runs through: each time there is either nothing or
    a whole checkpoint."""
    source = checkpoint(tmp_path)
    for turns in range(0, 400, 3):
        task = asyncio.ensure_future(bench.store.put(JOB, 5, EPOCH, source))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            digest, _ = task.result()
            await bench.store.verify(JOB, 5, digest)
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if bench.visible():
            digest, _ = await bench.store.put(JOB, 5, EPOCH, source)
            await bench.store.verify(JOB, 5, digest)
            return  # cancelled after its last effect: complete, which is as good
    digest, _ = await bench.store.put(JOB, 5, EPOCH, source)
    await bench.store.verify(JOB, 5, digest)


async def test_a_copy_moves_only_what_is_missing_and_is_verified(bench: Bench, tmp_path: Path) -> None:
    other = bench.other()
    source = checkpoint(tmp_path)
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, source)
    assert await other.store.copy_from(bench.store, JOB, 5, digest) == manifest.size_bytes
    assert await other.store.verify(JOB, 5, digest) == manifest
    assert await other.store.copy_from(bench.store, JOB, 5, digest) == 0
    later, _ = await bench.store.put(JOB, 6, EPOCH, checkpoint(tmp_path, "step-6", optimizer=b"12345"))
    assert await other.store.copy_from(bench.store, JOB, 6, later) == 5
    await other.store.verify(JOB, 6, later)


async def test_a_copy_heals_altered_chunks_and_never_trusts_the_source(bench: Bench, tmp_path: Path) -> None:
    other = bench.other()
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    await other.store.copy_from(bench.store, JOB, 5, digest)
    victim = manifest.files[1].chunks[0]
    other.chunk(victim, b"x" * CHUNK_BYTES)
    assert await other.store.copy_from(bench.store, JOB, 5, digest) == CHUNK_BYTES
    await other.store.verify(JOB, 5, digest)
    third = bench.other().other() if not isinstance(bench, SimBench) else SimBench()
    bench.chunk(victim, b"x" * CHUNK_BYTES)
    with pytest.raises(CheckpointError, match=victim):
        await third.store.copy_from(bench.store, JOB, 5, digest)
    assert third.visible() == 0


async def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path / "store")
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    victim = manifest.files[1].chunks[0]
    path = bench.path_of(victim)
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(CheckpointError, match=victim):
        await bench.store.verify(JOB, 5, digest)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = LocalBench(tmp_path / "linked")
    linked.root.mkdir()
    (linked.root / "chunks").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="symbolic link"):
        await linked.store.put(JOB, 5, EPOCH, tmp_path / "step-5")
    assert not list(elsewhere.iterdir())


async def test_a_store_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file.*cannot be written"):
        await open_store(str(blocked / "store")).put(JOB, 5, EPOCH, checkpoint(tmp_path))


async def test_the_manifest_is_canonical_json(bench: Bench, tmp_path: Path) -> None:
    """Other implementations must be able to compute the same digest."""
    digest, manifest = await bench.store.put(JOB, 5, EPOCH, checkpoint(tmp_path))
    data = canonical.encode(manifest)
    assert digest_of(data) == digest
    document = json.loads(data)
    assert json.dumps(document, sort_keys=True, separators=(",", ":")).encode() == data
    assert document["epoch"] == [1, 3]
    assert [f["path"] for f in document["files"]] == sorted(f["path"] for f in document["files"])
