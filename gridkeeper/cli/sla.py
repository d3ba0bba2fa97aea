"""``gridkeeper sla status``; the other commands of the group are in modules of their own."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.columns import uptime
from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.sla_books import adjustments, close, receipt, verify
from gridkeeper.cli.sla_closed import closed
from gridkeeper.cli.sla_contract import contract
from gridkeeper.cli.sla_exclude import exclude
from gridkeeper.cli.sla_forecast import forecast
from gridkeeper.cli.sla_report import report
from gridkeeper.cli.sla_whatif import what_if
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import span
from gridkeeper.client.plain import plain, word

TITLES = ("SCOPE", "UPTIME", "NOW", "UP", "DEGRADED", "DOWN", "EXCLUDED", "UNKNOWN", "MONTH", "REASON")


@click.group()
def sla() -> None:
    """Uptime of the month so far; what a contract says of a month (docs/sla.md)."""


for command in (report, contract, exclude, forecast, what_if, receipt, verify, close, adjustments, closed):
    sla.add_command(command)


@sla.command()
@click.argument("scope", required=False, default="")
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def status(session: Session, scope: str, output: str) -> int:
    """The books of all scopes, or of one: device/<node>/<slot>, region/<region> or job/<job>.

    Uptime is (up + degraded) ÷ (up + degraded + down); excluded and unknown time are shown apart.
    """
    answer = call(session, lambda grid: grid.sla_status(scope))
    if output != "table":
        items = [plain(view) for view in answer.slas]
        print_value({"kind": "SlaStatus", "partial": list(answer.partial), "items": items}, output)
        return warn_partial(answer.partial)
    rows = []
    for view in answer.slas:
        totals = view.totals
        booked = (totals.up_ms, totals.degraded_ms, totals.down_ms, totals.excluded_ms, totals.unknown_ms)
        account = view.account
        now = word(account, "current")
        rows.append((account.scope, uptime(view), now, *(span(ms) for ms in booked), account.month, account.reason))
    if rows:
        print_table(TITLES, rows, frozenset({2}))
    else:
        print("no accounts yet", file=sys.stderr)
    return warn_partial(answer.partial)
