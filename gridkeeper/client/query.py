"""A query over the whole grid: each replica gives the rows that it holds, and the SQL runs here over all of them.

It cannot run where the rows are: an average, a count of different values or a sort over several regions is not the
average, count or sort of each of theirs. What a query may cost is paid by who asks it: its process has limits of time
and memory, and a replica only hands over the columns that it names.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from gridkeeper.client.errors import Failed, InvalidRequest
from gridkeeper.query import sandbox
from gridkeeper.query.limits import Limits
from gridkeeper.query.sql import BadQuery, Query, checked
from gridkeeper.query.tables import KEY
from gridkeeper.v1 import api_pb2


@dataclass(frozen=True, slots=True)
class Answer:
    """``partial``: why rows may be missing, one sentence each."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    partial: tuple[str, ...]


def checked_query(sql: str) -> Query:
    """Raises ``InvalidRequest``."""
    try:
        return checked(sql)
    except BadQuery as error:
        raise InvalidRequest(str(error)) from error


async def run(query: Query, answers: Iterable[api_pb2.QueryResponse], away: Iterable[str], limits: Limits) -> Answer:
    """The query over what the replicas gave; ``away``: who did not answer. Raises ``ClientError``."""
    given: dict[str, list[pl.DataFrame]] = {name: [] for name in query.columns}
    told: list[str] = list(away)
    for answer in answers:
        told += answer.partial
        for table in answer.tables:
            if table.name in given:
                given[table.name].append(pl.read_ipc_stream(io.BytesIO(table.rows)))
    tables = {
        name: pl.concat(frames).unique(subset=KEY[name], keep="first", maintain_order=True)
        for name, frames in given.items()
        if frames
    }
    try:
        frame, more = await sandbox.run(query, tables, limits)
    except BadQuery as error:
        raise InvalidRequest(str(error)) from error
    except sandbox.QueryFailed as error:
        raise Failed(str(error)) from error
    if more:
        told.append(f"only the first {limits.rows} rows are shown; add a LIMIT, or raise it with --limit")
    return Answer(tuple(frame.columns), tuple(frame.rows()), tuple(dict.fromkeys(told)))
