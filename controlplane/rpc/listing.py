"""List: all pages of one listing come from one snapshot, and its token is good for nothing else."""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from dataclasses import dataclass

from controlplane.rpc.live import with_live
from controlplane.rpc.objects import LABELS, SPECS, ObjectCache, Table
from controlplane.rpc.partial import sentences
from controlplane.rpc.refusal import invalid
from controlplane.rpc.rows import Scene
from controlplane.rpc.sources import Views
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.selector import BadSelector, Selector, check_keys, parse
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import ListRequest, ListResponse, Object

DEFAULT_PAGE = 500
MAX_PAGE = 5_000
SNAPSHOTS = 16
"""Listings in progress that are remembered; the oldest is dropped first. Objects are shared with the cache."""

STALE_TOKEN = "page_token: this listing is no longer held here; list again without page_token"


def scene_of(views: Views) -> Scene:
    return Scene(views.region(), views.world(), views.info().region_leader)


def checked_kind(kind: int, field: str = "kind") -> int:
    """A kind that exists. Raises ``Refusal``."""
    if kind not in BY_NUMBER:
        words = ", ".join(info.singular for info in BY_NUMBER.values())
        raise invalid(f"{field}: {kind} is no kind of object; use one of {words}")
    return kind


def checked_selector(text: str, kinds: tuple[int, ...], scene: Scene) -> Selector:
    """The selector, with only keys that objects of ``kinds`` can have. Raises ``Refusal``."""
    try:
        selector = parse(text)
        known = {key for kind in kinds for key in LABELS[kind]}
        if selector and api_pb2.KIND_NODE in kinds:
            known.update(label.key for node in scene.region.nodes.values() for label in node.record.labels)
        check_keys(selector, known)
    except BadSelector as error:
        raise invalid(str(error)) from error
    return selector


def page_size(requested: int) -> int:
    """Raises ``Refusal``."""
    if not 0 <= requested <= MAX_PAGE:
        raise invalid(f"page_size: {requested} is not between 0 (= {DEFAULT_PAGE}) and {MAX_PAGE}")
    return requested or DEFAULT_PAGE


def to_token(*parts: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def from_token(token: str, kinds: tuple[type, ...]) -> tuple[str | int, ...]:
    """The parts of a token, of exactly these types. Raises ``Refusal`` for anything else."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(token[:2_048].encode("ascii", "strict")))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise invalid("page_token: this is none that we gave out; list again without page_token") from error
    if not isinstance(parts, list) or tuple(type(part) for part in parts) != kinds:
        raise invalid("page_token: this is none that we gave out; list again without page_token")
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    table: Table
    selector: str
    items: tuple[Object, ...]
    revision: int
    as_of_ms: int
    partial: tuple[str, ...]


class Pages:
    """Listings from the mirrors. A token names replica, snapshot and position."""

    def __init__(self, views: Views, cache: ObjectCache) -> None:
        self._views = views
        self._cache = cache
        self._snapshots: OrderedDict[int, _Snapshot] = OrderedDict()
        self._next = 1
        # Another replica, or this one after a restart, must not take the token for its own.
        self._nonce = f"{views.info().replica}@{views.info().wall_ms}"

    def list(self, request: ListRequest) -> ListResponse:
        """One page. Raises ``Refusal``."""
        kind, size = checked_kind(request.kind), page_size(request.page_size)
        if request.page_token:
            number, start, snapshot = self._resume(request, kind)
        else:
            number, start, snapshot = 0, 0, self._take(kind, request.selector)
        page = snapshot.items[start : start + size]
        token, end = "", start + len(page)
        if end < len(snapshot.items):
            number = number or self._hold(snapshot)
            token = to_token(self._nonce, number, kind, end)
        return ListResponse(
            objects=[with_live(item, self._views) for item in page],
            next_page_token=token,
            revision=snapshot.revision,
            as_of_wall_ms=snapshot.as_of_ms,
            partial=snapshot.partial,
        )

    def _take(self, kind: int, selector_text: str) -> _Snapshot:
        scene, info = scene_of(self._views), self._views.info()
        selector = checked_selector(selector_text, (kind,), scene)
        table = self._cache.table(kind, scene)
        items = tuple(item for item in table.objects.values() if not selector or selector.matches(item.labels))
        revision = scene.region.revision if BY_NUMBER[SPECS[kind].kind].region_owned else scene.world.revision
        return _Snapshot(table, selector_text, items, revision, info.wall_ms, sentences((kind,), scene, info))

    def _hold(self, snapshot: _Snapshot) -> int:
        number, self._next = self._next, self._next + 1
        self._snapshots[number] = snapshot
        while len(self._snapshots) > SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return number

    def _resume(self, request: ListRequest, kind: int) -> tuple[int, int, _Snapshot]:
        nonce, number, token_kind, start = from_token(request.page_token, (str, int, int, int))
        assert isinstance(number, int) and isinstance(start, int)
        snapshot = self._snapshots.get(number)
        if nonce != self._nonce or snapshot is None or not 0 <= start <= len(snapshot.items):
            raise invalid(STALE_TOKEN)
        if token_kind != kind or snapshot.selector != request.selector:
            raise invalid("page_token: it belongs to a listing of another kind or selector; repeat both unchanged")
        self._snapshots.move_to_end(number)
        return number, start, snapshot
