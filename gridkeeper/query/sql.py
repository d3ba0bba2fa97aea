"""Which SQL may be asked: one SELECT over known tables, made of what is listed here and of nothing else.

The text is parsed, each node of the tree is looked up in an allow-list, and what runs is written anew from the tree, so
that nothing which we did not understand reaches the engine.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass

import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from gridkeeper.policy.expression import told
from gridkeeper.policy.terms import BITS
from gridkeeper.query.tables import KEY, TABLES

# What it cannot parse is refused with a message of ours; it would log that too, as often as anybody asks.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

MAX_LENGTH = 16_384
MAX_NODES = 2_000
MAX_LITERAL = 1_024
MAX_DIGITS = 30
MAX_JOINS = 4


class BadQuery(ValueError):
    """SQL that is not allowed: what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class Query:
    """``text``: what runs. ``columns``: of each table that it reads, the columns that it may need; at least the key."""

    text: str
    columns: dict[str, tuple[str, ...]]


ALLOWED: frozenset[type] = frozenset(
    {
        sql.Select, sql.From, sql.Join, sql.Where, sql.Group, sql.Having, sql.Order, sql.Ordered, sql.Limit, sql.Offset,
        sql.Distinct, sql.With, sql.CTE, sql.TableAlias, sql.Subquery, sql.Table, sql.Identifier, sql.Column, sql.Alias,
        sql.Star, sql.Union, sql.Literal, sql.Boolean, sql.Null, sql.Paren, sql.And, sql.Or, sql.Not, sql.EQ, sql.NEQ,
        sql.GT, sql.GTE, sql.LT, sql.LTE, sql.Is, sql.In, sql.Between, sql.Like, sql.ILike, sql.Case, sql.If, sql.Add,
        sql.Sub, sql.Mul, sql.Div, sql.Mod, sql.Neg, sql.Count, sql.Sum, sql.Avg, sql.Min, sql.Max, sql.Median,
        sql.Stddev, sql.Variance, sql.Coalesce, sql.Abs, sql.Ceil, sql.Floor, sql.Round, sql.Sqrt, sql.Greatest,
        sql.Least, sql.Lower, sql.Upper, sql.Length, sql.Filter, sql.Anonymous,
    }
)  # fmt: skip

FUNCTIONS = (
    "abs", "avg", "bit", "ceil", "coalesce", "count", "floor", "greatest", "least", "length", "lower", "max", "median",
    "min", "round", "sqrt", "stddev", "sum", "upper", "variance",
)  # fmt: skip


def checked(text: str) -> Query:
    """The query that ``text`` says. Raises ``BadQuery``."""
    try:
        tree = _parsed(text)
        tables = _tables(tree)
        columns = _columns(tree, tables)
        for node in [node for node in tree.walk() if isinstance(node, sql.Anonymous)]:
            node.replace(_bit(node))
        return Query(tree.sql(comments=False), columns)
    except RecursionError as error:  # in the parser, or where the tree is written out again
        raise BadQuery("sql: it is nested too deeply; make it flatter") from error


def _parsed(text: str) -> sql.Query:
    if not text.strip():
        raise BadQuery("sql: it is empty; write for example: select health, count(*) from devices group by health")
    if len(text) > MAX_LENGTH:
        raise BadQuery(f"sql: {len(text)} characters; use at most {MAX_LENGTH}")
    try:
        found = [tree for tree in sqlglot.parse(text) if tree is not None]
        if len(found) != 1:
            raise BadQuery(f"sql: {len(found)} statements; send one, without ';'")
        tree = found[0]
        if not isinstance(tree, sql.Select | sql.Union):
            raise BadQuery(f"sql: {tree.key.upper()} is not allowed; only SELECT is")
        for count, node in enumerate(tree.walk()):
            if count >= MAX_NODES:
                raise BadQuery(f"sql: more than {MAX_NODES} parts; make it shorter")
            _allowed(node)
    except SqlglotError as error:
        raise BadQuery(f"sql: {told(error)}") from error
    return tree


def _allowed(node: sql.Expr) -> None:
    if type(node) not in ALLOWED:
        raise BadQuery(f"sql: {_name(node)} is not allowed; there are the functions {', '.join(FUNCTIONS)}")
    match node:
        case sql.Literal():
            size, most = len(node.this), MAX_LITERAL if node.is_string else MAX_DIGITS
            if size > most:
                raise BadQuery(f"sql: the literal {node.this[:20]}… has {size} characters; use at most {most}")
        case sql.Limit() | sql.Offset() if not isinstance(node.expression, sql.Literal):
            raise BadQuery(f"sql: {node.key.upper()} takes a number, not {node.expression.sql()[:60]}")
        case sql.With() if node.args.get("recursive"):
            raise BadQuery("sql: WITH RECURSIVE is not allowed; it need not end")
        case sql.Join():
            _joined(node)
        case sql.Anonymous() if node.name.lower() != "bit":
            near = difflib.get_close_matches(node.name.lower(), FUNCTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FUNCTIONS)}"
            if node.name.lower() in ("growth", "rate"):
                hint = "it is for rules, which see more than this moment"
            raise BadQuery(f"sql: there is no function {node.name[:80]!r}; {hint}")


def _name(node: sql.Expr) -> str:
    text = node.sql()
    what = f"the function {node.sql_name().lower()!r}" if isinstance(node, sql.Func) else node.key.upper()
    return f"{what} ({text if len(text) <= 60 else text[:57] + '…'})"


def _joined(node: sql.Join) -> None:
    """Every join has a condition by which a column of one side equals one of the other: else it multiplies tables."""
    if node.args.get("using"):
        return
    condition = node.args.get("on")
    tests = condition.flatten() if isinstance(condition, sql.And) else [condition]
    for test in tests:
        if isinstance(test, sql.Paren):
            test = test.this
        if isinstance(test, sql.EQ):
            left, right = test.left, test.right
            if isinstance(left, sql.Column) and isinstance(right, sql.Column) and "" != left.table != right.table != "":
                return
    raise BadQuery(
        f"sql: the join with {node.this.sql()[:60]} has no condition like ON a.node = b.node (or USING (node)), so it "
        "would multiply the tables; add one"
    )


def _tables(tree: sql.Query) -> set[str]:
    """Names of the tables that it reads."""
    own = {cte.alias for cte in tree.find_all(sql.CTE)}
    for name in own & TABLES.keys():
        raise BadQuery(f"sql: WITH {name} hides the table of that name; choose another one")
    found: set[str] = set()
    for table in tree.find_all(sql.Table):
        if not isinstance(table.this, sql.Identifier):
            raise BadQuery(f"sql: {table.this.sql()[:80]} is no table; there are {', '.join(TABLES)}")
        if table.args.get("db") or table.args.get("catalog"):
            raise BadQuery(f"sql: {table.sql()[:80]}: write the table's name alone, one of {', '.join(TABLES)}")
        if table.name in own:
            continue
        if table.name not in TABLES:
            near = difflib.get_close_matches(table.name.lower(), TABLES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TABLES)}"
            raise BadQuery(f"sql: there is no table {table.name[:80]!r}; {hint}")
        found.add(table.name)
    joins = sum(1 for _ in tree.find_all(sql.Join))
    if joins > MAX_JOINS:
        raise BadQuery(f"sql: {joins} joins; use at most {MAX_JOINS}")
    if not found:
        raise BadQuery(f"sql: it reads no table; there are {', '.join(TABLES)}")
    return found


def _columns(tree: sql.Query, tables: set[str]) -> dict[str, tuple[str, ...]]:
    """By name, whichever table they are of: what a query does not name is not needed."""
    named = {column.name for column in tree.find_all(sql.Column) if not isinstance(column.this, sql.Star)}
    named |= {name.name for join in tree.find_all(sql.Join) for name in join.args.get("using") or ()}
    given = {alias.alias for alias in tree.find_all(sql.Alias)}
    given |= {column.name for alias in tree.find_all(sql.TableAlias) for column in alias.columns}
    known = {name for table in tables for name in TABLES[table]}
    for name in sorted(named - given - known):
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        near += [other for other in sorted(known) if other.startswith(name.lower() + "_")][:3]
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "docs/query.md lists those there are"
        raise BadQuery(f"sql: there is no column {name[:80]!r} in {', '.join(sorted(tables))}; {hint}")
    every = any(not isinstance(star.parent, sql.Count) for star in tree.find_all(sql.Star))
    return {
        table: tuple(name for name in TABLES[table] if every or name in named or name == KEY[table])
        for table in sorted(tables)
    }


def _bit(node: sql.Anonymous) -> sql.Expr:
    """``bit(column, n)`` in arithmetic, since the engine has no such function."""
    given = node.expressions
    number = given[1].this if len(given) == 2 and isinstance(given[1], sql.Literal) else ""
    if not str(number).isdigit() or int(number) >= BITS or not isinstance(given[0], sql.Column):
        raise BadQuery(f"sql: {node.sql()[:60]}: write bit(<column>, <0 to {BITS - 1}>), like bit(throttle_reasons, 3)")
    shifted = sqlglot.parse_one(f"(CAST(FLOOR(x / {1 << int(number)}) AS BIGINT) % 2 = 1)")
    shifted.find(sql.Column).replace(given[0].copy())  # type: ignore[union-attr]
    return shifted
