"""What settles the two sides of a contract, from all regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gridkeeper.client import fanout
from gridkeeper.client.replicas import Replicas
from gridkeeper.v1 import api_pb2, records_pb2


@dataclass(frozen=True, slots=True)
class Settlement:
    """``exclusions``: the log, in order. The rest by books, then month or day; adjustments in order."""

    exclusions: tuple[records_pb2.ExclusionRecord, ...]
    closings: tuple[records_pb2.ClosingRecord, ...]
    heads: tuple[records_pb2.LedgerHeadRecord, ...]
    adjustments: tuple[records_pb2.AdjustmentRecord, ...]
    partial: tuple[str, ...]


async def everything(regions: Sequence[Replicas], zone: str, month: str) -> Settlement:
    """Raises ``ClientError`` when no region answers."""

    async def all_pages(replicas: Replicas) -> api_pb2.SettlementResponse:
        request = api_pb2.SettlementRequest(zone=zone, month=month)
        whole = api_pb2.SettlementResponse()
        while True:
            answer = await replicas.call("Settlement", request, api_pb2.SettlementResponse)
            whole.MergeFrom(answer)
            if not answer.next_page_token:
                return whole
            request.page_token = answer.next_page_token

    answers, errors = await fanout.everywhere(regions, all_pages)
    # What the global store holds is told by every region; the newest word on a closed month is the last.
    exclusions = {one.sequence: one for answer in answers for one in answer.exclusions}
    heads = {(one.books, one.day): one for answer in answers for one in answer.heads}
    adjustments = {(one.books, one.sequence): one for answer in answers for one in answer.adjustments}
    closings: dict[tuple[str, str, str], records_pb2.ClosingRecord] = {}
    for one in (closing for answer in answers for closing in answer.closings):
        key = (one.books, one.zone, one.month)
        if key not in closings or closings[key].adjustments < one.adjustments:
            closings[key] = one
    partial = dict.fromkeys((*errors, *(sentence for answer in answers for sentence in answer.partial)))
    return Settlement(
        tuple(exclusions[key] for key in sorted(exclusions)),
        tuple(closings[key] for key in sorted(closings)),
        tuple(heads[key] for key in sorted(heads)),
        tuple(adjustments[key] for key in sorted(adjustments)),
        tuple(partial),
    )
