"""What taking something down now would do to a contract's month. Pure.

Both outlooks assume that everything is up for the rest of the month but for what is asked about; so what breaks here
breaks because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.sla.books import frame_of
from gridkeeper.sla.contract import Contract
from gridkeeper.sla.months import month_window
from gridkeeper.sla.report import Labels, Line, make_report


@dataclass(frozen=True, slots=True)
class Effect:
    """On one subject. ``left_ms``: of the downtime that its target allows this month: as things stand, and after.
    Negative: overdrawn. ``breaks``: it would meet its target, and then would not."""

    commitment: str
    subject: str
    before: Line
    after: Line
    left_ms: Fraction
    left_after_ms: Fraction
    breaks: bool
    owed: Fraction  # more than without it


def effects(
    contract: Contract,
    month: str,
    frame: pl.DataFrame,
    labels: Mapping[str, Labels],
    down: Sequence[str],
    now_ms: int,
    for_ms: int,
) -> tuple[Effect, ...]:
    """Of ``down`` (ledger scopes) being down in [now, now + for), on every subject that it touches. Raises
    ``ValueError``: a scope that the ledger does not have, or a time outside the month."""
    window = month_window(month, contract.zone)
    if not window.from_ms <= now_ms < window.until_ms:
        raise ValueError(f"month: {month} is not the month that it is now in {contract.zone}; use that one")
    if for_ms <= 0:
        raise ValueError(f"for: {for_ms} ms; it must be longer than nothing")
    scopes = frame["scope"].unique().to_list()
    unknown = sorted(set(down) - set(scopes))
    if unknown:
        raise ValueError(f"down: the ledger has no scope {unknown[0]!r} in this month; see 'gridkeeper sla status'")
    until_ms = min(now_ms + for_ms, window.until_ms)
    before = outlook(contract, month, frame, labels, now_ms)
    after = outlook(contract, month, frame, labels, now_ms, frozenset(down), until_ms)
    targets = {promise.name: promise.target / 100 for promise in contract.commitments}
    found = []
    for (name, subject), line in sorted(before.items()):
        then = after[name, subject]
        if then.measured == line.measured:
            continue
        left, left_after = ((1 - targets[name]) * one.measured.whole_ms - one.measured.down_ms for one in (line, then))
        breaks = line.met is True and then.met is False
        found.append(Effect(name, subject, line, then, left, left_after, breaks, then.owed - line.owed))
    return tuple(found)


def outlook(
    contract: Contract,
    month: str,
    frame: pl.DataFrame,
    labels: Mapping[str, Labels],
    now_ms: int,
    taken: frozenset[str] = frozenset(),
    until_ms: int = 0,
) -> dict[tuple[str, str], Line]:
    """The month as it would end, by commitment and subject: everything up from now on, but for what is ``taken`` until
    ``until_ms``."""
    window = month_window(month, contract.zone)
    scopes = frame["scope"].unique().to_list()
    frame = frame.filter(pl.col("from_ms") < now_ms).with_columns(pl.col("until_ms").clip(upper_bound=now_ms))
    last = dict(frame.group_by("scope").agg(pl.col("sequence").max()).iter_rows())
    rest = []
    for scope in scopes:
        number = last.get(scope, 0) + 1
        if scope in taken:
            rest.append(_entry(scope, number, month, now_ms, until_ms, UptimeClass.DOWN))
        begin = until_ms if scope in taken else now_ms
        rest.append(_entry(scope, number + 1, month, begin, window.until_ms, UptimeClass.UP))
    report = make_report(contract, month, frame.vstack(frame_of(rest)), window.until_ms, labels)
    return {(s.commitment.name, line.subject): line for s in report.sections for line in s.lines}


def _entry(scope: str, number: int, month: str, from_ms: int, until_ms: int, kind: UptimeClass) -> EntryRecord:
    return EntryRecord(scope, number, month, from_ms, until_ms, kind, "what if", ())
