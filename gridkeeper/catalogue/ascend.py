"""Huawei Ascend: fault codes by level (``ascend.csv``). The level says what is to be done; names of single codes are
public for few of them. Newer lists move some codes: a site that follows them says so in an event rule or chooses the
source ``mindcluster``."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

from gridkeeper.catalogue.model import Entry, Evidence, JobEffect, Source, Taint
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.fleet import EventKind

LINK_DOWN = 0x81078603
"""The one code with a duration rule: 30 s until it is a fault, 60 s until it is over (Ascend device plugin)."""


class Level(enum.StrEnum):
    """Huawei's ladder, from the least. No code has ``PreSeparateNPU`` by default; the duration rule leads to it."""

    NOT_HANDLE = "NotHandleFault"
    RESTART_REQUEST = "RestartRequest"
    RESTART_BUSINESS = "RestartBusiness"
    FREE_RESTART = "FreeRestartNPU"
    PRE_SEPARATE = "PreSeparateNPU"
    RESTART = "RestartNPU"
    SEPARATE = "SeparateNPU"


LEVELS: dict[Level, tuple[Severity, Scope, JobEffect, Action]] = {
    Level.NOT_HANDLE: (Severity.INFO, Scope.DEVICE, JobEffect.SURVIVES, Action.IGNORE),
    Level.RESTART_REQUEST: (Severity.WARNING, Scope.PROCESS, JobEffect.DIES, Action.RESTART_JOB),
    Level.RESTART_BUSINESS: (Severity.WARNING, Scope.PROCESS, JobEffect.DIES, Action.RESTART_JOB),
    # "Reset it when it is idle": nothing new is placed on it (error), and nothing that runs is stopped (watch).
    Level.FREE_RESTART: (Severity.ERROR, Scope.DEVICE, JobEffect.SURVIVES, Action.WATCH),
    # "Place nothing new, leave what runs": the same.
    Level.PRE_SEPARATE: (Severity.ERROR, Scope.DEVICE, JobEffect.SURVIVES, Action.WATCH),
    Level.RESTART: (Severity.FATAL, Scope.DEVICE, JobEffect.ALL_DIE, Action.RESET_DEVICE),
    Level.SEPARATE: (Severity.FATAL, Scope.DEVICE, JobEffect.ALL_DIE, Action.DRAIN),
}
"""Level -> severity, scope, effect on jobs, action."""


def entries(rows: Iterator[dict[str, str]], sources: Mapping[str, Source]) -> Iterator[Entry]:
    """Entries of the table. Raises ``ValueError`` for a level or code that is none."""
    for row in rows:
        level = Level(row["level"])
        severity, scope, job, action = LEVELS[level]
        code = int(row["code"], 16)
        yield Entry(
            kind=EventKind.ASCEND,
            code=code,
            mnemonic=f"0x{code:08X}",
            meaning=row["meaning"] or f"Ascend fault of level {level.value}",
            says=level.value,
            then="",
            severity=severity,
            scope=Scope.LINK if row["fault_class"] == "link" else scope,
            job=job,
            action=action,
            fault_class=row["fault_class"],
            taint=Taint(row["taint"]),
            evidence=Evidence.REPEAT if code == LINK_DOWN else Evidence.ONE,
            ends=(),
            source=sources["ascend"],
        )
