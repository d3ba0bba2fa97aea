"""``gridkeeper sla report|contract``: a contract's month, from the grid's ledger or from a Parquet file of it."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.session import Session, client_options, pass_session, warn_partial
from gridkeeper.cli.sla_books import held
from gridkeeper.cli.sla_contract import read_contract
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.clock import SystemClock


@click.command()
@click.option("--contract", "path", required=True, metavar="FILE|NAME", help="A file, or one that was applied.")
@click.option("--month", required=True, metavar="YYYY-MM", help="In the contract's time zone.")
@click.option("--ledger", default="", metavar="FILE", help="A Parquet file of entries instead of the grid's ledger.")
@click.option("--save-ledger", default="", metavar="FILE", help="Also write the entries used, as Parquet.")
@click.option("-o", "--output", type=click.Choice(("text", "json", "csv", "html")), default="text", show_default=True)
@client_options
@pass_session
def report(session: Session, path: str, month: str, ledger: str, save_ledger: str, output: str) -> int:
    """Availability of everything that a contract covers, what was left out, each outage, and the credits owed.

    \b
    Examples:
      gridkeeper sla contract example aws > contract.yaml
      gridkeeper sla report --contract contract.yaml --month 2026-10
      gridkeeper sla report --contract contract.yaml --month 2026-10 -o html > report.html
    """
    from gridkeeper.sla import page, render
    from gridkeeper.sla.months import BadMonth, month_window
    from gridkeeper.sla.report import make_report

    contract = read_contract(session, path)
    now_ms = SystemClock().wall_ms()
    try:
        window = month_window(month, contract.zone)
        books = held(session, ledger, window, now_ms)
        frame = books.whole()
        made = make_report(contract, month, frame, now_ms, books.labels)
    except (BadMonth, ValueError) as error:
        raise InvalidRequest(str(error)) from error
    if save_ledger:
        try:
            frame.write_parquet(save_ledger)
        except OSError as error:
            raise InvalidRequest(f"--save-ledger: {save_ledger}: cannot be written: {error.strerror}") from error
    forms = {"text": render.text, "json": render.json_text, "csv": render.csv_text, "html": page.html}
    sys.stdout.write(forms[output](made))
    return warn_partial(books.partial)
