"""What may stand in an expression over the fleet table, and what it becomes in Polars. Only what has an entry at the
end of this file exists."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from sqlglot import expressions as sql

from gridkeeper.policy.columns import COLUMNS, Column, Type

MAX_DIGITS = 30
BITS = 24
"""Bits of a float32 that are exact, so that ``bit`` can see them."""

DEFAULT_WINDOW_MS = 60_000
LEAST_WINDOW_MS, MOST_WINDOW_MS = 10_000, 3_600_000
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}

FUNCTIONS = (
    "abs", "bit", "ceil", "coalesce", "floor", "greatest", "growth", "least", "rate", "round", "sqrt",
)  # fmt: skip
"""What an expression may call; ``CASE`` besides."""


class BadExpression(ValueError):
    """Text that is no allowed expression: what is wrong, where it is in the text, and the remedy."""


@dataclass(frozen=True, slots=True, order=True)
class Growth:
    """How much a counter grew within the last ``window_ms``: a column that the rule engine makes."""

    metric: str
    window_ms: int

    @property
    def column(self) -> str:
        return f"growth({self.metric},{self.window_ms})"


@dataclass(frozen=True, slots=True)
class Value:
    expr: pl.Expr
    type: Type


def quoted(node: sql.Expression | str) -> str:
    text = node if isinstance(node, str) else node.sql()
    return repr(text if len(text) <= 80 else text[:77] + "…")


@dataclass(slots=True)
class Builder:
    """Walks the parsed tree; a node that has no case here is refused."""

    columns: set[str] = field(default_factory=set)
    growths: set[Growth] = field(default_factory=set)

    def value(self, node: sql.Expression) -> Value:
        build = _BUILD.get(type(node))
        if build is None:
            raise BadExpression(_not_allowed(node))
        return build(self, node)

    def of(self, node: sql.Expression, wanted: Type) -> pl.Expr:
        """The operand, which must be of this type."""
        found = self.value(node)
        if found.type is not wanted:
            raise BadExpression(f"{quoted(node)} is {found.type.value} where {wanted.value} is needed")
        return found.expr

    def column(self, node: sql.Column) -> Column:
        if len(node.parts) != 1:
            raise BadExpression(f"{quoted(node)}: a rule sees one table; write the column's name alone")
        name = node.name
        known = COLUMNS.get(name)
        if known is None:
            near = difflib.get_close_matches(name.lower(), COLUMNS, n=3, cutoff=0.5)
            near += [other for other in COLUMNS if other.startswith(name.lower() + "_")][:3]
            hint = (
                f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "docs/policy.md lists those there are"
            )
            raise BadExpression(f"there is no column {name[:80]!r}; {hint}")
        return known


def _not_allowed(node: sql.Expression) -> str:
    if isinstance(node, sql.Anonymous):
        name = node.name.lower()
        near = difflib.get_close_matches(name, FUNCTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FUNCTIONS)}"
        return f"there is no function {name[:80]!r}; {hint}"
    if isinstance(node, sql.Query | sql.Subquery):
        return f"{quoted(node)}: a rule looks at one device's row; queries and subqueries are not allowed here"
    if isinstance(node, sql.Func):
        return f"the function {node.sql_name().lower()!r} is not allowed here; there are {', '.join(FUNCTIONS)}"
    if isinstance(node, sql.DDL | sql.DML | sql.Command | sql.Drop):
        return f"{quoted(node)} is a statement; write a condition such as temperature_c > 85"
    return f"{quoted(node)} ({node.key}) is not allowed in a rule; use comparisons, AND, OR, NOT, CASE and arithmetic"


_Build = Callable[[Builder, Any], Value]
"""A node of the kind that it is entered for in ``_BUILD``."""


def _column(b: Builder, node: Any) -> Value:
    column = b.column(node)
    b.columns.add(column.name)
    return Value(pl.col(column.name), column.type)


def _literal(_: Builder, node: Any) -> Value:
    if node.is_string:
        return Value(pl.lit(node.this), Type.TEXT)
    if len(node.this) > MAX_DIGITS:
        raise BadExpression(f"the number {node.this[:20]}… has {len(node.this)} digits; use at most {MAX_DIGITS}")
    value = float(node.this)
    if not math.isfinite(value):
        raise BadExpression(f"the number {node.this} is too large")
    return Value(pl.lit(value), Type.NUMBER)


def _boolean(_: Builder, node: Any) -> Value:
    return Value(pl.lit(bool(node.this)), Type.TRUTH)


def _both(join: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    """AND, OR."""

    def build(b: Builder, node: Any) -> Value:
        return Value(join(b.of(node.left, Type.TRUTH), b.of(node.right, Type.TRUTH)), Type.TRUTH)

    return build


def _not(b: Builder, node: Any) -> Value:
    return Value(~b.of(node.this, Type.TRUTH), Type.TRUTH)


def _paren(b: Builder, node: Any) -> Value:
    return b.value(node.this)


def _compare(test: Callable[[pl.Expr, pl.Expr], pl.Expr], ordered: bool) -> _Build:
    def build(b: Builder, node: Any) -> Value:
        left = b.value(node.left)
        if ordered and left.type is not Type.NUMBER:
            raise BadExpression(f"{quoted(node.left)} is {left.type.value} where a number is needed")
        return Value(test(left.expr, b.of(node.right, left.type)), Type.TRUTH)

    return build


def _arithmetic(apply: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    def build(b: Builder, node: Any) -> Value:
        return Value(_known(apply(b.of(node.left, Type.NUMBER), b.of(node.right, Type.NUMBER))), Type.NUMBER)

    return build


def _known(expr: pl.Expr) -> pl.Expr:
    """Arithmetic that has no result (0/0, the root of a negative number) is not known."""
    return expr.fill_nan(None)


def _divide(left: pl.Expr, right: pl.Expr) -> pl.Expr:
    return pl.when(right != 0).then(left / right)


def _modulo(left: pl.Expr, right: pl.Expr) -> pl.Expr:
    return pl.when(right != 0).then(left % right)


def _negative(b: Builder, node: Any) -> Value:
    return Value(-b.of(node.this, Type.NUMBER), Type.NUMBER)


def _bitwise(apply: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> _Build:
    def build(b: Builder, node: Any) -> Value:
        left, right = (b.of(side, Type.NUMBER).cast(pl.Int64, strict=False) for side in (node.left, node.right))
        return Value(apply(left, right).cast(pl.Float64), Type.NUMBER)

    return build


def _between(b: Builder, node: Any) -> Value:
    value = b.of(node.this, Type.NUMBER)
    low, high = b.of(node.args["low"], Type.NUMBER), b.of(node.args["high"], Type.NUMBER)
    return Value((value >= low) & (value <= high), Type.TRUTH)


def _in(b: Builder, node: Any) -> Value:
    if not node.expressions or any(node.args.get(name) for name in ("query", "unnest", "field")):
        raise BadExpression(f"{quoted(node)}: IN takes a list of values, like vendor IN ('nvidia', 'amd')")
    value = b.value(node.this)
    tests = [value.expr == b.of(item, value.type) for item in node.expressions]
    return Value(functools.reduce(operator.or_, tests), Type.TRUTH)


def _like(b: Builder, node: Any) -> Value:
    pattern = node.expression
    if not isinstance(pattern, sql.Literal) or not pattern.is_string:
        raise BadExpression(f"{quoted(node)}: LIKE takes a text in quotes, like model LIKE '%H100%'")
    parts = {"%": ".*", "_": "."}
    regex = "".join(parts.get(char, re.escape(char)) for char in pattern.this)
    return Value(b.of(node.this, Type.TEXT).str.contains(f"^(?s:{regex})$"), Type.TRUTH)


def _is(b: Builder, node: Any) -> Value:
    value = b.value(node.this)
    if isinstance(node.expression, sql.Null):
        return Value(value.expr.is_null(), Type.TRUTH)
    if isinstance(node.expression, sql.Boolean) and value.type is Type.TRUTH:
        wanted = bool(node.expression.this)
        return Value(value.expr.fill_null(not wanted) == wanted, Type.TRUTH)
    raise BadExpression(f"{quoted(node)}: IS takes NULL (not known), or TRUE and FALSE after a condition")


def _case(b: Builder, node: Any) -> Value:
    if node.this is not None:
        raise BadExpression(f"{quoted(node)}: write CASE WHEN <condition> THEN …, without a value after CASE")
    branches = [(b.of(branch.this, Type.TRUTH), b.value(branch.args["true"])) for branch in node.args["ifs"]]
    kind = branches[0][1].type
    default = node.args.get("default")
    otherwise = b.of(default, kind) if default is not None else pl.lit(None)
    for branch in node.args["ifs"][1:]:
        b.of(branch.args["true"], kind)
    found = otherwise
    for test, value in reversed(branches):  # a test that is unknown makes the whole unknown, not the next branch
        found = pl.when(test.is_null()).then(None).when(test).then(value.expr).otherwise(found)
    return Value(found, kind)


def _coalesce(b: Builder, node: Any) -> Value:
    first = b.value(node.this)
    return Value(pl.coalesce(first.expr, *(b.of(item, first.type) for item in node.expressions)), first.type)


def _extreme(pick: Callable[..., pl.Expr]) -> _Build:
    def build(b: Builder, node: Any) -> Value:
        items = [b.of(item, Type.NUMBER) for item in (node.this, *node.expressions)]
        return Value(pl.when(pl.all_horizontal(item.is_not_null() for item in items)).then(pick(*items)), Type.NUMBER)

    return build


def _single(apply: Callable[[pl.Expr], pl.Expr]) -> _Build:
    def build(b: Builder, node: Any) -> Value:
        if any(value for name, value in node.args.items() if name != "this"):
            raise BadExpression(f"{quoted(node)}: {node.key} takes one value")
        return Value(_known(apply(b.of(node.this, Type.NUMBER))), Type.NUMBER)

    return build


def _round(b: Builder, node: Any) -> Value:
    digits = node.args.get("decimals")
    places = _whole(digits, "round", 0, 9) if digits is not None else 0
    return Value(b.of(node.this, Type.NUMBER).round(places), Type.NUMBER)


def _whole(node: sql.Expression, function: str, least: int, most: int) -> int:
    if isinstance(node, sql.Literal) and not node.is_string and node.this.isdigit() and least <= int(node.this) <= most:
        return int(node.this)
    raise BadExpression(f"{function}: {quoted(node)} is not a whole number from {least} to {most}")


def _named(b: Builder, node: Any) -> Value:
    build = _OURS.get(node.name.lower())
    if build is None:
        raise BadExpression(_not_allowed(node))
    return build(b, node)


def _bit(b: Builder, node: Any) -> Value:
    if len(node.expressions) != 2:
        raise BadExpression(f"{quoted(node)}: write bit(<column>, <number of the bit>), like bit(throttle_reasons, 3)")
    number = _whole(node.expressions[1], "bit", 0, BITS - 1)
    value = b.of(node.expressions[0], Type.NUMBER).cast(pl.Int32, strict=False)
    return Value((value & (1 << number)) != 0, Type.TRUTH)


def _growth(b: Builder, node: Any) -> Value:
    growth = _window(b, node)
    return Value(pl.col(growth.column), Type.NUMBER)


def _rate(b: Builder, node: Any) -> Value:
    growth = _window(b, node)
    return Value(pl.col(growth.column) / (growth.window_ms / 1_000), Type.NUMBER)


def _window(b: Builder, node: Any) -> Growth:
    name, given = node.name.lower(), node.expressions
    if not 1 <= len(given) <= 2 or not isinstance(given[0], sql.Column):
        raise BadExpression(f"{quoted(node)}: write {name}(<counter>) or {name}(<counter>, '5m')")
    column = b.column(given[0])
    if not column.counter:
        counters = ", ".join(c.name for c in COLUMNS.values() if c.counter)
        raise BadExpression(f"{name}: {column.name} is no counter; use one of {counters}")
    growth = Growth(column.metric, _span(given[1], name) if len(given) == 2 else DEFAULT_WINDOW_MS)
    b.growths.add(growth)
    return growth


def _span(node: sql.Expression, name: str) -> int:
    match = re.fullmatch(r"(\d{1,6})(s|m|h)", node.this) if isinstance(node, sql.Literal) and node.is_string else None
    window_ms = int(match[1]) * _UNITS_MS[match[2]] if match else 0
    if not LEAST_WINDOW_MS <= window_ms <= MOST_WINDOW_MS:
        raise BadExpression(f"{name}: {quoted(node)} is not a window; use a text from '10s' to '1h'")
    return window_ms


_OURS: dict[str, _Build] = {"bit": _bit, "growth": _growth, "rate": _rate}

_BUILD: dict[type, _Build] = {
    sql.Column: _column,
    sql.Literal: _literal,
    sql.Boolean: _boolean,
    sql.Paren: _paren,
    sql.And: _both(operator.and_),
    sql.Or: _both(operator.or_),
    sql.Not: _not,
    sql.EQ: _compare(operator.eq, ordered=False),
    sql.NEQ: _compare(operator.ne, ordered=False),
    sql.GT: _compare(operator.gt, ordered=True),
    sql.GTE: _compare(operator.ge, ordered=True),
    sql.LT: _compare(operator.lt, ordered=True),
    sql.LTE: _compare(operator.le, ordered=True),
    sql.Add: _arithmetic(operator.add),
    sql.Sub: _arithmetic(operator.sub),
    sql.Mul: _arithmetic(operator.mul),
    sql.Div: _arithmetic(_divide),
    sql.Mod: _arithmetic(_modulo),
    sql.Neg: _negative,
    sql.BitwiseAnd: _bitwise(operator.and_),
    sql.BitwiseOr: _bitwise(operator.or_),
    sql.Between: _between,
    sql.In: _in,
    sql.Like: _like,
    sql.Is: _is,
    sql.Case: _case,
    sql.Coalesce: _coalesce,
    sql.Greatest: _extreme(pl.max_horizontal),
    sql.Least: _extreme(pl.min_horizontal),
    sql.Abs: _single(lambda expr: expr.abs()),
    sql.Ceil: _single(lambda expr: expr.ceil()),
    sql.Floor: _single(lambda expr: expr.floor()),
    sql.Sqrt: _single(lambda expr: expr.sqrt()),
    sql.Round: _round,
    sql.Anonymous: _named,
}
"""Everything that may stand in an expression."""
