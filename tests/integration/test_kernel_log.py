"""Protects: no line of the kernel log is lost or read twice, through rotation of every kind and restarts."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.nvml.kernel_log import KernelLogFile
from gridkeeper.clock import SystemClock
from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.line import MAX_LINE, LogLine
from nodeagent.kernel_file import FileSource
from nodeagent.kernel_log import (
    Entry,
    Gap,
    KernelLog,
    KernelLogError,
    KmsgSource,
    Memory,
    gap_sighting,
    open_kernel_log,
)


class Log:
    """The writing side: numbered lines, and every way a rotator works."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "kern.log"
        self.path.touch()
        self.written = 0
        self.handle = open(self.path, "a")  # noqa: SIM115 - a daemon keeps its file open

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            self.handle.write(f"line number {self.written} of the log\n")
            self.written += 1
        self.handle.flush()

    def rename(self, reopen: bool = True) -> None:
        for number in range(30, 0, -1):
            older = self.path.with_name(f"kern.log.{number}")
            if older.exists():
                older.rename(self.path.with_name(f"kern.log.{number + 1}"))
        self.path.rename(self.path.with_name("kern.log.1"))
        self.path.touch()
        if reopen:
            self.reopen()

    def reopen(self) -> None:
        self.handle.close()
        self.handle = open(self.path, "a")  # noqa: SIM115

    def copy_truncate(self) -> None:
        for number in range(30, 0, -1):
            older = self.path.with_name(f"kern.log.{number}")
            if older.exists():
                older.rename(self.path.with_name(f"kern.log.{number + 1}"))
        shutil.copyfile(self.path, self.path.with_name("kern.log.1"))
        os.truncate(self.path, 0)


def numbers(entries: tuple[Entry, ...] | list[Entry]) -> list[int]:
    return [int(entry.text.split()[2]) for entry in entries if isinstance(entry, LogLine)]


def drain(source: FileSource) -> list[Entry]:
    """Poll until nothing comes; long enough for a renamed file's patience to end."""
    found: list[Entry] = []
    quiet = 0
    while quiet < 60:
        got = source.poll(1_000)
        found.extend(got)
        quiet = 0 if got else quiet + 1
    return found


def test_an_existing_file_is_read_from_its_end_and_a_later_one_from_its_start(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(3)
    source = FileSource(log.path)
    assert source.poll(100) == ()
    log.write(2)
    assert numbers(source.poll(100)) == [3, 4]
    later = FileSource(tmp_path / "not-yet.log")
    assert later.poll(100) == ()
    (tmp_path / "not-yet.log").write_text("a b 7\n")
    assert numbers(later.poll(100)) == [7]


def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    log = Log(tmp_path)
    source = FileSource(log.path)
    log.handle.write("line number")
    log.handle.flush()
    assert source.poll(100) == ()
    log.handle.write(" 0\nline number 1")
    log.handle.flush()
    assert numbers(source.poll(100)) == [0]
    log.handle.write("1\n")
    log.handle.flush()
    assert numbers(source.poll(100)) == [11]


def test_rename_and_create_with_a_writer_that_is_slow_to_reopen(tmp_path: Path) -> None:
    log = Log(tmp_path)
    source = FileSource(log.path)
    log.write(2)
    assert numbers(source.poll(100)) == [0, 1]
    log.write(1)
    log.rename(reopen=False)
    log.write(2)  # still into the renamed file
    assert numbers(source.poll(100)) == [2, 3, 4]
    log.write(1)
    log.handle.write("line number 6")  # its last line has no end
    log.written += 1
    log.reopen()
    log.write(2)
    found = drain(source)
    assert sorted(numbers(found)) == [5, 6, 7, 8]
    assert not any(isinstance(entry, Gap) for entry in found)


def test_copy_and_truncate_between_polls(tmp_path: Path) -> None:
    log = Log(tmp_path)
    source = FileSource(log.path)
    log.write(3)
    assert numbers(source.poll(100)) == [0, 1, 2]
    log.write(2)  # only the copy has them
    log.copy_truncate()
    log.write(50)  # longer than before: the size alone shows nothing
    assert numbers(drain(source)) == list(range(3, 55))


def test_truncation_without_a_copy_is_told(tmp_path: Path) -> None:
    log = Log(tmp_path)
    source = FileSource(log.path)
    log.write(3)
    source.poll(100)
    os.truncate(log.path, 0)
    log.write(1)
    gap, *rest = source.poll(100)
    assert isinstance(gap, Gap)
    assert not gap.certain
    assert gap_sighting(gap, 5) is None, "what may be is no evidence"
    assert numbers(rest) == [3]
    lost = gap_sighting(Gap("the ring buffer overran"), 5)
    assert lost is not None
    assert (lost.kind, lost.slot, lost.seen_ms) == (EventKind.OVERFLOW, "", 5)


def test_a_line_that_is_too_long_is_cut_and_the_next_is_whole(tmp_path: Path) -> None:
    log = Log(tmp_path)
    source = FileSource(log.path)
    log.handle.write("x" * (3 * 1024 * 1024))
    log.handle.flush()
    first = source.poll(100)
    log.handle.write("y\n")
    log.write(1)
    entries = [*first, *drain(source)]
    assert [len(entry.text) <= MAX_LINE for entry in entries if isinstance(entry, LogLine)] == [True, True]
    assert numbers(entries[1:]) == [0]


def _steps(*rotations: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["write", "write", "write3", "poll", "restart", *rotations]), max_size=25)


# A host has one rotator, which works in one way.
STEPS = _steps("rename", "rename-slow", "reopen") | _steps("copytruncate")


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_or_doubled(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    log = Log(tmp_path_factory.mktemp("log"))
    log.write(1)  # so that the first position has something before it
    source = FileSource(log.path)
    log.write(1)
    found: list[Entry] = list(source.poll(1_000))
    lingering = False
    for step in steps:
        match step:
            case "write":
                log.write(1)
            case "write3":
                log.write(3)
            case "rename" | "rename-slow":
                if lingering:
                    log.reopen()
                log.rename(reopen=step == "rename")
                lingering = step == "rename-slow"
            case "reopen":
                log.reopen()
                lingering = False
            case "copytruncate":
                log.copy_truncate()
            case "poll":
                found.extend(source.poll(1_000))
            case "restart":
                position: Mapping[str, str | int] = dict(source.position())
                source.close()
                source = FileSource(log.path, position)
    log.reopen()
    found.extend(drain(source))
    source.close()
    gaps = [entry for entry in found if isinstance(entry, Gap)]
    assert sorted(numbers(found)) == list(range(1, log.written)), gaps
    log.handle.close()


def test_lines_written_while_the_agent_was_down_are_read_once(tmp_path: Path) -> None:
    memory_path = tmp_path / "position.json"
    log = Log(tmp_path)
    log.write(2)
    source = FileSource(log.path, Memory(memory_path).load())
    log.write(2)
    assert numbers(source.poll(100)) == [2, 3]
    Memory(memory_path).save(source.position())
    source.close()
    log.write(1)
    log.rename()
    log.write(1)
    log.rename()
    log.write(1)
    again = FileSource(log.path, Memory(memory_path).load())
    assert numbers(drain(again)) == [4, 5, 6]
    assert drain(again) == []


def test_a_damaged_position_reads_from_the_end(tmp_path: Path) -> None:
    (tmp_path / "position.json").write_text("{broken")
    log = Log(tmp_path)
    log.write(2)
    source = FileSource(log.path, Memory(tmp_path / "position.json").load())
    log.write(1)
    assert numbers(source.poll(100)) == [2]


async def test_run_hands_on_lines_and_remembers_them(tmp_path: Path) -> None:
    clock = SystemClock()
    path = tmp_path / "kmsg.log"
    writer = KernelLogFile(path)
    writer.write("before the agent ever ran")
    got: list[str] = []
    news = asyncio.Event()

    async def handle(entries: tuple[Entry, ...]) -> None:
        got.extend(entry.text for entry in entries if isinstance(entry, LogLine))
        news.set()

    async def follow_until(count: int, write: tuple[str, ...] = ()) -> None:
        kernel_log = open_kernel_log(str(path), clock, "boot", tmp_path)
        assert kernel_log is not None
        task = asyncio.create_task(kernel_log.run(handle))
        async with asyncio.timeout(10):
            while not (tmp_path / "kernel-log.json").exists():
                await clock.sleep(5)
            for text in write:
                writer.write(text)
            while len(got) < count:
                news.clear()
                await news.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await follow_until(1, ("first",))
    writer.xid("0000:91:00", 79)
    await follow_until(2)
    assert got[0] == "first"
    assert got[1].startswith("NVRM: Xid (PCI:0000:91:00): 79")
    assert len(got) == 2


async def test_a_log_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    clock = SystemClock()
    (tmp_path / "dir.log").mkdir()
    kernel_log = KernelLog(lambda saved: FileSource(tmp_path / "dir.log", saved), Memory(None), clock)
    task = asyncio.create_task(kernel_log.run(_ignore))
    async with asyncio.timeout(10):
        while not kernel_log.error:
            await clock.sleep(5)
    assert "dir.log" in kernel_log.error
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert open_kernel_log("", clock, "boot", None) is None


async def _ignore(entries: tuple[Entry, ...]) -> None:
    return None


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg is not readable here")
def test_dev_kmsg_is_read_from_the_place_it_was_left_at() -> None:
    fresh = KmsgSource(Path("/dev/kmsg"), "boot-1")
    assert fresh.poll(10_000) == (), "no saved position: only what comes from now on"
    since_boot = KmsgSource(Path("/dev/kmsg"), "boot-2", {"boot_id": "boot-1", "sequence": 1 << 40})
    everything = [entry for entry in since_boot.poll(100_000) if isinstance(entry, LogLine)]
    if len(everything) < 2:
        pytest.skip("the kernel's ring buffer is empty here")
    assert all(entry.boot_us >= 0 for entry in everything)
    middle = everything[len(everything) // 2].sequence
    rest = KmsgSource(Path("/dev/kmsg"), "boot-2", {"boot_id": "boot-2", "sequence": middle})
    found = [entry.sequence for entry in rest.poll(100_000) if isinstance(entry, LogLine)]
    assert found[: len(everything)] == [e.sequence for e in everything if e.sequence > middle]
    assert rest.position()["sequence"] == found[-1]
    for source in (fresh, since_boot, rest):
        source.close()


def test_a_missing_kmsg_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(KernelLogError, match="CAP_SYSLOG"):
        KmsgSource(tmp_path / "absent", "boot")
