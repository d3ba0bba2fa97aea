"""AMD Instinct and Radeon through ``amd-smi`` (JSON; ROCm 6.1 to 7.x write it), or through AMD's Python library
``amdsmi`` where it can be imported (see ``amd_library``): one source of rows of the same shape, chosen when opened.

What becomes what: growth of a block's ECC counter an event of that block (``AmdBlock``); pages that join the lists of
``bad-pages`` one each; a CPER record its AFID with its severity in words; a thermal limit in force a condition that
lasts. Power limiting is normal under load and not told. Retired pages are not put into NVIDIA's page columns: their
limits differ. CPER records that are there when the agent starts are its past (old records that stay listed would
convict a healthy card for ever); the kernel log, whose position is kept, tells of those.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gridkeeper.catalogue.codes import CORRECTED, DEFERRED, UNCORRECTED, AmdCode, amd_block
from gridkeeper.ports.devices import BackendError
from gridkeeper.records.fleet import EventKind
from nodeagent.backends.polled import Card, Reading
from nodeagent.backends.tool import Tool
from nodeagent.backends.values import generation, mib, number, part, rows_of_json, word
from nodeagent.conditions import Conditions
from nodeagent.kernel.amd import BLOCKS
from nodeagent.pci import normal_bus_id

log = logging.getLogger("gridkeeper.agent.amd")

LISTS_MS = 60_000
"""How often bad pages and CPER records are listed: each costs a run of the tool."""

MAX_ROW = 1_024
"""Characters of a row of a table that are looked at."""

_COUNTS = (("uncorrectable_count", UNCORRECTED, "uncorrectable"), ("deferred_count", DEFERRED, "deferred"),
           ("correctable_count", CORRECTED, "correctable"))  # fmt: skip
_PAGES = (("retired", AmdCode.BAD_PAGE_RETIRED), ("pending", AmdCode.BAD_PAGE_PENDING),
          ("un_res", AmdCode.BAD_PAGE_UNRESERVABLE))  # fmt: skip
_THERMAL = ("prochot", "socket_thermal", "vr_thermal", "hbm_thermal")
_CPER = re.compile(
    r"\s*([0-9/]{8,10} [0-9:]{8})\s+([0-9]{1,4})\s+([A-Za-z_-]{4,32})(?:\s+(\S{1,64}\.cper))?((?:\s+[0-9]{1,6})*)\s*\Z"
)


class Source(Protocol):
    """Rows as ``amd-smi --json`` prints them, each with "gpu"."""

    @property
    def period_ms(self) -> int: ...

    def static(self) -> list[dict[str, Any]]:
        """Sections asic, bus, vram, driver, limit, and uuid. Raises ``BackendError``."""
        ...

    def metric(self) -> list[dict[str, Any]]:
        """Raises ``BackendError``."""
        ...

    def processes(self) -> list[dict[str, Any]]: ...

    def bad_pages(self) -> list[dict[str, Any]]: ...

    def cper(self) -> str:
        """The table of CPER records."""
        ...

    def close(self) -> None: ...


class ToolSource:
    """``Source`` on the command-line tool."""

    period_ms = 5_000  # a run takes about a second of processor time

    def __init__(self, tool: Tool) -> None:
        self._tool = tool

    def static(self) -> list[dict[str, Any]]:
        listed = {number(row.get("gpu")): row for row in self._rows("list", "--json")}
        rows = self._rows("static", "--asic", "--bus", "--vram", "--driver", "--limit", "--json")
        return [{**row, "uuid": part(listed.get(number(row.get("gpu"))), "uuid")} for row in rows]

    def metric(self) -> list[dict[str, Any]]:
        return self._rows("metric", "--json")

    def processes(self) -> list[dict[str, Any]]:
        return self._rows("process", "--json")

    def bad_pages(self) -> list[dict[str, Any]]:
        return self._rows("bad-pages", "--json")

    def cper(self) -> str:
        with tempfile.TemporaryDirectory(prefix="gridkeeper-cper-") as folder:
            return self._tool.run("ras", "--cper", "--severity", "all", "--folder", folder)

    def close(self) -> None:
        return

    def _rows(self, *arguments: str) -> list[dict[str, Any]]:
        return rows_of_json(self._tool.run(*arguments), f"{self._tool.name} {' '.join(arguments)}", "gpu_data")


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of a card; they do not change while it runs."""

    slowdown: float | None
    power: float | None
    pcie_width: float | None
    pcie_generation: float | None


class AmdVendor:
    """``Vendor`` for AMD."""

    name = "amd"
    prefix = "gpu"
    kind = EventKind.AMD

    def __init__(self, source: Source) -> None:
        self._source = source
        self.period_ms = source.period_ms
        self._limits: dict[str, _Limits] = {}
        self._listed_ms: dict[str, int] = {}  # list -> when it was read last, boot-time clock
        self._pids: dict[str, tuple[int, ...]] = {}
        self._without: set[str] = set()  # lists that this machine does not give

    def cards(self) -> tuple[Card, ...]:
        cards = []
        for row in self._source.static():
            index, bus = number(row.get("gpu")), normal_bus_id(word(part(row, "bus", "bdf")))
            if index is None or not bus:
                continue  # one that cannot be named cannot be watched; its place in the inventory goes missing
            key = str(int(index))
            limit = part(row, "limit")
            self._limits[key] = _Limits(
                number(part(limit, "slowdown_hotspot_temperature")),
                _first(
                    part(limit, "ppt0", "socket_power_limit"), part(limit, "socket_power"), part(limit, "max_power")
                ),
                number(part(row, "bus", "max_pcie_width")),
                generation(part(row, "bus", "max_pcie_speed")),
            )
            serial = word(part(row, "asic", "asic_serial"))
            uuid = word(row.get("uuid")) or f"amd-{serial or bus}"
            model = word(part(row, "asic", "market_name")) or "unknown"
            family = word(part(row, "asic", "target_graphics_version")) or "unknown"
            memory = int(mib(part(row, "vram", "size")) or 0)
            cards.append(Card(key, uuid, model, family, bus, serial, memory, word(part(row, "driver", "version"), 64)))
        if not cards:
            raise BackendError("amd: amd-smi lists no GPU; load the amdgpu driver, or take 'amd' out of backends")
        return tuple(cards)

    def read(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for row in self._source.metric():
            index = number(row.get("gpu"))
            key = "" if index is None else str(int(index))
            if key not in slots:
                continue
            readings[key] = Reading(_values(row, self._limits.get(key)))
            _notice(row, slots[key], seen, now_ms)
        self._one_more(slots, seen, now_ms)
        for key, pids in self._pids.items():
            if key in readings:
                readings[key].pids = pids
                if readings[key].values:
                    readings[key].values["processes"] = len(pids)
        return readings

    def close(self) -> None:
        self._source.close()

    def _one_more(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> None:
        """One more run of the tool per reading, so that a reading stays well within ``driver_timeout_ms``: a list that
        is due, else the processes."""
        for name, read in (("pages", self._list_pages), ("cper", self._list_cper)):
            if name not in self._listed_ms or now_ms - self._listed_ms[name] >= LISTS_MS:
                self._listed_ms[name] = now_ms
                read(slots, seen, now_ms)
                return
        try:
            rows = self._source.processes()
            self._pids = dict(_pids_of(row) for row in rows if number(row.get("gpu")) is not None)
        except BackendError as error:
            self._lacks("process", error)
            self._pids = {}

    def _list_pages(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> None:
        try:
            rows = self._source.bad_pages()
        except BackendError as error:
            self._lacks("bad-pages", error)
            return
        for row in rows:
            index = number(row.get("gpu"))
            slot = slots.get(str(int(index))) if index is not None else None
            if slot is None:
                continue
            for name, code in _PAGES:
                pages = row.get(name)
                listed = [pages] if isinstance(pages, dict) else pages if isinstance(pages, list) else []
                addresses = [str(page.get("page_address")) for page in listed if isinstance(page, dict)]
                if pages is None or pages == "N/A":
                    continue
                for address in seen.fresh(f"{name} {slot}", addresses):
                    seen.say(slot, int(code), f"bad page at {address}: {name} (amd-smi bad-pages)", now_ms)

    def _list_cper(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> None:
        try:
            table = self._source.cper()
        except BackendError as error:
            self._lacks("ras --cper", error)
            return
        records: dict[str, tuple[str, str, list[str]]] = {}
        alike: Counter[str] = Counter()
        for line in table.splitlines():
            match = _CPER.match(line[:MAX_ROW])
            if match and match.group(2) in slots:
                stamp, gpu, severity, _, afids = match.groups()
                numbered = f"{stamp} {gpu} {severity} {afids.strip()}"
                records[f"{numbered} #{alike[numbered]}"] = (slots[gpu], severity, afids.split())
                alike[numbered] += 1
        for name in seen.fresh("cper", records):
            slot, severity, afids = records[name]
            words = _severity(severity)
            for afid in afids or ("",):
                code = int(afid) if afid else int(_CPER_CODES[words])
                seen.say(
                    slot, code, f"CPER record, {words}, AFID {afid or 'unknown'} (amd-smi ras --cper)", now_ms, afid
                )

    def _lacks(self, what: str, error: BackendError) -> None:
        if what not in self._without:
            self._without.add(what)
            log.warning("AMD: %s is not available here: %s.", what, error)


_CPER_CODES = {
    "fatal": AmdCode.CPER_FATAL,
    "non-fatal uncorrected": AmdCode.CPER_UNCORRECTED,
    "corrected": AmdCode.CPER_CORRECTED,
}


def _severity(word_of_tool: str) -> str:
    """ "FATAL", "NONFATAL-UNCORRECTED", "non_fatal_corrected", … in the catalogue's words."""
    said = word_of_tool.lower().replace("_", "").replace("-", "")
    if said.endswith("uncorrected"):
        return "non-fatal uncorrected"
    return "corrected" if said.endswith("corrected") else "fatal"


def _values(row: dict[str, Any], limits: _Limits | None) -> dict[str, float]:
    clocks = part(row, "clock")
    clocks = clocks if isinstance(clocks, dict) else {}
    engines = [clocks[name] for name in clocks if str(name).lower().startswith("gfx_")]
    found: dict[str, float | None] = {
        "temperature": _first(part(row, "temperature", "hotspot"), part(row, "temperature", "edge")),
        "temperature_memory": number(part(row, "temperature", "mem")),
        "power": _first(part(row, "power", "socket_power"), part(row, "power", "average_socket_power")),
        "clock_sm": _highest(part(engine, "clk") for engine in engines),
        "clock_sm_max": _highest(part(engine, "max_clk") for engine in engines) or None,
        "clock_memory": number(part(clocks, "mem_0", "clk")),
        "utilisation": number(part(row, "usage", "gfx_activity")),
        "memory_used": mib(part(row, "mem_usage", "used_vram")),
        "memory_total": mib(part(row, "mem_usage", "total_vram")),
        "ecc_corrected": number(part(row, "ecc", "total_correctable_count")),
        "ecc_uncorrected": number(part(row, "ecc", "total_uncorrectable_count")),
        "pcie_width": number(part(row, "pcie", "width")),
        "pcie_generation": generation(part(row, "pcie", "speed")),
        "pcie_replays": number(part(row, "pcie", "replay_count")),
    }
    known = {name: value for name, value in found.items() if value is not None}
    if known and limits:  # a card that says nothing now must not look as if it did
        fixed = {"temperature_slowdown": limits.slowdown, "power_limit": limits.power,
                 "pcie_width_max": limits.pcie_width, "pcie_generation_max": limits.pcie_generation}  # fmt: skip
        known |= {name: value for name, value in fixed.items() if value is not None}
    return known


def _notice(row: dict[str, Any], slot: str, seen: Conditions, now_ms: int) -> None:
    blocks = part(row, "ecc_blocks")
    for name, counts in blocks.items() if isinstance(blocks, dict) else ():
        block = BLOCKS.get(str(name).lower())
        for counter, first, words in _COUNTS if block is not None else ():
            more = seen.grew(slot, f"{name} {counter}", number(part(counts, counter)))
            if more and block is not None:
                message = f"{more:.0f} {words} hardware errors in {block.name} (amd-smi)"
                seen.say(slot, amd_block(block, first), message, now_ms)
    throttle = part(row, "throttle")
    for name in _THERMAL:
        status = part(throttle, f"{name}_violation_status")
        on = {"ACTIVE": True, "NOT ACTIVE": False}.get(str(status).upper())
        message = f"clocks are held down: {name} limit in force (amd-smi)"
        seen.lasts(slot, name, on, int(AmdCode.THERMAL_THROTTLE), message, now_ms)


def _pids_of(row: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    listed = row.get("process_list")
    pids = (number(part(entry, "process_info", "pid")) for entry in listed if isinstance(entry, dict)) \
        if isinstance(listed, list) else ()  # fmt: skip
    return str(int(number(row.get("gpu")) or 0)), tuple(int(pid) for pid in pids if pid is not None and pid > 0)


def _first(*values: Any) -> float | None:
    return next((found for value in values if (found := number(value)) is not None), None)


def _highest(values: Any) -> float | None:
    return max((found for value in values if (found := number(value)) is not None), default=None)
