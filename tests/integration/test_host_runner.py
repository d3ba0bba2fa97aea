"""Protects: a command of a repair ends when its process does, within its time, whatever it says or leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gridkeeper.clock import SystemClock
from nodeagent.hostrunner import KEPT_BYTES, ProcessRunner

LONG_MS = 60_000


async def test_its_status_and_last_words_are_told() -> None:
    ended = await ProcessRunner().run(["/bin/sh", "-c", "echo one; echo $WHO >&2; exit 7"], {"WHO": "two"}, LONG_MS)
    assert (ended.code, ended.output, ended.timed_out) == (7, "one two ", False)


async def test_a_flood_is_cut_to_its_end() -> None:
    ended = await ProcessRunner().run(["/bin/sh", "-c", "yes | head -c 3000000; echo last"], {}, LONG_MS)
    assert ended.code == 0 and len(ended.output) == KEPT_BYTES and ended.output.endswith("last ")


async def test_what_is_not_there_cannot_be_run() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ended = await ProcessRunner().run(["/no/such/command"], {}, LONG_MS)
    assert ended.code == 127 and "/no/such/command cannot be run" in ended.output
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_it_leaves_running_does_not_hold_it_up(tmp_path: Path) -> None:
    """A reset that restarts a daemon: the daemon keeps the command's output open and outlives it."""
    script = f"sleep 300 & echo $! > {tmp_path}/pid; echo reset done"
    ended = await ProcessRunner().run(["/bin/sh", "-c", script], {}, LONG_MS)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert (ended.code, ended.output, ended.timed_out) == (0, "reset done ", False)


@pytest.mark.parametrize("script", ["sleep 300", "trap '' TERM; sleep 300 & sleep 300"])
async def test_one_that_takes_too_long_is_killed_with_all_that_it_started(script: str) -> None:
    ended = await ProcessRunner().run(["/bin/sh", "-c", script], {}, 200)
    assert ended.timed_out and ended.code == -signal.SIGKILL


async def test_one_that_is_given_up_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 300"
    task = asyncio.ensure_future(ProcessRunner().run(["/bin/sh", "-c", script], {}, LONG_MS))
    async with asyncio.timeout(30):
        while not (tmp_path / "pid").exists():
            await SystemClock().sleep(10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pid = int((tmp_path / "pid").read_text())
        while Path(f"/proc/{pid}").exists():
            await SystemClock().sleep(10)
