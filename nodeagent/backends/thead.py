"""T-Head PPU (Alibaba) through ``ppu-smi``: ``--query-gpu=… --format=csv,noheader,nounits``, which T-Head documents in
the SAIL PPU-SMI manual (SDK 2.1.1, chapters 3.2 and 3.2.1) for index, name, UUID, PCI address, driver and memory; more
fields (``OPTIONAL``, named as in nvidia-smi, whose query they mirror) are used if the installed version answers them.

Thin: inventory, memory and presence, and what else the tool happens to answer. There is no public list of what PPU
XIDs mean that could be checked (T-Head's tables are per generation), nor of the driver's kernel lines: nothing is
guessed, and NVIDIA's numbers are not lent.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping

from gridkeeper.catalogue.codes import PpuCode
from gridkeeper.ports.devices import BackendError
from gridkeeper.records.fleet import EventKind
from nodeagent.backends.polled import Card, Reading
from nodeagent.backends.tool import Tool
from nodeagent.backends.values import number, word
from nodeagent.conditions import Conditions
from nodeagent.pci import normal_bus_id

log = logging.getLogger("gridkeeper.agent.thead")

DOCUMENTED = ("index", "name", "uuid", "pci.bus_id", "driver_version", "memory.total", "memory.used")
OPTIONAL = {
    "temperature.gpu": "temperature",
    "power.draw": "power",
    "power.limit": "power_limit",
    "utilization.gpu": "utilisation",
    "clocks.sm": "clock_sm",
    "clocks.max.sm": "clock_sm_max",
    "ecc.errors.corrected.volatile.total": "ecc_corrected",
    "ecc.errors.uncorrected.volatile.total": "ecc_uncorrected",
}
"""Field -> column."""


class TheadVendor:
    """``Vendor`` for T-Head. A key is the card's index."""

    name = "thead"
    prefix = "ppu"
    kind = EventKind.PPU
    period_ms = 5_000

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._answered: tuple[str, ...] = ()  # optional fields that this version knows

    def cards(self) -> tuple[Card, ...]:
        cards = []
        for row in self._query(DOCUMENTED):
            bus = normal_bus_id(row["pci.bus_id"])
            uuid = word(row["uuid"]) or f"ppu-{bus or row['index']}"
            model = word(row["name"]) or "unknown"
            memory = int(number(row["memory.total"]) or 0)
            cards.append(Card(row["index"], uuid, model, "ppu", bus, "", memory, word(row["driver_version"], 64)))
        if not cards:
            raise BackendError("ppu-smi: lists no PPU; load the driver, or take 'thead' out of backends")
        self._answered = tuple(name for name in OPTIONAL if self._answers(name))
        return tuple(cards)

    def read(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> dict[str, Reading]:
        columns = {"memory.total": "memory_total", "memory.used": "memory_used"} | OPTIONAL
        readings = {}
        for row in self._query((*DOCUMENTED, *self._answered)):
            slot = slots.get(row["index"])
            if slot is None:
                continue
            found = {columns[name]: number(text) for name, text in row.items() if name in columns}
            for column, code in (
                ("ecc_uncorrected", PpuCode.ECC_UNCORRECTED), ("ecc_corrected", PpuCode.ECC_CORRECTED)
            ):  # fmt: skip
                more = seen.grew(slot, column, found.get(column))
                if more:
                    seen.say(slot, int(code), f"{more:.0f} more {column.replace('_', ' ')} (ppu-smi)", now_ms)
            readings[row["index"]] = Reading({name: value for name, value in found.items() if value is not None})
        return readings

    def close(self) -> None:
        return

    def _answers(self, name: str) -> bool:
        try:
            return any(number(row[name]) is not None for row in self._query(("index", name)))
        except BackendError as error:
            log.info("T-Head: %s is not known to this ppu-smi: %s.", name, error)
            return False

    def _query(self, names: tuple[str, ...]) -> list[dict[str, str]]:
        """One row per card. Raises ``BackendError`` for output that is not this table."""
        text = self._tool.run(f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits")
        rows = []
        for cells in csv.reader(io.StringIO(text), skipinitialspace=True):
            if not cells:
                continue
            if len(cells) != len(names) or number(cells[0]) is None:
                raise BackendError(f"ppu-smi: prints a row that is not {len(names)} fields: {','.join(cells)[:80]!r}")
            rows.append(dict(zip(names, (cell.strip() for cell in cells), strict=True)))
        return rows
