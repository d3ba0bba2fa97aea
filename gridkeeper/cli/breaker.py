"""``gridkeeper breaker list`` and ``breaker reset``."""

from __future__ import annotations

import asyncio
import sys

import click

from gridkeeper.cli.acts import confirm, reason_option, tell
from gridkeeper.cli.output import FORMATS, print_listing
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.client.answers import Act
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.v1 import api_pb2


@click.group()
def breaker() -> None:
    """What stops automatic drains when too many are wanted at once."""


@breaker.command("list")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it.")
@client_options
@pass_session
def show(session: Session, output: str) -> int:
    """The breakers that have opened at some time, and how they stand."""
    listing = call(session, lambda grid: grid.list(api_pb2.KIND_BREAKER, ""))
    print_listing(listing, output, SystemClock().wall_ms())
    return warn_partial(listing.partial)


@breaker.command()
@click.argument("name", metavar="REGION/SCOPE")
@reason_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@client_options
@pass_session
def reset(session: Session, name: str, reason: str, yes: bool) -> int:
    """Close a breaker: the machine drains again in its scope, within the budgets, and counting starts anew. What was
    wanted while it was open is drained only if its condition still holds or it is seen again.

    \b
    Example:
      gridkeeper breaker reset east/region --reason "sensor firmware rolled back"
    """
    wanted = name.removeprefix("breaker/")

    async def work(grid: GridClient) -> Act:
        held = await grid.get(api_pb2.KIND_BREAKER, wanted)
        print(f"{wanted}: {held.labels['state']}, {held.breaker.reason}", file=sys.stderr)
        if not yes:
            await asyncio.to_thread(confirm, f"Close the breaker {wanted}?")
        return await grid.reset_breaker(wanted, reason)

    return tell(call(session, work))
