"""``gridkeeper get``."""

from __future__ import annotations

import sys
from contextlib import aclosing

import click

from gridkeeper.cli.output import FORMATS, WatchPrinter, print_listing, print_object
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.kinds import KINDS, KindInfo, kind_named

EPILOG = """\b
Kinds (and short forms):
""" + "\n".join(f"  {info.plural:<12} {'/'.join((info.singular, *info.aliases)):<22} {info.summary}" for info in KINDS)


@click.command(epilog=EPILOG)
@click.argument("kind")
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print it.")
@click.option("-l", "--selector", default="", metavar="KEY=VALUE,…", help="Only what has these labels; != negates.")
@click.option("-w", "--watch", is_flag=True, help="Go on printing changes until Ctrl-C.")
@client_options
@pass_session
def get(session: Session, kind: str, name: str | None, output: str, selector: str, watch: bool) -> int:
    """List objects of one KIND, or show the one called NAME.

    \b
    Examples:
      gridkeeper get devices -l health=draining
      gridkeeper get jobs -o json
      gridkeeper get device east-1/gpu3 -o yaml
      gridkeeper get incidents -w
      gridkeeper get audit -o jsonl > audit.jsonl
    """
    info = kind_named(kind)
    if name and (watch or selector):
        raise click.UsageError("NAME goes with neither --watch nor --selector; use -l to choose among many")
    if watch:
        call(session, lambda grid: _watch(grid, info, selector, output))
        return 0
    now_ms = SystemClock().wall_ms()
    if name:
        wanted = name.removeprefix(f"{info.singular}/")
        print_object(call(session, lambda grid: grid.get(info.kind, wanted)), output, now_ms)
        return 0
    listing = call(session, lambda grid: grid.list(info.kind, selector))
    print_listing(listing, output, now_ms)
    sys.stdout.flush()
    return warn_partial(listing.partial)


async def _watch(grid: GridClient, info: KindInfo, selector: str, output: str) -> None:
    clock, printer = SystemClock(), WatchPrinter(info.kind, output)
    async with aclosing(grid.watch((info.kind,), selector)) as changes:
        async for change in changes:
            printer.tell(change, clock.wall_ms())
