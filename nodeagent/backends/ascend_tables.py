"""What ``npu-smi info`` prints, as values. Pure. Two lines per chip; their columns vary by card and version:

    | NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
    | Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
    | 0     Ascend910           | OK            | 178.5       36                0    / 0             |
    | 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |

A row that does not fit its heads is not used; a table without any chip is an error, never "no devices".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gridkeeper.ports.devices import BackendError
from nodeagent.backends.values import number
from nodeagent.pci import normal_bus_id

MAX_LINE = 1_024
"""Characters of a line that are looked at: patterns are not linear in what they do not fit."""

_VERSION = re.compile(r"\| npu-smi (\S{1,32})\s")
_FIRST = re.compile(r"([0-9]{1,6})\s+(\S{1,32})\Z")
_SECOND = re.compile(r"([0-9]{1,4})(?:\s+(?:[0-9]{1,6}|NA|-))?\Z")
_PAIR = re.compile(r"([0-9]{1,9})\s*/\s*([0-9]{1,9})")
_PROCESS = re.compile(r"\|\s*([0-9]{1,6})\s+([0-9]{1,4})\s*\|\s*([0-9]{1,10})\s*\|")
_FIELD = re.compile(r"\s*([A-Za-z][\w ()%/-]{1,60}?)\s*:\s?(.*?)\s*\Z")
_CODE = re.compile(r"\b(?:0x)?([0-9A-Fa-f]{8})\b")


@dataclass(slots=True)
class Chip:
    npu: str
    chip: str
    name: str
    health: str  # "OK", "Warning", "Alarm", "Critical", "UNKNOWN"
    pci_bus_id: str
    memory_total: float | None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.npu}.{self.chip}"


def read_info(text: str) -> tuple[str, tuple[Chip, ...]]:
    """(version, chips). Raises ``BackendError`` for a table that lists none."""
    version = _VERSION.search(text)
    has_hbm = "HBM-Usage(MB)" in text
    if version is None or "AICore(%)" not in text or "Memory-Usage(MB)" not in text:
        raise BackendError(f"npu-smi info: prints no table that is known: {text[:80]!r}")
    chips: list[Chip] = []
    first: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if "Process id" in line:
            break
        if len(cells) != 3:
            first = None
            continue
        if first is None:
            first = cells if _FIRST.match(cells[0]) else None
            continue
        chip = _chip(first, cells, has_hbm)
        if chip:
            chips.append(chip)
        first = None
    if not chips:
        raise BackendError(
            "npu-smi info: lists no chip; load the driver (npu-smi info must show it), or has it changed?"
        )
    return version.group(1), tuple(chips)


def _chip(first: list[str], second: list[str], has_hbm: bool) -> Chip | None:
    head, place = _FIRST.match(first[0]), _SECOND.match(second[0])
    bus = normal_bus_id(second[1])
    if not head or not place:
        return None
    pairs = [(float(used), float(total)) for used, total in _PAIR.findall(second[2])]
    wanted = 2 if has_hbm else 1
    memory = pairs[wanted - 1] if len(pairs) == wanted else None
    columns = first[2].split()
    found: dict[str, float | None] = {
        "power": number(columns[0]) if columns else None,
        "temperature": number(columns[1]) if len(columns) > 1 else None,
        "utilisation": number(second[2].split()[0]) if second[2].split() else None,
    }
    if memory:
        found |= {"memory_used": memory[0], "memory_total": memory[1]}
    values = {name: value for name, value in found.items() if value is not None}
    return Chip(head.group(1), place.group(1), head.group(2), first[1], bus, memory[1] if memory else None, values)


def read_processes(text: str) -> dict[str, tuple[int, ...]]:
    """Chip's key -> pids."""
    found: dict[str, list[int]] = {}
    for npu, chip, pid in _PROCESS.findall(text.partition("Process id")[2]):
        found.setdefault(f"{npu}.{chip}", []).append(int(pid))
    return {key: tuple(pids) for key, pids in found.items()}


def page(text: str) -> dict[str, str]:
    """The fields of a page like ``npu-smi info -t health``. Raises ``BackendError`` for one without any."""
    lines = (line[:MAX_LINE] for line in text.splitlines())
    fields = {match.group(1): match.group(2) for line in lines if (match := _FIELD.match(line))}
    if not fields:
        raise BackendError(f"npu-smi: prints no page that is known: {text[:80]!r}")
    return fields


def fault_codes(health: dict[str, str]) -> dict[int, str]:
    """Of a health page: code -> as npu-smi spells it."""
    said = health.get("Error Code", "")
    return {int(code, 16): code.upper() for code in _CODE.findall(said) if int(code, 16)}
