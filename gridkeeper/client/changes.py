"""What a watch tells, and the pure merging of several regions' watches into one."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridkeeper.ids import RegionId
from gridkeeper.kinds import is_global
from gridkeeper.v1.api_pb2 import Kind, Object

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Put:
    """An object appeared or changed. Treat the message as immutable. ``as_of_wall_ms``: when it was told, by the clock
    of the replica that told it; 0: that is not known."""

    object: Object
    as_of_wall_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Gone:
    """An object is no more (or no longer matches the selector)."""

    kind: Kind.ValueType
    name: str


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that existed in the regions that answer has been told. Comes once."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What is missing or out of date from here on, one sentence each; empty: whole again."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """The view of ``region`` was current at ``as_of_wall_ms`` (its own clock; shown, never compared)."""

    region: RegionId
    as_of_wall_ms: int


Change = Put | Gone | Synced | Partial | Alive


@dataclass(slots=True)
class _Source:
    """One region's stream. ``listing``: between (re)connecting and its `synced`; ``seen``: told since then."""

    objects: dict[Key, Object] = field(default_factory=dict)
    seen: set[Key] = field(default_factory=set)
    listing: bool = True
    answered: bool = False  # synced once, or declared lost
    lost: str = ""
    reported: str = ""


class Merger:
    """Pure: events of the regions in, changes of the whole out.

    An object that one region owns is shown as that region last told it, also while it is unreachable (``Partial`` says
    so). An object of the global store comes from every region: the highest revision wins, and regions that are lost are
    asked only when none is left.
    """

    def __init__(self, regions: tuple[RegionId, ...]) -> None:
        self._sources: dict[RegionId, _Source] = {region: _Source() for region in regions}
        self._shown: dict[Key, Object] = {}
        self._partial: tuple[str, ...] = ()
        self._synced = False

    def connecting(self, region: RegionId) -> None:
        """The stream begins (again): what it tells up to its `synced` is everything there is."""
        source = self._sources[region]
        source.listing = True
        source.seen = set()

    def put(self, region: RegionId, item: Object) -> list[Change]:
        source, key = self._sources[region], (int(item.kind), item.name)
        source.objects[key] = item
        if source.listing:
            source.seen.add(key)
        return self._settle((key,))

    def deleted(self, region: RegionId, kind: int, name: str) -> list[Change]:
        source, key = self._sources[region], (int(kind), name)
        source.objects.pop(key, None)
        source.seen.discard(key)
        return self._settle((key,))

    def synced(self, region: RegionId) -> list[Change]:
        """The region has told everything: what it had told before and did not repeat is gone."""
        source = self._sources[region]
        gone = [key for key in source.objects if key not in source.seen] if source.listing else []
        for key in gone:
            del source.objects[key]
        back = bool(source.lost)
        source.listing, source.answered, source.lost, source.seen = False, True, "", set()
        changes = self._settle([*gone, *self._global_keys()] if back else gone)
        return [*changes, *self._announce()]

    def lost(self, region: RegionId, sentence: str) -> list[Change]:
        """The region does not answer."""
        source = self._sources[region]
        source.answered, source.lost = True, sentence
        return [*self._settle(self._global_keys()), *self._announce()]

    def reports(self, region: RegionId, sentence: str) -> list[Change]:
        """The region itself says what it is missing ("" = nothing)."""
        self._sources[region].reported = sentence
        return self._announce()

    def _announce(self) -> list[Change]:
        changes: list[Change] = []
        if not self._synced and all(source.answered for source in self._sources.values()):
            self._synced = True
            changes.append(Synced())
        sentences = tuple(
            sentence for source in self._sources.values() for sentence in (source.lost or source.reported,) if sentence
        )
        if sentences != self._partial:
            self._partial = sentences
            changes.insert(0, Partial(sentences))
        return changes

    def _global_keys(self) -> list[Key]:
        keys: dict[Key, None] = {}
        for source in self._sources.values():
            for key, item in source.objects.items():
                if is_global(item):
                    keys[key] = None
        return list(keys)

    def _winner(self, key: Key) -> Object | None:
        held = [(source, source.objects[key]) for source in self._sources.values() if key in source.objects]
        if not held:
            return None
        if is_global(held[0][1]) and any(s.answered and not s.lost and not s.listing for s in self._sources.values()):
            held = [(source, item) for source, item in held if not source.lost]
        return max((item for _, item in held), key=lambda item: item.revision, default=None)

    def _settle(self, keys: tuple[Key, ...] | list[Key]) -> list[Change]:
        changes: list[Change] = []
        for key in keys:
            now, before = self._winner(key), self._shown.get(key)
            if now is None:
                if before is not None:
                    del self._shown[key]
                    changes.append(Gone(before.kind, before.name))
            elif now is not before:
                self._shown[key] = now
                if before is None or before != now:
                    changes.append(Put(now))
        return changes
