"""``gridkeeper sla forecast``: what is left of each commitment's downtime, and when it is used up at this rate."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.acts import SPAN
from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, client_options, pass_session, warn_partial
from gridkeeper.cli.sla_books import held
from gridkeeper.cli.sla_contract import read_contract
from gridkeeper.cli.table import print_table
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.clock import SystemClock

TITLES = ("COMMITMENT", "SUBJECT", "TARGET %", "ALLOWED", "LEFT", "BURN", "EXHAUSTED IN")
SHOWN = 50


@click.command()
@click.option("--contract", "path", required=True, metavar="FILE|NAME", help="A file, or one that was applied.")
@click.option(
    "--over", type=SPAN, default=21_600_000, metavar="DURATION", help="Present rate: of so long. Default: 6h."
)
@click.option("--ledger", default="", metavar="FILE", help="A Parquet file of entries instead of the grid's ledger.")
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def forecast(session: Session, path: str, over: int, ledger: str, output: str) -> int:
    """Of everything that a contract covers, this month: the downtime that the target allows, what is left of it if
    everything is up from now on, and when that is used up at the present rate. Burn 1 uses it up evenly over a month.
    What ends first comes first.
    """
    from gridkeeper.sla.credit import exact_text
    from gridkeeper.sla.months import month_of, month_window
    from gridkeeper.sla.outlook import outlooks
    from gridkeeper.sla.render import span

    contract, now_ms = read_contract(session, path), SystemClock().wall_ms()
    month = month_of(now_ms, contract.zone)
    books = held(session, ledger, month_window(month, contract.zone), now_ms)
    try:
        found = outlooks(contract, month, books.whole(), books.labels, now_ms, over)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    if output != "table":
        items = [
            {
                "commitment": one.commitment,
                "subject": one.subject,
                "target": str(one.target),
                "budget_ms": int(one.budget_ms),
                "left_ms": int(one.left_ms),
                "rate": None if one.rate is None else str(one.rate),
                "burn": None if one.burn is None else str(one.burn),
                "exhausted_in_ms": one.exhausted_in_ms,
            }
            for one in found
        ]
        print_value({"kind": "SlaForecast", "month": month, "over_ms": over, "items": items}, output)
        return warn_partial(books.partial)
    rows = [
        (
            one.commitment, one.subject, exact_text(one.target * 100), span(int(one.budget_ms)),
            ("-" if one.left_ms < 0 else "") + span(abs(int(one.left_ms))),
            "-" if one.burn is None else f"{float(one.burn):.2f}",
            "-" if one.exhausted_in_ms is None else span(one.exhausted_in_ms) if one.exhausted_in_ms else "now",
        )
        for one in found[:SHOWN]
    ]  # fmt: skip
    if rows:
        print_table(TITLES, rows)
    if len(found) > SHOWN:
        print(f"… and {len(found) - SHOWN} more, which end later; -o json has all", file=sys.stderr)
    if not rows:
        print("the ledger has nothing that this contract covers", file=sys.stderr)
    return warn_partial(books.partial)
