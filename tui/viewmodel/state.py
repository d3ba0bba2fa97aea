"""Everything that the watch has told, folded into objects by kind, and how fresh it is.

Mutable on purpose (100,000 devices are not copied per change), but pure: no clock, no I/O; the same changes give the
same state. ``version`` and ``stamps`` say what moved, so that rows are derived anew only where they must be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from gridkeeper.client import Alive, Change, Gone, Partial, Put, Synced
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

REGION: Final = int(api_pb2.KIND_REGION)
NODE: Final = int(api_pb2.KIND_NODE)
DEVICE: Final = int(api_pb2.KIND_DEVICE)
INCIDENT: Final = int(api_pb2.KIND_INCIDENT)
DRAIN: Final = int(api_pb2.KIND_DRAIN)
JOB: Final = int(api_pb2.KIND_JOB)
MIGRATION: Final = int(api_pb2.KIND_MIGRATION)
CHECKPOINT: Final = int(api_pb2.KIND_CHECKPOINT)
SLA: Final = int(api_pb2.KIND_SLA)
EVENT: Final = int(api_pb2.KIND_EVENT)
AUDIT: Final = int(api_pb2.KIND_AUDIT)
FINDING: Final = int(api_pb2.KIND_FINDING)
REPAIR: Final = int(api_pb2.KIND_REPAIR)
MAINTENANCE: Final = int(api_pb2.KIND_MAINTENANCE)

WATCHED: Final = (
    api_pb2.KIND_REGION,
    api_pb2.KIND_NODE,
    api_pb2.KIND_DEVICE,
    api_pb2.KIND_INCIDENT,
    api_pb2.KIND_DRAIN,
    api_pb2.KIND_JOB,
    api_pb2.KIND_MIGRATION,
    api_pb2.KIND_SLA,
    api_pb2.KIND_EVENT,
    api_pb2.KIND_FINDING,
    api_pb2.KIND_REPAIR,
    api_pb2.KIND_MAINTENANCE,
)

STALE_MS = 4_000
"""A region says something at least once a second; silent for this long, its data is marked as stale."""

KEPT: Mapping[int, int] = {EVENT: 5_000, FINDING: 5_000, AUDIT: 5_000}
"""Of these kinds only so many are kept, the newest: the rest is history, for the CLI and the archive."""


@dataclass(frozen=True, slots=True)
class Now:
    """``mono_ms`` measures how old the data is; ``wall_ms`` dates things when no region has told its time yet."""

    mono_ms: int
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Heard:
    """When a region last spoke, on our clock, and what its own clock said."""

    mono_ms: int
    as_of_wall_ms: int


@dataclass(slots=True)
class Connection:
    """``error``: why there is no stream at all; ``partial``: what is missing in it, one sentence each."""

    synced: bool = False
    error: str = ""
    partial: tuple[str, ...] = ()
    heard: dict[str, Heard] = field(default_factory=dict)

    def age_ms(self, now: Now) -> int | None:
        """Of the region that was heard longest ago; None before any was."""
        if not self.heard:
            return None
        return max(0, now.mono_ms - min(h.mono_ms for h in self.heard.values()))

    def region_age_ms(self, region: str, now: Now) -> int | None:
        heard = self.heard.get(region)
        return max(0, now.mono_ms - heard.mono_ms) if heard else None

    def stale_regions(self, now: Now) -> frozenset[str]:
        return frozenset(r for r, h in self.heard.items() if now.mono_ms - h.mono_ms > STALE_MS)


class State:
    """Fed by ``apply``; read by the derivations of the other modules."""

    def __init__(self) -> None:
        self.version = 0
        self.connection = Connection()
        self.stamps: dict[int, int] = {}  # kind -> version of its last change
        self.node_stamps: dict[str, int] = {}  # node -> version of its or its devices' last change
        self.devices_of: dict[str, set[str]] = {}
        self._objects: dict[int, dict[str, Object]] = {}
        self._seen: set[tuple[int, str]] | None = None  # while a new stream repeats what exists
        self._heard_anew: set[str] = set()

    # -- reading --------------------------------------------------------------------------------------------------

    def all(self, kind: int) -> Mapping[str, Object]:
        return self._objects.get(kind, {})

    def values(self, kind: int) -> Iterator[Object]:
        return iter(self._objects.get(kind, {}).values())

    def get(self, kind: int, name: str) -> Object | None:
        return self._objects.get(kind, {}).get(name)

    def now_ms(self, now: Now) -> int:
        """The grid's time: what the region heard last said, moved on by our clock. Ages are counted from it, so that a
        laptop with a wrong clock shows right ages."""
        newest = max(self.connection.heard.values(), key=lambda h: h.mono_ms, default=None)
        if newest is None or newest.as_of_wall_ms <= 0:
            return now.wall_ms
        return newest.as_of_wall_ms + max(0, now.mono_ms - newest.mono_ms)

    def is_stale(self, region: str, now: Now) -> bool:
        """Data of ``region`` ("" = of all regions: stale when none speaks)."""
        if self.connection.error:
            return True
        stale = self.connection.stale_regions(now)
        if region and region in self.connection.heard:
            return region in stale
        return bool(self.connection.heard) and len(stale) == len(self.connection.heard)

    # -- folding --------------------------------------------------------------------------------------------------

    def apply(self, change: Change, mono_ms: int) -> None:
        """Fold one change that arrived at ``mono_ms``."""
        self.version += 1
        match change:
            case Put(item):
                self._put(item)
            case Gone(kind, name):
                self._drop(int(kind), name)
            case Synced():
                self._prune()
                self.connection.synced, self.connection.error = True, ""
            case Partial(sentences):
                self.connection.partial = sentences
            case Alive(region, as_of_wall_ms):
                self.connection.heard[region] = Heard(mono_ms, as_of_wall_ms)
                self._heard_anew.add(region)

    def restart(self) -> None:
        """A new stream begins: what it does not repeat until ``Synced`` is gone."""
        self.version += 1
        self._seen = set()
        self._heard_anew = set()
        self.connection.partial = ()

    def failed(self, sentence: str) -> None:
        """There is no stream."""
        self.version += 1
        self.connection.error = sentence
        self._seen = None

    def refreshed(self, items: Iterable[Object]) -> None:
        """Fresher readings (telemetry, open SLA intervals) of objects that exist; never brings one back, and never an
        older revision."""
        for item in items:
            held = self.get(int(item.kind), item.name)
            if held is not None and item.revision >= held.revision:
                self.version += 1
                self._put(item)

    def _put(self, item: Object) -> None:
        kind = int(item.kind)
        objects = self._objects.setdefault(kind, {})
        objects[item.name] = item
        self.stamps[kind] = self.version
        if self._seen is not None:
            self._seen.add((kind, item.name))
        if kind == DEVICE:
            node = _node_of(item.name)
            self.devices_of.setdefault(node, set()).add(item.name)
            self.node_stamps[node] = self.version
        elif kind == NODE:
            self.node_stamps[item.name] = self.version
        kept = KEPT.get(kind)
        if kept is not None and len(objects) > kept + kept // 10:
            newest = sorted(objects.values(), key=moment, reverse=True)[:kept]
            self._objects[kind] = {o.name: o for o in newest}

    def _drop(self, kind: int, name: str) -> None:
        if self._objects.get(kind, {}).pop(name, None) is None:
            return
        self.stamps[kind] = self.version
        if kind == DEVICE:
            node = _node_of(name)
            self.devices_of.get(node, set()).discard(name)
            self.node_stamps[node] = self.version
        elif kind == NODE:
            self.node_stamps[name] = self.version

    def _prune(self) -> None:
        seen, self._seen = self._seen, None
        if seen is None:
            return
        for kind, objects in list(self._objects.items()):
            for item in list(objects.values()):
                told = item.region in self._heard_anew if item.region else bool(self._heard_anew)
                if told and (kind, item.name) not in seen:
                    self._drop(kind, item.name)


def moment(item: Object) -> int:
    """When an event, a finding or an audit entry happened, ms since the Unix epoch; 0 for other kinds."""
    which = item.WhichOneof("view")
    if which == "event":
        return item.event.observed_ms
    if which == "finding":
        return item.finding.observed_ms
    if which == "audit":
        return item.audit.at_ms
    return 0


def _node_of(device: str) -> str:
    return device.rpartition("/")[0] or device
