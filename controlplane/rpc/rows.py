"""Pure: how a kind of object is made of the rows of both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, RegionId
from gridkeeper.records.jobs import TERMINAL_JOB
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1.api_pb2 import Kind, Object

Inputs = tuple[Any, ...]
K = TypeVar("K")


def device_jobs(region: RegionState, world: GlobalState) -> dict[DeviceId, JobId]:
    """Which job holds which device of this region: by ownership while the job is not over, and by reservation."""
    held: dict[DeviceId, JobId] = {}
    for job, owner in world.ownership.items():
        record = world.jobs.get(job)
        if owner.record.region == region.region and record and record.record.state not in TERMINAL_JOB:
            held.update(dict.fromkeys(owner.record.devices, job))
    for job, reservation in region.reservations.items():
        held.update(dict.fromkeys(reservation.record.devices, job))
    return held


@dataclass(frozen=True)
class Scene:
    """Both stores as one replica mirrors them. ``leader``: the region's leading replica, "" if none."""

    region: RegionState
    world: GlobalState
    leader: str

    @cached_property
    def device_jobs(self) -> Mapping[DeviceId, JobId]:
        return device_jobs(self.region, self.world)


@dataclass(frozen=True, slots=True)
class KindSpec:
    """``depends``: mappings of the scene; while all are the same, no row has changed. ``rows``: (key, inputs).
    ``build``: the object of one row. ``labels``: every key that its objects carry. ``touched``: keys of rows that may
    differ between two scenes with the same keys, and ``row`` the inputs of one of them; None: look at all rows."""

    kind: Kind.ValueType
    labels: tuple[str, ...]
    depends: Callable[[Scene], tuple[object, ...]]
    rows: Callable[[Scene], Iterable[tuple[str, Inputs]]]
    build: Callable[[RegionId, str, Inputs], Object]
    touched: Callable[[Scene, Scene], set[str] | None] | None = None
    row: Callable[[Scene, str], Inputs] | None = None


def differing(before: Mapping[K, object], now: Mapping[K, object]) -> set[K]:
    """Keys whose value is not the same instance in both, or that one of them lacks."""
    if before is now:
        return set()
    keys = {key for key, value in now.items() if before.get(key) is not value}
    if len(before) != len(now) - sum(1 for key in keys if key not in before):
        keys.update(key for key in before if key not in now)
    return keys


def changed_values(before: Mapping[K, object], now: Mapping[K, object]) -> set[K]:
    """Keys whose value is not equal in both, or that one of them lacks."""
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


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
