"""``gridkeeper policy apply|get|history|diff|rollback|validate``."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click

from gridkeeper.cli.acts import reason_option
from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.client.grid import GridClient
from gridkeeper.client.plain import plain
from gridkeeper.v1 import api_pb2

IN_FORCE = "in-force"


@click.group()
def policy() -> None:
    """The policy document: rules, budgets, breakers and the rest (docs/policy.md)."""


@policy.command()
@click.argument("path", metavar="FILE")
@reason_option
@click.option("--dry-run", is_flag=True, help="Check it and say what it would change.")
@click.option("--expect-version", type=click.IntRange(0), default=None, metavar="N", help="Only over this version.")
@client_options
@pass_session
def apply(session: Session, path: str, reason: str, dry_run: bool, expect_version: int | None) -> int:
    """Make FILE the newest version. Each region decides by it from its next decision on.

    \b
    Examples:
      gridkeeper policy get > policy.yaml
      gridkeeper policy apply policy.yaml --dry-run
      gridkeeper policy apply policy.yaml --expect-version 3 --reason "stricter on heat"
    """
    text = _checked(path)
    expect = -1 if expect_version is None else expect_version
    return _told(call(session, lambda grid: grid.apply_policy(text, path, reason, expect, dry_run)), dry_run)


@policy.command()
@click.option("--version", type=click.IntRange(1), default=None, metavar="N", help="Default: the one in force.")
@click.option("-o", "--output", type=click.Choice(("yaml", "json")), default="yaml", show_default=True)
@client_options
@pass_session
def get(session: Session, version: int | None, output: str) -> int:
    """The document, as it was applied; with -o json also who applied it, when and why."""
    answer = call(session, lambda grid: grid.policy(version or 0))
    if answer.problem:
        print(f"warning: {answer.problem}", file=sys.stderr)
    if output == "json":
        print_value(plain(answer), "json")
    else:
        print(answer.record.text, end="" if answer.record.text.endswith("\n") else "\n")
    return 0


@policy.command()
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def history(session: Session, output: str) -> int:
    """The versions that were applied, oldest first."""
    answer = call(session, lambda grid: grid.policy_history())
    if output != "table":
        print_value(plain(answer), output)
        return 0
    rows = [
        (
            str(record.version),
            "in force" if record.version == answer.in_force else "",
            moment(record.applied_ms),
            record.applied_by,
            record.digest[:12],
            record.reason,
        )
        for record in answer.records
    ]
    if rows:
        print_table(("VERSION", "STATE", "APPLIED", "BY", "DIGEST", "REASON"), rows)
    else:
        print("no policy has been applied; the built-in or configured one is in force", file=sys.stderr)
    return 0


@policy.command()
@click.argument("before", metavar="[VERSION|FILE]")
@click.argument("after", metavar="[VERSION|FILE]", required=False)
@client_options
@pass_session
def diff(session: Session, before: str, after: str | None) -> int:
    """The lines that differ between two documents; with one, from the policy in force to that one.

    \b
    Examples:
      gridkeeper policy diff policy.yaml
      gridkeeper policy diff 3 4
    """
    first, second = (before, after) if after is not None else (IN_FORCE, before)

    async def texts(grid: GridClient) -> tuple[str, str]:
        return await _text(grid, first), await _text(grid, second)

    old, new = call(session, texts)
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), first, second, lineterm=""):
        print(line)
    return 0


@policy.command()
@click.argument("version", type=click.IntRange(1))
@reason_option
@click.option("--dry-run", is_flag=True, help="Say what it would change.")
@client_options
@pass_session
def rollback(session: Session, version: int, reason: str, dry_run: bool) -> int:
    """Apply an earlier VERSION again, as a new one."""

    async def work(grid: GridClient) -> api_pb2.ApplyPolicyResponse:
        newest = max((record.version for record in (await grid.policy_history()).records), default=0)
        text = (await grid.policy(version)).record.text
        why = f"back to version {version}" + (f": {reason}" if reason else "")
        return await grid.apply_policy(text, f"policy version {version}", why, newest, dry_run)

    return _told(call(session, work), dry_run)


@policy.command()
@click.argument("path", metavar="FILE")
def validate(path: str) -> int:
    """Check FILE without a grid. Everything that is wrong is told, each with its line."""
    _checked(path)
    print(f"{path}: valid")
    return 0


def _checked(path: str) -> str:
    """The text of a valid document. Raises ``InvalidRequest``; the faults have been printed, one a line."""
    from gridkeeper.configfile import ConfigError, load_text
    from gridkeeper.policy.document import parse_policy

    try:
        text = load_text(path)
        parse_policy(text, path)
    except ConfigError as error:
        faults = str(error).splitlines()
        for fault in faults[:-1]:
            print(f"gridkeeper: {fault}", file=sys.stderr)
        raise InvalidRequest(faults[-1]) from error
    return text


async def _text(grid: GridClient, name: str) -> str:
    if name == IN_FORCE:
        return (await grid.policy()).record.text
    if name.isdigit() and not Path(name).exists():
        return (await grid.policy(int(name))).record.text
    return _checked(name)


def _told(answer: api_pb2.ApplyPolicyResponse, dry_run: bool) -> int:
    print(answer.sentence)
    for change in answer.changes:
        print(f"  {change}")
    if dry_run:
        print("dry run: nothing was applied")
    return 0
