"""Runs the policy's rules over the fleet table: all rules, whole columns at once, and what has to change comes out.
Pure but for its memory of how long each condition has held.

What is raised is what the store's findings say: a transition is told again until the store shows it, by whichever
replica hears the device, so that no verdict is lost with a process. Only timers live here; they start anew with a
process. Unknown (NaN, stale, not heard) is never "no": it stops a timer without resetting it, and neither raises nor
clears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from controlplane.domain.evidence import SILENT_ROW
from controlplane.domain.fleet import NEVER_MS, FleetTable
from controlplane.domain.growth import Growths
from controlplane.domain.rowlabels import Inventory, RowLabels, same
from controlplane.domain.rulefindings import Transition, agrees, is_rules
from controlplane.domain.ruletimer import NO_ROWS, Mask, Rows, Timer
from gridkeeper.decision import Versioned
from gridkeeper.policy.columns import AGE, COLUMNS
from gridkeeper.policy.expression import Compiled, compile_expression
from gridkeeper.policy.model import Mode, Policy, RulePolicy
from gridkeeper.records.common import Action, Severity
from gridkeeper.records.faults import FindingRecord
from gridkeeper.selector import parse as parse_selector

STALE_MS = 15_000
"""A row without a new sample for so long is not judged, and that is a finding of its own."""
MOST = 1_000
"""Transitions of one pass. What is left follows in the next, since the store does not show it yet."""

SILENT = RulePolicy(
    SILENT_ROW, f"age_ms > {STALE_MS}", Severity.ERROR, Action.WATCH, "telemetry", "telemetry has stopped coming"
)
"""In force whatever the policy: a device that is not measured is unknown, and that must be seen."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A finding of the store as the engine last saw it. ``row``: of its device; None: it is none of a rule, or not
    active, or not of this table. ``agrees``: with the rule in force."""

    versioned: Versioned[FindingRecord]
    rule: str
    row: int | None
    agrees: bool


class _State:
    """One rule, compiled, and for how long its condition has held where. ``raised``: rows with an active finding;
    ``agreed``: those of them whose finding says what the rule says."""

    def __init__(self, rule: RulePolicy) -> None:
        self.rule = rule
        self.when = compile_expression(rule.when)
        self.clear = compile_expression(rule.clear) if rule.clear else None
        self.selector = parse_selector(rule.select)
        self.holding = Timer(rule.for_ms)
        self.calm = Timer(rule.clear_ms)
        self.raised: Rows = NO_ROWS
        self.agreed: Rows = NO_ROWS

    def begin(self, rows: int) -> None:
        self.holding.begin(rows)
        self.calm.begin(rows)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        return (self.when, self.clear) if self.clear else (self.when,)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.compiled for name in one.columns))

    @property
    def growths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(growth.column for one in self.compiled for growth in one.growths))


class RuleEngine:
    """``evaluate`` as often as you like: a pass over what has not changed finds nothing."""

    def __init__(self, policy: Policy) -> None:
        self._states: tuple[_State, ...] = ()
        self._silent = _State(SILENT)
        self._growths = Growths()
        self._orphans: tuple[Transition, ...] = ()
        self._layout = -1
        self._before: NDArray[np.int64] = np.zeros(0, np.int64)
        self._labels = RowLabels()
        self._findings: Mapping[str, Versioned[FindingRecord]] | None = None
        self._held: dict[str, _Held] = {}
        self._inventory: tuple[object, ...] = ()
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Judge by this policy from now on. Rules that it has unchanged keep their timers."""
        old = {state.rule: state for state in self._states}
        self._states = tuple(old.get(rule) or _State(rule) for rule in policy.rules if rule.mode is not Mode.OFF)
        self._columns = sorted({name for state in self._states for name in state.columns})
        self._growths.adopt({growth for state in self._states for one in state.compiled for growth in one.growths})
        self._labels = RowLabels(
            {name for name in self._columns if name != AGE.name and not COLUMNS[name].metric},
            {state.selector for state in self._states if state.selector},
        )
        for state in self._states:
            if state.rule not in old:
                state.begin(len(self._before))
        self._look_anew()

    def _look_anew(self) -> None:
        """At every finding and label: the rules or the rows are others."""
        self._findings, self._inventory = None, ()
        self._held.clear()
        for state in (*self._states, self._silent):
            state.raised = state.agreed = NO_ROWS

    def _hold(self, table: FleetTable, findings: Mapping[str, Versioned[FindingRecord]]) -> None:
        """What the store says is raised on the devices of this table. Costs what changed: a storm leaves thousands of
        findings, of which each write changes one."""
        rules = {state.rule.name: state.rule for state in (*self._states, self._silent)}
        touched: set[str] = set()
        for name in [name for name in self._held if name not in findings]:
            touched.add(self._held.pop(name).rule)
        for name, versioned in findings.items():
            old = self._held.get(name)
            if old is not None and old.versioned is versioned:
                continue
            record = versioned.record
            row = table.row(record.device) if record.active and is_rules(record) else None
            rule = rules.get(record.rule)
            self._held[name] = _Held(versioned, record.rule, row, rule is not None and agrees(record, rule))
            touched.add(record.rule)
        for state in (*self._states, self._silent):
            if state.rule.name in touched:
                held = [h for h in self._held.values() if h.rule == state.rule.name and h.row is not None]
                state.raised = np.array(sorted(h.row for h in held if h.row is not None), np.int64)
                state.agreed = np.array(sorted(h.row for h in held if h.row is not None and h.agrees), np.int64)
        self._orphans = tuple(  # their rule is not in the policy any more
            Transition(h.versioned.record.device, h.rule, None)
            for h in self._held.values()
            if h.row is not None and h.rule not in rules
        )

    def evaluate(
        self, table: FleetTable, findings: Mapping[str, Versioned[FindingRecord]], inventory: Inventory, now_ms: int
    ) -> tuple[Transition, ...]:
        """What has to change in the store, by rule, then by row; at most ``MOST``. ``findings`` and the mappings of
        ``inventory`` never change once handed in: newer ones are other mappings."""
        if self._layout != table.layout:
            self._begin(table)
        if self._findings is not findings:
            self._hold(table, findings)
            self._findings = findings
        if self._labels.needed and not same(self._inventory, inventory.parts):
            self._labels.refresh(table, inventory)
            self._inventory = inventory.parts
        heard = table.used & (table.seen_ms != NEVER_MS)
        known = heard & (now_ms - table.seen_ms <= STALE_MS)
        found = [*self._orphans, *self._silence(table, heard, known)]
        if self._states:
            frame = self._frame(table, known, now_ms)
            conditions = [state.when.expr.alias(str(i)) for i, state in enumerate(self._states)]
            # Lazy: what conditions share is computed once. Beside the columns: one that is the same whatever they hold
            # has a value per row all the same.
            verdicts = frame.lazy().with_columns(conditions).select(pl.col(c.meta.output_name()) for c in conditions)
            for state, verdict in zip(self._states, verdicts.collect().iter_columns(), strict=True):
                found += _Look(state, verdict, table, frame, known, self._before, self._labels).transitions()
        np.copyto(self._before, table.seen_ms)
        return tuple(found[:MOST])

    def _begin(self, table: FleetTable) -> None:
        """Rows have changed hands: what was counted there is forgotten. All others count on: in a large region some
        node says hello or leaves every few seconds."""
        handed, before = table.handed_after(self._layout), self._before
        self._layout = table.layout
        self._look_anew()
        self._before = table.seen_ms.copy()
        self._before[: len(before)] = before
        self._before[handed] = table.seen_ms[handed]
        self._growths.hand_over(handed, table.rows)
        for state in self._states:
            state.holding.hand_over(handed, table.rows)
            state.calm.hand_over(handed, table.rows)

    def _frame(self, table: FleetTable, known: Mask, now_ms: int) -> pl.DataFrame:
        """What the rules look at, with null for what is not known."""
        columns: list[pl.Series] = []
        for name in self._columns:
            if metric := COLUMNS[name].metric:
                columns.append(pl.Series(name, table.column(metric), nan_to_null=True))
            elif name == AGE.name:
                columns.append(pl.Series(name, (now_ms - table.seen_ms).astype(np.float64)))
            else:
                columns.append(self._labels.column(name, table.rows))
        return pl.DataFrame([*columns, *self._growths.take(table, known, now_ms)])

    def _silence(self, table: FleetTable, heard: Mask, known: Mask) -> Iterator[Transition]:
        silent = self._silent
        for row in np.setdiff1d(np.flatnonzero(heard & ~known), silent.agreed, assume_unique=True)[:MOST]:
            yield Transition(table.device_at(int(row)), SILENT.name, SILENT)
        for row in silent.raised[known[silent.raised]]:
            yield Transition(table.device_at(int(row)), SILENT.name, None)


class _Look:
    """One rule's part of one pass. ``verdict``: its condition per row, null where it is not known."""

    def __init__(
        self,
        state: _State,
        verdict: pl.Series,
        table: FleetTable,
        frame: pl.DataFrame,
        known: Mask,
        before_ms: NDArray[np.int64],
        labels: RowLabels,
    ) -> None:
        self._state = state
        self._verdict = verdict
        self._table = table
        self._frame = frame
        self._known = known
        self._before_ms = before_ms
        self._selected: Mask | None = None
        self._outside: Mask | None = None
        if state.selector:
            self._selected, self._outside = labels.selected(state.selector, table.rows)

    def transitions(self) -> Iterator[Transition]:
        state, table = self._state, self._table
        ready = self._advance(state.holding, self._hits(), self._denied)
        for row in self._less(ready, state.agreed)[:MOST]:
            yield Transition(table.device_at(int(row)), state.rule.name, state.rule, self._values(int(row)))
        if state.raised.size or state.calm.running.size:
            calm, restless = self._calm(state.raised)
            over = self._advance(
                state.calm, state.raised[calm], lambda rows: ~np.isin(rows, state.raised[~calm & ~restless])
            )
            for row in over:
                yield Transition(table.device_at(int(row)), state.rule.name, None, self._values(int(row)))

    def _advance(self, timer: Timer, yes: Rows, no: Callable[[Rows], Mask]) -> Rows:
        return timer.advance(yes, no, self._table.seen_ms, self._before_ms, STALE_MS)

    def _hits(self) -> Rows:
        if not self._verdict.any():
            return NO_ROWS
        hits: Rows = self._verdict.arg_true().to_numpy().astype(np.int64)
        hits = hits[self._known[hits]]
        return hits if self._selected is None else hits[self._selected[hits]]

    def _denied(self, rows: Rows) -> Mask:
        """Where, of these rows, the condition is known not to hold."""
        no = self._known[rows] & _truth(~self._verdict.gather(rows))
        return no if self._outside is None else no | self._outside[rows]

    def _calm(self, rows: Rows) -> tuple[Mask, Mask]:
        """Where, of these rows, the condition to clear is known to hold; where it is known not to."""
        denied = self._denied(rows)
        if self._state.clear is None or not rows.size:
            return denied, self._known[rows] & ~denied & _truth(self._verdict.gather(rows))
        clear = self._frame[rows].with_columns(clear=self._state.clear.expr).get_column("clear")
        hit = _truth(self._verdict.gather(rows))
        known, outside = self._known[rows], False if self._outside is None else self._outside[rows]
        return outside | (known & _truth(clear) & ~hit), known & (hit | _truth(~clear))

    def _values(self, row: int) -> tuple[str, ...]:
        """``column=value`` of what the rule looked at."""
        shown = []
        for name in (*self._state.columns, *self._state.growths):
            value = self._frame.get_column(name)[row]
            text = "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            shown.append(f"{name}={text}")
        return tuple(shown)

    @staticmethod
    def _less(rows: Rows, without: Rows) -> Rows:
        return np.setdiff1d(rows, without, assume_unique=True) if rows.size and without.size else rows


def _truth(series: pl.Series) -> Mask:
    """True where it is known to be true."""
    found: Mask = series.fill_null(False).to_numpy()
    return found
