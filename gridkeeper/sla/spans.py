"""What held when: overlapping statements about one scope, resolved so that every millisecond counts once. Pure.

The result depends on the set of statements only: neither on their order, nor on duplicates, nor on how they were cut
into pieces. All times are integer ms since the Unix epoch; intervals are half open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gridkeeper.records.books import Totals, UptimeClass
from gridkeeper.records.settlement import Cause

PRECEDENCE: tuple[Cause, ...] = (Cause.MAINTENANCE, Cause.CUSTOMER, Cause.FORCE_MAJEURE)
"""Of causes that overlap the first counts."""

CLASSES: tuple[UptimeClass, ...] = (
    UptimeClass.EXCLUDED,
    UptimeClass.DOWN,
    UptimeClass.UNKNOWN,
    UptimeClass.DEGRADED,
    UptimeClass.UP,
)
"""Of classes that overlap the first counts: what is in doubt is not in the operator's favour. Time about which nothing
is said is unknown."""


@dataclass(frozen=True, slots=True)
class Window:
    """[from_ms, until_ms)."""

    from_ms: int
    until_ms: int

    @property
    def elapsed_ms(self) -> int:
        return self.until_ms - self.from_ms


@dataclass(frozen=True, slots=True)
class Span:
    """The class of a scope in [from_ms, until_ms). ``EXCLUDED``: booked as such; what was under it is not known."""

    from_ms: int
    until_ms: int
    uptime: UptimeClass


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A time that a contract may leave out, whatever held in it."""

    from_ms: int
    until_ms: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Piece:
    """One class and one cause (None: not excluded) throughout; the neighbours differ in one of them."""

    from_ms: int
    until_ms: int
    uptime: UptimeClass
    cause: Cause | None = None

    @property
    def excluded(self) -> bool:
        return self.cause is not None or self.uptime is UptimeClass.EXCLUDED

    @property
    def ms(self) -> int:
        return self.until_ms - self.from_ms


def resolve(spans: Iterable[Span], exclusions: Iterable[Exclusion], window: Window) -> tuple[Piece, ...]:
    """The window from end to end, without gap or overlap."""
    if window.elapsed_ms <= 0:
        return ()
    edges: list[tuple[int, int, UptimeClass | Cause]] = []
    for span in spans:
        _edges(edges, span.from_ms, span.until_ms, span.uptime, window)
    for exclusion in exclusions:
        _edges(edges, exclusion.from_ms, exclusion.until_ms, exclusion.cause, window)
    edges.sort(key=lambda edge: edge[0])
    active: dict[UptimeClass | Cause, int] = {**dict.fromkeys(CLASSES, 0), **dict.fromkeys(PRECEDENCE, 0)}
    pieces: list[Piece] = []
    since_ms = window.from_ms
    for at_ms, change, what in [*edges, (window.until_ms, 0, UptimeClass.UP)]:
        if at_ms > since_ms:
            _append(pieces, Piece(since_ms, at_ms, _class(active), _cause(active)))
            since_ms = at_ms
        active[what] += change
    return tuple(pieces)


def _edges(
    edges: list[tuple[int, int, UptimeClass | Cause]],
    from_ms: int,
    until_ms: int,
    what: UptimeClass | Cause,
    window: Window,
) -> None:
    begin, end = max(from_ms, window.from_ms), min(until_ms, window.until_ms)
    if begin < end:
        edges += ((begin, 1, what), (end, -1, what))


def _class(active: dict[UptimeClass | Cause, int]) -> UptimeClass:
    return next((kind for kind in CLASSES if active[kind]), UptimeClass.UNKNOWN)


def _cause(active: dict[UptimeClass | Cause, int]) -> Cause | None:
    return next((cause for cause in PRECEDENCE if active[cause]), None)


def _append(pieces: list[Piece], piece: Piece) -> None:
    last = pieces[-1] if pieces else None
    if last is not None and (last.uptime, last.cause) == (piece.uptime, piece.cause):
        pieces[-1] = Piece(last.from_ms, piece.until_ms, piece.uptime, piece.cause)
    else:
        pieces.append(piece)


def totals_of(pieces: Sequence[Piece]) -> Totals:
    """ms by class; what has a cause is excluded. They add up to the elapsed time."""
    sums = dict.fromkeys(UptimeClass, 0)
    for piece in pieces:
        sums[UptimeClass.EXCLUDED if piece.excluded else piece.uptime] += piece.ms
    return Totals(
        sums[UptimeClass.UP],
        sums[UptimeClass.DEGRADED],
        sums[UptimeClass.DOWN],
        sums[UptimeClass.EXCLUDED],
        sums[UptimeClass.UNKNOWN],
    )


def difference(after: Totals, before: Totals) -> Totals:
    """What an adjustment books, by class: it adds up to nothing when both are of the same time."""
    return Totals(
        after.up_ms - before.up_ms,
        after.degraded_ms - before.degraded_ms,
        after.down_ms - before.down_ms,
        after.excluded_ms - before.excluded_ms,
        after.unknown_ms - before.unknown_ms,
    )


def sum_of(one: Totals, other: Totals) -> Totals:
    return Totals(
        one.up_ms + other.up_ms,
        one.degraded_ms + other.degraded_ms,
        one.down_ms + other.down_ms,
        one.excluded_ms + other.excluded_ms,
        one.unknown_ms + other.unknown_ms,
    )
