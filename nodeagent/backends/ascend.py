"""Huawei Ascend through ``npu-smi`` (recordings of 23.0 to 25.5): the table of ``info``, the pages ``-t health``,
``-t ecc`` and ``-t board``. Pure parsing is in ``ascend_tables``.

The health page names fault codes (32 bits, hexadecimal: 80E01801); each that it names is an event, renewed while it is
named. A chip whose health is not OK is asked at each sample, the others in turn, one per sample, so that minor codes
are found too. ECC counters are read in turn as well; the value of the last turn is kept until the next, or ``KEEP_MS``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from gridkeeper.ports.devices import BackendError
from gridkeeper.records.fleet import EventKind
from nodeagent.backends.ascend_tables import Chip, fault_codes, page, read_info, read_processes
from nodeagent.backends.polled import Card, Reading
from nodeagent.backends.tool import Tool
from nodeagent.backends.values import number, word
from nodeagent.conditions import Conditions

log = logging.getLogger("gridkeeper.agent.ascend")

KEEP_MS = 180_000
"""16 chips at one per 5 s take 80 s for a turn."""


class AscendVendor:
    """``Vendor`` for Ascend. A key is "npu.chip"."""

    name = "ascend"
    prefix = "npu"
    kind = EventKind.ASCEND
    period_ms = 5_000

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._turn = 0
        self._ecc: dict[str, tuple[dict[str, float], int]] = {}  # key -> (columns, when)
        self._named: dict[str, frozenset[int]] = {}  # key -> codes that its health page named last
        self._lacking: set[str] = set()

    def cards(self) -> tuple[Card, ...]:
        version, chips = read_info(self._tool.run("info"))
        cards = []
        for chip in chips:
            board = self._page("board", chip) or {}
            uuid = word(board.get("VDie ID")).replace(" ", "") or f"ascend-{chip.pci_bus_id or chip.key}"
            model = word(board.get("Chip Name")) or chip.name
            family = model.removeprefix("Ascend")
            memory, serial = int(chip.memory_total or 0), word(board.get("Serial Number"))
            cards.append(
                Card(
                    chip.key, uuid, f"Ascend {family}".strip(), f"ascend{family.lower()}", chip.pci_bus_id, serial,
                    memory, version,
                )
            )  # fmt: skip
        return tuple(cards)

    def read(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> dict[str, Reading]:
        text = self._tool.run("info")
        _, chips = read_info(text)
        pids = read_processes(text)
        readings: dict[str, Reading] = {}
        watched = [chip for chip in chips if chip.key in slots]
        self._turn += 1
        for number_, chip in enumerate(watched):
            its_turn = number_ == self._turn % len(watched)
            if its_turn:
                self._count(chip, now_ms)
            if its_turn or chip.health != "OK":
                self._ask_health(chip, slots[chip.key], seen, now_ms)
            values = dict(chip.values)
            columns, at_ms = self._ecc.get(chip.key, ({}, now_ms))
            if values and now_ms - at_ms < KEEP_MS:
                values |= columns
            readings[chip.key] = Reading(values, pids.get(chip.key, ()))
        return readings

    def close(self) -> None:
        return

    def _ask_health(self, chip: Chip, slot: str, seen: Conditions, now_ms: int) -> None:
        found = self._page("health", chip)
        if found is None:
            if chip.health not in ("OK", "UNKNOWN"):
                seen.lasts(slot, "health", True, 0, f"health is {chip.health}, and npu-smi names no code", now_ms)
            return
        codes = fault_codes(found)
        words = word(found.get("Error Information"), 400)
        for code in self._named.get(chip.key, frozenset()) - codes.keys():
            seen.lasts(slot, f"code {code:08X}", False, code, "", now_ms)
        self._named[chip.key] = frozenset(codes)
        for code, text in codes.items():
            message = f"fault code {text} (npu-smi health: {chip.health}): {words}"
            seen.lasts(slot, f"code {text}", True, code, message, now_ms)
        bad = chip.health not in ("OK", "UNKNOWN") and not codes
        seen.lasts(slot, "health", bad, 0, f"health is {chip.health}, and npu-smi names no code", now_ms)

    def _count(self, chip: Chip, now_ms: int) -> None:
        found = self._page("ecc", chip)
        if found is None:
            return
        memory = "HBM" if any(name.startswith("HBM") for name in found) else "DDR"
        columns = {
            "ecc_corrected": number(found.get(f"{memory} Single Bit Error Count")),
            "ecc_uncorrected": number(found.get(f"{memory} Double Bit Error Count")),
        }
        self._ecc[chip.key] = ({name: value for name, value in columns.items() if value is not None}, now_ms)

    def _page(self, topic: str, chip: Chip) -> dict[str, str] | None:
        """None where this card or driver has no such page; said once."""
        try:
            return page(self._tool.run("info", "-t", topic, "-i", chip.npu, "-c", chip.chip))
        except BackendError as error:
            if topic not in self._lacking:
                self._lacking.add(topic)
                log.warning("Ascend: the page %s is not available: %s.", topic, error)
            return None
