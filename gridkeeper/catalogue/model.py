"""What the catalogue says of a fault: entries (data), the opinions of others, and the verdict on one event."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import Confidence
from gridkeeper.records.fleet import EventKind

VERSION = 2
"""Of the data and of how it is read; findings name it as the version of their rule."""


class JobEffect(enum.StrEnum):
    """What becomes of the jobs on the device: ``dies``: of the one that the fault hit; ``all_die``: of every one."""

    SURVIVES = "survives"
    DIES = "dies"
    ALL_DIE = "all_die"
    UNKNOWN = "unknown"


class Evidence(enum.StrEnum):
    """What must be seen before the action is due: one event; what its text says; another fault beside it; or the same
    fault again, by a repeat rule of the policy."""

    ONE = "one"
    TEXT = "text"
    COMPANION = "companion"
    REPEAT = "repeat"


class Taint(enum.StrEnum):
    """Whether what a job writes after it may hold wrong numbers. ``unless_contained``: not if the driver also says
    that it contained the error (XID 94)."""

    NO = ""
    YES = "yes"
    UNLESS_CONTAINED = "unless_contained"


class Disposition(enum.StrEnum):
    """What an action comes to for the hardware. Sources that differ in this are in conflict."""

    STAYS = "stays"
    RESET = "reset"
    HANDS = "hands"


DISPOSITION: dict[Action, Disposition] = {
    Action.IGNORE: Disposition.STAYS,
    Action.WATCH: Disposition.STAYS,
    Action.RESTART_JOB: Disposition.STAYS,
    Action.RESET_DEVICE: Disposition.RESET,
    Action.REBOOT_NODE: Disposition.RESET,
    Action.DRAIN: Disposition.RESET,
    Action.REPLACE: Disposition.HANDS,
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a verdict comes from. ``date``: of publication, or "read" and the day on which it was read. ``tier``:
    ``vendor`` made the hardware or wrote the driver, ``tool`` is somebody's judgement, ``thin`` is little to go by."""

    id: str
    name: str
    version: str
    date: str
    where: str
    tier: str

    @property
    def cited(self) -> str:
        return f"{self.name}, {self.version}, {self.date}"


@dataclass(frozen=True, slots=True)
class Opinion:
    """One source's verdict on a code: its own words, and what they come to here."""

    source: Source
    says: str
    severity: Severity
    action: Action


@dataclass(frozen=True, slots=True)
class Entry:
    """One code. ``says`` and ``then``: the source's own words for the immediate and the later action. ``ends``: codes
    of the same kind whose findings this one ends."""

    kind: EventKind
    code: int
    mnemonic: str
    meaning: str
    says: str
    then: str
    severity: Severity
    scope: Scope
    job: JobEffect
    action: Action
    fault_class: str
    taint: Taint
    evidence: Evidence
    ends: tuple[int, ...]
    source: Source

    @property
    def name(self) -> str:
        return finding_code(self.kind, self.code)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one event means. ``code``: of the finding. ``rule``: the table or the policy's rule that decided.
    ``source``: whose verdict, with version and date. ``place``: where within the device ("link 14", "GPC 4 TPC 1"), as
    far as the text says; "" if it does not."""

    code: str
    fault_class: str
    scope: Scope
    severity: Severity
    action: Action
    meaning: str
    rule: str
    rule_version: int
    source: str
    confidence: Confidence
    job: JobEffect = JobEffect.UNKNOWN
    evidence: Evidence = Evidence.ONE
    shadow: bool = False
    place: str = ""


def finding_code(kind: EventKind, code: int) -> str:
    """``xid-48``; Huawei writes its codes in hexadecimal: ``ascend-80E01801``."""
    if kind is EventKind.ASCEND:
        return f"ascend-{code:08X}"
    return f"{kind.value}-{code}"


def contradict(opinions: tuple[Opinion, ...]) -> bool:
    """Whether the sources differ in what is to become of the hardware."""
    return len({DISPOSITION[opinion.action] for opinion in opinions}) > 1
