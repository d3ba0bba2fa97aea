"""Where things are in a checkpoint store. Pure.

::

    chunks/<2 hex>/<64 hex>               content, named by its BLAKE3
    chunks/<2 hex>/<64 hex>.zst           the same, compressed: the name is that of the plain content
    manifests/<job>/<step>.<64 hex>.json  a checkpoint, named by the BLAKE3 of these bytes; written last
    damaged/<name of a chunk>             what no longer had the content of its name

Chunks and manifests are never changed in place, so agents and replicas may use the same store at the same time.
"""

from __future__ import annotations

from failover.checkpoint.manifest import checked_digest, checked_job
from gridkeeper.ids import JobId
from gridkeeper.ports.jobs import CheckpointError

CHUNKS = "chunks/"
MANIFESTS = "manifests/"
DAMAGED = "damaged/"
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
