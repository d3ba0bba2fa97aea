"""The log of exclusions: which of its events are in force, and what they say of the ledger's scopes. Pure.

An exclusion holds for every contract that covers its scope; whether a contract leaves out such a cause, and from what,
is the contract's own rule. Of exclusions that overlap the first of ``spans.PRECEDENCE`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from gridkeeper.ids import BadName, checked_name
from gridkeeper.records.settlement import ExclusionRecord
from gridkeeper.sla.books import SCHEMA

SCOPES = "device/<node>/<slot>, node/<node>, region/<region> or job/<job>"


def in_force(log: Iterable[ExclusionRecord]) -> tuple[ExclusionRecord, ...]:
    """Events that exclude, and that no later one retracts, in order."""
    events = sorted(log, key=lambda event: event.sequence)
    retracted = {event.retracts for event in events}
    return tuple(event for event in events if not event.retracts and event.sequence not in retracted)


def checked_scope(text: str) -> str:
    """Raises ``ValueError``."""
    kind, _, name = text.partition("/")
    parts = name.split("/")
    if kind not in ("device", "node", "region", "job") or len(parts) != (2 if kind == "device" else 1):
        raise ValueError(f"scope: {text[:80]!r} is none; write {SCOPES}")
    for part in parts:
        try:
            checked_name("scope", part)
        except BadName as error:
            raise ValueError(str(error)) from error
    return text


def scopes_of(scope: str, known: Sequence[str], region_of: Mapping[str, str]) -> tuple[str, ...]:
    """The ledger's scopes, of those ``known``, that a scope means: a node its devices, a region itself and its devices.
    ``region_of``: of devices' scopes."""
    kind, _, name = scope.partition("/")
    if kind == "node":
        return tuple(one for one in known if one.startswith(f"device/{name}/"))
    if kind == "region":
        return tuple(one for one in known if one == scope or region_of.get(one) == name)
    return (scope,) if scope in known else ()


def statements(log: Iterable[ExclusionRecord], known: Iterable[str], region_of: Mapping[str, str]) -> pl.DataFrame:
    """Rows for a ledger's frame (``books.SCHEMA``): the cause as the class, no sequence number, and in words who
    excluded it, when and why."""
    scopes = sorted(set(known))
    rows = [
        (one, 0, event.from_ms, event.until_ms, event.cause.value, told(event), [f"exclusion/{event.sequence}",
         *event.evidence])
        for event in in_force(log)
        for one in scopes_of(event.scope, scopes, region_of)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def told(event: ExclusionRecord) -> str:
    when = datetime.fromtimestamp(event.recorded_ms // 1000, UTC)
    return f"{event.reason} (recorded by {event.recorded_by}, {when:%Y-%m-%d %H:%M:%S}Z)"
