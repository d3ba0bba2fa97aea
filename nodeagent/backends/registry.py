"""From the words in the agent's configuration to a backend."""

from __future__ import annotations

import logging
from pathlib import Path

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, DeviceBackend
from nodeagent.backends import amd_library
from nodeagent.backends.amd import AmdVendor, Source, ToolSource
from nodeagent.backends.amd_library import LibrarySource
from nodeagent.backends.ascend import AscendVendor
from nodeagent.backends.cambricon import CambriconVendor
from nodeagent.backends.polled import PolledBackend, Vendor
from nodeagent.backends.thead import TheadVendor
from nodeagent.backends.tool import Tool
from nodeagent.inventory import Inventory

log = logging.getLogger("gridkeeper.agent.backends")

KNOWN = "'nvml', 'amd', 'ascend', 'cambricon', 'thead', 'host', 'replay:<file>' or 'replay:<file>@<speed>'"
TOOLS = {
    "amd": ("amd-smi", "install ROCm's amd-smi, or take 'amd' out of backends"),
    "ascend": ("npu-smi", "install the Ascend driver, or take 'ascend' out of backends"),
    "cambricon": ("cnmon", "install the Cambricon driver, or take 'cambricon' out of backends"),
    "thead": ("ppu-smi", "install T-Head's SDK, or take 'thead' out of backends"),
}
"""Backend -> its tool, and what to do when that is not there. ``amd:/opt/rocm/bin/amd-smi`` names another one."""


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
    if kind in TOOLS and (rest or spec == kind):
        inventory = Inventory(state_dir / f"inventory-{kind}.json" if state_dir else None)
        return PolledBackend(_vendor(kind, rest), clock, inventory)
    raise BackendError(f"backends: {spec[:80]!r} is not known; use {KNOWN}")


def _vendor(kind: str, command: str) -> Vendor:
    name, remedy = TOOLS[kind]
    tool = Tool(command or name, remedy)
    if kind == "amd":
        return AmdVendor(_amd_source(tool, command))
    if kind == "ascend":
        return AscendVendor(tool)
    return CambriconVendor(tool) if kind == "cambricon" else TheadVendor(tool)


def _amd_source(tool: Tool, command: str) -> Source:
    """AMD's library, unless a tool is named or the library is not there."""
    if not command:
        try:
            return LibrarySource(amd_library.find())
        except ImportError as error:
            log.info("AMD: the tool %s is used, since the library cannot be imported: %s.", tool.name, error)
    return ToolSource(tool)


def _replay_spec(rest: str) -> tuple[str, float]:
    """``file@2`` -> ("file", 2.0). An "@" in the file name itself is fine as long as no number follows the last."""
    path, at, speed = rest.rpartition("@")
    if at and path:
        try:
            return path, float(speed)
        except ValueError:
            pass
    return rest, 1.0
