"""Object storage that fails: requests refused, cut, lost and torn; and disks that are full.

Protects rule 2: whatever happens on the way, there is a whole checkpoint or none, and an error that says so.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from failover.checkpoint.manifest import CHUNK_BYTES
from failover.checkpoint.objects import ObjectBlobs
from failover.checkpoint.store import open_store
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import CheckpointError
from tests.fixtures.s3 import CREDENTIALS, Front, faulty_front, make_bucket, s3_server, url_of

JOB, EPOCH, BUCKET = JobId("train"), Epoch(1, 3), "checkpoints"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment, s3_server() as endpoint:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        make_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture
def front(s3: str) -> Iterator[Front]:
    with faulty_front(s3) as front:
        yield front


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four chunks that do not shrink, in two files."""
    directory = tmp_path / "step-5"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).write_bytes(os.urandom(CHUNK_BYTES) + os.urandom(1000))
    return directory


def every(nth: int, fault: str, method: str) -> object:
    counter = itertools.count(1)
    return lambda m, path: fault if m == method and next(counter) % nth == 0 else ""


@pytest.mark.parametrize("fault", ["slow down", "error", "cut", "deaf"])
async def test_a_fault_on_the_way_in_is_repeated_until_it_is_stored(
    front: Front, source: Path, tmp_path: Path, fault: str
) -> None:
    """Every third request that writes fails: the server is busy, broken, gone, or did it and could not say so."""
    store = open_store(url_of(front.endpoint, BUCKET, tmp_path.name, retry_s=30))
    front.fault = every(3, fault, "PUT")  # type: ignore[assignment]
    try:
        digest, _ = await store.put(JOB, 5, EPOCH, source)
    except CheckpointError:
        digest, _ = await store.put(
            JOB, 5, EPOCH, source
        )  # as the agent does: a lost answer to a write is not repeated
    front.fault = lambda method, path: ""
    await store.verify(JOB, 5, digest)


async def test_an_interrupted_upload_leaves_nothing_and_goes_on_where_it_was(
    front: Front, source: Path, tmp_path: Path
) -> None:
    """Protects: an upload that was cut in the middle is invisible, and only what is missing is sent again."""
    url = url_of(front.endpoint, BUCKET, tmp_path.name, retry_s=1)
    writes = itertools.count()
    front.fault = lambda method, path: "denied" if "/chunks/" in path and method == "PUT" and next(writes) >= 3 else ""
    with pytest.raises(CheckpointError, match="PermissionDenied"):
        await open_store(url).put(JOB, 5, EPOCH, source)
    front.fault = lambda method, path: ""
    blobs = ObjectBlobs(url)
    assert list(blobs.walk("manifests/")) == []
    there = {blob.name for blob in blobs.walk("chunks/")}
    assert len(there) == 3
    front.seen.clear()
    digest, manifest = await open_store(url).put(JOB, 5, EPOCH, source)
    sent = [path for method, path in front.seen if method == "PUT" and "/chunks/" in path]
    assert len(sent) == len({c for f in manifest.files for c in f.chunks}) - 3
    assert not any(name in path for name in there for path in sent)
    await open_store(url).verify(JOB, 5, digest)


@pytest.mark.parametrize("fault", ["torn", "error", "cut"])
async def test_a_read_that_fails_gives_no_checkpoint(front: Front, source: Path, tmp_path: Path, fault: str) -> None:
    """Protects: a resume directory appears whole and equal, or not at all, and nothing is left beside it."""
    url = url_of(front.endpoint, BUCKET, tmp_path.name, retry_s=1)
    digest, _ = await open_store(url).put(JOB, 5, EPOCH, source)
    victim = next(blob.name for blob in ObjectBlobs(url).walk("chunks/"))
    front.fault = lambda method, path: fault if method == "GET" and victim in path else ""
    target = tmp_path / "resume" / "step-5"
    with pytest.raises(CheckpointError):
        await open_store(url).fetch(JOB, 5, digest, target)
    assert list(target.parent.iterdir()) == []
    front.fault = lambda method, path: ""
    await open_store(url).fetch(JOB, 5, digest, target)
    assert (target / "a").read_bytes() == (source / "a").read_bytes()


async def test_a_store_that_cannot_be_reached_is_an_error_that_names_it(tmp_path: Path, source: Path, s3: str) -> None:
    """Protects: no endless wait, and a sentence that a user can act on."""
    store = open_store(url_of("http://127.0.0.1:9", BUCKET, "grid", retry_s=1))
    with pytest.raises(CheckpointError, match=f"s3://{BUCKET}/grid"):
        await store.put(JOB, 5, EPOCH, source)
    gone = open_store(url_of(s3, "no-such-bucket", "grid", retry_s=1))
    with pytest.raises(CheckpointError, match="no-such-bucket"):
        await gone.put(JOB, 5, EPOCH, source)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 1 MiB: writes fail in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_gives_an_error_and_leaves_nothing(tmp_path: Path, source: Path, full_disk: None) -> None:
    """Protects: no torn chunk has a name, and the staging area does not fill up."""
    root = tmp_path / "store"
    with pytest.raises(CheckpointError, match="cannot be stored"):
        await open_store(str(root)).put(JOB, 5, EPOCH, source)
    assert [path for path in root.rglob("*") if path.is_file() and path.stat().st_size > 2000] == []
    assert list((root / "staging").iterdir()) == []
    assert not (root / "manifests").exists()
