"""Where things are in a checkpoint store. Pure.

::

    chunks/<2 hex>/<64 hex>               content, named by its BLAKE3
    chunks/<2 hex>/<64 hex>.zst           the same, compressed: the name is that of the plain content
    manifests/<job>/<step>.<64 hex>.json  a checkpoint, named by the BLAKE3 of these bytes; written last
    damaged/<name of a chunk>             what no longer had the content of its name
    uploads/<token>, condemned            notes of uploads and of the sweep (``sweep``)

Chunks and manifests are never changed in place, so agents and replicas may use the same store at the same time.
"""

from __future__ import annotations

from failover.checkpoint.manifest import checked_digest, checked_job
from gridkeeper.ids import JobId
from gridkeeper.ports.jobs import CheckpointError

CHUNKS = "chunks/"
MANIFESTS = "manifests/"
DAMAGED = "damaged/"
UPLOADS = "uploads/"
CONDEMNED = "condemned"
DEAD = ".dead"
PLAIN, PACKED = "", ".zst"
FORMS = (PLAIN, PACKED)


def chunk_name(digest: str, form: str) -> str:
    """``digest`` must be checked."""
    return f"{CHUNKS}{digest[:2]}/{digest}{form}"


def damaged_name(digest: str, form: str) -> str:
    return f"{DAMAGED}{digest}{form}"


def manifest_name(job: JobId, step: int, digest: str) -> str:
    """Raises ``CheckpointError`` for parts that cannot be in a name."""
    checked_digest(f"checkpoint {job} step {step}", digest)
    if not 0 <= step < 10**20:
        raise CheckpointError(f"checkpoint {job}: step {step} is out of range")
    return f"{MANIFESTS}{checked_job(job)}/{step:020d}.{digest}.json"


def chunk_of(name: str) -> str:
    """The digest that a chunk's name holds."""
    return name.rpartition("/")[2].removesuffix(PACKED)


def chunks_below(first: str) -> tuple[str, ...]:
    """The sixteen prefixes of all chunks whose digest begins with the hex digit ``first``."""
    return tuple(f"{CHUNKS}{first}{second}/" for second in "0123456789abcdef")


def manifest_parts(name: str) -> tuple[JobId, int, str]:
    """Job, step and digest in a manifest's name. Raises ``CheckpointError`` for another name."""
    try:
        job, rest = name.removeprefix(MANIFESTS).split("/")
        step, digest, _ = rest.split(".")
        parts = JobId(job), int(step), digest
    except ValueError as error:
        raise CheckpointError(f"{name}: this is no manifest's name; remove what does not belong there") from error
    if manifest_name(*parts) != name:
        raise CheckpointError(f"{name}: this is no manifest's name; remove what does not belong there")
    return parts
