"""What ``GridClient`` answers."""

from __future__ import annotations

from dataclasses import dataclass

from gridkeeper.ids import RegionId
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import Kind, Object


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects of one kind. ``partial``: why something may be missing, one sentence each; empty: this is everything.
    ``as_of_ms``: wall time of the oldest of the answers, at the replica that gave it."""

    kind: Kind.ValueType
    objects: tuple[Object, ...]
    partial: tuple[str, ...]
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class Act:
    """What was done, or is being done. ``objects``: ``<kind>/<name>`` touched. ``plan``: of a drain's dry run, the
    drains as they would be recorded now."""

    sentence: str
    objects: tuple[str, ...]
    revision: int
    region: RegionId
    plan: tuple[records_pb2.DrainRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Explained:
    """Links oldest first; ``partial`` as in ``Listing``."""

    chain: tuple[api_pb2.Link, ...]
    partial: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SlaListing:
    slas: tuple[api_pb2.SlaView, ...]
    partial: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as it answers; ``info`` None: it does not, ``error`` says how."""

    region: RegionId
    address: str
    info: api_pb2.InfoResponse | None
    error: str
