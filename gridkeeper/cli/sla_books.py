"""``gridkeeper sla receipt|verify|close|adjustments``: books that both sides of a contract can trust."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock

if TYPE_CHECKING:
    import polars as pl

    from gridkeeper.records.settlement import ExclusionRecord
    from gridkeeper.sla.receipts import Receipt
    from gridkeeper.sla.spans import Window


@dataclass(frozen=True, slots=True)
class Held:
    """``closed``: entries; ``open``: the intervals that are not over, up to now. ``labels``: of devices, by scope.
    ``exclusions``: their whole log; None: a file's, which holds what they say and not the log itself."""

    closed: pl.DataFrame
    open: pl.DataFrame
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    exclusions: tuple[ExclusionRecord, ...] | None = None
    partial: tuple[str, ...] = ()

    def whole(self) -> pl.DataFrame:
        """With what is excluded."""
        from gridkeeper.sla.exclusions import statements

        frame = self.closed.vstack(self.open)
        region_of = {scope: labels.get("region", "") for scope, labels in self.labels.items()}
        return frame.vstack(statements(self.exclusions or (), frame["scope"].unique().to_list(), region_of))


def held(session: Session, ledger: str, window: Window, now_ms: int) -> Held:
    """A window's books: from the Parquet file ``ledger``, or ("") from the grid. Raises ``ClientError``."""
    if not ledger:
        return call(session, lambda grid: from_grid(grid, window, now_ms))
    from gridkeeper.configfile import ConfigError
    from gridkeeper.sla.books import frame_of, read_frame

    try:
        return Held(read_frame(ledger), frame_of(()))
    except ConfigError as error:
        raise InvalidRequest(str(error)) from error


async def from_grid(grid: GridClient, window: Window, now_ms: int, under: str = "") -> Held:
    """``under``: only scopes that begin so, like ``device/n1/``. Raises ``ClientError``."""
    from gridkeeper import codec
    from gridkeeper.records.books import AccountRecord, EntryRecord
    from gridkeeper.records.settlement import ExclusionRecord
    from gridkeeper.sla.books import frame_of
    from gridkeeper.v1 import api_pb2

    # The accounts first: an interval that is closed between the two reads is then told by its entry; the other way
    # round it would be in neither.
    status = await grid.sla_status()
    listing = await grid.ledger(window.from_ms, window.until_ms, under)
    devices = await grid.list(api_pb2.KIND_DEVICE)
    settled = await grid.settlement()
    closed = [codec.from_message(EntryRecord, entry) for entry in listing.entries]
    numbers = {(entry.scope, entry.sequence) for entry in closed}
    going = []
    for view in status.slas:
        account = codec.from_message(AccountRecord, view.account)
        number = account.sequence + 1
        if not account.scope.startswith(under):
            continue
        if account.since_ms < now_ms and (account.scope, number) not in numbers:
            going.append(
                EntryRecord(
                    account.scope, number, account.month, account.since_ms, now_ms, account.current, account.reason,
                    account.refs,
                )
            )  # fmt: skip
    labels = {f"device/{item.name}": dict(item.labels) for item in devices.objects}
    partial = tuple(dict.fromkeys((*status.partial, *listing.partial, *devices.partial, *settled.partial)))
    exclusions = tuple(codec.from_message(ExclusionRecord, event) for event in settled.exclusions)
    return Held(frame_of(closed), frame_of(going), labels, exclusions, partial)


MONTH = click.option("--month", required=True, metavar="YYYY-MM", help="In the time zone --zone.")
ZONE = click.option(
    "--zone", default="UTC", show_default=True, metavar="NAME", help="The contract's billing time zone."
)
LEDGER = click.option("--ledger", default="", metavar="FILE", help="A Parquet file of entries instead of the grid's.")


@click.command()
@MONTH
@ZONE
@LEDGER
@click.option("--key", required=True, metavar="FILE", help="The operator's private key ('gridkeeper ca issue').")
@click.option("--after", default="", metavar="FILE", help="The receipt before this one, which it will name.")
@click.option("--scope", default="", metavar="PREFIX", help="Only scopes that begin so, like device/n1/ or job/train.")
@client_options
@pass_session
def receipt(session: Session, month: str, zone: str, ledger: str, key: str, after: str, scope: str) -> int:
    """A signed statement of all entries of a month that are closed by now, for the other side to keep.

    \b
    Examples (each day, by cron):
      gridkeeper sla receipt --month 2026-10 --key operator.key > 2026-10-31.json
    """
    import polars as pl

    from gridkeeper.identity.files import TlsError, read_pem
    from gridkeeper.sla.receipts import BadReceipt, Receipt, chains_of, exclusions_chain, issue

    window, now_ms = _window(month, zone), SystemClock().wall_ms()
    books = held(session, ledger, window, now_ms)
    if books.partial:
        warn_partial(books.partial)
        raise InvalidRequest("the ledger is incomplete, so there is no receipt of it; try again when all answer")
    try:
        previous = _receipt(after).digest() if after else ""
        chains = chains_of(books.closed.filter(pl.col("scope").str.starts_with(scope)))
        log = exclusions_chain(books.exclusions or ())
        chains = (*chains, log) if log else chains
        made = issue(
            Receipt(now_ms, window.from_ms, window.until_ms, previous, chains), read_pem("key", key, secret=True)
        )
    except (BadReceipt, TlsError) as error:
        raise InvalidRequest(str(error)) from error
    sys.stdout.write(made.text())
    return 0


@click.command()
@click.option("--receipt", "path", required=True, metavar="FILE", help="What the operator handed over.")
@click.option("--certificate", required=True, metavar="FILE", help="The operator's, as you know it to be.")
@click.option("--after", default="", metavar="FILE", help="The receipt before it: must be the one that it names.")
@LEDGER
@client_options
@pass_session
def verify(session: Session, path: str, certificate: str, after: str, ledger: str) -> int:
    """Check the operator's books against a receipt: whether each entry that it names is there, unchanged.

    Exit code 1 if not, with one line per scope.
    """
    from gridkeeper.identity.files import TlsError, read_pem
    from gridkeeper.sla.receipts import EXCLUSIONS, BadReceipt, check_signature, differences
    from gridkeeper.sla.spans import Window

    try:
        told = _receipt(path)
        signer = check_signature(told, read_pem("certificate", certificate))
        if after and told.previous != _receipt(after).digest():
            raise BadReceipt(f"previous: {path} does not name {after} as the receipt before it")
        books = held(session, ledger, Window(told.from_ms, told.until_ms), SystemClock().wall_ms())
        found = differences(told, books.closed, books.exclusions)
    except (BadReceipt, TlsError) as error:
        raise InvalidRequest(str(error)) from error
    if books.exclusions is None and any(chain.scope == EXCLUSIONS for chain in told.chains):
        print("the log of exclusions is not in a file, so it was not compared; ask the grid", file=sys.stderr)
    for sentence in found:
        print(sentence)
    if not found:
        entries = sum(chain.last - chain.first + 1 for chain in told.chains)
        print(f"{entries} entries of {len(told.chains)} scopes are as {signer} signed them")
    return 1 if found else warn_partial(books.partial)


@click.command()
@MONTH
@ZONE
@LEDGER
@click.option("--directory", required=True, metavar="DIR", help="Of closed months; made if it is not there.")
@client_options
@pass_session
def close(session: Session, month: str, zone: str, ledger: str, directory: str) -> int:
    """Close a month that is over: its entries, cut at its edges, into DIR/YYYY-MM.parquet, never written again."""
    from gridkeeper.sla.closing import clipped

    window, now_ms = _window(month, zone), SystemClock().wall_ms()
    if now_ms < window.until_ms:
        raise InvalidRequest(f"month: {month} is not over in {zone}; close it after its end")
    path = Path(directory) / f"{month}.parquet"
    if path.exists():
        raise InvalidRequest(f"{path}: this month is closed; what came later: 'gridkeeper sla adjustments'")
    books = held(session, ledger, window, now_ms)
    if books.partial:
        warn_partial(books.partial)
        raise InvalidRequest("the ledger is incomplete, so the month cannot be closed; try again when all answer")
    frame = clipped(books.whole(), window)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(scratch)
        path.hardlink_to(scratch)  # fails where another closed it first
        scratch.unlink()
        path.chmod(0o444)
    except OSError as error:
        raise InvalidRequest(f"--directory: {path}: cannot be written: {error.strerror}") from error
    print(f"{path}: {frame.height} entries of {frame['scope'].n_unique()} scopes")
    return 0


@click.command()
@MONTH
@ZONE
@LEDGER
@click.option("--directory", required=True, metavar="DIR", help="Of closed months.")
@client_options
@pass_session
def adjustments(session: Session, month: str, zone: str, ledger: str, directory: str) -> int:
    """What the ledger says of a closed month now that it did not when it was closed: ms by class and scope, for the
    open month to book."""
    from gridkeeper.sla.closing import adjustments as changes_since

    window = _window(month, zone)
    closed = held(session, str(Path(directory) / f"{month}.parquet"), window, 0).closed
    books = held(session, ledger, window, SystemClock().wall_ms())
    found = changes_since(month, closed, books.whole(), window)
    rows = [
        (a.month, a.scope, *(f"{ms:+d}" for ms in (
            a.change.up_ms, a.change.degraded_ms, a.change.down_ms, a.change.excluded_ms, a.change.unknown_ms)))
        for a in found
    ]  # fmt: skip
    if rows:
        print_table(("CLOSED", "SCOPE", "UP MS", "DEGRADED MS", "DOWN MS", "EXCLUDED MS", "UNKNOWN MS"), rows)
    else:
        print("nothing to adjust", file=sys.stderr)
    return warn_partial(books.partial)


def _window(month: str, zone: str) -> Window:
    from gridkeeper.sla.months import BadMonth, month_window

    try:
        return month_window(month, zone)
    except BadMonth as error:
        raise InvalidRequest(str(error)) from error


def _receipt(path: str) -> Receipt:
    from gridkeeper.sla.receipts import BadReceipt, parse_receipt

    try:
        return parse_receipt(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadReceipt(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, BadReceipt) as error:
        raise BadReceipt(f"{path}: {error}") from error
