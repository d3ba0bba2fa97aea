"""A month's entries as columns, from Parquet or from the grid; and the window's state of each scope in them. Pure but
for reading the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import polars as pl

from gridkeeper.configfile import ConfigError
from gridkeeper.records.books import EntryRecord
from gridkeeper.sla.columns import CODE, KINDS, Statements

SCHEMA: dict[str, pl.DataType] = {
    "scope": pl.String(),
    "sequence": pl.Int64(),
    "from_ms": pl.Int64(),
    "until_ms": pl.Int64(),
    "uptime": pl.String(),
    "reason": pl.String(),
    "refs": pl.List(pl.String),
}
"""Columns of a ledger's Parquet file: the entries' fields. A row whose ``uptime`` is a cause is an exclusion, as
``exclusions.statements`` writes it: without a sequence number."""


def frame_of(entries: Iterable[EntryRecord]) -> pl.DataFrame:
    """In order of scope and time."""
    rows = [
        (e.scope, e.sequence, e.from_ms, e.until_ms, e.uptime.value, e.reason, list(e.refs))
        for e in sorted(entries, key=lambda e: (e.scope, e.from_ms, e.sequence))
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def read_frame(source: str | Path | BytesIO, path: str | Path = "") -> pl.DataFrame:
    """``path``: what to call it, if it is not read from there. Raises ``ConfigError``: it cannot be read, or is no
    ledger."""
    path = path or str(source)
    try:
        frame = pl.read_parquet(source)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0][:200]}") from error
    for name, kind in SCHEMA.items():
        if name not in frame.columns:
            raise ConfigError(f"{path}: {name}: this column is missing; a ledger has {', '.join(SCHEMA)}")
        if frame.schema[name] != kind:
            raise ConfigError(f"{path}: {name}: is {frame.schema[name]}; it must be {kind}")
    known = [kind.value for kind in KINDS]
    strange = frame.filter(~pl.col("uptime").is_in(known))
    if strange.height:
        raise ConfigError(f"{path}: uptime: {strange['uptime'][0]!r} is none of {', '.join(known)}")
    backwards = frame.filter(pl.col("until_ms") < pl.col("from_ms"))
    if backwards.height:
        row = backwards.row(0, named=True)
        raise ConfigError(f"{path}: {row['scope']}: until_ms {row['until_ms']} is before from_ms {row['from_ms']}")
    return frame.select(*SCHEMA)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Statements about ``subjects`` (their index is the scope), and which scopes of the ledger each is made of."""

    subjects: tuple[str, ...]
    rows: Statements
    members: Mapping[str, tuple[str, ...]]
    since_ms: Mapping[str, int]  # from when on there is a ledger of them; 0: from before these entries


def grouped(frame: pl.DataFrame, subject_of: Mapping[str, str]) -> Grouped:
    """``subject_of``: ledger scope -> what it is measured as (itself, or a device's node). Where the members of one
    subject differ, the class that comes first in ``spans.CLASSES`` holds."""
    subjects = tuple(sorted(set(subject_of.values())))
    index = {subject: number for number, subject in enumerate(subjects)}
    members: dict[str, list[str]] = {}
    for scope, subject in sorted(subject_of.items()):
        members.setdefault(subject, []).append(scope)
    mapping = pl.DataFrame(
        {"scope": list(subject_of), "index": [index[subject] for subject in subject_of.values()]},
        schema={"scope": pl.String, "index": pl.Int64},
    )
    rows = frame.select("scope", "from_ms", "until_ms", "uptime").join(mapping, on="scope")
    codes = rows["uptime"].replace_strict(
        [kind.value for kind in KINDS], [CODE[kind] for kind in KINDS], return_dtype=pl.Int8
    )
    statements = Statements(
        rows["index"].to_numpy(), rows["from_ms"].to_numpy(), rows["until_ms"].to_numpy(), codes.to_numpy()
    )
    began = dict(frame.filter(pl.col("sequence") == 1).select("scope", "from_ms").iter_rows())
    since = {subject: min(began.get(scope, 0) for scope in found) for subject, found in members.items()}
    return Grouped(subjects, statements, {subject: tuple(found) for subject, found in members.items()}, since)
