"""Telemetry of the whole grid: a stream from every replica of every region, since each holds other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gridkeeper.client.replicas import Replicas
from gridkeeper.ports.clock import Clock
from gridkeeper.v1 import api_pb2

QUEUE = 256
"""Blocks waiting for a slow consumer; beyond it the streams are held back."""
RETRY_MS = 1_000


async def samples(
    regions: tuple[Replicas, ...], request: api_pb2.SamplesRequest, clock: Clock
) -> AsyncGenerator[api_pb2.SampleBlock, None]:
    """Blocks with rows, for ever; a replica that is away is asked again. Raises ``ClientError`` for what no replica
    would accept."""
    queue: asyncio.Queue[api_pb2.SampleBlock | BaseException] = asyncio.Queue(QUEUE)

    async def feed(replicas: Replicas, index: int) -> None:
        try:
            while True:
                async with aclosing(replicas.samples(index, request)) as blocks:
                    async for block in blocks:
                        if block.devices:
                            await queue.put(block)
                await clock.sleep(RETRY_MS)
        except Exception as error:  # what no replica accepts, or a bug: the consumer hears of it
            await queue.put(error)
            raise

    tasks = [asyncio.create_task(feed(r, index)) for r in regions for index in range(len(r.addresses))]
    try:
        while True:
            told = await queue.get()
            if isinstance(told, BaseException):
                raise told
            yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
