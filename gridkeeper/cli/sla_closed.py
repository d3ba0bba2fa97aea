"""``gridkeeper sla closed``: what the leaders have closed, adjusted and signed by themselves."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.client.plain import plain
from gridkeeper.v1 import records_pb2

MONTHS = ("BOOKS", "ZONE", "MONTH", "CLOSED", "ENTRIES", "SCOPES", "ADJUSTMENTS", "SEGMENT")
HEADS = ("BOOKS", "DAY", "ISSUED", "SCOPES", "DIGEST", "RECEIPT")
CHANGES = ("NUMBER", "BOOKED IN", "BOOKS", "SCOPE", "UP MS", "DEGRADED MS", "DOWN MS", "EXCLUDED MS", "UNKNOWN MS")


@click.command()
@click.option("--month", default="", metavar="YYYY-MM", help="The adjustments of this month.")
@click.option("--zone", default="UTC", show_default=True, metavar="NAME", help="Its billing time zone.")
@click.option("--heads", is_flag=True, help="The signed daily heads.")
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def closed(session: Session, month: str, zone: str, heads: bool, output: str) -> int:
    """Closed months; the adjustments of one; or the signed heads. Files are named as they lie in the archive."""
    if month and heads:
        raise InvalidRequest("--heads and --month: use one of them")
    answer = call(session, lambda grid: grid.settlement(zone if month else "", month))
    if output != "table":
        items = answer.adjustments if month else answer.heads if heads else answer.closings
        kind = "AdjustmentList" if month else "LedgerHeadList" if heads else "ClosingList"
        print_value({"kind": kind, "partial": list(answer.partial), "items": [plain(one) for one in items]}, output)
        return warn_partial(answer.partial)
    titles: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if month:
        titles, rows = CHANGES, [row for one in answer.adjustments for row in _changes(one)]
    elif heads:
        titles = HEADS
        rows = [
            (one.books, one.day, moment(one.issued_ms), str(one.scopes), one.digest[:12], one.receipt)
            for one in answer.heads
        ]
    else:
        titles = MONTHS
        rows = [
            (
                one.books, one.zone, one.month, moment(one.closed_ms), str(one.entries), str(one.scopes),
                str(one.adjustments), one.segment,
            )
            for one in answer.closings
        ]  # fmt: skip
    if rows:
        print_table(titles, rows)
    else:
        print("there are none", file=sys.stderr)
    return warn_partial(answer.partial)


def _changes(record: records_pb2.AdjustmentRecord) -> list[tuple[str, ...]]:
    return [
        (
            str(record.sequence), record.booked_in, record.books, one.scope,
            *(f"{ms:+d}" for ms in (one.change.up_ms, one.change.degraded_ms, one.change.down_ms,
                                    one.change.excluded_ms, one.change.unknown_ms)),
        )
        for one in record.changes
    ]  # fmt: skip
