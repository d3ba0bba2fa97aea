"""Every kind of object, and a cache of them.

Each kind says which rows it has and which records each row is made of (``rows.KindSpec``). The cache rebuilds a row
only when one of these changed, so that a watch over a large fleet costs what changed and not what exists. What moves
without a record changing (telemetry, ages, open SLA intervals) is added by ``controlplane.rpc.live`` when an object is
sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.rpc.fleet_objects import FLEET
from controlplane.rpc.job_objects import JOBS
from controlplane.rpc.record_objects import AUDIT_LABELS, RECORDS
from controlplane.rpc.rows import Inputs, KindSpec, Scene
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

SPECS: dict[int, KindSpec] = {spec.kind: spec for spec in (*FLEET, *RECORDS, *JOBS)}
"""All kinds but the audit trail, which is history and read from the store."""

LABELS: dict[int, tuple[str, ...]] = {
    **{kind: spec.labels for kind, spec in SPECS.items()},
    api_pb2.KIND_AUDIT: AUDIT_LABELS,
}
"""Label keys of each kind; nodes carry their own labels besides."""


@dataclass(frozen=True, slots=True)
class Table:
    """All objects of one kind at one moment, in key order. An object that did not change is the same instance in the
    next table. ``version`` grows by one with each table that differs."""

    kind: int
    objects: Mapping[str, Object]
    version: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What the table of ``version`` has that the one before it had not, by name."""

    version: int
    put: tuple[str, ...]
    gone: tuple[str, ...]


DELTAS = 64
"""Remembered per kind; a watcher that is further behind compares whole tables."""


@dataclass(slots=True)
class _Held:
    scene: Scene
    depends: tuple[object, ...]
    inputs: dict[str, Inputs]
    names: dict[str, str]  # store key -> object name
    table: Table
    deltas: deque[Delta]


class ObjectCache:
    """The newest table of each kind that somebody asked for. Not thread safe."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def table(self, kind: int, scene: Scene) -> Table:
        """The objects of ``kind`` in ``scene``."""
        spec, held = SPECS[kind], self._held.get(kind)
        depends = spec.depends(scene)
        if held is None:
            return self._first(spec, scene, depends)
        if len(held.depends) == len(depends) and all(a is b for a, b in zip(held.depends, depends, strict=True)):
            return held.table
        touched = spec.touched(held.scene, scene) if spec.touched else None
        if touched is not None and spec.row is not None:
            self._refresh(spec, held, scene, ((key, spec.row(scene, key)) for key in sorted(touched)))
        else:
            self._compare(spec, held, scene)
        held.scene, held.depends = scene, depends
        return held.table

    def since(self, kind: int, version: int) -> tuple[Delta, ...] | None:
        """What changed after the table of ``version``, oldest first; None: that is too long ago."""
        held = self._held[kind]
        missing = held.table.version - version
        if missing > len(held.deltas):
            return None
        return tuple(held.deltas)[len(held.deltas) - missing :]

    def _first(self, spec: KindSpec, scene: Scene, depends: tuple[object, ...]) -> Table:
        inputs = dict(sorted(spec.rows(scene), key=_key))
        built = {key: spec.build(scene.region.region, key, made_of) for key, made_of in inputs.items()}
        table = Table(spec.kind, {item.name: item for item in built.values()}, 1)
        names = {key: item.name for key, item in built.items()}
        self._held[spec.kind] = _Held(scene, depends, inputs, names, table, deque(maxlen=DELTAS))
        return table

    def _refresh(self, spec: KindSpec, held: _Held, scene: Scene, rows: Iterable[tuple[str, Inputs]]) -> None:
        """Some rows may have changed; none came or went."""
        fresh: dict[str, Object] = {}
        for key, made_of in rows:
            if held.inputs[key] != made_of:
                held.inputs[key] = made_of
                fresh[held.names[key]] = spec.build(scene.region.region, key, made_of)
        if fresh:
            held.table = Table(spec.kind, {**held.table.objects, **fresh}, held.table.version + 1)
            held.deltas.append(Delta(held.table.version, tuple(fresh), ()))

    def _compare(self, spec: KindSpec, held: _Held, scene: Scene) -> None:
        """Any row may have changed, come or gone."""
        inputs = dict(sorted(spec.rows(scene), key=_key))
        objects: dict[str, Object] = {}
        names: dict[str, str] = {}
        put: list[str] = []
        for key, made_of in inputs.items():
            if held.inputs.get(key) == made_of:
                item = held.table.objects[held.names[key]]
            else:
                item = spec.build(scene.region.region, key, made_of)
                put.append(item.name)
            objects[item.name] = item
            names[key] = item.name
        gone = tuple(name for name in held.table.objects if name not in objects)
        held.inputs, held.names = inputs, names
        if put or gone:
            held.table = Table(spec.kind, objects, held.table.version + 1)
            held.deltas.append(Delta(held.table.version, tuple(put), gone))


def _key(row: tuple[str, Inputs]) -> str:
    return row[0]


def objects_of(kind: int, scene: Scene) -> Mapping[str, Object]:
    """The objects of ``kind``, built anew."""
    return ObjectCache().table(kind, scene).objects
