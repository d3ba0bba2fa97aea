"""How often the comparison of peers convicts a healthy device, how soon a gray one, and what a look costs.

    python -m benchmarks.peers [--hours 8] [--devices 4096] [--seed 1]

Simulated healthy fleets of nodes with 8 devices: jobs of 4 or 8 devices, one in eight of two pipeline stages of which
one works less. Each metric of a device is the job's level × a constant deviation of the card × noise that is remembered
for 20 s × noise that is not; besides, each device falls idle now and then (a loader that is late) and rank 0 moves more
over PCIe. A false conviction is any that is raised. The gray devices of the second part run one metric below its
healthy value from the start. The third part is one look over 100,000 devices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.fleet import FleetTable
from controlplane.domain.peers import Member, PeerWatch, Verdict
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.policy.model import PeerPolicy
from gridkeeper.telemetry import COLUMN, METRICS

PER_NODE = 8
ALL = NodeId("fleet")
"""One report brings the whole fleet: who sent it makes no difference here."""
SHAPES: dict[str, tuple[float, float, float, float, float]] = {
    "clock_sm": (1_300, 1_980, 0.015, 0.010, 0.005),
    "clock_memory": (2_619, 2_619, 0.0, 0.0, 0.0),
    "utilisation": (55, 95, 0.02, 0.04, 0.10),
    "power": (300, 650, 0.04, 0.03, 0.05),
    "nvlink_tx": (20_000, 120_000, 0.03, 0.05, 0.15),
    "nvlink_rx": (20_000, 120_000, 0.03, 0.05, 0.15),
    "pcie_tx": (500, 8_000, 0.08, 0.10, 0.25),
    "pcie_rx": (500, 8_000, 0.08, 0.10, 0.25),
}
"""Metric -> the job's level from, to; standard deviations of the card, of remembered and of fresh noise (of 1)."""
REMEMBERED_S = 20.0
DIPS_PER_HOUR, DIP_S, DIP_TO = 6.0, 8.0, 0.1
STAGE = 0.7
"""The share at which the second stage of a pipeline works."""


class Fleet:
    """``devices`` is rounded up to whole nodes. Equal seeds play alike."""

    def __init__(self, devices: int, seed: int) -> None:
        self._dice = np.random.default_rng(seed)
        nodes = -(-devices // PER_NODE)
        self.devices = [DeviceId(f"n{i // PER_NODE}/gpu{i % PER_NODE}") for i in range(nodes * PER_NODE)]
        self.table = FleetTable()
        self.table.register(ALL, self.devices)
        self.members: dict[DeviceId, Member] = {}
        count = len(self.devices)
        job_of = np.zeros(count, np.int64)
        stage = np.ones(count)
        for number in range(nodes):
            halves = self._dice.random() < 0.5
            pipeline = self._dice.random() < 1 / 8
            for place in range(PER_NODE):
                row = number * PER_NODE + place
                job_of[row] = 2 * number + (place // 4 if halves else 0)
                self.members[self.devices[row]] = Member(f"j{job_of[row]}", "1.1")
                if pipeline and place % 4 >= 2:
                    stage[row] = STAGE
        self._first = np.concatenate([[True], job_of[1:] != job_of[:-1]])
        self._level: dict[str, NDArray[np.float64]] = {}
        self._drift = {metric: np.zeros(count) for metric in SHAPES}
        self._dip_until = np.zeros(count)
        self._factor = {metric: np.ones(count) for metric in SHAPES}
        for metric, (low, high, card, _, _) in SHAPES.items():
            level = self._dice.uniform(low, high, 2 * nodes)[job_of] * (1 + card * self._dice.standard_normal(count))
            if metric in ("utilisation", "power"):
                level *= stage
            if metric.startswith("pcie"):
                level[self._first] *= 2
            self._level[metric] = level

    def slow(self, row: int, metric: str, factor: float) -> None:
        self._factor[metric][row] = factor

    def rows(self, at_s: float, every_s: float) -> NDArray[np.float32]:
        """The next sample of everything."""
        count = len(self.devices)
        values = np.full((count, len(METRICS)), np.nan, np.float32)
        begin = self._dice.random(count) < DIPS_PER_HOUR * every_s / 3_600
        self._dip_until[begin] = at_s + self._dice.exponential(DIP_S, int(begin.sum()))
        dips = np.where(self._dip_until > at_s, DIP_TO, 1.0)
        keep = np.exp(-every_s / REMEMBERED_S)
        for metric, (_, _, _, remembered, fresh) in SHAPES.items():
            drift = self._drift[metric]
            drift *= keep
            drift += np.sqrt(1 - keep * keep) * remembered * self._dice.standard_normal(count)
            value = self._level[metric] * np.maximum(0, 1 + drift + fresh * self._dice.standard_normal(count))
            if metric != "clock_sm" and metric != "clock_memory":
                value *= dips
            if metric == "utilisation":
                value = np.minimum(value, 100)
            values[:, COLUMN[metric]] = value * self._factor[metric]
        return values

    def told(self, hours: float, every_ms: int, policy: PeerPolicy) -> Iterator[tuple[int, Verdict]]:
        """(ms since the start, verdict)."""
        watch = PeerWatch()
        for now_ms in range(every_ms, round(hours * 3_600_000) + 1, every_ms):
            values = self.rows(now_ms / 1_000, every_ms / 1_000)
            self.table.ingest(ALL, values.tobytes(), len(self.devices), len(METRICS), now_ms)
            for verdicts in watch.evaluate(self.table, self.members, (), policy, now_ms):
                yield from ((now_ms, verdict) for verdict in verdicts)

    def play(self, hours: float, every_ms: int, policy: PeerPolicy) -> list[Verdict]:
        """Convictions."""
        return [verdict for _, verdict in self.told(hours, every_ms, policy) if verdict.raised]


def cost_ms(devices: int, looks: int = 5) -> list[float]:
    """CPU of single looks over a fleet that is all heard."""
    fleet = Fleet(devices, 3)
    watch, times = PeerWatch(), []
    for number in range(looks + 1):
        now_ms = 5_000 * (number + 1)
        values = fleet.rows(now_ms / 1_000, 5)
        fleet.table.ingest(ALL, values.tobytes(), devices, len(METRICS), now_ms)
        begun = time.process_time()
        for _ in watch.evaluate(fleet.table, fleet.members, (), PeerPolicy(), now_ms):
            pass
        times.append((time.process_time() - begun) * 1_000)
    return times[1:]  # the first one arranges the rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--devices", type=int, default=4_096)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    policy = PeerPolicy()
    print("false convictions of healthy devices")
    for for_ms in (0, 15_000, 30_000, 60_000, 120_000):
        hours = min(options.hours, 0.25)
        few = Fleet(options.devices, options.seed)
        false = few.play(hours, 5_000, PeerPolicy(for_ms=for_ms))
        print(f"  for {for_ms / 1_000:5.0f} s: {len(false):6d} in {len(few.devices) * hours:10,.0f} device-hours")
    fleet = Fleet(options.devices, options.seed)
    false = fleet.play(options.hours, 5_000, policy)
    hours = len(fleet.devices) * options.hours
    at_most = (len(false) + 3.0 * max(1.0, len(false) ** 0.5)) / hours
    print(
        f"  for {policy.for_ms / 1_000:5.0f} s: {len(false):6d} in {hours:10,.0f} device-hours (the default): at most "
        f"{at_most:.1e} per device-hour (95 %)"
    )
    found: dict[str, tuple[int, float]] = {}
    for metric, factor in (("clock_sm", 0.6), ("clock_sm", 0.8), ("power", 0.6), ("utilisation", 0.5)):
        gray = Fleet(800, options.seed + 1)
        rows = range(3, 800, PER_NODE)
        for row in rows:
            gray.slow(row, metric, factor)
        wanted = {gray.devices[row] for row in rows}
        first: dict[DeviceId, float] = {}
        for at_ms, verdict in gray.told(0.25, 5_000, policy):
            if verdict.raised and verdict.device in wanted:
                first.setdefault(verdict.device, at_ms / 1_000)
        median = statistics.median(first.values()) if first else float("nan")
        found[f"{metric}×{factor}"] = (len(first), median)
        print(f"{metric} at {factor:.0%}: {len(first)} of {len(rows)} found within 15 min, median {median:.0f} s")
    cost = statistics.median(cost_ms(100_000))
    print(f"one look over 100,000 devices: {cost:.0f} ms")
    print(
        json.dumps(
            {
                "device_hours": hours,
                "false_convictions": len(false),
                "false_per_device_hour_at_most": at_most,
                "found": {name: share for name, (share, _) in found.items()},
                "found_s_p50": {name: seconds for name, (_, seconds) in found.items()},
                "look_ms_100k": cost,
            }
        )
    )


if __name__ == "__main__":
    main()
