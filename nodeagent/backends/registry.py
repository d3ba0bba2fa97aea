"""From the words in the agent's configuration to a backend."""

from __future__ import annotations

from pathlib import Path

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, DeviceBackend
from nodeagent.inventory import Inventory

KNOWN = "'nvml', 'host', 'replay:<file>' or 'replay:<file>@<speed>'"


def make_backend(spec: str, clock: Clock, state_dir: Path | None = None) -> DeviceBackend:
    """A backend, not opened yet. ``state_dir`` keeps the names of slots across restarts (None: only in memory).

    Raises ``BackendError`` for an unknown spec, and for a trace that cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "nvml" and not rest:
        from nodeagent.backends.nvml import NvmlBackend

        return NvmlBackend(clock, Inventory(state_dir / "inventory-nvml.json" if state_dir else None))
    if kind == "host" and not rest:
        from nodeagent.backends.host import HostBackend

        return HostBackend(clock)
    if kind == "replay" and rest:
        from nodeagent.backends.replay import ReplayBackend, read_trace

        path, speed = _replay_spec(rest)
        return ReplayBackend(read_trace(Path(path)), clock, speed)
    raise BackendError(f"backends: {spec[:80]!r} is not known; use {KNOWN}")


def _replay_spec(rest: str) -> tuple[str, float]:
    """``file@2`` -> ("file", 2.0). An "@" in the file name itself is fine as long as no number follows the last."""
    path, at, speed = rest.rpartition("@")
    if at and path:
        try:
            return path, float(speed)
        except ValueError:
            pass
    return rest, 1.0
