"""How long a checkpoint takes into the store: whole, with one per cent changed, and unchanged.

    make bench-checkpoint
    python -m benchmarks.checkpoint --gib 4 --runs 3 --directory /where/the/disk/is

Four files of random bytes (which no compression shrinks) are put into a store in a directory, with everything fsynced.
Then 1 % is overwritten in runs of 4 MiB at random places, and it is put as the next step; then once more, unchanged.
The yardsticks, in the same run and on the same disk: ``cp`` and fsync; BLAKE3 alone, one thread; ``rsync
--no-whole-file --inplace --fsync`` of the changed files over the old copy; ``rsync --checksum`` of the unchanged ones.
The source is in the page cache for all of them, and what is dirty is written back before each measurement. Each figure
is the median of the runs. rsync comes from the package of that name (Debian: ``apt-get install rsync``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from blake3 import blake3

from benchmarks.common import last_line, machine, say, table
from failover.checkpoint.files import sync_tree
from failover.checkpoint.manifest import CHUNK_BYTES
from failover.checkpoint.store import open_store
from gridkeeper.ids import Epoch, JobId

FILES = 4
RUN_BYTES = CHUNK_BYTES
EPOCH = Epoch(1, 1)


def timed(work: Callable[[], object]) -> float:
    """Seconds, after the disk has settled."""
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def make(directory: Path, size: int) -> None:
    directory.mkdir()
    for number in range(FILES):
        with (directory / f"rank{number}.bin").open("wb") as out:
            for _ in range(size // FILES // CHUNK_BYTES):
                out.write(os.urandom(CHUNK_BYTES))


def change(directory: Path, size: int, chance: random.Random) -> None:
    """Overwrite 1 % in runs of 4 MiB, not aligned to anything."""
    for _ in range(max(1, size // 100 // RUN_BYTES)):
        with (directory / f"rank{chance.randrange(FILES)}.bin").open("r+b") as out:
            out.seek(chance.randrange(size // FILES - RUN_BYTES))
            out.write(os.urandom(RUN_BYTES))


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.iterdir():
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
    sync_tree(target)


def hash_all(source: Path) -> None:
    for path in sorted(source.iterdir()):
        with path.open("rb") as read:
            while data := read.read(CHUNK_BYTES):
                blake3(data).digest()


def rsync(*arguments: str) -> None:
    subprocess.run(["rsync", "-r", "--times", *arguments], check=True)


def put(store: Path, source: Path, step: int) -> tuple[float, int]:
    """Seconds and peak resident bytes of one put, in a process of its own."""
    os.sync()
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--put", str(store), str(source), str(step)]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return float(said["seconds"]), int(said["rss_bytes"])


def put_here(store: str, source: str, step: str) -> None:
    """In the child: one put, and what it took."""
    began = time.perf_counter()
    asyncio.run(open_store(store).put(JobId("bench"), int(step), EPOCH, Path(source)))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "rss_bytes": peak}))


def stored_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "chunks").rglob("*") if path.is_file())


def one_run(root: Path, size: int, chance: random.Random) -> dict[str, float]:
    source, copied, store = root / "source", root / "copied", root / "store"
    for path in (copied, store):
        shutil.rmtree(path, ignore_errors=True)
    found: dict[str, float] = {"hash_s": timed(lambda: hash_all(source))}
    found["cp_s"] = timed(lambda: copy(source, copied))
    found["full_s"], full_rss = put(store, source, 1)
    rsync(f"{source}/", f"{copied}/")  # so that the times are equal: only content decides from here on
    before = stored_bytes(store)
    change(source, size, chance)
    found["one_percent_rsync_s"] = timed(
        lambda: rsync("--no-whole-file", "--inplace", "--fsync", f"{source}/", f"{copied}/")
    )
    found["one_percent_s"], part_rss = put(store, source, 2)
    found["bytes_moved_one_percent"] = stored_bytes(store) - before
    found["rsync_s"] = timed(lambda: rsync("--checksum", "--fsync", f"{source}/", f"{copied}/"))
    found["unchanged_s"], same_rss = put(store, source, 3)
    found["rss_mb"] = max(full_rss, part_rss, same_rss) / 2**20
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure (default: $TMPDIR)")
    parser.add_argument("--put", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.put:
        put_here(*options.put)
        return 0
    if shutil.which("rsync") is None:
        say("rsync, a yardstick of this benchmark, is not installed; on Debian and Ubuntu: apt-get install rsync")
        return 2
    size = int(options.gib * 2**30) // (FILES * CHUNK_BYTES) * FILES * CHUNK_BYTES
    if size < FILES * 2 * RUN_BYTES:
        say(f"--gib {options.gib}: at least 0.04 is needed")
        return 2
    with tempfile.TemporaryDirectory(prefix="gridkeeper-bench-", dir=options.directory) as directory:
        free = shutil.disk_usage(directory).free
        if free < 4 * size:
            say(f"{directory}: {free >> 30} GiB are free, {4 * size >> 30} are needed; use --directory")
            return 2
        root, chance = Path(directory), random.Random(1)
        make(root / "source", size)
        runs = []
        for number in range(options.runs):
            runs.append(one_run(root, size, chance))
            say(f"run {number + 1}: " + ", ".join(f"{key} {value:.2f}" for key, value in runs[-1].items()))
    middle = {key: median(run[key] for run in runs) for key in runs[0]}
    rows = [
        ("whole", middle["full_s"], "cp + BLAKE3", middle["cp_s"] + middle["hash_s"]),
        ("1 % changed", middle["one_percent_s"], "rsync --no-whole-file --inplace", middle["one_percent_rsync_s"]),
        ("unchanged", middle["unchanged_s"], "rsync --checksum", middle["rsync_s"]),
    ]
    shown = [(what, ours, yardstick, theirs, f"{ours / theirs:.2f}") for what, ours, yardstick, theirs in rows]
    table(f"A checkpoint of {size >> 20} MiB", ("", "store s", "yardstick", "yardstick s", "ratio"), shown)
    say(machine())
    middle["bytes_moved_one_percent"] = int(middle["bytes_moved_one_percent"])
    last_line(bytes=size, runs=len(runs), **middle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
