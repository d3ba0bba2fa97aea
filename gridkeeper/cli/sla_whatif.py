"""``gridkeeper sla what-if``: what taking something down now would do to a contract's month."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction

import click

from gridkeeper.cli.session import Session, client_options, pass_session, warn_partial
from gridkeeper.cli.sla_books import held
from gridkeeper.cli.sla_contract import read_contract
from gridkeeper.cli.table import print_table
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.clock import SystemClock

TITLES = ("COMMITMENT", "SUBJECT", "NOW %", "THEN %", "LEFT", "LEFT THEN", "EFFECT", "MORE OWED")


@click.command("what-if")
@click.option("--contract", "path", required=True, metavar="FILE|NAME", help="A file, or one that was applied.")
@click.option("--down", required=True, multiple=True, metavar="SCOPE", help="device/N/S, node/N, region/R, job/J.")
@click.option("--for", "duration", required=True, metavar="4h", help="How long: a whole number and m, h or d.")
@click.option("--ledger", default="", metavar="FILE", help="A Parquet file of entries instead of the grid's ledger.")
@client_options
@pass_session
def what_if(session: Session, path: str, down: tuple[str, ...], duration: str, ledger: str) -> int:
    """What each commitment of a contract would say at the month's end if SCOPE went down now for so long, with
    everything else up. Exit code 5 if a target that would be met would be missed.

    \b
    Examples:
      gridkeeper sla what-if --contract contract.yaml --down node/n7 --for 4h && gridkeeper drain n7
      gridkeeper sla what-if --contract contract.yaml --down region/east --for 1d
    """
    from gridkeeper.sla.months import month_of, month_window
    from gridkeeper.sla.objectives import duration as parse_duration
    from gridkeeper.sla.render import amount, percent
    from gridkeeper.sla.whatif import effects

    contract = read_contract(session, path)
    now_ms = SystemClock().wall_ms()
    month = month_of(now_ms, contract.zone)
    books = held(session, ledger, month_window(month, contract.zone), now_ms)
    frame = books.whole()
    try:
        asked = parse_duration(duration)
        if asked.months:
            raise ValueError(f"for: {duration!r} has no fixed length; use m, h, d or w")
        scopes = _scopes(down, sorted(frame["scope"].unique().to_list()), books.labels)
        found = effects(contract, month, frame, books.labels, scopes, now_ms, asked.ms)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    rows = [
        (
            one.commitment, one.subject, percent(one.before.measured.availability),
            percent(one.after.measured.availability),
            _left(one.left_ms), _left(one.left_after_ms),
            "BREAKS" if one.breaks else "missed already" if one.before.met is False else "holds",
            amount(one.owed, contract),
        )
        for one in found
    ]  # fmt: skip
    if rows:
        print_table(TITLES, rows)
    else:
        print("no commitment of this contract is touched", file=sys.stderr)
    code = warn_partial(books.partial)
    return 5 if any(one.breaks for one in found) else code


def _left(ms: Fraction) -> str:
    from gridkeeper.sla.render import span

    return ("-" if ms < 0 else "") + span(abs(int(ms)))


def _scopes(asked: Sequence[str], known: Sequence[str], labels: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Ledger scopes: a node is its devices; a region itself and its devices. Raises ``ValueError``."""
    found: dict[str, None] = {}
    for text in asked:
        kind, _, name = text.partition("/")
        if kind == "node":
            members = [scope for scope in known if scope.startswith(f"device/{name}/")]
        elif kind == "region":
            members = [scope for scope in known if labels.get(scope, {}).get("region") == name]
            members += [text] if text in known else []
        else:
            members = [text] if text in known else []
        if not members:
            raise ValueError(f"down: the ledger has nothing of {text!r} this month; see 'gridkeeper sla status'")
        found.update(dict.fromkeys(members))
    return tuple(found)
