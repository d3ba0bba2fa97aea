"""``make bench-backtest``: a five-year trace of 30,000 devices and 6,000 faults against the default policy.

The trace is made up under a seed: most faults fall on any device, a third of them on one device in two hundred (a fleet
has its lemons), and what they are is drawn by ``SHARES``, the shares of interruption causes that Meta published for 54
days of 16,384 H100s ("The Llama 3 Herd of Models", 2024, table 5), brought to XIDs. It is written as CSV, as operators
have it, and read, replayed and reported by the command itself in a process of its own: the seconds are that process's,
start of Python included, and so is the memory.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import last_line, machine, say, table

DEVICES, FAULTS, YEARS, SEED = 30_000, 6_000, 5, 20_261_125
YEAR_S = 365 * 86_400
BEGIN_S = int(datetime(2021, 1, 1, tzinfo=UTC).timestamp())
SHARES = {
    "xid 79": 30.1, "xid 95": 17.2, "xid 48": 4.5, "xid 119": 4.1, "xid 63": 6.0, "xid 64": 1.2, "xid 74": 8.4,
    "xid 31": 12.9, "xid 13": 7.6, "xid 94": 5.0, "xid 109": 3.0,
}  # fmt: skip
LEMON_SHARE, ONE_IN = 1 / 3, 200


def write_trace(directory: Path) -> tuple[Path, Path]:
    """Trace and inventory."""
    rng = random.Random(SEED)
    devices = [f"n{number // 8}/gpu{number % 8}" for number in range(DEVICES)]
    lemons = rng.sample(devices, DEVICES // ONE_IN)
    inventory, trace = directory / "inventory.csv", directory / "trace.csv"
    with inventory.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("device", "rack", "vendor", "model"))
        rows.writerows((device, f"r{number // 128}", "nvidia", "H100") for number, device in enumerate(devices))
    with trace.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("device", "time", "code"))
        codes, weights = list(SHARES), list(SHARES.values())
        for _ in range(FAULTS):
            device = rng.choice(lemons if rng.random() < LEMON_SHARE else devices)
            at = datetime.fromtimestamp(BEGIN_S + rng.randrange(YEARS * YEAR_S), UTC)
            rows.writerow((device, at.isoformat(), rng.choices(codes, weights)[0]))
    return trace, inventory


def main() -> None:
    say(f"backtest: {YEARS} years, {DEVICES} devices, {FAULTS} faults; {machine()}")
    with tempfile.TemporaryDirectory(prefix="gridkeeper-bench-") as root:
        trace, inventory = write_trace(Path(root))
        out = Path(root) / "out.json"
        command = [
            sys.executable, "-m", "gridkeeper.cli.main", "backtest", "--trace", str(trace), "--inventory",
            str(inventory), "-o", "json",
        ]  # fmt: skip
        began = time.monotonic()
        with out.open("wb") as file, subprocess.Popen(command, stdout=file) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds, rss_mb = time.monotonic() - began, usage.ru_maxrss / 1024
        if process.returncode:
            raise SystemExit(f"the backtest failed with exit code {process.returncode}")
        found = json.loads(out.read_text())
    cpu = usage.ru_utime + usage.ru_stime
    outcome = found["outcome"]
    acted = sum(drain["state"] == "admitted" for drain in outcome["drains"])
    ratio = YEARS * YEAR_S / outcome["seconds"]
    table(
        "The whole command, one run",
        ("", "figure"),
        [
            ("seconds, wall", seconds), ("seconds of CPU", cpu), ("of which replaying", outcome["seconds"]),
            ("times real time", f"{ratio:,.0f}"), ("peak memory, MiB", rss_mb), ("drains", acted),
            ("held back at first", outcome["held_back"]),
        ],
    )  # fmt: skip
    last_line(devices=DEVICES, faults=FAULTS, trace_years=YEARS, seconds=seconds, cpu_seconds=cpu, rss_mb=rss_mb)


if __name__ == "__main__":
    main()
