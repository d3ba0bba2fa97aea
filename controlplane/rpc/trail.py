"""The audit trail: history, read from both stores a page at a time and merged by time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from controlplane.rpc.listing import STALE_TOKEN, checked_selector, from_token, page_size, scene_of, to_token
from controlplane.rpc.record_objects import audit_object
from controlplane.rpc.refusal import invalid
from controlplane.rpc.sources import Acts, HistoryItem, StoreName, Views
from gridkeeper.ports.store import RevisionCompacted, StoreUnavailable
from gridkeeper.records.books import AuditRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import ListRequest, ListResponse, Object

STORES: tuple[StoreName, ...] = ("region", "global")
SCAN = 1_000
SCAN_PAGES = 10
"""A selector that matches little ends a page after this many reads; the token goes on from there."""

WATCH_TAIL = 1_000
"""A watch begins with this many of the newest entries."""


@dataclass(frozen=True, slots=True)
class _Read:
    objects: list[Object]
    revisions: dict[StoreName, int]
    more: bool
    partial: tuple[str, ...]


class AuditTrail:
    """Ids begin with the time of the act, so key order is the order of time, oldest first."""

    def __init__(self, views: Views, acts: Acts) -> None:
        self._views = views
        self._acts = acts

    async def page(self, request: ListRequest) -> ListResponse:
        """One page. Raises ``Refusal``."""
        size, after = page_size(request.page_size), ""
        selector = checked_selector(request.selector, (api_pb2.KIND_AUDIT,), scene_of(self._views))
        pinned: dict[StoreName, int] = {"region": 0, "global": 0}
        if request.page_token:
            region, world, last = from_token(request.page_token, (int, int, str))
            pinned, after = {"region": int(region), "global": int(world)}, str(last)
        found: list[Object] = []
        partial: dict[str, None] = {}
        for _ in range(SCAN_PAGES):
            try:
                read = await self._read(after, max(size, SCAN) if selector else size, pinned)
            except RevisionCompacted as error:
                raise invalid(STALE_TOKEN) from error
            pinned = read.revisions
            partial.update(dict.fromkeys(read.partial))
            more = read.more
            for item in read.objects:
                if len(found) == size:
                    more = True
                    break
                after = item.name
                if selector.matches(item.labels):
                    found.append(item)
            if not more or len(found) == size:
                break
        return ListResponse(
            objects=found,
            next_page_token=to_token(pinned["region"], pinned["global"], after) if more else "",
            revision=pinned["region"],
            as_of_wall_ms=self._views.info().wall_ms,
            partial=list(partial),
        )

    async def get(self, name: str) -> Object | None:
        """The entry of that id."""
        for store in STORES:
            page = await self._acts.history("audit", store, name, limit=1)
            for item in page.items:
                if item.name == name:
                    return self._object(store, item)
        return None

    async def tail(self) -> tuple[list[Object], dict[StoreName, int]]:
        """The newest entries, oldest first, and the revisions up to which they are complete."""
        newest: deque[Object] = deque(maxlen=WATCH_TAIL)
        after, pinned = "", dict.fromkeys(STORES, 0)
        while True:
            read = await self._read(after, SCAN, pinned)
            newest.extend(read.objects)
            pinned = read.revisions
            if not read.more or not read.objects:
                return list(newest), pinned
            after = read.objects[-1].name

    async def since(self, revisions: dict[StoreName, int]) -> tuple[list[Object], dict[StoreName, int]]:
        """Entries written after ``revisions``, and the new ones. A store that does not answer is asked again later."""
        objects: list[Object] = []
        reached = dict(revisions)
        for store in STORES:
            after = ""
            while True:
                try:
                    page = await self._acts.history(
                        "audit", store, "", after=after, limit=SCAN, min_revision=revisions[store] + 1
                    )
                except StoreUnavailable:
                    break
                objects.extend(self._object(store, item) for item in page.items)
                # Only what was complete at the first page's revision is done with; later ones come again, harmlessly.
                if not after:
                    reached[store] = max(reached[store], page.revision)
                if not page.more or not page.items:
                    break
                after = page.items[-1].name
        return objects, reached

    async def _read(self, after: str, limit: int, revisions: dict[StoreName, int]) -> _Read:
        """Up to ``limit`` entries after ``after`` from both stores, in order of their ids."""
        objects: list[Object] = []
        partial: list[str] = []
        reached = dict(revisions)
        ends: list[str] = []
        region = self._views.info().region
        for store in STORES:
            try:
                page = await self._acts.history("audit", store, "", after=after, limit=limit, revision=revisions[store])
            except StoreUnavailable as error:
                partial.append(
                    f"region {region}: the {store} store does not answer, its audit entries are missing: {error}"
                )
                continue
            reached[store] = revisions[store] or page.revision
            objects.extend(self._object(store, item) for item in page.items)
            names = [item.name for item in page.items] + list(page.suspect)
            if page.more and names:
                ends.append(max(names))
            if page.suspect:
                partial.append(f"region {region}: {len(page.suspect)} audit entries do not decode: {page.suspect[0]} …")
        objects.sort(key=lambda item: item.name)
        if ends:
            # Beyond the smallest last name of a cut page, the other store's entries would overtake.
            cut = min(ends)
            objects = [item for item in objects if item.name <= cut]
        more = bool(ends) or len(objects) > limit
        return _Read(objects[:limit], reached, more, tuple(partial))

    def _object(self, store: StoreName, item: HistoryItem) -> Object:
        assert isinstance(item.record, AuditRecord), f"{item.name} is no audit entry"
        region = self._views.info().region if store == "region" else ""
        return audit_object(region, item.name, item.record, item.revision)
