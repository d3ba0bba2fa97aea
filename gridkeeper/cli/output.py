"""``-o``: table, wide, json, jsonl (an object a line), yaml, name."""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

from gridkeeper.cli.columns import columns
from gridkeeper.cli.table import plain_line, print_table, widths
from gridkeeper.client.answers import Listing
from gridkeeper.client.changes import Alive, Change, Gone, Partial, Put, Synced
from gridkeeper.client.plain import plain, plain_list
from gridkeeper.kinds import BY_NUMBER, reference
from gridkeeper.v1.api_pb2 import Object

FORMATS = ("table", "wide", "json", "jsonl", "yaml", "name")


def dump_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def dump_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def dump_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")


def print_value(value: Any, form: str) -> None:
    """``form``: json, jsonl or yaml."""
    print(dump_line(value) if form == "jsonl" else dump_json(value) if form == "json" else dump_yaml(value))


def print_listing(listing: Listing, form: str, now_ms: int) -> None:
    info = BY_NUMBER[listing.kind]
    if form in ("json", "yaml"):
        print_value(plain_list(info.singular, listing.objects, listing.partial, listing.as_of_ms), form)
    elif form == "jsonl":
        for item in listing.objects:
            print_value(plain(item), form)
    elif form == "name":
        for item in listing.objects:
            print(reference(item.kind, item.name))
    elif listing.objects:
        print_objects(listing.kind, listing.objects, form == "wide", now_ms)
    else:
        print(f"no {info.plural}", file=sys.stderr)


def print_object(item: Object, form: str, now_ms: int) -> None:
    if form in ("json", "jsonl", "yaml"):
        print_value(plain(item), form)
    elif form == "name":
        print(reference(item.kind, item.name))
    else:
        print_objects(item.kind, (item,), form == "wide", now_ms)


def print_objects(kind: int, objects: tuple[Object, ...], wide: bool, now_ms: int) -> None:
    shown = columns(kind, wide)
    rows = [[column.cell(item, now_ms) for column in shown] for item in objects]
    states = frozenset(index for index, column in enumerate(shown) if column.state)
    print_table([column.title for column in shown], rows, states)


class WatchPrinter:
    """``--watch``: what exists, then a line (or a document) per change."""

    def __init__(self, kind: int, form: str) -> None:
        self._kind = kind
        self._form = form
        self._first: list[Object] = []
        self._synced = False
        self._widths: list[int] = []
        self._now_ms = 0

    def tell(self, change: Change, now_ms: int) -> None:
        self._now_ms = now_ms
        match change:
            case Partial(sentences):
                for sentence in sentences or ("whole again",):
                    print(f"warning: {sentence}", file=sys.stderr, flush=True)
            case Alive():
                pass
            case Synced():
                self._synced = True
                if self._form in ("table", "wide"):
                    self._begin()
            case Put(item):
                self._put(item)
            case Gone(kind, name):
                self._gone(reference(kind, name))

    def _put(self, item: Object) -> None:
        if self._form in ("json", "jsonl", "yaml"):
            self._document({"change": "put", "object": plain(item)})
        elif self._form == "name":
            print(reference(item.kind, item.name), flush=True)
        elif self._synced:
            self._line(item, "")
        else:
            self._first.append(item)

    def _gone(self, name: str) -> None:
        if self._form in ("json", "jsonl", "yaml"):
            self._document({"change": "deleted", "object": name})
        elif self._synced or self._form == "name":
            print(f"{name} is gone", flush=True)
        else:
            self._first = [item for item in self._first if reference(item.kind, item.name) != name]

    def _document(self, value: Any) -> None:
        if self._form != "yaml":
            print(dump_line(value), flush=True)
        else:
            print("---\n" + dump_yaml(value), flush=True)

    def _begin(self) -> None:
        newest = {item.name: item for item in self._first}
        shown = columns(self._kind, self._form == "wide")
        rows = [[column.cell(item, self._now_ms) for column in shown] for item in newest.values()]
        titles = [column.title for column in shown]
        self._widths = widths(titles, rows)
        for row in (titles, *rows):
            print(plain_line(row, self._widths), flush=True)
        self._first = []

    def _line(self, item: Object, note: str) -> None:
        row = [column.cell(item, self._now_ms) for column in columns(self._kind, self._form == "wide")]
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        print(plain_line(row, self._widths), flush=True)
