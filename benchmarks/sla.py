"""How long a month's report takes over a million intervals of a hundred thousand devices: read from its Parquet
segment, resolved with its exclusions, measured by a contract's rule, put into credit tiers.

    make bench-sla

The intervals of a device follow each other, as its ledger's do; one device in a hundred was under announced
maintenance. The report is made three times with three definitions of downtime; the slowest counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla import columns
from gridkeeper.sla.measure import MINUTE_MS, Counting, Exclude, Rule
from gridkeeper.sla.months import month_window
from gridkeeper.sla.spans import Window

RULES = (
    Rule(),
    Rule(Counting.WHOLE, exclude=Exclude.BOTH),
    Rule(Counting.TOUCHED, minimum_ms=2 * MINUTE_MS),
)
TIERS = (Fraction(9999, 10000), Fraction(99, 100), Fraction(95, 100))
WEIGHTS = {
    UptimeClass.UP: 0.55,
    UptimeClass.DEGRADED: 0.15,
    UptimeClass.DOWN: 0.2,
    UptimeClass.UNKNOWN: 0.08,
    UptimeClass.EXCLUDED: 0.02,
}


def made(devices: int, intervals: int, window: Window, seed: int) -> pl.DataFrame:
    """A month's entries as a ledger's segment holds them."""
    rng = np.random.default_rng(seed)
    each = intervals // devices
    cuts = np.sort(rng.integers(1, window.elapsed_ms, (devices, each - 1)), axis=1)
    ends = np.hstack((cuts, np.full((devices, 1), window.elapsed_ms)))
    begins = np.hstack((np.zeros((devices, 1), np.int64), cuts))
    codes = [columns.CODE[kind] for kind in WEIGHTS]
    kinds = rng.choice(codes, devices * each, p=list(WEIGHTS.values()))
    return pl.DataFrame(
        {
            "scope": np.repeat(np.arange(devices, dtype=np.int64), each),
            "from_ms": begins.ravel() + window.from_ms,
            "until_ms": ends.ravel() + window.from_ms,
            "kind": kinds.astype(np.int8),
        }
    )


def report(path: Path, devices: int, window: Window, rule: Rule) -> tuple[columns.Report, list[int]]:
    """The month, and how many devices are below each tier."""
    frame = pl.read_parquet(path, memory_map=True)
    away = np.arange(0, devices, 100, dtype=np.int64)  # under maintenance on the tenth day
    begin = np.full(len(away), window.from_ms + 10 * 86_400_000, np.int64)
    rows = columns.Statements(
        np.concatenate((frame["scope"].to_numpy(), away)),
        np.concatenate((frame["from_ms"].to_numpy(), begin)),
        np.concatenate((frame["until_ms"].to_numpy(), begin + 4 * 3_600_000)),
        np.concatenate((frame["kind"].to_numpy(), np.full(len(away), columns.CODE[Cause.MAINTENANCE], np.int8))),
    )
    del frame
    found = columns.measure(columns.resolve(rows, devices, window), rule)
    below = [int(columns.availability_below(found, t.numerator, t.denominator).sum()) for t in TIERS]
    return found, below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--intervals", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    window = month_window("2026-10", "Europe/Berlin")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "2026-10.parquet"
        frame = made(options.devices, options.intervals, window, options.seed)
        intervals = frame.height
        frame.write_parquet(path)
        del frame
        spent: dict[str, tuple[float, float]] = {}
        for rule in RULES:
            begin, cpu = time.perf_counter(), time.process_time()
            found, below = report(path, options.devices, window, rule)
            wall_s, cpu_s = spent[rule.counting.value] = (time.perf_counter() - begin, time.process_time() - cpu)
            assert (found.totals.sum(axis=1) == window.elapsed_ms).all(), "the ledger does not balance"
            print(f"  {rule.counting.value:<24} {wall_s:.3f} s ({cpu_s:.3f} s of CPU)   below each tier: {below}")
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "intervals": intervals,
        "devices": options.devices,
        "report_s": round(max(wall for wall, _ in spent.values()), 3),
        "cpu_s": round(max(cpu for _, cpu in spent.values()), 3),
        "rss_mb": round(rss_mb),
    }
    print(f"{intervals:,} intervals of {options.devices:,} devices: {result['report_s']} s, {result['rss_mb']} MB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
