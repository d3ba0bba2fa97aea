"""Cambricon MLU through ``cnmon`` (recordings of 4.20 and 5.10): its table, and ``cnmon info -j`` for what the table
lacks (UUID; the PCI address of old versions).

Where public facts are thin: what "Ecc-Error" counts (corrected or not) is not said, so its growth is told as the lesser
of both and it fills no column; health, retired pages and MLU-Link are in CNDev's library, whose events the driver also
writes to the kernel log ("CNRM: Xid"), but not in the tool's public output. ``info -j`` writes its file into the
current directory; it is run in one of its own.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridkeeper.catalogue.codes import CambriconCode
from gridkeeper.ports.devices import BackendError
from gridkeeper.records.fleet import EventKind
from nodeagent.backends.polled import Card, Reading
from nodeagent.backends.tool import OUTPUT_LIMIT, Tool
from nodeagent.backends.values import number, part, rows_of_json, word
from nodeagent.conditions import Conditions
from nodeagent.pci import normal_bus_id

log = logging.getLogger("gridkeeper.agent.cambricon")

_VERSION = re.compile(r"\| CNMON v?(\S{1,32})\s")
_HEAD = re.compile(r"([0-9]{1,4})\s+(\S{1,8})\s+(\S{1,40})\s+(\S{1,24})\Z")
_LOAD = re.compile(r"\S{1,6}\s+(-?[0-9]{1,4}|N/A)C?\s+([0-9.]{1,10}|N/A)\s*W?/\s*([0-9.]{1,10}|N/A)\s*W?\Z")
_MEMORY = re.compile(r"([0-9]{1,9}) MiB/\s*([0-9]{1,9}) MiB\Z")
_BUSY = re.compile(r"([0-9]{1,3})%\s+(\S{1,16})\Z")
_PROCESS = re.compile(r"\|\s+([0-9]{1,4})\s+\S{1,8}\s+([0-9]{1,10})\s+\S.*MiB\s+\|")


@dataclass(slots=True)
class Mlu:
    """One card of the table."""

    key: str
    name: str
    pci_bus_id: str
    ecc_errors: float | None
    values: dict[str, float] = field(default_factory=dict)


def read_table(text: str) -> tuple[str, tuple[Mlu, ...]]:
    """(version, cards). Raises ``BackendError`` for a table that lists none."""
    version = _VERSION.search(text)
    if version is None or "Memory-Usage" not in text:
        raise BackendError(f"cnmon: prints no table that is known: {text[:80]!r}")
    mlus: list[Mlu] = []
    head: tuple[str, str, str, str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "Command Line" in line:
            break
        if len(cells) != 3:
            head = None
            continue
        named = _HEAD.match(cells[0])
        if named:
            head = (named.group(1), named.group(3), cells[1], cells[2])
        elif head:
            mlus.append(_mlu(*head, cells))
            head = None
    if not mlus:
        raise BackendError("cnmon: lists no card; load the driver (cnmon must show it), or has its table changed?")
    return version.group(1), tuple(mlus)


def _mlu(key: str, name: str, middle: str, right: str, cells: list[str]) -> Mlu:
    busy, load, memory = _BUSY.match(right), _LOAD.match(cells[0]), _MEMORY.match(cells[1])
    found: dict[str, float | None] = {
        "utilisation": number(busy.group(1)) if busy else None,
        "temperature": number(load.group(1)) if load else None,
        "power": number(load.group(2)) if load else None,
        "power_limit": number(load.group(3)) if load else None,
        "memory_used": number(memory.group(1)) if memory else None,
        "memory_total": number(memory.group(2)) if memory else None,
    }
    values = {metric: value for metric, value in found.items() if value is not None}
    return Mlu(key, name, normal_bus_id(middle), number(busy.group(2)) if busy else None, values)


class CambriconVendor:
    """``Vendor`` for Cambricon. A key is the card's number."""

    name = "cambricon"
    prefix = "mlu"
    kind = EventKind.CAMBRICON
    period_ms = 5_000

    def __init__(self, tool: Tool) -> None:
        self._tool = tool

    def cards(self) -> tuple[Card, ...]:
        version, mlus = read_table(self._tool.run())
        more = self._more()
        cards = []
        for mlu in mlus:
            info = more.get(mlu.key, {})
            bus = mlu.pci_bus_id or _address(part(info, "PCI"))
            uuid = word(info.get("UUID")) or f"mlu-{bus or mlu.key}"
            model = word(info.get("ProductName")) or mlu.name
            family = model.split("-")[0].lower()
            memory = int(mlu.values.get("memory_total", 0))
            cards.append(Card(mlu.key, uuid, model, family, bus, word(info.get("SN")), memory, version))
        return tuple(cards)

    def read(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> dict[str, Reading]:
        text = self._tool.run()
        _, mlus = read_table(text)
        pids: dict[str, tuple[int, ...]] = {}
        for key, pid in _PROCESS.findall(text.partition("Command Line")[2]):
            pids[key] = (*pids.get(key, ()), int(pid))
        readings = {}
        for mlu in mlus:
            if mlu.key not in slots:
                continue
            more = seen.grew(slots[mlu.key], "ecc", mlu.ecc_errors)
            if more:
                message = f"{more:.0f} more in Ecc-Error (cnmon does not say whether corrected)"
                seen.say(slots[mlu.key], int(CambriconCode.DRAM_ECC_CORRECTED), message, now_ms)
            readings[mlu.key] = Reading(mlu.values, pids.get(mlu.key, ()))
        return readings

    def close(self) -> None:
        return

    def _more(self) -> dict[str, dict[str, Any]]:
        """Card's number -> what ``info -j`` says of it; empty if it cannot be had."""
        try:
            with tempfile.TemporaryDirectory(prefix="gridkeeper-cnmon-") as folder:
                said = self._tool.run("info", "-j", cwd=Path(folder))
                file = Path(folder) / "cnmon_info.json"
                if file.is_file() and file.stat().st_size <= OUTPUT_LIMIT:
                    said = file.read_text(encoding="utf-8", errors="replace")
            rows = rows_of_json(said, "cnmon info -j", "CnmonInfo")
        except (BackendError, OSError) as error:
            log.warning("Cambricon: no more than the table is known: %s.", error)
            return {}
        return {str(int(card)): row for row in rows if (card := number(row.get("CardNum"))) is not None}


def _address(pci: Any) -> str:
    names = ("DomainID", "Bus", "Device", "Function")
    parts = [str(part(pci, name)).removeprefix("0x") for name in names]
    return normal_bus_id("{}:{}:{}.{}".format(*parts))
