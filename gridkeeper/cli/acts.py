"""``cordon``, ``uncordon``, ``drain``, ``cancel-drain``, ``incident ack``."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Iterable

import click

from gridkeeper.cli.drain_contracts import contract_breaks
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.cli.text import parse_span, span
from gridkeeper.client.answers import Act
from gridkeeper.client.errors import Refused
from gridkeeper.client.grid import GridClient
from gridkeeper.client.plain import word
from gridkeeper.v1 import records_pb2


class Span(click.ParamType[int]):
    """A duration such as ``2h30m``; milliseconds to the command."""

    name = "duration"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SPAN = Span()


def tell(act: Act) -> int:
    """Print what was done; always exit code 0."""
    print(act.sentence)
    return 0


MODES = ("checkpoint", "wait", "deadline")

reason_option = click.option("--reason", default="", help="Why, in one line: goes into the audit trail.")


@click.command()
@click.argument("target", metavar="NODE|DEVICE")
@reason_option
@click.option("--for", "ttl", type=SPAN, default=0, metavar="DURATION", help="Ends by itself after this (2h, 1d).")
@click.option("--maintenance", is_flag=True, help="Announced maintenance: the SLA ledger excludes its time.")
@client_options
@pass_session
def cordon(session: Session, target: str, reason: str, ttl: int, maintenance: bool) -> int:
    """Place nothing new on a node, or on one device; what runs there goes on.

    \b
    Examples:
      gridkeeper cordon east-1 --reason "swap of the PSU" --maintenance --for 2h
      gridkeeper cordon east-1/gpu3
    """
    return tell(call(session, lambda grid: grid.cordon(target, reason, ttl, maintenance)))


@click.command()
@click.argument("target", metavar="NODE|DEVICE")
@reason_option
@click.option("--maintenance", is_flag=True, help="End announced maintenance, whoever announced it.")
@client_options
@pass_session
def uncordon(session: Session, target: str, reason: str, maintenance: bool) -> int:
    """Take back your cordon of a node or device (others' stay), and return what was drained there by hand, or the
    drained device that is named, to service: by way of probation."""
    return tell(call(session, lambda grid: grid.uncordon(target, reason, maintenance)))


@click.command()
@click.argument("target", metavar="NODE|DEVICE")
@reason_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--mode", type=click.Choice(MODES), help="How jobs leave; without it, as the policy says.")
@click.option("--wait", type=SPAN, default=0, metavar="DURATION", help="With --mode deadline: jobs may end until then.")
@click.option("--priority", type=int, default=0, help="Higher goes first when a budget has not room for all.")
@click.option("--in", "delay", type=SPAN, default=0, metavar="DURATION", help="Begin this much later.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost and whether it would be admitted; do nothing.")
@click.option(
    "--out-for",
    type=SPAN,
    default=4 * 3_600_000,
    metavar="DURATION",
    help="How long it is expected to be out, for the contracts. Default: 4h.",
)
@click.option("--accept-breach", is_flag=True, help="Also if that breaks a contract.")
@client_options
@pass_session
def drain(
    session: Session,
    target: str,
    reason: str,
    yes: bool,
    mode: str | None,
    wait: int,
    priority: int,
    delay: int,
    dry_run: bool,
    out_for: int,
    accept_breach: bool,
) -> int:
    """Take one device out, or each device of a node, within the budgets, unless that would break a contract.

    Modes: checkpoint (jobs are asked for a checkpoint, stopped and moved), wait (for their own end; nothing new is
    placed there), deadline (wait, then as checkpoint).

    \b
    Examples:
      gridkeeper drain east-1/gpu3 --reason "vendor asks for it"
      gridkeeper drain east-1 --dry-run
      gridkeeper drain east-1 --mode deadline --wait 2h --yes
    """

    async def work(grid: GridClient) -> Act:
        ask = functools.partial(
            grid.drain, target, reason, mode=mode or "", wait_ms=wait, priority=priority, delay_ms=delay
        )
        rehearsed = await ask(dry_run=True)
        broken = await contract_breaks(grid, target, out_for)
        for line in broken:
            print(line, file=sys.stderr)
        if dry_run:
            return rehearsed
        if broken and not accept_breach:
            raise Refused(
                f"{target}: out for {span(out_for)} would break {len(broken)} commitments; say --accept-breach, or a "
                "shorter --out-for"
            )
        for line in cost_lines(rehearsed):
            print(line, file=sys.stderr)
        if not yes:
            await asyncio.to_thread(confirm, f"Drain {target}?")
        return await ask()

    act = call(session, work)
    if not dry_run:
        return tell(act)
    for line in cost_lines(act):
        print(line)
    return 0


def cost_lines(act: Act) -> Iterable[str]:
    """What a dry run says: the whole in a few lines, then device by device."""
    first, *more = act.sentence.split("; ")
    yield first
    for line in more:
        yield f"  {line}"
    for record in act.plan:
        refused = record.state == records_pb2.DRAIN_STATE_REFUSED
        verdict = f"refused: {record.reason.rpartition('refused: ')[2]}" if refused else word(record, "state")
        jobs = f", jobs {', '.join(record.jobs)}" if record.jobs else ""
        yield f"  {record.device}: {verdict} (mode {word(record, 'mode')}){jobs}"


def confirm(question: str) -> None:
    """Ask on a terminal; raises ``click.Abort`` on no, a usage error where nobody can answer."""
    if not sys.stdin.isatty():
        raise click.UsageError("not on a terminal, so nobody can be asked; repeat with --yes")
    click.confirm(question, abort=True, err=True)


@click.command("cancel-drain")
@click.argument("name", metavar="DRAIN")
@reason_option
@client_options
@pass_session
def cancel_drain(session: Session, name: str, reason: str) -> int:
    """Call off a drain that is not over."""
    return tell(call(session, lambda grid: grid.cancel_drain(name.removeprefix("drain/"), reason)))


@click.group()
def incident() -> None:
    """Acknowledge incidents."""


@incident.command()
@click.argument("names", metavar="INCIDENT…", nargs=-1, required=True)
@reason_option
@client_options
@pass_session
def ack(session: Session, names: tuple[str, ...], reason: str) -> int:
    """Say that you take care of it: it stays open, and nobody else is called."""

    async def work(grid: GridClient) -> None:
        for name in names:
            tell(await grid.ack_incident(name.removeprefix("incident/"), reason))

    call(session, work)
    return 0
