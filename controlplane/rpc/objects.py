"""Every kind of object, and a cache of them.

Each kind says which rows it has and which records each row is made of (``rows.KindSpec``). The cache rebuilds a row
only when one of these changed, so that a watch over a large fleet costs what changed and not what exists. What moves
without a record changing (telemetry, ages, open SLA intervals) is added by ``controlplane.rpc.live`` when an object is
sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    next table, so that tables are compared by identity."""

    objects: Mapping[str, Object] = field(default_factory=dict)


EMPTY = Table()


@dataclass(slots=True)
class _Held:
    depends: tuple[object, ...]
    inputs: dict[str, Inputs]
    keyed: dict[str, Object]  # by store key
    table: Table


class ObjectCache:
    """The newest table of each kind that somebody asked for. Not thread safe."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def table(self, kind: int, scene: Scene) -> Table:
        """The objects of ``kind`` in ``scene``."""
        spec, held = SPECS[kind], self._held.get(kind)
        depends = spec.depends(scene)
        if (
            held
            and len(held.depends) == len(depends)
            and all(a is b for a, b in zip(held.depends, depends, strict=True))
        ):
            return held.table
        rows = sorted(spec.rows(scene), key=_key)
        inputs: dict[str, Inputs] = {}
        keyed: dict[str, Object] = {}
        changed = held is None or len(rows) != len(held.inputs)
        for key, made_of in rows:
            inputs[key] = made_of
            if held and held.inputs.get(key) == made_of:
                keyed[key] = held.keyed[key]
            else:
                keyed[key] = spec.build(scene.region.region, key, made_of)
                changed = True
        if held and not changed:
            table = held.table
        else:
            table = Table({item.name: item for item in keyed.values()})
        self._held[kind] = _Held(depends, inputs, keyed, table)
        return table


def _key(row: tuple[str, Inputs]) -> str:
    return row[0]


def objects_of(kind: int, scene: Scene) -> Mapping[str, Object]:
    """The objects of ``kind``, built anew."""
    return ObjectCache().table(kind, scene).objects
