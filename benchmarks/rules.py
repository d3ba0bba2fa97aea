"""How long one pass of the default policy takes over a million devices: the real engine, with staleness, growth of
counters, timers, and findings that are raised and cleared.

    make bench-rules
    POLARS_MAX_THREADS=1 python -m benchmarks.rules --devices 1000000

Everything runs on one core. The table holds what a large fleet shows: 2 % of the values are not known, 1 % of the rows
are stale, every thousandth device is hot and every ten-thousandth has a remap pending, and half of those are raised in
the store already. Between two passes every device sends a sample. The yardstick is one NumPy comparison per rule over
one column, in the same run.
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # before the first import of polars

import argparse
import gc
import json
import resource
import statistics
import time

import numpy as np

from controlplane.domain.fleet import FleetTable
from controlplane.domain.rowlabels import Inventory
from controlplane.domain.rulefindings import Transition, finding_for
from controlplane.domain.rules import STALE_MS, RuleEngine
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId, RegionId, Revision, node_of, slot_of
from gridkeeper.policy.document import default_policy
from gridkeeper.records.faults import FindingRecord
from gridkeeper.records.fleet import DeviceRecord
from gridkeeper.telemetry import COLUMN, METRICS

REGION = RegionId("east")
PER_NODE = 8
PERIOD_MS = 1_000
WARM_UP = 15
"""Passes before the measured ones: the timers run, the windows of growth fill."""

HEALTHY = {
    "temperature": 60, "temperature_memory": 70, "temperature_slowdown": 90, "power": 500, "power_limit": 700,
    "clock_sm": 1_900, "clock_sm_max": 1_980, "clock_memory": 2_600, "throttle_reasons": 0, "utilisation": 95,
    "memory_used": 60_000, "memory_total": 80_000, "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16,
    "pcie_width_max": 16, "processes": 1,
}  # fmt: skip

ANALOGUE = ("temperature", "temperature_memory", "power", "clock_sm", "clock_memory", "memory_used")


class Fleet:
    """A table of ``devices`` rows, and what a store would show of its findings."""

    def __init__(self, devices: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.now_ms = 1_000_000
        self.nodes = [NodeId(f"n{i}") for i in range(devices // PER_NODE)]
        self.ids = [tuple(DeviceId(f"{node}/gpu{i}") for i in range(PER_NODE)) for node in self.nodes]
        self.table = FleetTable(ring=1)  # the past of a million devices takes gigabytes, and no rule looks at it
        for node, ids in zip(self.nodes, self.ids, strict=True):
            self.table.register(node, ids)
        rows = len(self.nodes) * PER_NODE
        block = np.zeros((rows, len(METRICS)), np.float32)
        for name, value in HEALTHY.items():
            block[:, COLUMN[name]] = value
        for name in ANALOGUE:
            block[:, COLUMN[name]] *= self.rng.normal(1, 0.01, rows).astype(np.float32)
        block[self.rng.random(block.shape) < 0.02] = np.nan
        block[self.rng.random(rows) < 0.001, COLUMN["temperature"]] = 95
        block[self.rng.random(rows) < 0.0001, COLUMN["remap_pending"]] = 1
        self.block = block
        self.stale = self.rng.random(len(self.nodes)) < 0.01
        self.sample(everybody=True)
        self.now_ms += STALE_MS
        self.findings: dict[str, Versioned[FindingRecord]] = {}

    def sample(self, everybody: bool = False) -> None:
        """A second later every node, or every one but the silent ones, has sent a sample."""
        self.now_ms += PERIOD_MS
        values = self.block.reshape(len(self.nodes), -1)
        for index, node in enumerate(self.nodes):
            if everybody or not self.stale[index]:
                self.table.ingest(node, values[index].tobytes(), PER_NODE, len(METRICS), self.now_ms)

    def write(self, transitions: tuple[Transition, ...]) -> None:
        """As the store does: findings are raised and cleared."""
        if not transitions:
            return
        found = dict(self.findings)
        for transition in transitions:
            record = finding_for(transition, _device(transition.device), found, 0, self.now_ms, "")
            if record is not None:
                found[record.id] = Versioned(record, Revision(1), Revision(1), 0)
        self.findings = found


def _device(device: DeviceId) -> DeviceRecord:
    return DeviceRecord(
        device,
        node_of(device),
        slot_of(device),
        "",
        "nvidia",
        "H100",
        "hopper",
        "",
        "",
        1,
        "",
        "r1",
        RegionId("e"),
        True,
    )


def yardstick(fleet: Fleet, rules: int) -> float:
    """Milliseconds of one NumPy comparison per rule, each over another column."""
    metrics = [metric.name for metric in METRICS]
    begin = time.perf_counter()
    for index in range(rules):
        np.flatnonzero(fleet.table.column(metrics[index % len(metrics)]) >= 1e9)
    return (time.perf_counter() - begin) * 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--passes", type=int, default=15, help="measured; one sample of every device between two")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    fleet = Fleet(options.devices, options.seed)
    policy = default_policy()
    engine, inventory = RuleEngine(policy), Inventory()
    gc.collect()
    gc.freeze()
    passes: list[float] = []
    plain: list[float] = []
    placing: list[float] = []
    told = 0
    for number in range(WARM_UP + options.passes):
        fleet.sample()
        begin = time.perf_counter()
        fleet.table.settle()  # the cost of samples, whoever looks first; in a replica spread over all looks
        placed = (time.perf_counter() - begin) * 1_000
        begin = time.perf_counter()
        found = engine.evaluate(fleet.table, fleet.findings, inventory, fleet.now_ms)
        spent = (time.perf_counter() - begin) * 1_000
        compared = yardstick(fleet, len(policy.rules))
        if number >= WARM_UP:
            passes.append(spent)
            plain.append(compared)
            placing.append(placed)
            told += len(found)
        fleet.write(found)
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    devices = len(fleet.nodes) * PER_NODE
    raised = sum(held.record.active for held in fleet.findings.values())
    result = {
        "devices": devices,
        "rules": len(policy.rules),
        "pass_ms_p50": round(statistics.median(passes), 2),
        "pass_ms_max": round(max(passes), 2),
        "placing_ms_p50": round(statistics.median(placing), 2),
        "yardstick_ms_p50": round(statistics.median(plain), 2),
        "rss_mb": round(rss_mb),
        "raised": raised,
        "transitions": told,
    }
    print(f"{devices:,} devices, {len(policy.rules)} rules, one core")
    print(f"  a pass          p50 {result['pass_ms_p50']:>8} ms   max {result['pass_ms_max']:>8} ms")
    print(f"  placing samples p50 {result['placing_ms_p50']:>8} ms   (one of every device, before the pass)")
    print(f"  yardstick       p50 {result['yardstick_ms_p50']:>8} ms   (one NumPy comparison per rule)")
    print(f"  memory (peak)       {result['rss_mb']:>8} MB   findings raised: {raised}, told while measuring: {told}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
