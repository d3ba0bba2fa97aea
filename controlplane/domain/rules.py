"""Runs the rulebook over the fleet table: whole columns at once, and what changed comes out. Pure but for its memory
of since when each condition has held.

Unknown (NaN, stale, not heard) is never "no": a row that is not known keeps what was concluded before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.fleet import NEVER_MS, FleetTable
from controlplane.domain.rulebook import RULES, SILENT, VERSION, Columns, Rule
from controlplane.domain.words import made_id
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, FindingId
from gridkeeper.records.common import Scope
from gridkeeper.records.faults import FindingRecord
from gridkeeper.records.fleet import DeviceRecord

STALE_MS = 15_000
"""A row without a new sample for so long is not judged, and that is a finding of its own."""
WINDOW_MS = 60_000
GRAIN_MS = 5_000
"""Growth per minute is measured against copies of the counters that are kept this far apart."""

UNKNOWN, CLEAR, RAISED = -1, 0, 1


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule's verdict on a device has changed (or is known for the first time). ``values``: ``metric=value`` of what
    it looked at."""

    device: DeviceId
    rule: Rule
    raised: bool
    values: tuple[str, ...]


class _Growth:
    """How much each counter grew within the last window, per row. A counter that fell (the driver was loaded anew)
    starts again."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._copies: deque[tuple[int, NDArray[np.float32]]] = deque()

    def clear(self) -> None:
        self._copies.clear()

    def take(self, table: FleetTable, now_ms: int) -> NDArray[np.float32]:
        column = table.column(self._metric)
        if not self._copies or now_ms - self._copies[-1][0] >= GRAIN_MS:
            self._copies.append((now_ms, column.copy()))
        while len(self._copies) > 1 and now_ms - self._copies[1][0] >= WINDOW_MS:
            self._copies.popleft()
        oldest = self._copies[0][1]
        fresh = np.isnan(oldest) & ~np.isnan(column)
        if fresh.any():  # first heard after the copy was made: grows from here
            oldest[fresh] = column[fresh]
        growth = column - oldest
        fell = growth < 0
        if fell.any():
            for _, copy in self._copies:
                copy[fell] = column[fell]
            growth[fell] = 0
        return growth


class RuleEngine:
    """``evaluate`` as often as you like; a verdict is told once."""

    def __init__(self, rules: tuple[Rule, ...] = RULES) -> None:
        self._rules = rules
        self._layout = -1
        self._verdict: NDArray[np.int8] = np.zeros((0, 0), np.int8)
        self._since: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        growing = {need.removesuffix("/min") for rule in rules for need in rule.needs if need.endswith("/min")}
        self._growth = {metric: _Growth(metric) for metric in sorted(growing)}

    def evaluate(self, table: FleetTable, now_ms: int) -> tuple[Transition, ...]:
        """Transitions by rule, then by row."""
        if self._layout != table.layout:
            self._begin(table)
        known_row = table.used & (table.seen_ms != NEVER_MS)
        stale = known_row & (now_ms - table.seen_ms > STALE_MS)
        columns: dict[str, NDArray[np.float32]] = {
            f"{metric}/min": growth.take(table, now_ms) for metric, growth in self._growth.items()
        }
        found: list[Transition] = []
        with np.errstate(invalid="ignore"):
            for index, rule in enumerate(self._rules):
                for need in rule.needs:
                    if need not in columns:
                        columns[need] = table.column(need)
                known = known_row & ~stale
                for need in rule.needs:
                    known = known & ~np.isnan(columns[need])
                hit = np.zeros(table.rows, np.bool_)
                hit[known] = rule.condition({need: columns[need][known] for need in rule.needs})
                found += self._settle(index, rule, table, columns, known, hit, now_ms)
            found += self._settle(len(self._rules), SILENT, table, columns, known_row, stale, now_ms)
        return tuple(found)

    def _begin(self, table: FleetTable) -> None:
        """Rows have changed hands: every verdict is new, every counter starts again."""
        self._layout = table.layout
        shape = (len(self._rules) + 1, table.rows)
        self._verdict = np.full(shape, UNKNOWN, np.int8)
        self._since = np.full(shape, -1, np.int64)
        for growth in self._growth.values():
            growth.clear()

    def _settle(
        self,
        index: int,
        rule: Rule,
        table: FleetTable,
        columns: Columns,
        known: NDArray[np.bool_],
        hit: NDArray[np.bool_],
        now_ms: int,
    ) -> list[Transition]:
        since, verdict = self._since[index], self._verdict[index]
        since[known & ~hit] = -1
        begins = known & hit & (since < 0)
        since[begins] = now_ms
        raised = known & hit & (now_ms - since >= rule.hold_ms)
        cleared = known & ~hit
        changed = (raised & (verdict != RAISED)) | (cleared & (verdict != CLEAR))
        verdict[raised] = RAISED
        verdict[cleared] = CLEAR
        return [
            Transition(table.device_at(int(row)), rule, bool(raised[row]), _values(rule, columns, int(row)))
            for row in np.flatnonzero(changed)
        ]


def _values(rule: Rule, columns: Columns, row: int) -> tuple[str, ...]:
    return tuple(f"{need}={float(columns[need][row]):g}" for need in rule.needs)


def finding_for(
    transition: Transition,
    device: DeviceRecord,
    findings: Mapping[str, Versioned[FindingRecord]],
    wall_ms: int,
    trace: str,
) -> FindingRecord | None:
    """The finding as it should be after a transition; None: it is so already. ``trace``: for one that is new."""
    rule = transition.rule
    name = FindingId(made_id(device.id, f"rule-{rule.name}"))
    held = findings.get(name)
    old = held.record if held else None
    if old is None and not transition.raised:
        return None
    if old is not None and old.active == transition.raised:
        return None
    if old is not None and not transition.raised:
        return replace(old, active=False)
    values = f" ({', '.join(transition.values)})" if transition.values else ""
    return FindingRecord(
        id=name,
        region=device.region,
        node=device.node,
        device=device.id,
        scope=Scope.DEVICE,
        fault_class=rule.fault_class,
        code=rule.name,
        severity=rule.severity,
        action=rule.action,
        sentence=f"{device.id}: {rule.meaning}{values}",
        evidence=transition.values,
        observed_ms=wall_ms,
        rule=rule.name,
        rule_version=VERSION,
        active=True,
        trace=trace,
    )
