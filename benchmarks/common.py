"""What the benchmarks share: quantiles, tables, the last line, and how busy the machine was with other things."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from chaos.nvml.build import build, default_directory
from controlplane.store.etcd import EtcdStore
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.ports.store import PutOp, Store

T = TypeVar("T")

SCRATCH = "/gridkeeper-benchmark/"
"""Keys of yardstick writes: in the same etcd, outside everything that a replica watches."""


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the share ``q`` of ``values`` does not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print for people. Numbers are right-aligned; floats get two decimals."""
    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=max(100, shutil.get_terminal_size().columns)).print(drawn)


def say(sentence: str) -> None:
    print(sentence, flush=True)


def last_line(**values: object) -> None:
    """One JSON object. Floats are rounded to three decimals."""
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in values.items()}), flush=True)


def machine() -> str:
    """The host in one line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    date = time.strftime("%Y-%m-%d")
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}, {date}"


class Busy:
    """CPU time of the whole machine, and of chosen processes, from the construction on."""

    def __init__(self, **groups: Sequence[int]) -> None:
        """``groups``: name -> process ids."""
        self._groups = {name: tuple(pids) for name, pids in groups.items()}
        self._began = time.monotonic()
        self._before = self._used()

    def _used(self) -> dict[str, float]:
        times = psutil.cpu_times()
        used = {"machine": times.user + times.nice + times.system + times.irq + times.softirq, "steal": times.steal}
        for name, pids in self._groups.items():
            used[name] = sum(cpu_seconds(pid) for pid in pids)
        used["own"] = cpu_seconds(os.getpid())
        return used

    def percent(self) -> dict[str, float]:
        """Of one core, by group; "others": what the machine did that is in no group; "steal": of a virtual machine."""
        seconds, now = time.monotonic() - self._began, self._used()
        shares = {name: 100 * (now[name] - self._before[name]) / seconds for name in now}
        ours = sum(share for name, share in shares.items() if name not in ("machine", "steal"))
        shares["others"] = max(0.0, shares["machine"] - ours)
        return shares


def cpu_seconds(pid: int) -> float:
    """User and system time; 0 for a process that is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


@asynccontextmanager
async def running_grid(options: GridOptions) -> AsyncIterator[LocalGrid]:
    """A local grid in a temporary directory, which goes away with it. The grid's processes die with this one."""
    build(default_directory())
    with tempfile.TemporaryDirectory(prefix="gridkeeper-bench-") as root:
        async with LocalGrid(Path(root) / "grid", options, say=say) as grid:
            yield grid


@asynccontextmanager
async def store_of(grid: LocalGrid, name: str) -> AsyncIterator[EtcdStore]:
    """The client that replicas use, on the etcd of a region or "global"."""
    store = await EtcdStore.open(grid.etcd(name).config, SystemClock(), SystemRng())
    try:
        yield store
    finally:
        await store.close()


async def timed_put(store: Store, number: int) -> float:
    """Milliseconds of one put of 256 bytes, answered when it is on disk."""
    began = time.perf_counter()
    await store.txn([], [PutOp(f"{SCRATCH}{number % 64}", number.to_bytes(8, "big") * 32)])
    return (time.perf_counter() - began) * 1000


async def until(what: str, look: Callable[[], Awaitable[T | None]], timeout_s: float = 60, every_s: float = 0.02) -> T:
    """The first truthy answer. Raises ``TimeoutError`` naming ``what``."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = await look()
                if found:
                    return found
                await asyncio.sleep(every_s)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {timeout_s} s") from None
