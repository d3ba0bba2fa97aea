"""``gridkeeper sla exclude add|list|retract``: times that contracts may leave out, each with who, when and why."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.acts import reason_option, tell
from gridkeeper.cli.maintenance import MOMENT
from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment
from gridkeeper.client.plain import plain, word
from gridkeeper.v1 import records_pb2

CAUSES = {
    "maintenance": records_pb2.CAUSE_MAINTENANCE,
    "customer": records_pb2.CAUSE_CUSTOMER,
    "force-majeure": records_pb2.CAUSE_FORCE_MAJEURE,
}
TITLES = ("NUMBER", "CAUSE", "SCOPE", "FROM", "UNTIL", "STATE", "BY", "RECORDED", "REASON", "EVIDENCE")


@click.group()
def exclude() -> None:
    """Times that contracts may leave out: a log that is only ever added to (docs/sla.md)."""


@exclude.command()
@click.argument("scope", metavar="SCOPE")
@click.option("--cause", type=click.Choice(tuple(CAUSES)), required=True, help="Maintenance only ahead of time.")
@click.option("--from", "from_ms", type=MOMENT, required=True, metavar="WHEN", help="2026-11-25T05:00[Z] or +2h.")
@click.option("--until", "until_ms", type=MOMENT, required=True, metavar="WHEN", help="Its end, likewise.")
@click.option("--evidence", multiple=True, metavar="TEXT", help="An incident, a ticket, a document; may be repeated.")
@click.option("--reason", required=True, help="Why, in one line: both sides of the contract will read it.")
@client_options
@pass_session
def add(
    session: Session, scope: str, cause: str, from_ms: int, until_ms: int, evidence: tuple[str, ...], reason: str
) -> int:
    """Record that contracts may leave out SCOPE (device/N/S, node/N, region/R or job/J) in that time.

    Maintenance of a node or device is better announced by 'gridkeeper maintenance plan', which also drains it.

    \b
    Examples:
      gridkeeper sla exclude add node/n7 --cause customer --from 2026-11-25T05:00Z --until 2026-11-25T07:30Z \\
        --reason "the customer's driver crashed it" --evidence incident/i-77
    """
    work = call(session, lambda grid: grid.record_exclusion(scope, CAUSES[cause], from_ms, until_ms, reason, evidence))
    return tell(work)


@exclude.command("list")
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def list_(session: Session, output: str) -> int:
    """The log: what was recorded, and what of it was retracted by whom."""
    answer = call(session, lambda grid: grid.settlement())
    if output != "table":
        items = [plain(event) for event in answer.exclusions]
        print_value({"kind": "ExclusionList", "partial": list(answer.partial), "items": items}, output)
        return warn_partial(answer.partial)
    retracted = {event.retracts for event in answer.exclusions}
    rows = [
        (
            str(event.sequence), word(event, "cause"), event.scope, moment(event.from_ms), moment(event.until_ms),
            _state(event, retracted), event.recorded_by, moment(event.recorded_ms), event.reason,
            ", ".join(event.evidence),
        )
        for event in answer.exclusions
    ]  # fmt: skip
    if rows:
        print_table(TITLES, rows)
    else:
        print("nothing is excluded", file=sys.stderr)
    return warn_partial(answer.partial)


def _state(event: records_pb2.ExclusionRecord, retracted: set[int]) -> str:
    if event.retracts:
        return f"retracts {event.retracts}"
    return "retracted" if event.sequence in retracted else "in force"


@exclude.command()
@click.argument("number", metavar="NUMBER")
@reason_option
@client_options
@pass_session
def retract(session: Session, number: str, reason: str) -> int:
    """Record that the exclusion NUMBER does not hold: from then on no report leaves its time out. A closed month gets
    an adjustment."""
    return tell(call(session, lambda grid: grid.retract_exclusion(number.removeprefix("exclusion/"), reason)))
