"""``gridkeeper explain``."""

from __future__ import annotations

from collections.abc import Iterable

import click

from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment, span
from gridkeeper.client.plain import plain
from gridkeeper.kinds import object_named
from gridkeeper.v1.api_pb2 import Link


@click.command()
@click.argument("name", metavar="KIND/NAME")
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def explain(session: Session, name: str, output: str) -> int:
    """Why is KIND/NAME as it is: log lines, samples, findings, states, drains, moves and bookings, oldest first.

    \b
    Examples:
      gridkeeper explain device/east-1/gpu3
      gridkeeper explain incident/inc-4f2a
      gridkeeper explain drain/east-1:gpu3:812 -o json
      gridkeeper explain region/east
      gridkeeper explain checkpoint/train/400
      gridkeeper explain sla/device/east-1/gpu3
    """
    info, wanted = object_named(name)
    answer = call(session, lambda grid: grid.explain(info.kind, wanted))
    if output == "table":
        print_chain(answer.chain)
    else:
        chain = [plain(link) for link in answer.chain]
        print_value({"kind": "Explanation", "partial": list(answer.partial), "chain": chain}, output)
    return warn_partial(answer.partial)


def print_chain(chain: Iterable[Link]) -> None:
    """A row per link; AFTER counts from the first."""
    links = tuple(chain)
    start = next((link.at_ms for link in links if link.at_ms), 0)
    rows = [
        (
            moment(link.at_ms),
            f"+{span(link.at_ms - start)}" if link.at_ms else "-",
            link.step,
            link.object,
            link.sentence,
        )
        for link in links
    ]
    print_table(("AT", "AFTER", "STEP", "OBJECT", "WHAT"), rows)
