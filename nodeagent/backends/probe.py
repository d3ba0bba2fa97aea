"""``python -m nodeagent.backends.probe SPEC``: what a backend sees on this machine, as JSON lines.

Prints the inventory, one sample and the processes, then events as they come: the first thing to run when a host shows
nothing. Lines have a ``type``: ``device``, ``sample``, ``process``, ``event``, ``error``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gridkeeper.clock import SystemClock
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, DeviceBackend
from gridkeeper.telemetry import METRICS
from nodeagent.backends.registry import KNOWN, make_backend

Show = Callable[[dict[str, Any]], None]


def probe(backend: DeviceBackend, clock: Clock, show: Show, seconds: float, samples: int, wait_ms: int = 1_000) -> None:
    """Drive ``backend`` once through its port. ``seconds``: how long to wait for events, ``wait_ms`` at a
    time. Raises ``BackendError``."""
    devices = backend.open()
    try:
        for device in devices:
            show({"type": "device", **asdict(device)})
        for _ in range(samples):
            _sample(backend, devices, show)
        for pid, slot in backend.processes(devices):
            show({"type": "process", "pid": pid, "slot": slot})
        show({"type": "waiting", "seconds": seconds})
        deadline = clock.mono_ms() + round(seconds * 1000)
        while (left := deadline - clock.mono_ms()) > 0:
            for sighting in backend.wait_events(min(left, wait_ms)):
                show({"type": "event", **asdict(sighting), "age_ms": clock.mono_ms() - sighting.seen_ms})
    finally:
        backend.close()


def _sample(backend: DeviceBackend, devices: tuple[Device, ...], show: Show) -> None:
    rows = backend.sample(devices)
    for device, row in zip(devices, rows, strict=True):
        values = {metric.name: None if math.isnan(v) else float(v) for metric, v in zip(METRICS, row, strict=True)}
        show({"type": "sample", "slot": device.slot, **values})


@click.command()
@click.argument("spec", default="nvml")
@click.option("--seconds", default=0.0, show_default=True, help="wait this long for events")
@click.option("--samples", default=1, show_default=True, help="samples to take")
@click.option("--wait-ms", default=1_000, show_default=True, help="longest single wait for an event")
@click.option("--state-dir", type=click.Path(path_type=Path), default=None, help="where slot names are kept")
def main(spec: str, seconds: float, samples: int, wait_ms: int, state_dir: Path | None) -> None:
    """Print what the backend SPEC sees as JSON lines."""

    def show(row: dict[str, Any]) -> None:
        click.echo(json.dumps(row))
        sys.stdout.flush()

    clock = SystemClock()
    try:
        probe(make_backend(spec, clock, state_dir), clock, show, seconds, samples, wait_ms)
    except BackendError as error:
        show({"type": "error", "message": str(error)})
        sys.exit(1)


main.__doc__ = f"{main.__doc__}\n\n    SPEC: {KNOWN}"

if __name__ == "__main__":
    main()
