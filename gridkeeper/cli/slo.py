"""``gridkeeper slo validate|rules|apply|get``: service level objectives in OpenSLO v1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridkeeper.cli.acts import reason_option
from gridkeeper.cli.documents import apply_document, show_documents
from gridkeeper.cli.session import Session, client_options, pass_session
from gridkeeper.client.errors import InvalidRequest

if TYPE_CHECKING:
    from gridkeeper.sla.objectives import Book

KIND = "objectives"


@click.group()
def slo() -> None:
    """Service level objectives as OpenSLO v1 documents (docs/sla.md)."""


@slo.command()
@click.argument("path", metavar="FILE")
def validate(path: str) -> int:
    """Check FILE without a grid. Everything that is wrong is told, with its line, field and remedy."""
    from gridkeeper.sla.builtin import NotMeasured, asked
    from gridkeeper.sla.promrules import NoRules, rules_text

    book = _book(path)
    print(f"{path}: valid: {len(book.documents)} documents, {len(book.goals)} SLOs")
    for goal in book.goals:
        try:
            rules_text((goal,))
        except NoRules as error:
            print(f"{path}: note: {error}")
        try:
            asked(goal)
        except NotMeasured as error:
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


@slo.command()
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="OpenSLO documents.")
@click.option("--name", default="", help="What to call them; default: the file's name without its ending.")
@reason_option
@click.option("--dry-run", is_flag=True, help="Check them only.")
@click.option("--expect-version", type=click.IntRange(0), default=None, metavar="N", help="Only over this version.")
@client_options
@pass_session
def apply(session: Session, path: str, name: str, reason: str, dry_run: bool, expect_version: int | None) -> int:
    """Keep FILE in the grid, as the newest version of the objectives of that name.

    \b
    Examples:
      gridkeeper slo apply -f slo.yaml --reason "stricter on latency"
    """
    from gridkeeper.configfile import load_text

    _book(path)
    wanted = name or Path(path).stem
    return apply_document(session, KIND, wanted, load_text(path), path, reason, expect_version, dry_run)


@slo.command()
@click.argument("name", required=False, default="")
@click.option("-o", "--output", type=click.Choice(("yaml", "json")), default="yaml", show_default=True)
@client_options
@pass_session
def get(session: Session, name: str, output: str) -> int:
    """The objectives NAME as they were applied; without NAME, which there are."""
    return show_documents(session, KIND, name, output)


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
