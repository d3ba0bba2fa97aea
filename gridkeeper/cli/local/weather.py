"""A little life on the simulated devices, so that dashboards have something to show: load follows where jobs run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from chaos.nvml.steer import SimNvml
from gridkeeper.ports.clock import Clock

PERIOD_MS = 1_000
IDLE = 0.02
BUSY = 0.85


def busy_share(used: bool, index: int, tick: int) -> float:
    """Load of a device, 0 to 1: near 85 % under a job, each device swinging on its own; else idle. Pure."""
    if not used:
        return IDLE
    return BUSY + 0.1 * math.sin(tick / 15 + 0.7 * index)


async def blow(hosts: dict[str, SimNvml], used: Callable[[], Collection[str]], clock: Clock) -> None:
    """For ever. ``used``: ids (``east-1/gpu3``) of the devices that jobs hold now."""
    tick = 0
    while True:
        busy = frozenset(used())
        for node, sim in hosts.items():
            for index in range(len(sim.devices)):
                sim.load(index, busy_share(f"{node}/gpu{index}" in busy, index, tick), tick)
        tick += 1
        await clock.sleep(PERIOD_MS)
