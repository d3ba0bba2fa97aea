"""The language of rules: a SQL expression over the fleet table, checked against a list of what is allowed, and compiled
once to a Polars expression.

Only what is listed in ``terms`` exists. A table function, a subquery, a statement, or any function that is not ours has
no entry, so nothing in an expression can reach outside the table. Logic is three-valued: a value that is not known
makes a comparison unknown (null), never false; ``unknown AND false`` is false, ``unknown OR true`` is true.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import polars as pl
import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from gridkeeper.policy.columns import Type
from gridkeeper.policy.terms import BadExpression, Builder, Growth, quoted

MAX_LENGTH = 4_096
MAX_NODES = 500


@dataclass(frozen=True, slots=True)
class Compiled:
    """``expr``: truth per row, null where unknown, over a frame with ``columns`` and ``growths`` (NaN as null)."""

    text: str
    expr: pl.Expr
    columns: tuple[str, ...]
    growths: tuple[Growth, ...]


@functools.lru_cache(maxsize=1_024)
def compile_expression(text: str) -> Compiled:
    """The condition that ``text`` says. Raises ``BadExpression``."""
    builder = Builder()
    try:
        value = builder.value(_parsed(text))
    except RecursionError as error:
        raise BadExpression("is nested too deeply; split it into several rules") from error
    if value.type is not Type.TRUTH:
        raise BadExpression(f"{quoted(text)} is {value.type.value}, not a condition; compare it with something")
    if not builder.columns and not builder.growths:
        raise BadExpression(f"{quoted(text)} looks at no column, so it would be the same for every device; name one")
    return Compiled(text, value.expr, tuple(sorted(builder.columns)), tuple(sorted(builder.growths)))


def _parsed(text: str) -> sql.Expression:
    if not text.strip():
        raise BadExpression("is empty; write a condition such as temperature_c > 85")
    if len(text) > MAX_LENGTH:
        raise BadExpression(f"{len(text)} characters; use at most {MAX_LENGTH}")
    try:
        found = [tree for tree in sqlglot.parse(text) if tree is not None]
    except SqlglotError as error:
        raise BadExpression(f"is not an expression: {told(error)}; write it like temperature_c > 85") from error
    if len(found) != 1:
        raise BadExpression(f"holds {len(found)} statements; write one condition, without ';'")
    tree = found[0]
    if not isinstance(tree, sql.Expression):
        raise BadExpression(f"{quoted(text)} is not an expression; write it like temperature_c > 85")
    if sum(1 for _ in tree.walk()) > MAX_NODES:
        raise BadExpression(f"has more than {MAX_NODES} parts; split it into several rules")
    return tree


def told(error: SqlglotError) -> str:
    """The parser's complaint in one line, with its place."""
    details = getattr(error, "errors", None)
    if not details:
        return re.sub(r"\s+", " ", str(error))[:200]
    first = details[0]
    near = str(first.get("highlight") or "").strip()
    place = f"line {first.get('line')}, column {first.get('col')}"
    what = str(first.get("description") or "syntax error").rstrip(".")
    return f"{what} at {place}" + (f", near {near!r}" if near else "")
