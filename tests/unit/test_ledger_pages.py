"""Protects: the ledger is told whole, each entry once, whatever the size of a page."""

from __future__ import annotations

import pytest

from controlplane.rpc.ledger import LedgerPages
from controlplane.rpc.refusal import Refusal
from gridkeeper.ids import RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.v1 import api_pb2
from tests.fixtures.grid import FakeGrid


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_pages_of_any_size_tell_each_entry_once(size: int) -> None:
    grid = FakeGrid(RegionId("east"))
    wanted = []
    for scope, keys in (("device/n1/gpu0", grid.keys), ("region/east", grid.keys), ("job/train", KEYS)):
        for number in range(1, 5):
            entry = EntryRecord(scope, number, "2026-10", 10 * number, 10 * number + 10, UptimeClass.DOWN, "", ())
            grid.put(keys.entry(scope, number), entry)
            wanted += [(scope, number)] if number in (2, 3) else []
    pages, told, token = LedgerPages(grid, grid), [], ""
    for _ in range(100):
        answer = await pages.page(api_pb2.LedgerRequest(from_ms=20, until_ms=40, page_size=size, page_token=token))
        assert len(answer.entries) <= size and not answer.partial
        told += [(entry.scope, entry.sequence) for entry in answer.entries]
        token = answer.next_page_token
        if not token:
            break
    assert told == wanted
    with pytest.raises(Refusal, match="page_token"):
        await pages.page(api_pb2.LedgerRequest(until_ms=1, page_token="bm9uZQ=="))
