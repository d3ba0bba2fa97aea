"""``gridkeeper sla report|contract``: a contract's month, from the grid's ledger or from a Parquet file of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.sla.contracts import SHIPPED

if TYPE_CHECKING:
    import polars as pl

    from gridkeeper.sla.contract import Contract
    from gridkeeper.sla.spans import Window


@click.command()
@click.option("--contract", "path", required=True, metavar="FILE", help="The contract ('gridkeeper sla contract').")
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
      gridkeeper sla contract aws > contract.yaml
      gridkeeper sla report --contract contract.yaml --month 2026-10
      gridkeeper sla report --contract contract.yaml --month 2026-10 -o html > report.html
    """
    from gridkeeper.sla import page, render
    from gridkeeper.sla.months import BadMonth, month_window
    from gridkeeper.sla.report import make_report

    contract = _contract(path)
    now_ms = SystemClock().wall_ms()
    partial: tuple[str, ...] = ()
    labels: Mapping[str, Mapping[str, str]] = {}
    try:
        window = month_window(month, contract.zone)
        if ledger:
            frame = _file(ledger)
        else:
            frame, labels, partial = call(session, lambda grid: _entries(grid, window, now_ms))
        made = make_report(contract, month, frame, now_ms, labels)
    except (BadMonth, ValueError) as error:
        raise InvalidRequest(str(error)) from error
    if save_ledger:
        try:
            frame.write_parquet(save_ledger)
        except OSError as error:
            raise InvalidRequest(f"--save-ledger: {save_ledger}: cannot be written: {error.strerror}") from error
    forms = {"text": render.text, "json": render.json_text, "csv": render.csv_text, "html": page.html}
    sys.stdout.write(forms[output](made))
    return warn_partial(partial)


@click.command()
@click.argument("name", type=click.Choice(SHIPPED))
def contract(name: str) -> int:
    """A contract shaped like a published one, to edit. Its source, date, and what is not sure are in it."""
    from gridkeeper.sla.document import shipped_text

    sys.stdout.write(shipped_text(name))
    return 0


def _contract(path: str) -> Contract:
    from gridkeeper.configfile import ConfigError
    from gridkeeper.sla.document import load_contract

    try:
        return load_contract(path)
    except ConfigError as error:
        faults = str(error).splitlines()
        for fault in faults[:-1]:
            print(f"gridkeeper: {fault}", file=sys.stderr)
        raise InvalidRequest(faults[-1]) from error


def _file(path: str) -> pl.DataFrame:
    from gridkeeper.configfile import ConfigError
    from gridkeeper.sla.books import read_frame

    try:
        return read_frame(path)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from error


async def _entries(
    grid: GridClient, window: Window, now_ms: int
) -> tuple[pl.DataFrame, dict[str, dict[str, str]], tuple[str, ...]]:
    """The window's entries with the intervals that are still open, and the devices' labels."""
    from gridkeeper import codec
    from gridkeeper.records.books import AccountRecord, EntryRecord
    from gridkeeper.sla.books import frame_of
    from gridkeeper.v1 import api_pb2

    # The accounts first: an interval that is closed between the two reads is then told by its entry; the other way
    # round it would be in neither.
    status = await grid.sla_status()
    listing = await grid.ledger(window.from_ms, window.until_ms)
    devices = await grid.list(api_pb2.KIND_DEVICE)
    entries = [codec.from_message(EntryRecord, entry) for entry in listing.entries]
    closed = {(entry.scope, entry.sequence) for entry in entries}
    for view in status.slas:
        account = codec.from_message(AccountRecord, view.account)
        number = account.sequence + 1
        if account.since_ms < now_ms and (account.scope, number) not in closed:
            entries.append(
                EntryRecord(
                    account.scope, number, account.month, account.since_ms, now_ms, account.current, account.reason,
                    account.refs,
                )
            )  # fmt: skip
    labels = {f"device/{item.name}": dict(item.labels) for item in devices.objects}
    partial = tuple(dict.fromkeys((*status.partial, *listing.partial, *devices.partial)))
    return frame_of(entries), labels, partial
