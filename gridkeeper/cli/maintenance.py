"""``gridkeeper maintenance plan|extend|cancel``."""

from __future__ import annotations

import click

from gridkeeper.cli.acts import SPAN, reason_option, tell
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.cli.text import parse_moment
from gridkeeper.clock import SystemClock


class Moment(click.ParamType[int]):
    """``2026-11-25T05:00``, with an offset or in UTC, or ``+2h`` from now; ms since the Unix epoch to the command."""

    name = "moment"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_moment(value, SystemClock().wall_ms())
        except ValueError as error:
            self.fail(str(error), param, ctx)


MOMENT = Moment()


@click.group()
def maintenance() -> None:
    """Announce work on a node or device ahead of time."""


@maintenance.command()
@click.argument("target", metavar="NODE|DEVICE")
@click.option("--from", "from_ms", type=MOMENT, required=True, metavar="WHEN", help="2026-11-25T05:00[Z] or +2h.")
@click.option("--until", "until_ms", type=MOMENT, required=True, metavar="WHEN", help="Its end, likewise.")
@click.option("--lead", type=SPAN, default=1_800_000, metavar="DURATION", help="Drain so long before. Default: 30m.")
@reason_option
@client_options
@pass_session
def plan(session: Session, target: str, from_ms: int, until_ms: int, lead: int, reason: str) -> int:
    """Announce a window: drained ahead of it, cordoned within it, excluded from the SLA ledger, back by itself.

    \b
    Examples:
      gridkeeper maintenance plan east-1 --from 2026-11-25T05:00Z --until 2026-11-25T07:00Z --reason "new firmware"
      gridkeeper maintenance plan east-1/gpu3 --from +1h --until +2h --lead 10m
    """
    return tell(call(session, lambda grid: grid.plan_maintenance(target, from_ms, until_ms, lead, reason)))


@maintenance.command()
@click.argument("name", metavar="MAINTENANCE")
@click.option("--until", "until_ms", type=MOMENT, required=True, metavar="WHEN", help="Its new end, yet to come.")
@client_options
@pass_session
def extend(session: Session, name: str, until_ms: int) -> int:
    """Give a window that is not over another end, later or earlier."""
    return tell(call(session, lambda grid: grid.extend_maintenance(name.removeprefix("maintenance/"), until_ms)))


@maintenance.command()
@click.argument("name", metavar="MAINTENANCE")
@reason_option
@client_options
@pass_session
def cancel(session: Session, name: str, reason: str) -> int:
    """Call a window off; one that has begun ends now, and its devices come back."""
    return tell(call(session, lambda grid: grid.cancel_maintenance(name.removeprefix("maintenance/"), reason)))
