"""``python -m tests.fuzz [--target NAME] [--runs N] [--engine atheris|mutate]``: each parser, one process each.

atheris (coverage-guided) watches for crashes, for inputs that take over ten seconds and for more than 1 GiB of memory.
``mutate`` needs nothing installed: seeds and their mutations, with the same limits. One line of figures per target.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HANG_S = 10
MEMORY_MIB = 1_024
GROWTH_MIB = 64
WARM = 20_000
"""Inputs until caches are full: growth counts from there."""


def rss_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def with_mutations(name: str, runs: int, start: int) -> int:
    """0, or 1 after what was found has been said."""
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS, run_once

    target = TARGETS[name]
    seeds = target.seeds()
    began, warm, slowest = time.perf_counter(), 0.0, 0.0
    for number, data in enumerate(mutated(seeds, start, runs)):
        if number == min(WARM, runs // 2):
            warm = rss_mib()
        once = time.perf_counter()
        try:
            run_once(target, data)
        except Exception as error:  # noqa: BLE001
            print(f"{name}: CRASH {type(error).__name__}: {error}\n  input {start + number}: {data[:400]!r}")
            return 1
        slowest = max(slowest, time.perf_counter() - once)
        if slowest > HANG_S:
            print(f"{name}: HANG of {slowest:.1f} s\n  input {start + number}: {data[:400]!r}")
            return 1
    took, grown = time.perf_counter() - began, rss_mib() - warm
    print(
        f"{name}: {runs} inputs, {runs / took:.0f}/s, slowest {slowest * 1000:.0f} ms, memory {grown:+.0f} MiB",
        flush=True,
    )
    return int(grown > GROWTH_MIB)


def with_atheris(name: str, runs: int) -> int:
    """In this process; libFuzzer ends it."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["gridkeeper", "nodeagent", "controlplane", "failover"]):
        from tests.fuzz.targets import TARGETS, run_once
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / f"{number:05d}").write_bytes(seed)
        limits = [f"-runs={runs}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MIB}", "-max_len=8192", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", corpus], lambda data: run_once(target, data))
        atheris.Fuzz()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--target")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first mutation")
    parser.add_argument("--engine", choices=("atheris", "mutate"))
    options = parser.parse_args()
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutate")
    if options.target:
        if engine == "mutate":
            return with_mutations(options.target, options.runs, options.start)
        return with_atheris(options.target, options.runs)
    from tests.fuzz.targets import TARGETS  # not before: atheris has to see the parsers being imported

    worst = 0
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--runs", str(options.runs)]
        command += ["--engine", engine, "--start", str(options.start)]
        began = time.perf_counter()
        ended = subprocess.run(command, check=False).returncode
        print(f"{name}: {engine}, {options.runs} runs, {time.perf_counter() - began:.0f} s, exit {ended}", flush=True)
        worst = worst or ended
    return worst


if __name__ == "__main__":
    sys.exit(main())
