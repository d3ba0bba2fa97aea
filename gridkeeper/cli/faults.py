"""``gridkeeper faults``: the catalogue on the terminal. It needs no server."""

from __future__ import annotations

import click

from gridkeeper.catalogue.report import conflict_report, describe
from gridkeeper.catalogue.tables import FILES, table
from gridkeeper.cli.table import print_table
from gridkeeper.records.fleet import EventKind

WORDS = {**{kind.value: kind for kind in FILES}, "thead": EventKind.PPU}


@click.command()
@click.argument("kind", required=False, type=click.Choice(tuple(WORDS)))
@click.argument("code", required=False)
@click.option("--conflicts", is_flag=True, help="Where the sources contradict each other.")
def faults(kind: str | None, code: str | None, conflicts: bool) -> int:
    """What the fault catalogue says of a code, and by whose word.

    \b
    Examples:
      gridkeeper faults xid 94
      gridkeeper faults ascend 80E01801
      gridkeeper faults host
      gridkeeper faults --conflicts
    """
    if conflicts:
        print(conflict_report(), end="")
        return 0
    if kind is None:
        print_table(("KIND", "CODES"), [(held.value, str(len(table(held)))) for held in FILES])
        return 0
    wanted = WORDS[kind]
    if code is None:
        rows = [
            (entry.name, entry.severity.value, entry.scope.value, entry.action.value, entry.meaning)
            for entry in table(wanted).values()
        ]
        print_table(("CODE", "SEVERITY", "SCOPE", "ACTION", "MEANING"), rows)
        return 0
    number = _number(wanted, code)
    try:
        print(describe(wanted, number))
    except KeyError:
        print(f"{kind} {code}: nobody in the catalogue knows it; the policy for unknown codes applies")
        return 4
    return 0


def _number(kind: EventKind, code: str) -> int:
    """Huawei's codes are hexadecimal. Raises ``click.BadParameter``."""
    text = code.lower().removeprefix(f"{kind.value}-")
    try:
        return int(text, 16 if kind is EventKind.ASCEND else 10)
    except ValueError:
        base = "a hexadecimal number like 80E01801" if kind is EventKind.ASCEND else "a number like 94"
        raise click.BadParameter(f"{code!r} is not {base}", param_hint="CODE") from None
