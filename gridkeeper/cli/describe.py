"""``gridkeeper describe``: everything about one object, and what is related to it."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from gridkeeper.cli.columns import columns
from gridkeeper.cli.explain import print_chain
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import one_line, plain_lines
from gridkeeper.cli.text import age, moment, span
from gridkeeper.client.answers import Explained, Listing
from gridkeeper.client.errors import ClientError, InvalidRequest, NotFound
from gridkeeper.client.grid import GridClient
from gridkeeper.client.plain import plain
from gridkeeper.clock import SystemClock
from gridkeeper.kinds import BY_NUMBER, kind_named
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Kind, Object

RELATED: dict[int, tuple[tuple[Kind.ValueType, str], ...]] = {
    api_pb2.KIND_REGION: ((api_pb2.KIND_NODE, "region"),),
    api_pb2.KIND_NODE: (
        (api_pb2.KIND_DEVICE, "node"),
        (api_pb2.KIND_INCIDENT, "node"),
        (api_pb2.KIND_MAINTENANCE, "node"),
        (api_pb2.KIND_REPAIR, "node"),
        (api_pb2.KIND_EVENT, "node"),
    ),
    api_pb2.KIND_DEVICE: (
        (api_pb2.KIND_INCIDENT, "device"),
        (api_pb2.KIND_DRAIN, "device"),
        (api_pb2.KIND_REPAIR, "device"),
        (api_pb2.KIND_EVENT, "device"),
    ),
    api_pb2.KIND_JOB: ((api_pb2.KIND_MIGRATION, "job"), (api_pb2.KIND_CHECKPOINT, "job"), (api_pb2.KIND_EVENT, "job")),
}
"""Kind -> (related kind, its label that holds our name)."""

NEWEST = 10
DURATIONS = frozenset(
    {"heard_age_ms", "metrics_age_ms", "evidence_age_ms", "age_ms", "elapsed_ms", "rto_ms", "rpo_ms", "grace_ms"}
    | {
        "lead_ms",
        "wait_ms",
        "work_ms",
        "checkpoint_age_ms",
        "up_ms",
        "degraded_ms",
        "down_ms",
        "excluded_ms",
        "unknown_ms",
    }
)
"""Every other field ending in ``_ms`` is a moment."""
SENTENCES = frozenset({"witnesses"})
"""Lists of sentences: one a line."""


@click.command()
@click.argument("kind")
@click.argument("name")
@client_options
@pass_session
def describe(session: Session, kind: str, name: str) -> int:
    """Everything known about one object, with its events, related objects and chain of evidence.

    \b
    Examples:
      gridkeeper describe device east-1/gpu3
      gridkeeper describe job train
    """
    info = kind_named(kind)
    item, related, chain = call(session, lambda grid: _gather(grid, info.kind, name))
    now_ms = SystemClock().wall_ms()
    print(f"{info.singular.capitalize()} {item.name}" + (f" in region {item.region}" if item.region else ""))
    print_fields(plain(item)[info.view], now_ms)
    missing: dict[str, None] = dict.fromkeys(chain.partial if chain else ())
    for listing in related:
        missing.update(dict.fromkeys(listing.partial))
        _print_related(listing, now_ms)
    if chain and chain.chain:
        print("\nChain of evidence:")
        print_chain(chain.chain)
    return warn_partial(tuple(missing))


async def _gather(
    grid: GridClient, kind: Kind.ValueType, name: str
) -> tuple[Object, tuple[Listing, ...], Explained | None]:
    item = await grid.get(kind, name)
    wanted = [grid.list(other, f"{label}={item.name}") for other, label in RELATED.get(kind, ())]
    related = await asyncio.gather(*wanted)
    try:
        chain = await grid.explain(kind, item.name)
    except (InvalidRequest, NotFound):  # this kind has none, or the object went away meanwhile
        chain = None
    except ClientError as error:
        chain = Explained((), (str(error),))
    return item, tuple(related), chain


def _print_related(listing: Listing, now_ms: int) -> None:
    plural = BY_NUMBER[listing.kind].plural
    if not listing.objects:
        print(f"\nNo {plural}.")
        return
    shown = columns(listing.kind, wide=False)
    newest = listing.objects[-NEWEST:]
    older = len(listing.objects) - len(newest)
    print(f"\n{plural.capitalize()}" + (f" (the last {NEWEST} of {len(listing.objects)}):" if older else ":"))
    rows = [[column.cell(item, now_ms) for column in shown] for item in newest]
    for line in plain_lines([column.title for column in shown], rows):
        print(f"  {line}")


def print_fields(value: dict[str, Any], now_ms: int, depth: int = 1) -> None:
    """Nested fields, one a line; moments as UTC and age, durations with units."""
    pad = "  " * depth
    for key, held in value.items():
        if isinstance(held, dict):
            print(f"{pad}{key}:")
            print_fields(held, now_ms, depth + 1)
        elif key == "metrics":
            _print_metrics(held, pad)
        elif isinstance(held, list) and held and isinstance(held[0], dict):
            print(f"{pad}{key}:")
            for one in held:
                print(f"{pad}  -")
                print_fields(one, now_ms, depth + 2)
        elif key in SENTENCES and held:
            print(f"{pad}{key}:")
            for one in held:
                print(f"{pad}  {one_line(one)}")
        else:
            print(f"{pad}{key.removesuffix('_ms')}: {_shown(key, held, now_ms)}")


def _print_metrics(metrics: list[dict[str, Any]], pad: str) -> None:
    print(f"{pad}metrics:" + ("" if metrics else " -"))
    for metric in metrics:
        value = f"{metric['value']:g} {metric['unit']}".removesuffix(" 1") if metric["known"] else "unknown"
        print(f"{pad}  {metric['name']}: {value}")


def _shown(key: str, value: Any, now_ms: int) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, list):
        return one_line(", ".join(str(one) for one in value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in DURATIONS and isinstance(value, int):
        return span(value)
    if key.endswith("_ms") and isinstance(value, int):
        if not value:
            return "-"
        return f"{moment(value)} ({age(value, now_ms)} ago)" if value <= now_ms else moment(value)
    return one_line(str(value))
