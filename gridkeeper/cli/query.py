"""``gridkeeper query``."""

from __future__ import annotations

import csv
import math
import sys
from typing import TYPE_CHECKING, Any

import click

from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table

if TYPE_CHECKING:
    from gridkeeper.client.query import Answer


@click.command()
@click.argument("sql")
@click.option("-o", "--output", type=click.Choice(("table", "json", "csv")), default="table", show_default=True)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="Rows at most.")
@client_options
@pass_session
def query(session: Session, sql: str, output: str, limit: int) -> int:
    """Ask the live state of all regions in SQL: tables devices, nodes, incidents, drains, jobs (docs/query.md).

    \b
    Examples:
      gridkeeper query "select region, count(*) from devices where temperature_c > 85 group by region"
      gridkeeper query "select device, power_w, job from devices where health = 'suspect' order by power_w desc"
      gridkeeper query "select d.device, n.state from devices d join nodes n using (node) where n.cordoned" -o csv
    """
    answer = call(session, lambda grid: grid.query(sql, limit))
    print_answer(answer, output)
    sys.stdout.flush()
    return warn_partial(answer.partial)


def print_answer(answer: Answer, output: str) -> None:
    if output == "json":
        print_value([dict(zip(answer.columns, map(_plain, row), strict=True)) for row in answer.rows], "json")
    elif output == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows([_plain(value) for value in row] for row in answer.rows)
    elif answer.rows:
        print_table([name.upper() for name in answer.columns], [[_cell(v) for v in row] for row in answer.rows])
    else:
        print("no rows", file=sys.stderr)


def _plain(value: Any) -> Any:
    """What JSON can hold: a whole number without a point, nothing for what is not known."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if math.isfinite(value) else None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"
    return str(value)
