"""``cordon``, ``uncordon``, ``drain``, ``cancel-drain``, ``incident ack``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

import click

from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.cli.text import age, parse_span
from gridkeeper.client.grid import Act, GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object


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
@client_options
@pass_session
def drain(session: Session, target: str, reason: str, yes: bool) -> int:
    """Take one device out, or each device of a node: its jobs are moved, within the budgets.

    \b
    Examples:
      gridkeeper drain east-1/gpu3 --reason "vendor asks for it"
      gridkeeper drain east-1 --yes
    """

    async def work(grid: GridClient) -> Act:
        devices, jobs = await _hit(grid, target)
        for line in _warning(target, devices, jobs):
            print(line, file=sys.stderr)
        if not yes:
            await asyncio.to_thread(confirm, f"Drain {target}?")
        return await grid.drain(target, reason)

    return tell(call(session, work))


async def _hit(grid: GridClient, target: str) -> tuple[tuple[Object, ...], list[Object]]:
    """The devices that ``target`` names and the jobs on them."""
    if "/" in target:
        devices: tuple[Object, ...] = (await grid.get(api_pb2.KIND_DEVICE, target),)
    else:
        await grid.get(api_pb2.KIND_NODE, target)
        devices = (await grid.list(api_pb2.KIND_DEVICE, f"node={target}")).objects
    names = dict.fromkeys(device.device.job for device in devices if device.device.job)
    return devices, [await grid.get(api_pb2.KIND_JOB, name) for name in names]


def _warning(target: str, devices: Iterable[Object], jobs: list[Object]) -> Iterable[str]:
    number = sum(1 for _ in devices)
    count = f"{number} device" + ("" if number == 1 else "s")
    if not jobs:
        yield f"{target}: {count}, no job runs there"
        return
    now_ms = SystemClock().wall_ms()
    yield f"{target}: {count}; the jobs there will be stopped after a checkpoint and moved:"
    for job in jobs:
        head = job.job.head
        saved = f"checkpoint of step {head.step}, {age(head.committed_ms, now_ms)} old" if head.job else "no checkpoint"
        yield f"  {job.name}  {job.labels['state']}  {saved}"


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
