"""Protects: what a local grid starts, it ends: also when it is itself killed, and only in a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gridkeeper.cli.local.children import Child, GridError, free_ports
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.clock import SystemClock

CLOCK = SystemClock()
STUBBORN = (sys.executable, "-c", "import signal,time; signal.signal(15, 1); print('up', flush=True); time.sleep(600)")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come true in 20 s"
        time.sleep(0.01)


def test_a_child_can_be_killed_and_started_again(tmp_path: Path) -> None:
    child = Child("stubborn", STUBBORN, tmp_path / "log", os.environ)
    with pytest.raises(GridError, match="stubborn does not run; start it"):
        child.kill()
    child.start()
    with pytest.raises(GridError, match="runs already"):
        child.start()
    assert child.ended is None
    child.kill()
    assert child.ended == -signal.SIGKILL
    child.start()
    assert child.running
    child.kill()


async def test_a_child_that_ignores_sigterm_or_is_paused_is_ended_all_the_same(tmp_path: Path) -> None:
    child = Child("stubborn", STUBBORN, tmp_path / "log", os.environ)
    child.start()
    until(lambda: child.tail() == "up")
    await child.stop(CLOCK, 50)
    assert child.ended == -signal.SIGKILL
    obedient = Child("obedient", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path / "log2", os.environ)
    obedient.start()
    obedient.signal(signal.SIGSTOP)
    await obedient.stop(CLOCK, 10_000)
    assert obedient.ended == -signal.SIGTERM
    await obedient.stop(CLOCK, 10_000)


def test_a_child_dies_with_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    program = f"""
        import os, sys, time
        from pathlib import Path
        from gridkeeper.cli.local.children import Child
        child = Child("c", {STUBBORN!r}, Path({str(tmp_path / "log")!r}), os.environ)
        child.start()
        print(child.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: (tmp_path / "log").read_text())
    parent.kill()
    parent.communicate()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_ports_differ() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(1024 < port < 65536 for port in ports)


async def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(GridError, match="holds something else than a local grid"):
        await LocalGrid(tmp_path, GridOptions(regions=())).start()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


async def test_two_grids_do_not_share_a_directory(tmp_path: Path) -> None:
    first, second = LocalGrid(tmp_path), LocalGrid(tmp_path)
    first._claim()
    (tmp_path / "state").write_text("of the first")
    with pytest.raises(GridError, match="another grid runs in"):
        await second.start()
    assert (tmp_path / "state").exists()
    await first.stop()
    second._claim()
    assert not (tmp_path / "state").exists(), "what an ended grid left is removed"
    await second.stop()
