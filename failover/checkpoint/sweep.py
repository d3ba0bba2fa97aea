"""Deletes the chunks that no manifest of a store names, beside uploads that go on.

An upload trusts chunks that are there already, so deleting them must not overlap with it. Both leave a note in the
store, then look for the other's (object stores and file systems show a finished write to every later read):

- An upload writes ``uploads/<token>``, repeats it while it lives, and then reads ``condemned``: of what is named there
  it uses nothing, and begins anew later. When its manifest is written it looks whether ``uploads/<token>.dead`` is
  there: then it has failed.
- The sweep (1) collects the chunks that no manifest names, (2) writes ``condemned``, (3) waits until every upload whose
  note it then finds has ended, or was silent for ``DEAD_MS`` and is marked dead, (4) reads the manifests again and
  spares what they name now, (5) deletes the rest, (6) removes ``condemned``.

An upload that the sweep does not find began after (2) and knows what is condemned. One that it does find has written
its manifest before (4), or fails. A sweep that dies leaves ``condemned``; the next one takes it over after ``DEAD_MS``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from failover.checkpoint.blobs import BlobMissing, Blobs
from failover.checkpoint.layout import CONDEMNED, DEAD, MANIFESTS, UPLOADS, chunk_of, chunks_below, manifest_parts
from failover.checkpoint.manifest import MAX_MANIFEST_BYTES, decode
from failover.checkpoint.parallel import each
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError, Manifest, Swept

T = TypeVar("T")

DEAD_MS = 600_000
"""An upload repeats its note every ``BEAT_MS``; one that is silent for ten times that is over."""
BEAT_MS = 60_000
LOOK_MS = 5_000
PATIENCE_MS = 3_600_000
"""An upload that takes longer puts the sweep off."""
MOST_CONDEMNED = 50_000
"""Of one sweep: 200 GiB, 3 MB of names."""
NOTE_BYTES = 1 << 24
BATCH = 500
"""Deleted between two looks whether the sweep is still the one that may."""


class Sweep:
    """One pass over one store. Blocking work is done by ``threads``."""

    def __init__(self, blobs: Blobs, threads: Executor, width: int, clock: Clock) -> None:
        self._blobs = blobs
        self._threads = threads
        self._width = width
        self._clock = clock
        self._token = secrets.token_hex(16)

    async def run(self, orphan: Callable[[Manifest, str], bool]) -> Swept:
        """See ``CheckpointStore.sweep``."""
        if not await self._silent(CONDEMNED):
            raise CheckpointError(f"{self._blobs}: another sweep is under way")
        await self._call(self._blobs.tidy)
        manifests = await self._call(partial(self._remove_orphans, orphan))
        condemned = await self._call(self._unnamed)
        if not condemned:
            return Swept(manifests, 0, 0)
        digests = {chunk_of(name) for name in condemned}
        note = json.dumps({"token": self._token, "digests": sorted(digests)}).encode()
        await self._call(lambda: _write(self._blobs, CONDEMNED, note))
        try:
            for upload in await self._call(lambda: [blob.name for blob in self._blobs.walk(UPLOADS)]):
                if upload.endswith(DEAD):
                    await self._call(partial(self._blobs.remove, upload))  # of the sweep before
                elif not await self._silent(upload):
                    return Swept(manifests, 0, 0)
            spared = await self._call(lambda: self._named(digests))
            doomed = [name for name in condemned if chunk_of(name) not in spared]
            for at in range(0, len(doomed), BATCH):
                if not await self._call(self._mine):
                    return Swept(manifests, at, sum(condemned[name] for name in doomed[:at]))
                await each(self._threads, self._width, self._blobs.remove, doomed[at : at + BATCH])
        finally:
            if await self._call(self._mine):
                await self._call(lambda: self._blobs.remove(CONDEMNED))
        return Swept(manifests, len(doomed), sum(condemned[name] for name in doomed))

    async def _call(self, work: Callable[[], T]) -> T:
        return (await each(self._threads, 1, lambda w: w(), (work,)))[0]

    async def _silent(self, note: str) -> bool:
        """Wait until a note is gone, or was the same for ``DEAD_MS`` and is removed. False: it lives on."""
        began = changed = self._clock.mono_ms()
        last: bytes | None = None
        while True:
            now = self._clock.mono_ms()
            found = await self._call(lambda: _read(self._blobs, note))
            if found is None:
                return True
            if found != last:
                last, changed = found, now
            if now - changed >= DEAD_MS:
                if note != CONDEMNED:
                    await self._call(lambda: _write(self._blobs, note + DEAD, b""))
                await self._call(lambda: self._blobs.remove(note))
                return True
            if now - began >= PATIENCE_MS:
                return False
            await self._clock.sleep(LOOK_MS)

    # -- blocking ------------------------------------------------------------------------------------------------------

    def _mine(self) -> bool:
        note = _read(self._blobs, CONDEMNED)
        return note is not None and json.loads(note)["token"] == self._token

    def _manifests(self) -> Iterator[tuple[str, str, Manifest]]:
        """Name, digest and content of each. Raises ``CheckpointError`` for one that cannot be read: what it names is
        not known, so nothing may be deleted."""
        for blob in self._blobs.walk(MANIFESTS):
            job, step, digest = manifest_parts(blob.name)
            try:
                data = self._blobs.read(blob.name, MAX_MANIFEST_BYTES)
            except BlobMissing:
                continue  # deleted meanwhile
            yield blob.name, digest, decode(data, job, step, digest)

    def _remove_orphans(self, orphan: Callable[[Manifest, str], bool]) -> int:
        removed = 0
        for name, digest, manifest in self._manifests():
            if orphan(manifest, digest):
                self._blobs.remove(name)
                removed += 1
        return removed

    def _named(self, among: set[str] | None = None, first: str = "") -> set[str]:
        """The chunks that manifests name, of ``among``, or of those whose digest begins with ``first``."""
        found: set[str] = set()
        for _, _, manifest in self._manifests():
            for file in manifest.files:
                found.update(c for c in file.chunks if (c in among if among is not None else c.startswith(first)))
        return found

    def _unnamed(self) -> dict[str, int]:
        """Chunks that no manifest names, with their stored size; a sixteenth of all digests in memory at a time."""
        found: dict[str, int] = {}
        for first in "0123456789abcdef":
            named = self._named(first=first)
            for prefix in chunks_below(first):
                for blob in self._blobs.walk(prefix):
                    if chunk_of(blob.name) not in named:
                        found[blob.name] = blob.size_bytes
                    if len(found) >= MOST_CONDEMNED:
                        return found
        return found


def condemned_digests(blobs: Blobs) -> frozenset[str]:
    """What a running sweep may delete. Raises ``CheckpointError``."""
    note = _read(blobs, CONDEMNED)
    return frozenset(json.loads(note)["digests"]) if note is not None else frozenset()


def _read(blobs: Blobs, note: str) -> bytes | None:
    try:
        return blobs.read(note, NOTE_BYTES)
    except BlobMissing:
        return None


def _write(blobs: Blobs, note: str, data: bytes) -> None:
    blobs.publish((blobs.stage(note, data),))
    blobs.settle((note,))
