"""A month that is closed, and what has to be adjusted since. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from gridkeeper.records.books import Totals
from gridkeeper.sla import columns
from gridkeeper.sla.books import grouped
from gridkeeper.sla.spans import Window, difference

NOTHING = Totals(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What the open month books for a closed one: ms by class, which add up to nothing unless the ledger of the scope
    was not there when the month was closed."""

    month: str
    scope: str
    change: Totals


def clipped(frame: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The entries of a window, cut at its edges: what a closed month holds for ever."""
    inside = frame.filter((pl.col("until_ms") > window.from_ms) & (pl.col("from_ms") < window.until_ms))
    cut = inside.with_columns(pl.col("from_ms").clip(lower_bound=window.from_ms))
    return cut.with_columns(pl.col("until_ms").clip(upper_bound=window.until_ms)).sort("scope", "from_ms", "sequence")


def totals(frame: pl.DataFrame, window: Window) -> dict[str, Totals]:
    """By scope: every ms of the window once; from the first entry of a ledger that begins in it."""
    scopes = frame["scope"].unique().to_list()
    if not scopes:
        return {}
    group = grouped(frame, {scope: scope for scope in scopes})
    since = np.array([group.since_ms[scope] for scope in group.subjects], np.int64)
    found = columns.totals(columns.resolve(group.rows, len(group.subjects), window, since))
    return {scope: Totals(*(int(ms) for ms in row)) for scope, row in zip(group.subjects, found, strict=True)}


def adjustments(month: str, closed: pl.DataFrame, now: pl.DataFrame, window: Window) -> tuple[Adjustment, ...]:
    """From the month as it was closed to what the ledger says of it now: both together are the ledger of all events."""
    before, after = totals(closed, window), totals(clipped(now, window), window)
    changes = (
        Adjustment(month, scope, difference(after.get(scope, NOTHING), before.get(scope, NOTHING)))
        for scope in sorted(before.keys() | after.keys())
    )
    return tuple(change for change in changes if change.change != NOTHING)
