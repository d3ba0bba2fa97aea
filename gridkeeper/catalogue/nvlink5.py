"""XIDs 144 to 150 (NVLink 5): the number alone is wrong about half the time; unit, interrupt information and error
status of the kernel's line decide, by the 94 rules of ``nvidia_nvlink5.csv``.

    NVRM: Xid (PCI:0008:01:00): 145, RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 0x00000000 …)

Of the words in parentheses the first is the interrupt information and the second the error status. The interrupt
information has two register layouts; a pattern is 32 characters from bit 31 down to bit 0, ``-`` for any bit. Bits 20
to 25 are the sub-code; in both layouts the lowest bits name the unit.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from gridkeeper.catalogue.model import JobEffect
from gridkeeper.catalogue.tables import rows
from gridkeeper.records.common import Action, Severity

CODES = range(144, 151)

_LINE = re.compile(
    r"\b(?P<unit>[A-Z][A-Z0-9_/]{2,40})\s+(?P<word>Fatal|Non-?fatal|Link Fatal)\b.{0,60}?"
    r"\bLink\s+(?P<link>-?\d{1,3})\s*\((?P<words>0x[0-9a-fA-F]{1,8}(?:[ ,]+0x[0-9a-fA-F]{1,8}){1,7})",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One sub-code. ``layouts``: (mask, value) of the interrupt information, one per register layout."""

    xid: int
    unit: str
    layouts: tuple[tuple[int, int], ...]
    error_status: int
    says: str
    then: str
    severity: str
    origin: str
    effects: str

    def matches(self, intrinfo: int) -> bool:
        return any(intrinfo & mask == value for mask, value in self.layouts)

    def names(self, unit: str) -> bool:
        """Units have an old and a new name ("NETIR_LINK_EVT/NETIR_LINK_DOWN")."""
        own = set(self.unit.upper().split("/"))
        return bool(own & set(unit.upper().split("/")))


@dataclass(frozen=True, slots=True)
class Line:
    """What the kernel's line says. ``fatal``: its own word. ``link`` -1: none in particular."""

    unit: str
    fatal: bool
    link: int
    intrinfo: int
    error_status: int


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All 94. Raises ``ValueError`` or ``KeyError`` if the file is damaged."""
    return tuple(
        Rule(
            xid=int(row["xid"]),
            unit=row["unit"],
            layouts=(_pattern(row["layout_1"]), _pattern(row["layout_2"])),
            error_status=int(row["error_status"], 16),
            says=row["says"],
            then=row["then"],
            severity=row["severity"],
            origin=row["origin"],
            effects=row["effects"],
        )
        for row in rows("nvidia_nvlink5.csv")
    )


def _pattern(text: str) -> tuple[int, int]:
    if len(text) != 32:
        raise ValueError(f"nvidia_nvlink5.csv: pattern {text!r} has {len(text)} characters; it needs 32")
    mask = int("".join("0" if bit == "-" else "1" for bit in text), 2)
    return mask, int(text.replace("-", "0"), 2)


def read(message: str) -> Line | None:
    """The line's unit, link and registers; None: it does not name them (NVML gives the bare number)."""
    found = _LINE.search(message)
    if found is None:
        return None
    words = [int(word, 16) for word in re.split(r"[ ,]+", found["words"])]
    return Line(
        found["unit"].upper(), not found["word"].lower().startswith("non"), int(found["link"]), words[0], words[1]
    )


def decode(xid: int, line: Line) -> Rule | None:
    """The rule for this line; None: no rule, or several that do not say the same, fit it."""
    fitting = [
        rule
        for rule in rules()
        if rule.xid == xid and rule.names(line.unit) and rule.error_status == line.error_status
        and rule.matches(line.intrinfo)
    ]  # fmt: skip
    return fitting[0] if len({(rule.says, rule.severity) for rule in fitting}) == 1 else None


def severity_of(rule: Rule) -> Severity:
    if rule.says == "RESET_GPU":
        return Severity.FATAL
    if rule.says == "IGNORE" and rule.then == "IGNORE":
        return Severity.INFO
    return Severity.WARNING


def action_of(rule: Rule) -> Action:
    """``XID_154_EVAL`` leaves the decision to the driver's XID 154."""
    return Action.RESET_DEVICE if rule.says == "RESET_GPU" else Action.WATCH


def job_of(rule: Rule) -> JobEffect:
    effects = rule.effects.lower()
    if "appcrash" in effects or rule.says == "RESET_GPU":
        return JobEffect.DIES
    if "local: none" in effects and "remote: none" in effects:
        return JobEffect.SURVIVES
    return JobEffect.UNKNOWN
