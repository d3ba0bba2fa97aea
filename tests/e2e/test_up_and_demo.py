"""Protects: the two commands of the README do what it says, with and without a terminal, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GRIDKEEPER = (sys.executable, "-P", "-m", "gridkeeper.cli.main")


def until(condition: Callable[[], object], what: str, limit_s: float = 90) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"after {limit_s} s: {what}"
        time.sleep(0.02)


def below(directory: Path) -> list[str]:
    """Command lines of processes that belong to the grid in ``directory``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(directory) in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "grid"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(tmp_path) in " ".join(process.cmdline()):
                process.kill()


def test_both_stories_of_the_demo_come_true(directory: Path) -> None:
    done = subprocess.run(
        [*GRIDKEEPER, "demo", "--directory", str(directory)], capture_output=True, text=True, timeout=240, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Both stories came true" in said
    assert "FALSE" not in said
    for part in ("incident ", "drain ", "migration ", "RTO by stage", "SLA ", "XID 48"):
        assert part in said
    assert below(directory) == []


class Up:
    """``gridkeeper up``, its output in a file."""

    def __init__(self, directory: Path) -> None:
        self._output = directory.with_suffix(".out")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*GRIDKEEPER, "up", "--directory", str(directory)], stdout=output, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        return self._output.read_text()

    def hear(self, text: str) -> None:
        until(lambda: text in self.said() or self.process.poll() is not None, f"{text!r} not in:\n{self.said()}")
        assert text in self.said()


def test_up_without_a_terminal_tells_what_happens_until_sigterm(directory: Path) -> None:
    up = Up(directory)
    up.hear("job train is running on east-")
    told = subprocess.run(
        [*GRIDKEEPER, "--config", str(directory / "client.yaml"), "get", "devices", "-o", "name"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert len(told.stdout.splitlines()) == 32
    second = subprocess.run(
        [*GRIDKEEPER, "up", "--directory", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert "another grid runs in" in second.stderr
    assert second.stdout == ""  # it neither started nor stopped anything
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0, up.said()
    assert "the grid is down" in up.said()
    assert below(directory) == []


def test_up_that_is_killed_takes_its_daemons_along_and_the_guardian_ends_the_job(directory: Path) -> None:
    up = Up(directory)
    up.hear("job train is running on east-")
    jobs = directory / "nodes"
    until(lambda: list(jobs.glob("*/state/jobs/train/*/progress.jsonl")), "the job makes steps")
    up.process.kill()
    up.process.wait()
    until(lambda: all("nodeagent.guardian" in line for line in below(directory)), "only guardians are left")
    progress = next(jobs.glob("*/state/jobs/train/*/progress.jsonl"))
    pids = {int(match) for match in re.findall(r'"pid": (\d+)', progress.read_text())}
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the job is ended at its deadline")


def test_up_on_a_terminal_shows_the_interface_and_q_ends_it_all(directory: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "45"}
        os.execv(sys.executable, [*GRIDKEEPER, "up", "--directory", str(directory)])
    shown = b""
    asked_to_leave = False
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
        if not asked_to_leave and b"\x1b[?1049h" in shown and b"west-2" in shown.partition(b"\x1b[?1049h")[2]:
            os.write(terminal, b"q")
            asked_to_leave = True
    assert asked_to_leave, shown[-2_000:]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown[-2_000:]
    assert b"the grid is down" in shown
    assert below(directory) == []
