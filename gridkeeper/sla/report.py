"""A contract's report of a month: availability of everything that it covers, the outages with their evidence, what is
left out, and the credits owed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import polars as pl

from gridkeeper.ids import DeviceId, node_of
from gridkeeper.records.books import Totals, UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.selector import parse as parse_selector
from gridkeeper.sla import columns
from gridkeeper.sla.books import Grouped, grouped
from gridkeeper.sla.contract import Commitment, Contract, Per
from gridkeeper.sla.credit import credit_percent, money
from gridkeeper.sla.measure import Measured
from gridkeeper.sla.members import with_unexcused
from gridkeeper.sla.months import month_window
from gridkeeper.sla.spans import Window

MAX_OUTAGES = 20
"""Listed per subject that missed its target, the longest first; the rest is counted."""

NOT_UP = [kind.value for kind in UptimeClass if kind is not UptimeClass.UP]

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outage:
    """A time that was not up, as the ledger has it. ``refs``: incidents, drains, migrations: its evidence."""

    scope: str
    from_ms: int
    until_ms: int
    uptime: str
    reason: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One subject of one commitment. ``credit``: percent of its charge; ``owed``: in the currency, exact."""

    subject: str
    measured: Measured
    totals: Totals
    met: bool | None
    credit: Fraction
    owed: Fraction
    outages: tuple[Outage, ...]
    more_outages: int


@dataclass(frozen=True, slots=True)
class Section:
    """``exempt``: why this commitment promises nothing here; "": it does."""

    commitment: Commitment
    lines: tuple[Line, ...]
    exempt: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """An exclusion of this month. ``scopes``: how many of the contract's it touches; ``scope``: the first of them.
    ``counts``: the contract leaves out such a cause."""

    cause: Cause
    from_ms: int
    until_ms: int
    scope: str
    scopes: int
    reason: str  # and who recorded it, when
    refs: tuple[str, ...]
    counts: bool


@dataclass(frozen=True, slots=True)
class Report:
    """``until_ms``: up to when it is measured: before the month's end, while the month is open. ``owed``: of all lines,
    exact; ``payable``: rounded, after the minimum payout."""

    contract: Contract
    month: str
    window: Window
    until_ms: int
    sections: tuple[Section, ...]
    owed: Fraction
    payable: str
    claim_by_ms: int
    exclusions: tuple[Left, ...] = ()

    @property
    def open(self) -> bool:
        return self.until_ms < self.window.until_ms


def make_report(
    contract: Contract, month: str, frame: pl.DataFrame, now_ms: int, labels: Mapping[str, Labels] | None = None
) -> Report:
    """``frame``: entries as ``books.SCHEMA``; ``labels``: of scopes, beside those in their names. A scope whose ledger
    begins in the month is measured from then on; other time without entries is unknown. Raises ``BadMonth``;
    ``ValueError`` for a month that has not begun."""
    window = month_window(month, contract.zone)
    if now_ms <= window.from_ms:
        raise ValueError(f"month: {month} has not begun; report an earlier one")
    so_far = Window(window.from_ms, min(window.until_ms, now_ms))
    frame = _within(frame, so_far)
    sections = measured(contract, frame, so_far, labels or {})
    owed = sum((line.owed for section in sections for line in section.lines), Fraction(0))
    paid = owed if owed >= contract.minimum_payout else Fraction(0)
    claim_by = window.until_ms + contract.claim_days * 86_400_000 if contract.claim_days else 0
    return Report(
        contract, month, window, so_far.until_ms, sections, owed, str(money(paid, contract.decimals)), claim_by,
        _left_out(contract, frame, labels or {}),
    )  # fmt: skip


def measured(
    contract: Contract, frame: pl.DataFrame, window: Window, labels: Mapping[str, Labels]
) -> tuple[Section, ...]:
    """Each commitment in any window, as a month's report measures it."""
    frame = _within(frame, window)
    return tuple(_section(contract, promise, frame, window, labels) for promise in contract.commitments)


def _within(frame: pl.DataFrame, window: Window) -> pl.DataFrame:
    return frame.filter((pl.col("until_ms") > window.from_ms) & (pl.col("from_ms") < window.until_ms))


def _left_out(contract: Contract, frame: pl.DataFrame, labels: Mapping[str, Labels]) -> tuple[Left, ...]:
    """In order of time."""
    rows = frame.filter(pl.col("uptime").is_in([cause.value for cause in Cause]))
    if rows.is_empty():
        return ()
    covered = {scope for promise in contract.commitments for scope in _subjects(promise, frame, labels)}
    same = ["from_ms", "until_ms", "uptime", "reason", "refs"]
    groups = rows.filter(pl.col("scope").is_in(list(covered))).group_by(same).agg(
        pl.col("scope").min().alias("first"), pl.col("scope").n_unique().alias("count")
    )  # fmt: skip
    return tuple(
        Left(
            Cause(row["uptime"]), row["from_ms"], row["until_ms"], row["first"], row["count"], row["reason"],
            tuple(row["refs"] or ()), Cause(row["uptime"]) in contract.rule.causes,
        )
        for row in groups.sort("from_ms", "until_ms", "uptime", "reason").iter_rows(named=True)
    )  # fmt: skip


def _section(
    contract: Contract, promise: Commitment, frame: pl.DataFrame, window: Window, labels: Mapping[str, Labels]
) -> Section:
    if promise.per in (Per.DEVICE, Per.NODE) and not contract.covers_accelerators:
        return Section(promise, (), "the contract does not cover accelerators")
    subjects = _subjects(promise, frame, labels)
    if not subjects:
        return Section(promise, ())
    group = grouped(frame, subjects)
    since = np.array([group.since_ms[subject] for subject in group.subjects], np.int64)
    rows = with_unexcused(group, frame, window, contract.rule)
    found = columns.measure(columns.resolve(rows, len(group.subjects), window, since), contract.rule)
    missed = columns.availability_below(found, *(promise.target / 100).as_integer_ratio())
    outages = _outages(frame, group, {group.subjects[i] for i in missed.nonzero()[0].tolist()})
    lines = []
    for index, subject in enumerate(group.subjects):
        measured = Measured(
            int(found.elapsed_ms[index]),
            int(found.down_ms[index]),
            int(found.excluded_ms[index]),
            int(found.raw_down_ms[index]),
            contract.rule.exclude,
        )
        totals = Totals(*(int(ms) for ms in found.totals[index]))
        credit = credit_percent(measured.availability, promise.tiers)
        listed, more = outages.get(subject, ((), 0))
        met = None if measured.availability is None else not bool(missed[index])
        owed = promise.charge * credit / 100
        lines.append(Line(subject, measured, totals, met, credit, owed, listed, more))
    return Section(promise, tuple(lines))


def _subjects(promise: Commitment, frame: pl.DataFrame, labels: Mapping[str, Labels]) -> dict[str, str]:
    """Ledger scope -> subject, of what the commitment is about."""
    kind = "device" if promise.per is Per.NODE else promise.per.value
    selector = parse_selector(promise.select) if promise.select else None
    found: dict[str, str] = {}
    for scope in frame["scope"].unique().to_list():
        what, _, name = scope.partition("/")
        if what != kind:
            continue
        own = {**labels.get(scope, {}), what: name}
        if what == "device":
            own["node"] = str(node_of(DeviceId(name)))
        if selector is None or selector.matches(own):
            found[scope] = f"node/{own['node']}" if promise.per is Per.NODE else scope
    return found


def _outages(frame: pl.DataFrame, group: Grouped, wanted: set[str]) -> dict[str, tuple[tuple[Outage, ...], int]]:
    """Of subjects that missed their target: what was not up, the longest first."""
    if not wanted:
        return {}
    scopes = {scope: subject for subject in wanted for scope in group.members[subject]}
    rows = frame.filter(pl.col("scope").is_in(list(scopes)) & pl.col("uptime").is_in(NOT_UP))
    rows = rows.sort((pl.col("until_ms") - pl.col("from_ms")), "scope", "from_ms", descending=[True, False, False])
    found: dict[str, list[Outage]] = {}
    more: dict[str, int] = {}
    for row in rows.iter_rows(named=True):
        subject = scopes[row["scope"]]
        listed = found.setdefault(subject, [])
        if len(listed) < MAX_OUTAGES:
            listed.append(
                Outage(
                    row["scope"],
                    row["from_ms"],
                    row["until_ms"],
                    row["uptime"],
                    row["reason"],
                    tuple(row["refs"] or ()),
                )
            )
        else:
            more[subject] = more.get(subject, 0) + 1
    return {subject: (tuple(listed), more.get(subject, 0)) for subject, listed in found.items()}
