"""``gridkeeper sla contract example|apply|get``: contracts, in files and in the grid."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gridkeeper.cli.acts import reason_option
from gridkeeper.cli.documents import apply_document, document_text, show_documents
from gridkeeper.cli.session import Session, client_options, pass_session
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.sla.contracts import SHIPPED

if TYPE_CHECKING:
    from gridkeeper.sla.contract import Contract

KIND = "contract"


@click.group()
def contract() -> None:
    """Contracts: what was promised, and what a breach owes."""


@contract.command()
@click.argument("name", type=click.Choice(SHIPPED))
def example(name: str) -> int:
    """A contract shaped like a published one, to edit. Its source, date, and what is not sure are in it."""
    from gridkeeper.sla.document import shipped_text

    sys.stdout.write(shipped_text(name))
    return 0


@contract.command()
@click.argument("path", metavar="FILE")
@reason_option
@click.option("--dry-run", is_flag=True, help="Check it only.")
@click.option("--expect-version", type=click.IntRange(0), default=None, metavar="N", help="Only over this version.")
@client_options
@pass_session
def apply(session: Session, path: str, reason: str, dry_run: bool, expect_version: int | None) -> int:
    """Keep FILE in the grid, as the newest version of the contract that it names."""
    from gridkeeper.configfile import load_text

    _parsed(path, None)
    return apply_document(session, KIND, "", load_text(path), path, reason, expect_version, dry_run)


@contract.command()
@click.argument("name", required=False, default="")
@click.option("-o", "--output", type=click.Choice(("yaml", "json")), default="yaml", show_default=True)
@client_options
@pass_session
def get(session: Session, name: str, output: str) -> int:
    """The contract NAME as it was applied; without NAME, which there are."""
    return show_documents(session, KIND, name, output)


def read_contract(session: Session, named: str) -> Contract:
    """A file's, or (there is no such file, and it is a mere name) one that was applied. Raises ``ClientError``; all but
    the last fault have been printed, one a line."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", named) and not Path(named).exists():
        return _parsed(f"contract {named}", document_text(session, KIND, named))
    return _parsed(named, None)


def _parsed(source: str, text: str | None) -> Contract:
    from gridkeeper.configfile import ConfigError
    from gridkeeper.sla.document import load_contract, parse_contract

    try:
        return load_contract(source) if text is None else parse_contract(text, source)
    except ConfigError as error:
        faults = str(error).splitlines()
        for fault in faults[:-1]:
            print(f"gridkeeper: {fault}", file=sys.stderr)
        raise InvalidRequest(faults[-1]) from error
