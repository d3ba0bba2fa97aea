"""``resolve`` and ``measure`` over columns: a million statements about a hundred thousand scopes at once, in integers,
to the same millisecond. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla.measure import MINUTE_MS, Counting, Counts, Exclude, Rule, counted_as, raw_as
from gridkeeper.sla.spans import CLASSES, PRECEDENCE, Window

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]

KINDS: tuple[UptimeClass | Cause, ...] = (*CLASSES, *PRECEDENCE)
"""What a row may say; its code is its place here."""
CODE: dict[UptimeClass | Cause, int] = {kind: code for code, kind in enumerate(KINDS)}

_GAP = len(KINDS)
UNEXCUSED = _GAP + 1
"""Plus an index into ``CLASSES``: whatever else is excluded, this class holds and is not (``members``)."""
_UNKNOWN = CLASSES.index(UptimeClass.UNKNOWN)
_CAUSES: tuple[Cause | None, ...] = (None, *PRECEDENCE)
_BITS = 33
"""Of a key are the time within the window: up to 99 days; the rest, up to 2^30, are the scope."""
MAX_SCOPES = 1 << 30


@dataclass(frozen=True, slots=True)
class Statements:
    """Rows in any order. ``scope``: index of the scope; ``kind``: code of ``KINDS``, or from ``UNEXCUSED`` on."""

    scope: Ints
    from_ms: Ints
    until_ms: Ints
    kind: Codes


@dataclass(frozen=True, slots=True)
class Segments:
    """Each scope's window without gap or overlap, in order of scope and time. ``uptime``: index into ``CLASSES``;
    ``cause``: 0, or 1 + index into ``PRECEDENCE``. ``first``: of scope i its first row, and at the end the number of
    rows. Neighbours may be alike."""

    scope: Ints
    from_ms: Ints
    until_ms: Ints
    uptime: Codes
    cause: Codes
    first: Ints


@dataclass(frozen=True, slots=True)
class Report:
    """Per scope. ``totals``: columns in the order of ``UptimeClass``, together the elapsed time."""

    totals: Ints
    down_ms: Ints
    excluded_ms: Ints
    raw_down_ms: Ints
    elapsed_ms: Ints
    exclude: Exclude

    @property
    def whole_ms(self) -> Ints:
        """The denominators."""
        excluded = self.excluded_ms if self.exclude is Exclude.BOTH else np.zeros_like(self.excluded_ms)
        return self.elapsed_ms - excluded


def resolve(rows: Statements, scopes: int, window: Window, since_ms: Ints | None = None) -> Segments:
    """As ``spans.resolve`` for each of the scopes 0..scopes-1. ``since_ms``: the beginning of each one's window, where
    it is later than the window's. Raises ``ValueError`` when they or the window are too many for a key of 64 bits."""
    width = window.elapsed_ms
    if not 0 < width < 1 << _BITS:
        raise ValueError(f"window: {width} ms; it must be longer than nothing and shorter than {1 << _BITS} ms")
    if not 0 < scopes <= MAX_SCOPES:
        raise ValueError(f"scopes: {scopes}; there must be between 1 and {MAX_SCOPES}")
    since = np.zeros(scopes, np.int64) if since_ms is None else np.maximum(since_ms - window.from_ms, 0)
    if since.max() >= width:
        raise ValueError(f"since_ms: {since.max() + window.from_ms}; it must be before the window's end")
    begin = np.clip(rows.from_ms, window.from_ms, window.until_ms) - window.from_ms
    begin = np.maximum(begin, since[rows.scope])
    end = np.clip(rows.until_ms, window.from_ms, window.until_ms) - window.from_ms
    kept = np.flatnonzero(begin < end)
    all_scopes = np.arange(scopes, dtype=np.int64)
    base, gap = rows.scope[kept] << _BITS, all_scopes << _BITS
    # Sorted by (scope, time) in one key; each scope is framed by a statement that says nothing, so it has a row.
    # A ledger's entries follow each other, so edge beside edge they are sorted but for a few: that sort is linear.
    keys = np.concatenate((np.column_stack((base | begin[kept], base | end[kept])).ravel(), gap | since, gap | width))
    kinds = rows.kind[kept] + 1
    framed = np.full(scopes, _GAP + 1, np.int8)
    signed = np.concatenate((np.column_stack((kinds, -kinds)).ravel(), framed, -framed))
    del begin, end, base, gap
    order = np.argsort(keys, kind="stable")
    keys, signed = keys[order], signed[order]
    del order
    # A row is what lies between two neighbouring keys; between two scopes there is nothing.
    lasting = np.flatnonzero((keys[1:] != keys[:-1]) & (keys[1:] >> _BITS == keys[:-1] >> _BITS))
    uptime = np.full(len(lasting), _UNKNOWN, np.int8)
    for code in reversed(range(len(CLASSES))):
        uptime[_active(signed, code, lasting)] = code
    cause = np.zeros(len(lasting), np.int8)
    for index in reversed(range(len(PRECEDENCE))):
        cause[_active(signed, CODE[PRECEDENCE[index]], lasting)] = 1 + index
    for code in reversed(range(len(CLASSES) if kinds.max(initial=0) > UNEXCUSED else 0)):
        unexcused = _active(signed, UNEXCUSED + code, lasting)
        uptime[unexcused], cause[unexcused] = code, 0
    scope = keys[lasting] >> _BITS
    low = (1 << _BITS) - 1
    begin, end = (keys[lasting] & low) + window.from_ms, (keys[lasting + 1] & low) + window.from_ms
    first = np.searchsorted(scope, np.arange(scopes + 1, dtype=np.int64))
    return Segments(scope, begin, end, uptime, cause, first.astype(np.int64))


def _active(signed: Codes, code: int, at: Ints) -> Mask:
    """Whether a statement of that code holds after each of the edges ``at``."""
    change = (signed == code + 1).view(np.int8) - (signed == -code - 1).view(np.int8)
    if not change.any():
        return np.zeros(len(at), np.bool_)
    return np.asarray(np.cumsum(change, dtype=np.int32)[at] > 0)


def measure(segments: Segments, rule: Rule) -> Report:
    """As ``measure.measure`` and ``spans.totals_of`` for each scope."""
    length = segments.until_ms - segments.from_ms
    table = np.empty((len(CLASSES), len(_CAUSES)), np.int8)
    raws = np.empty(len(CLASSES), np.bool_)
    words = tuple(Counts)
    for row, uptime in enumerate(CLASSES):
        raws[row] = raw_as(uptime, rule) is Counts.DOWN
        for column, cause in enumerate(_CAUSES):
            table[row, column] = words.index(counted_as(uptime, cause, rule))
    counts = table[segments.uptime, segments.cause]
    excluded = _per_scope(np.where(counts == words.index(Counts.EXCLUDED), length, 0), segments)
    elapsed = _per_scope(length, segments)
    whole = elapsed - (excluded if rule.exclude is Exclude.BOTH else np.zeros_like(excluded))
    down = _counted(segments, counts == words.index(Counts.DOWN), rule)
    raw = _counted(segments, raws[segments.uptime], rule)
    return Report(
        totals(segments),
        np.minimum(down, whole),
        excluded,
        np.minimum(raw, elapsed),
        elapsed,
        rule.exclude,
    )


def totals(segments: Segments) -> Ints:
    """As ``spans.totals_of`` for each scope: columns in the order of ``UptimeClass``, together the elapsed time."""
    length = segments.until_ms - segments.from_ms
    out = np.zeros((len(segments.first) - 1, len(UptimeClass)), np.int64)
    shown = np.where(segments.cause > 0, CLASSES.index(UptimeClass.EXCLUDED), segments.uptime)
    for column, uptime in enumerate(UptimeClass):
        out[:, column] = _per_scope(np.where(shown == CLASSES.index(uptime), length, 0), segments)
    return out


def _per_scope(values: Ints, segments: Segments) -> Ints:
    return np.asarray(np.add.reduceat(values, segments.first[:-1]), np.int64)  # each scope has a row


def _counted(segments: Segments, down: Mask, rule: Rule) -> Ints:
    """ms of the outages that count, by scope."""
    scopes = len(segments.first) - 1
    rows = np.flatnonzero(down)
    if not len(rows):
        return np.zeros(scopes, np.int64)
    scope, begin, end = segments.scope[rows], segments.from_ms[rows], segments.until_ms[rows]
    starts = np.empty(len(rows), np.bool_)
    starts[0] = True
    starts[1:] = (scope[1:] != scope[:-1]) | (begin[1:] != end[:-1])
    heads = np.flatnonzero(starts)
    scope, begin = scope[heads], begin[heads]
    end = end[np.append(heads[1:], len(rows)) - 1]
    kept = np.flatnonzero(end - begin >= rule.minimum_ms)
    scope, begin, end = scope[kept], begin[kept], end[kept]
    running = np.concatenate((np.zeros(1, np.int64), np.cumsum(_sliced(scope, begin, end, rule.counting))))
    bounds = np.searchsorted(scope, np.arange(scopes + 1))
    return np.asarray(running[bounds[1:]] - running[bounds[:-1]], np.int64)


def _sliced(scope: Ints, begin: Ints, end: Ints, counting: Counting) -> Ints:
    """ms that each outage counts."""
    match counting:
        case Counting.EXACT:
            return end - begin
        case Counting.WHOLE:
            return np.asarray(np.maximum(0, end // MINUTE_MS + (-begin) // MINUTE_MS) * MINUTE_MS)
        case Counting.TOUCHED:
            first, last = begin // MINUTE_MS, -((-end) // MINUTE_MS)
            again = np.zeros(len(scope), np.bool_)
            again[1:] = scope[1:] == scope[:-1]
            first[1:] = np.where(again[1:], np.maximum(first[1:], last[:-1]), first[1:])
            return np.asarray(np.maximum(0, last - first) * MINUTE_MS)
        case Counting.FLOOR:
            return np.asarray((end - begin) // MINUTE_MS * MINUTE_MS)
        case Counting.CEIL:
            return np.asarray(-((begin - end) // MINUTE_MS) * MINUTE_MS)


def availability_below(report: Report, numerator: int, denominator: int) -> Mask:
    """Whose availability is below numerator ÷ denominator, exactly; a scope with nothing to measure is not. Raises
    ``ValueError`` where the products would not fit 64 bits."""
    if not 0 < denominator <= 10**9 or not 0 <= numerator <= denominator:
        raise ValueError(f"target: {numerator}/{denominator}; use at most nine decimals, between 0 and 1")
    whole = report.whole_ms
    return np.asarray((whole - report.down_ms) * denominator < numerator * whole)
