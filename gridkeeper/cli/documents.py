"""What ``sla contract`` and ``slo`` have in common: documents that are kept in the grid."""

from __future__ import annotations

import sys

from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment
from gridkeeper.client.plain import plain


def apply_document(
    session: Session, kind: str, name: str, text: str, path: str, reason: str, expect: int | None, dry_run: bool
) -> int:
    wanted = -1 if expect is None else expect
    answer = call(session, lambda grid: grid.apply_document(kind, name, text, path, reason, wanted, dry_run))
    print(answer.sentence)
    if dry_run:
        print("dry run: nothing was applied")
    return 0


def document_text(session: Session, kind: str, name: str) -> str:
    """As it was applied. Raises ``ClientError``."""
    return call(session, lambda grid: grid.documents(kind, name)).records[0].text


def show_documents(session: Session, kind: str, name: str, output: str) -> int:
    """One as it was applied, or ("") a table of all."""
    answer = call(session, lambda grid: grid.documents(kind, name))
    if output == "json":
        print_value(plain(answer), "json")
        return 0
    if name:
        text = answer.records[0].text
        print(text, end="" if text.endswith("\n") else "\n")
        return 0
    rows = [
        (
            record.name,
            str(record.version),
            moment(record.applied_ms),
            record.applied_by,
            record.digest[:12],
            record.reason,
        )
        for record in answer.records
    ]
    if rows:
        print_table(("NAME", "VERSION", "APPLIED", "BY", "DIGEST", "REASON"), rows)
    else:
        print(f"no {kind} has been applied", file=sys.stderr)
    return 0
