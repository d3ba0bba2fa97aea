"""The manifest's one canonical form, its digest, and the checks that keep a hostile one from harm. Pure.

A checkpoint directory is its files: path, permission bits and content. Empty directories, times and owners are not
part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from failover.checkpoint.formats import lacking
from gridkeeper.ids import BadName, Epoch, JobId, checked_name
from gridkeeper.ports.jobs import CheckpointError, Manifest, ManifestFile

CHUNK_BYTES = 4 * 1024 * 1024
"""Fixed: equal content gives equal chunks in every region and in every version."""
FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""About 900,000 chunks, 3.5 TiB."""
MAX_PATH_BYTES = 4096
MODE_BITS = 0o777

_DIGEST = re.compile(r"^[0-9a-f]{64}$")


def digest_of(data: bytes) -> str:
    """BLAKE3 in lower-case hex."""
    return str(blake3(data).hexdigest())


def checked_digest(what: str, digest: str) -> str:
    """``digest`` if it is 64 hex digits. Raises ``CheckpointError``."""
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise CheckpointError(f"{what}: {str(digest)[:80]!r} is no BLAKE3 digest (64 lower-case hex digits)")
    return digest


def checked_job(job: str) -> JobId:
    """``job`` if it can be part of a path. Raises ``CheckpointError``."""
    try:
        return JobId(checked_name("job", job))
    except BadName as error:
        raise CheckpointError(str(error)) from error


def chunk_sizes(size_bytes: int) -> tuple[int, ...]:
    """Lengths of the chunks of a file."""
    full, rest = divmod(size_bytes, CHUNK_BYTES)
    return (CHUNK_BYTES,) * full + ((rest,) if rest else ())


def chunks_of(manifest: Manifest) -> dict[str, int]:
    """Each distinct chunk with its length, in order of first use. Raises ``CheckpointError`` if one digest is claimed
    for two lengths."""
    sizes: dict[str, int] = {}
    for file in manifest.files:
        for digest, size in zip(file.chunks, chunk_sizes(file.size_bytes), strict=True):
            if sizes.setdefault(digest, size) != size:
                raise CheckpointError(f"{file.path}: chunk {digest} cannot be {sizes[digest]} and {size} bytes long")
    return sizes


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, files in order of path. Its BLAKE3 is the checkpoint's digest."""
    document = {
        "format": FORMAT,
        "job": manifest.job,
        "step": manifest.step,
        "epoch": [manifest.epoch.generation, manifest.epoch.number],
        "files": [
            {"path": f.path, "size": f.size_bytes, "mode": f.mode, "chunks": list(f.chunks)} for f in manifest.files
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def decode(data: bytes, job: JobId, step: int, digest: str) -> Manifest:
    """The manifest in ``data``, which must have this digest and be of this job and step.

    Raises ``CheckpointError`` for anything that differs, including paths that lead out of the directory.
    """
    name = f"checkpoint {job} step {step}"
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{name}: its manifest of {len(data)} bytes is longer than {MAX_MANIFEST_BYTES}")
    found = digest_of(data)
    if found != digest:
        raise CheckpointError(f"{name}: its manifest is altered: BLAKE3 is {found}, the head names {digest}")
    try:
        document = json.loads(data)
        manifest = _parsed(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{name}: its manifest does not parse: {error!r}") from error
    if (manifest.job, manifest.step) != (job, step):
        raise CheckpointError(f"{name}: its manifest is of {manifest.job} step {manifest.step}")
    check(manifest)
    return manifest


def joined(job: JobId, step: int, epoch: Epoch, parts: Sequence[Manifest]) -> Manifest:
    """The files of all parts side by side, as ranks write into one directory of a shared file system. What several of
    them wrote alike is there once. Raises ``CheckpointError`` for a file of two contents, for a part of another step or
    epoch, and if names show that files of a known format are missing (what is in them is nothing for a replica)."""
    files: dict[str, tuple[int, ManifestFile]] = {}
    for rank, part in enumerate(parts):
        if (part.job, part.step, part.epoch) != (job, step, epoch):
            what = f"checkpoint {job} step {step} of epoch {epoch}"
            raise CheckpointError(f"{what}: rank {rank}'s part is of {part.job} step {part.step}, epoch {part.epoch}")
        for file in part.files:
            other, before = files.setdefault(file.path, (rank, file))
            if before.chunks != file.chunks or before.size_bytes != file.size_bytes:
                raise CheckpointError(
                    f"checkpoint {job} step {step}: ranks {other} and {rank} wrote {file.path!r} with different "
                    "contents; put the rank into the names of files that are not the same everywhere"
                )
    for path, why in lacking(files):
        raise CheckpointError(f"checkpoint {job} step {step}: no rank wrote it whole: {path}: {why}")
    manifest = Manifest(job, step, epoch, tuple(files[path][1] for path in sorted(files)))
    check(manifest)
    return manifest


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _parsed(document: Any) -> Manifest:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r} is unknown to this version; upgrade it first")
    generation, number = document["epoch"]
    files = tuple(
        ManifestFile(str(f["path"]), _whole(f["size"]), _whole(f["mode"]), tuple(str(c) for c in f["chunks"]))
        for f in document["files"]
    )
    return Manifest(
        JobId(str(document["job"])), _whole(document["step"]), Epoch(_whole(generation), _whole(number)), files
    )


def check(manifest: Manifest) -> None:
    """Everything that its bytes alone can show. Raises ``CheckpointError`` naming the file and what is wrong."""
    name = f"checkpoint {manifest.job} step {manifest.step}"
    checked_job(manifest.job)
    taken: set[str] = set()
    for file in manifest.files:
        checked_path(name, file.path)
        if file.path in taken:
            raise CheckpointError(f"{name}: {file.path!r} is there twice")
        taken.add(file.path)
        if file.mode & ~MODE_BITS:
            raise CheckpointError(f"{name}: {file.path!r} has mode {file.mode:o}; only {MODE_BITS:o} is allowed")
        expected = len(chunk_sizes(file.size_bytes))
        if len(file.chunks) != expected:
            raise CheckpointError(f"{name}: {file.path!r} names {len(file.chunks)} chunks, its size needs {expected}")
        for digest in file.chunks:
            checked_digest(f"{name}: {file.path!r}", digest)
    for path in taken:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in taken:
                raise CheckpointError(f"{name}: {parent!r} is a file and the directory of {path!r}")
            parent = parent.rpartition("/")[0]
    chunks_of(manifest)


def checked_path(name: str, path: str) -> str:
    """``path`` if it is relative, "/" separated, without empty, "." or ".." parts. Raises ``CheckpointError``."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or "\\" in path:
        raise CheckpointError(f"{name}: path {path[:200]!r} would lead out of the checkpoint's directory")
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{name}: file name {path[:200]!r} is not UTF-8; rename it") from error
    if size > MAX_PATH_BYTES or any(len(part.encode("utf-8")) > 255 for part in parts):
        raise CheckpointError(f"{name}: path {path[:80]!r}… is too long")
    return path
