"""``gridkeeper slo validate|rules``: service level objectives in OpenSLO v1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridkeeper.client.errors import InvalidRequest

if TYPE_CHECKING:
    from gridkeeper.sla.objectives import Book


@click.group()
def slo() -> None:
    """Service level objectives as OpenSLO v1 documents (docs/sla.md)."""


@slo.command()
@click.argument("path", metavar="FILE")
def validate(path: str) -> int:
    """Check FILE without a grid. Everything that is wrong is told, with its line, field and remedy."""
    from gridkeeper.sla.promrules import NoRules, rules_text

    book = _book(path)
    print(f"{path}: valid: {len(book.documents)} documents, {len(book.goals)} SLOs")
    for goal in book.goals:
        try:
            rules_text((goal,))
        except NoRules as error:
            print(f"{path}: note: {error}")
    return 0


@slo.command()
@click.argument("path", metavar="FILE")
@click.option("--output", default="", metavar="FILE", help="Write them there instead of to the terminal.")
def rules(path: str, output: str) -> int:
    """Prometheus recording and alerting rules of the SLOs in FILE: burn rates over two windows, and alert policies.

    \b
    Examples:
      gridkeeper slo rules slo.yaml --output /etc/prometheus/rules/slo.yaml
    """
    from gridkeeper.sla.promrules import NoRules, rules_text

    try:
        text = rules_text(_book(path).goals)
    except NoRules as error:
        raise InvalidRequest(f"{path}: {error}") from error
    if not output:
        sys.stdout.write(text)
        return 0
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--output: {output}: cannot be written: {error.strerror}") from error
    return 0


def _book(path: str) -> Book:
    """Raises ``InvalidRequest``; all but the last fault have been printed, one a line."""
    from gridkeeper.configfile import ConfigError, load_text
    from gridkeeper.sla.objectives import parse_slos

    try:
        return parse_slos(load_text(path), path)
    except ConfigError as error:
        faults = str(error).splitlines()
        for fault in faults[:-1]:
            print(f"gridkeeper: {fault}", file=sys.stderr)
        raise InvalidRequest(faults[-1]) from error
