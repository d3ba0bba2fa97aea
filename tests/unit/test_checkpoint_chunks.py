"""Chunks in their stored form, the pace of bytes, and blocking work in order.

Protects: what is stored comes back, nothing that is read can grow memory, and what was given up does not go on.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from failover.checkpoint.chunks import SAMPLE_BYTES, SAMPLES, WORTH, pack, unpack
from failover.checkpoint.layout import PACKED, PLAIN, chunk_name, chunk_of, manifest_name, manifest_parts
from failover.checkpoint.manifest import CHUNK_BYTES, digest_of
from failover.checkpoint.pace import TokenPace
from failover.checkpoint.parallel import in_order
from gridkeeper.ids import JobId
from gridkeeper.ports.jobs import CheckpointError


@settings(max_examples=100)
@given(st.binary(max_size=4096), st.integers(1, 200))
def test_what_is_packed_is_unpacked_and_never_larger(data: bytes, times: int) -> None:
    content = data * times
    form, stored = pack(content)
    assert unpack(form, stored) == content
    assert len(stored) <= len(content)
    assert form == PLAIN or len(stored) <= WORTH * len(content)


def test_what_does_not_shrink_stays_plain_and_what_does_is_packed() -> None:
    noise = os.urandom(CHUNK_BYTES)
    assert pack(noise) == (PLAIN, noise)
    form, stored = pack(bytes(CHUNK_BYTES))
    assert form == PACKED and len(stored) < 10_000
    stride = CHUNK_BYTES // SAMPLES
    tricky = b"".join(bytes(SAMPLE_BYTES) + os.urandom(stride - SAMPLE_BYTES) for _ in range(SAMPLES))
    assert pack(tricky)[0] == PLAIN, "the samples shrink, the whole does not"


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"no frame",
        zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26)),
        zstandard.ZstdCompressor().compress(bytes(1000))[:-3],
    ],
    ids=["empty", "text", "bomb", "bomb without size", "torn"],
)
def test_hostile_frames_are_refused(stored: bytes) -> None:
    with pytest.raises(ValueError, match="frame"):
        unpack(PACKED, stored)


def test_names_say_what_they_hold() -> None:
    digest = digest_of(b"x")
    for form in (PLAIN, PACKED):
        assert chunk_of(chunk_name(digest, form)) == digest
    assert manifest_parts(manifest_name(JobId("train"), 7, digest)) == ("train", 7, digest)
    for name in ("manifests/x", f"manifests/train/7.{digest}.json", f"manifests/a/b/{7:020d}.{digest}.json"):
        with pytest.raises(CheckpointError):
            manifest_parts(name)


class CountingClock:
    def __init__(self) -> None:
        self.now = 5_000

    def mono_ms(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return self.now

    async def sleep(self, ms: float) -> None:
        self.now += int(ms)


async def test_bytes_keep_their_pace() -> None:
    clock = CountingClock()
    pace = TokenPace(clock, 1_000_000)
    for _ in range(11):
        await pace.spend(500_000)
    assert clock.now == 10_000, "ten half megabytes at 1 MB/s, the eleventh begins after 5 s"
    free = TokenPace(clock, 0)
    await free.spend(1 << 40)
    assert clock.now == 10_000


async def test_results_come_in_order_and_only_so_many_at_once() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return item * item

    with ThreadPoolExecutor(3) as threads:
        async with aclosing(in_order(threads, 3, work, range(100))) as results:
            assert [result async for result in results] == [n * n for n in range(100)]
    assert most <= 3


@pytest.mark.parametrize("end", ["error", "cancelled"])
async def test_nothing_goes_on_after_the_end(end: str) -> None:
    """A fetch that was given up removes its directory: no thread may write there afterwards."""
    done: list[int] = []
    entered, leave = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 0 and end == "error":
            raise CheckpointError("first")
        entered.set()
        leave.wait(10)
        done.append(item)
        return item

    async def all_of(threads: ThreadPoolExecutor, after: Callable[[], None]) -> None:
        async with aclosing(in_order(threads, 2, work, range(50))) as results:
            async for _ in results:
                after()

    with ThreadPoolExecutor(2) as threads:
        task = asyncio.ensure_future(all_of(threads, lambda: None))
        await asyncio.to_thread(entered.wait, 10)
        if end == "cancelled":
            task.cancel()
        leave.set()
        with pytest.raises((CheckpointError, asyncio.CancelledError)):
            await task
        before = len(done)
        await asyncio.to_thread(lambda: None)
        assert threads.submit(lambda: len(done)).result() == before
    assert len(done) == before < 50
