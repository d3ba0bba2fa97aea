"""Protects: what a replica spends on queries is bounded whatever those who ask do, and its event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import ItemsView
from dataclasses import replace
from typing import Any

import pytest

from controlplane.rpc.query import AT_ONCE, QueryDesk
from controlplane.rpc.refusal import Refusal
from gridkeeper.snapshot import GlobalState
from gridkeeper.v1 import api_pb2
from tests.fixtures.grid import FakeGrid


class Slow(dict[Any, Any]):
    """Rows that take until ``go`` to be put together."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.readers = threading.Semaphore(0)

    def items(self) -> ItemsView[Any, Any]:
        self.readers.release()
        assert self.go.wait(30), "nobody let the rows go"
        return super().items()


class SlowGrid(FakeGrid):
    def __init__(self) -> None:
        super().__init__("east")
        self.jobs = Slow()

    def world(self) -> GlobalState:
        return replace(super().world(), jobs=self.jobs)


async def test_a_query_that_nobody_waits_for_any_more_keeps_its_place_until_it_is_done() -> None:
    """Protects: asking and hanging up, again and again, starts no more than ``AT_ONCE`` threads."""
    grid = SlowGrid()
    desk, request = QueryDesk(grid), api_pb2.QueryRequest(sql="select count(*) from jobs")
    asked = [asyncio.ensure_future(desk.rows(request)) for _ in range(AT_ONCE)]
    for _ in asked:
        assert await asyncio.to_thread(grid.jobs.readers.acquire, timeout=30)
    for query in asked:
        query.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(Refusal, match="answers 2 queries already"):
        await desk.rows(request)
    grid.jobs.go.set()
    for _ in range(1_000):
        try:
            answer = await desk.rows(request)
            break
        except Refusal:
            await asyncio.to_thread(grid.jobs.readers.acquire, timeout=0.01)
    assert [table.name for table in answer.tables] == ["jobs"]
