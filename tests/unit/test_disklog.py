"""One contract for the spool's log, on files and simulated: what was appended survives, nothing else appears."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.disk import SimDisk
from chaos.simulate.loop import run_virtual
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.ports.disk import DiskError
from nodeagent.disklog import FileDiskLog, FileLogs, LogSource
from tests.integration.waiting import until

MAX_BYTES = 4_000


@pytest.fixture(params=["files", "simulated"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> LogSource:
    if request.param == "files":
        return FileLogs(tmp_path / "spool", MAX_BYTES, SystemRng(), segment_bytes=300)
    return SimDisk(SystemClock(), SimRng(1), MAX_BYTES, latency_ms=0)


def numbered(*numbers: int) -> list[bytes]:
    return [f"record {n}".encode() for n in numbers]


async def test_appended_records_are_read_in_order_and_survive_reopening(source: LogSource) -> None:
    log = await source.open()
    await log.append(numbered(1, 2))
    await log.append(numbered(3))
    await log.close()
    again = await source.open()
    assert again.id == log.id
    assert again.read() == list(enumerate(numbered(1, 2, 3), 1))


async def test_released_records_are_gone_and_sequences_go_on(source: LogSource) -> None:
    """Also over many segments, also when everything was released before the next append."""
    log = await source.open()
    for n in range(1, 61):
        await log.append(numbered(n))
    await log.release(57)
    await log.append(numbered(61))
    assert [s for s, _ in log.read()] == [58, 59, 60, 61]
    await log.release(61)
    assert (log.read(), log.last) == ([], 61)
    await log.append(numbered(62))
    await log.close()
    again = await source.open()
    assert again.read() == [(62, b"record 62")]
    assert again.size_bytes < 200


async def test_a_full_log_takes_nothing_and_keeps_what_it_has(source: LogSource) -> None:
    log = await source.open()
    await log.append([b"x" * 3_000])
    with pytest.raises(DiskError):
        await log.append([b"y", b"z" * 3_000])
    assert log.read() == [(1, b"x" * 3_000)]
    await log.append([b"small"])
    assert [s for s, _ in log.read()] == [1, 2]


async def test_a_replacement_has_a_new_id_and_is_what_is_found_next(source: LogSource) -> None:
    log = await source.open()
    await log.append(numbered(1, 2, 3))
    fresh = await source.replace(numbered(7, 8))
    assert fresh.id != log.id
    await fresh.append(numbered(9))
    await fresh.close()
    found = await source.open()
    assert found.id == fresh.id
    assert found.read() == list(enumerate(numbered(7, 8, 9), 1))


async def test_a_replacement_that_does_not_fit_leaves_the_old_log(source: LogSource) -> None:
    log = await source.open()
    await log.append(numbered(1))
    with pytest.raises(DiskError):
        await source.replace([b"x" * (MAX_BYTES + 1)])
    found = await source.open()
    assert (found.id, found.read()) == (log.id, log.read())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=12),
    cut=st.integers(0, 10_000),
    noise=st.binary(max_size=40),
)
def test_a_torn_tail_is_dropped_and_nothing_before_it(sizes: list[int], cut: int, noise: bytes) -> None:
    """A power cut during an append leaves any prefix of the last segment's bytes, and possibly garbage after it. What
    is read then is a prefix of what was appended, and appending goes on at the next sequence."""

    async def check(directory: Path) -> None:
        logs = FileLogs(directory, 1 << 20, SystemRng(), segment_bytes=400)
        log = await logs.open()
        records = [bytes([n]) * size for n, size in enumerate(sizes)]
        for record in records:
            await log.append([record])
        await log.close()
        segments = sorted(directory.glob("*/*.seg"))
        last = segments[-1]
        before = sum(len(log_.read_bytes()) for log_ in segments[:-1])
        keep = cut % (last.stat().st_size + 1)
        last.write_bytes(last.read_bytes()[:keep] + noise)
        again = await logs.open()
        found = again.read()
        assert [s for s, _ in found] == list(range(1, len(found) + 1))
        assert [r for _, r in found] == records[: len(found)]
        whole = 0
        for record in records:  # every record whose bytes are all there is found
            whole += len(record) + 9
            if whole <= before + keep:
                assert len(found) >= records.index(record) + 1
        await again.append([b"next"])
        await again.close()
        assert (await logs.open()).read()[-1] == (len(found) + 1, b"next")

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(check(Path(name)))


async def test_damage_in_the_middle_is_seen_as_empty_records_not_as_a_gap(tmp_path: Path) -> None:
    logs = FileLogs(tmp_path, 1 << 20, SystemRng(), segment_bytes=50)
    log = await logs.open()
    for n in range(1, 9):
        await log.append(numbered(n))
    await log.close()
    first = sorted(tmp_path.glob("*/*.seg"))[0]
    data = bytearray(first.read_bytes())
    data[12] ^= 0xFF
    first.write_bytes(data)
    found = (await logs.open()).read()
    assert [s for s, _ in found] == list(range(1, 9))
    assert found[0][1] == b""
    assert found[-1] == (8, b"record 8")


async def test_a_replacement_cut_off_half_way_is_not_taken(tmp_path: Path) -> None:
    """A crash while the new log was being written: the old one still counts."""
    logs = FileLogs(tmp_path, 1 << 20, SystemRng())
    log = await logs.open()
    await log.append(numbered(1))
    await log.close()
    scratch = tmp_path / "000000000099-abcd.new"
    scratch.mkdir()
    (scratch / f"{1:020d}.seg").write_bytes(b"half")
    assert (await logs.open()).id == log.id
    assert not scratch.exists()


class Hanging(FileLogs):
    """The disk does not answer while ``better`` is unset; ``asked``: how often it was asked to."""

    better: threading.Event
    asked = 0

    def _create(self, records: list[bytes]) -> FileDiskLog:
        self.asked += 1
        self.better.wait()
        return super()._create(records)


async def test_a_log_that_nobody_waits_for_any_more_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    """Writing it hung and was given up; its end comes before any later one, never beside it."""
    logs = Hanging(tmp_path, 1 << 20, SystemRng())
    logs.better = threading.Event()
    logs.better.set()
    await logs.open()
    logs.better.clear()

    async def asked_twice() -> bool:
        return logs.asked == 2

    given_up = asyncio.ensure_future(logs.replace(numbered(1)))
    try:
        await until(asked_twice, "the disk was asked")
        given_up.cancel()
        with pytest.raises(DiskError, match="has not finished an earlier log"):
            await asyncio.wait_for(logs.replace(numbered(2)), 10)
    finally:
        logs.better.set()

    async def replaced() -> FileDiskLog | None:
        with contextlib.suppress(DiskError):
            return await logs.replace(numbered(3))
        return None

    newest = await until(replaced, "the disk takes a log again")
    assert newest is not None
    assert [path.name.partition("-")[2] for path in tmp_path.iterdir()] == [newest.id]
    assert (await logs.open()).read() == [(1, b"record 3")]


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="file"):
        await FileLogs(tmp_path / "file" / "spool", 1 << 20, SystemRng()).open()


def test_a_simulated_crash_loses_only_what_no_append_returned_for() -> None:
    """Of an append under way a prefix may survive; of one that returned, everything does."""

    async def run(seed: int) -> int:
        disk = SimDisk(SimClock(asyncio.get_running_loop()), SimRng(seed), latency_ms=5)
        log = await disk.open()
        await log.append(numbered(1, 2))
        task = asyncio.ensure_future(log.append(numbered(3, 4, 5)))
        await asyncio.sleep(0.001)
        disk.crash()
        with pytest.raises(DiskError, match="crashed"):
            await task
        found = (await disk.open()).read()
        assert found == list(enumerate(numbered(1, 2, 3, 4, 5)[: len(found)], 1))
        assert len(found) >= 2
        return len(found)

    assert {run_virtual(run(seed)) for seed in range(40)} == {2, 3, 4, 5}
