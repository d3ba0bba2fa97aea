"""``gridkeeper repair list|approve|reject``."""

from __future__ import annotations

import click

from gridkeeper.cli.acts import reason_option, tell
from gridkeeper.cli.get import get
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.client.grid import GridClient


@click.group()
def repair() -> None:
    """Approve or reject repairs that wait for a human."""


@repair.command("list")
@click.pass_context
def list_(context: click.Context) -> int:
    """All repairs; the same as 'gridkeeper get repairs'."""
    return int(context.invoke(get, kind="repairs"))


def _decide(session: Session, names: tuple[str, ...], approve: bool, reason: str) -> int:
    async def work(grid: GridClient) -> None:
        for name in names:
            tell(await grid.decide_repair(name.removeprefix("repair/"), approve, reason))

    call(session, work)
    return 0


@repair.command()
@click.argument("names", metavar="REPAIR…", nargs=-1, required=True)
@reason_option
@client_options
@pass_session
def approve(session: Session, names: tuple[str, ...], reason: str) -> int:
    """Let it begin, as soon as its devices are drained and certainly empty."""
    return _decide(session, names, True, reason)


@repair.command()
@click.argument("names", metavar="REPAIR…", nargs=-1, required=True)
@reason_option
@client_options
@pass_session
def reject(session: Session, names: tuple[str, ...], reason: str) -> int:
    """It is not done, and not proposed again for this drain. One that is approved and has not begun may be rejected."""
    return _decide(session, names, False, reason)
