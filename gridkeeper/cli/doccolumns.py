"""The table of columns in ``docs/policy.md``, between its two markers."""

from __future__ import annotations

from pathlib import Path

from gridkeeper.policy.columns import COLUMNS

POLICY = Path(__file__).parents[2] / "docs" / "policy.md"
BEGIN, END = "<!-- columns -->\n", "<!-- end of columns -->\n"


def document() -> str:
    """The whole file as it should be. Raises ``ValueError`` if it has lost its markers."""
    before, _, rest = POLICY.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{POLICY}: the markers {BEGIN.strip()} and {END.strip()} are not there; put them back")
    rows = [f"| `{c.name}` | {c.help}{' (a counter)' if c.counter else ''} |" for c in COLUMNS.values()]
    return (
        "\n".join([before + BEGIN, "| column | meaning |", "|---|---|", *rows, "\n" + END + after]).rstrip("\n") + "\n"
    )
