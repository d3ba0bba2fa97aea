"""Chunks in a store of blobs: plain or compressed, compared with their names whenever they are read. Blocking."""

from __future__ import annotations

import logging

import zstandard

from failover.checkpoint.blobs import BlobMissing, Blobs, Staged
from failover.checkpoint.layout import FORMS, MANIFESTS, PACKED, PLAIN, chunk_name, damaged_name
from failover.checkpoint.manifest import CHUNK_BYTES, digest_of
from gridkeeper.ports.jobs import CheckpointDamaged, CheckpointError

log = logging.getLogger("gridkeeper.checkpoint")

LEVEL = 1
"""On one core about 400 MB/s, faster than most disks and networks; higher levels gain little on numbers."""
WORTH = 0.85
"""A chunk is compressed if that leaves at most this share of it. Measured on normally distributed weights: float32 0.93
(stays plain), bfloat16 0.78, bfloat16 values kept as float32 0.48."""
SAMPLE_BYTES = 32 * 1024
SAMPLES = 4
"""From evenly spread places; 3 % of a full chunk, so that what does not shrink costs next to nothing."""


def pack(data: bytes) -> tuple[str, bytes]:
    """The form in which a chunk is stored, and its bytes in that form."""
    packer = zstandard.ZstdCompressor(level=LEVEL)
    if len(data) > 2 * SAMPLES * SAMPLE_BYTES:
        stride = len(data) // SAMPLES
        sample = b"".join(data[at : at + SAMPLE_BYTES] for at in range(0, stride * SAMPLES, stride))
        if len(packer.compress(sample)) > WORTH * len(sample):
            return PLAIN, data
    packed = packer.compress(data)
    return (PACKED, packed) if len(packed) <= WORTH * len(data) else (PLAIN, data)


def unpack(form: str, stored: bytes) -> bytes:
    """The plain content. Raises ``ValueError`` for what is no frame, or one of more than a chunk."""
    if form == PLAIN:
        return stored
    try:
        size = zstandard.frame_content_size(stored)
        if not 0 <= size <= CHUNK_BYTES:
            raise ValueError(f"a frame of {size} bytes")
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=CHUNK_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from error


class Chunks:
    """Digests must be checked by the caller."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._usual: tuple[str, ...] = FORMS  # the form found last is tried first: one request instead of two

    def name_of(self, digest: str, size: int) -> str:
        """The name of a chunk of ``size`` bytes that is there, as far as its stored length shows; "": it is not."""
        for form in self._usual:
            name = chunk_name(digest, form)
            stored = self._blobs.size(name)
            if stored == size or (form == PACKED and 0 < stored < size):
                self._found(form)
                return name
        return ""

    def _found(self, form: str) -> None:
        if self._usual[0] != form:
            self._usual = (form, *(f for f in FORMS if f != form))

    def stage(self, digest: str, data: bytes) -> Staged:
        """Hand it over, whatever is there; to be published."""
        form, stored = pack(data)
        return self._blobs.stage(chunk_name(digest, form), stored)

    def read(self, digest: str, size: int, what: str) -> tuple[str, bytes]:
        """Name and plain content, compared with the digest (and ``size``, unless -1). A form that is altered is moved
        aside, so that the next writer of the same content stores it anew. Raises ``CheckpointDamaged``, which
        ``what`` begins."""
        spoilt = ""
        for form in self._usual:
            name = chunk_name(digest, form)
            try:
                stored = self._blobs.read(name, CHUNK_BYTES)
            except BlobMissing:
                continue
            except CheckpointError as error:
                raise CheckpointError(f"{what}: chunk {digest} is missing: {error}") from error
            try:
                data = unpack(form, stored)
                found = digest_of(data)
                if found == digest and size in (-1, len(data)):
                    self._found(form)
                    return name, data
                spoilt = f"{len(data)} bytes with BLAKE3 {found} are stored under its name"
            except ValueError as error:
                spoilt = f"{error} is stored under its name"
            self._set_aside(digest, form)
        if spoilt:
            raise CheckpointDamaged(f"{what}: chunk {digest} is altered: {spoilt}")
        if not any(True for _ in self._blobs.walk(MANIFESTS)):
            raise CheckpointError(f"{what}: chunk {digest} is missing; {self._blobs} is empty: is it the right store?")
        for form in FORMS:
            aside = damaged_name(digest, form)
            if self._blobs.size(aside) >= 0:
                raise CheckpointDamaged(f"{what}: chunk {digest} was found altered and is now {aside} of {self._blobs}")
        raise CheckpointDamaged(f"{what}: chunk {digest} is missing: {self._blobs} has none of that name")

    def _set_aside(self, digest: str, form: str) -> None:
        try:
            self._blobs.move(chunk_name(digest, form), damaged_name(digest, form))
        except CheckpointError as error:
            log.error("The altered chunk %s cannot be moved aside: %s", digest, error)
        else:
            log.error("Chunk %s is altered and was moved to %s of %s.", digest, damaged_name(digest, form), self._blobs)
