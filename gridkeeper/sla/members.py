"""Subjects that are made of several scopes of the ledger (a node of its devices): what excuses one of them does not
excuse another. Pure."""

from __future__ import annotations

import numpy as np
import polars as pl

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla import columns
from gridkeeper.sla.books import Grouped, grouped
from gridkeeper.sla.columns import Statements
from gridkeeper.sla.measure import Counts, Rule, counted_as
from gridkeeper.sla.spans import CLASSES, PRECEDENCE, Window

EXCUSES = [UptimeClass.EXCLUDED.value, *(cause.value for cause in Cause)]


def with_unexcused(group: Grouped, frame: pl.DataFrame, window: Window, rule: Rule) -> Statements:
    """The group's rows, and for each time in which a member of a subject counts as down by itself, while something of
    the same subject is excluded, the word that it does."""
    several = {scope: subject for subject, scopes in group.members.items() if len(scopes) > 1 for scope in scopes}
    excused = set(frame.filter(pl.col("uptime").is_in(EXCUSES) & pl.col("scope").is_in(list(several)))["scope"])
    subjects = {several[scope] for scope in excused}
    if not subjects:
        return group.rows
    index = {subject: number for number, subject in enumerate(group.subjects)}
    scopes = {scope: scope for scope, subject in several.items() if subject in subjects}
    alone = grouped(frame.filter(pl.col("scope").is_in(list(scopes))), scopes)
    since = np.array([alone.since_ms[scope] for scope in alone.subjects], np.int64)
    segments = columns.resolve(alone.rows, len(alone.subjects), window, since)
    down = np.array(
        [[counted_as(kind, cause, rule) is Counts.DOWN for cause in (None, *PRECEDENCE)] for kind in CLASSES], np.bool_
    )
    rows = np.flatnonzero(down[segments.uptime, segments.cause])
    subject_of = np.array([index[several[scope]] for scope in alone.subjects], np.int64)
    return Statements(
        np.concatenate((group.rows.scope, subject_of[segments.scope[rows]])),
        np.concatenate((group.rows.from_ms, segments.from_ms[rows])),
        np.concatenate((group.rows.until_ms, segments.until_ms[rows])),
        np.concatenate((group.rows.kind, columns.UNEXCUSED + segments.uptime[rows])).astype(np.int8),
    )
