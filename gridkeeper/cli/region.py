"""``gridkeeper region list|approve|veto``."""

from __future__ import annotations

import asyncio
import sys

import click

from gridkeeper.cli.acts import confirm, reason_option, tell
from gridkeeper.cli.get import get
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.client.answers import Act
from gridkeeper.client.grid import GridClient
from gridkeeper.v1 import api_pb2


@click.group()
def region() -> None:
    """Veto or approve that a silent region is taken for lost."""


@region.command("list")
@click.pass_context
def list_(context: click.Context) -> int:
    """Regions that are or were suspected of being lost; the same as 'gridkeeper get losses'."""
    return int(context.invoke(get, kind="losses"))


@region.command()
@click.argument("name", metavar="REGION")
@reason_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@client_options
@pass_session
def approve(session: Session, name: str, reason: str, yes: bool) -> int:
    """Take a suspected region for lost now: its grant is revoked, and its jobs are recovered in the others.

    \b
    Example:
      gridkeeper region approve east --reason "the site has no power"
    """

    async def work(grid: GridClient) -> Act:
        held = await grid.get(api_pb2.KIND_LOSS, name)
        print(f"{name}: {held.labels['state']}, {held.loss.reason}; {held.loss.jobs} jobs", file=sys.stderr)
        if not yes:
            await asyncio.to_thread(confirm, f"Take region {name} for lost?")
        return await grid.decide_loss(name, True, reason)

    return tell(call(session, work))


@region.command()
@click.argument("name", metavar="REGION")
@reason_option
@client_options
@pass_session
def veto(session: Session, name: str, reason: str) -> int:
    """It is not lost: nothing of it is taken over until somebody approves, or it is heard and falls silent again.

    \b
    Example:
      gridkeeper region veto east --reason "its uplink is being replaced; the jobs run on"
    """
    return tell(call(session, lambda grid: grid.decide_loss(name, False, reason)))
