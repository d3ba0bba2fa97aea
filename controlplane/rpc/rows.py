"""Pure: how a kind of object is made of the rows of both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import RegionId
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1.api_pb2 import Kind, Object

Inputs = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Both stores as one replica mirrors them. ``leader``: the region's leading replica, "" if none."""

    region: RegionState
    world: GlobalState
    leader: str


@dataclass(frozen=True, slots=True)
class KindSpec:
    """``depends``: mappings of the scene; while all are the same, no row has changed. ``rows``: (key, inputs).
    ``build``: the object of one row. ``labels``: every key that its objects carry."""

    kind: Kind.ValueType
    labels: tuple[str, ...]
    depends: Callable[[Scene], tuple[object, ...]]
    rows: Callable[[Scene], Iterable[tuple[str, Inputs]]]
    build: Callable[[RegionId, str, Inputs], Object]


def revision_of(inputs: Inputs) -> int:
    """The newest revision among the records that an object is made of."""
    newest = 0
    for one in inputs:
        if isinstance(one, Versioned):
            newest = max(newest, one.revision)
        elif isinstance(one, tuple):
            newest = max(newest, revision_of(one))
    return newest


def new_object(kind: Kind.ValueType, name: str, region: str, inputs: Inputs, labels: Mapping[str, str]) -> Object:
    return Object(kind=kind, name=name, region=region, revision=revision_of(inputs), labels=labels)


def message(versioned: Versioned[Any] | None) -> Any:
    return None if versioned is None else codec.to_message(versioned.record)


def yes(value: bool) -> str:
    return "true" if value else "false"


def word(value: Any) -> str:
    return str(value.value)
