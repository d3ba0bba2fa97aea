"""The ledger's entries, from all regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gridkeeper.client import fanout
from gridkeeper.client.replicas import Replicas
from gridkeeper.v1 import api_pb2, records_pb2


@dataclass(frozen=True, slots=True)
class LedgerListing:
    """``entries``: in order of scope and sequence."""

    entries: tuple[records_pb2.EntryRecord, ...]
    partial: tuple[str, ...]


async def everything(regions: Sequence[Replicas], from_ms: int, until_ms: int, scope: str) -> LedgerListing:
    """Raises ``ClientError`` when no region answers."""

    async def all_pages(replicas: Replicas) -> LedgerListing:
        request = api_pb2.LedgerRequest(scope=scope, from_ms=from_ms, until_ms=until_ms)
        entries: list[records_pb2.EntryRecord] = []
        partial: list[str] = []
        while True:
            answer = await replicas.call("LedgerEntries", request, api_pb2.LedgerResponse)
            entries.extend(answer.entries)
            partial.extend(answer.partial)
            if not answer.next_page_token:
                return LedgerListing(tuple(entries), tuple(partial))
            request.page_token = answer.next_page_token

    answers, errors = await fanout.everywhere(regions, all_pages)
    # What the global store holds is told by every region.
    found = {(entry.scope, entry.sequence): entry for answer in answers for entry in answer.entries}
    partial = dict.fromkeys((*errors, *(sentence for answer in answers for sentence in answer.partial)))
    return LedgerListing(tuple(found[key] for key in sorted(found)), tuple(partial))
