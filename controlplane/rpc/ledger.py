"""The ledger's entries, read from both stores a page at a time, region store first."""

from __future__ import annotations

from controlplane.rpc.listing import from_token, page_size, to_token
from controlplane.rpc.refusal import invalid
from controlplane.rpc.sources import Acts, StoreName, Views
from gridkeeper import codec
from gridkeeper.ports.store import StoreUnavailable
from gridkeeper.records.books import EntryRecord
from gridkeeper.v1 import api_pb2, records_pb2

STORES: tuple[StoreName, ...] = ("region", "global")
SCAN = 1_000
SCAN_PAGES = 10
"""A page whose entries are mostly of other times ends after this many reads; the token goes on from there."""
MAX_SCOPE = 512


class LedgerPages:
    """A token names a store and the last entry looked at, so any replica of the region can go on from it. Entries are
    only ever added, and those of a scope are in order: nothing is missed or told twice."""

    def __init__(self, views: Views, acts: Acts) -> None:
        self._views = views
        self._acts = acts

    async def page(self, request: api_pb2.LedgerRequest) -> api_pb2.LedgerResponse:
        """One page. Raises ``Refusal``."""
        if len(request.scope) > MAX_SCOPE:
            raise invalid(f"scope: {len(request.scope)} characters; use at most {MAX_SCOPE}")
        if request.until_ms <= request.from_ms:
            raise invalid(f"until_ms: {request.until_ms} is not after from_ms, {request.from_ms}")
        size = page_size(request.page_size)
        number, after = 0, ""
        if request.page_token:
            told = from_token(request.page_token, (int, str))
            number, after = int(told[0]), str(told[1])
            if not 0 <= number < len(STORES):
                raise invalid("page_token: this is none that we gave out; ask again without page_token")
        # A scope's keys are below it: "device/n1/gpu1" must not be read as "device/n1/gpu10" too.
        prefix = request.scope if not request.scope or request.scope.endswith("/") else f"{request.scope}/"
        answer = api_pb2.LedgerResponse()
        for _ in range(SCAN_PAGES):
            store = STORES[number]
            try:
                page = await self._acts.history("entries", store, prefix, after=after, limit=SCAN)
            except StoreUnavailable as error:
                answer.partial.append(f"{self._where()}: the {store} store's entries are missing: {error}")
                more = False
            else:
                more = page.more
                if page.suspect:
                    first = f"{page.suspect[0]} …"
                    answer.partial.append(f"{self._where()}: {len(page.suspect)} entries do not decode: {first}")
                for item in page.items:
                    after = item.name
                    entry = item.record
                    if not isinstance(entry, EntryRecord):
                        continue
                    if entry.until_ms > request.from_ms and entry.from_ms < request.until_ms:
                        answer.entries.append(_message(entry))
                        if len(answer.entries) == size:
                            answer.next_page_token = to_token(number, after)
                            return answer
                after = max([after, *page.suspect])
            if not more:
                number, after = number + 1, ""
                if number == len(STORES):
                    return answer
        answer.next_page_token = to_token(number, after)
        return answer

    def _where(self) -> str:
        return f"region {self._views.info().region}"


def _message(entry: EntryRecord) -> records_pb2.EntryRecord:
    message = codec.to_message(entry)
    assert isinstance(message, records_pb2.EntryRecord)
    return message
