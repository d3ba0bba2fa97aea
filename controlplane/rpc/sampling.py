"""Samples of telemetry to whoever records them: blocks of rows, each row once."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc

from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.sources import Views
from gridkeeper.ports.clock import Clock
from gridkeeper.telemetry import METRICS
from gridkeeper.v1.api_pb2 import SampleBlock, SamplesRequest

DEFAULT_MS, LEAST_MS, MOST_MS = 10_000, 1_000, 3_600_000
BLOCK = 4_096
"""Rows per message: half a megabyte."""
MAX_READERS = 16
SIGN_MS = 2_000
"""A reader that hears nothing for longer takes the stream for dead."""


class Sampling:
    """All readers of one replica."""

    def __init__(self, views: Views, clock: Clock) -> None:
        self._views = views
        self._clock = clock
        self._running = 0

    async def stream(self, request: SamplesRequest) -> AsyncGenerator[SampleBlock, None]:
        """For ever. Raises ``Refusal`` before the first block."""
        period_ms = request.period_ms or DEFAULT_MS
        if not LEAST_MS <= period_ms <= MOST_MS:
            raise invalid(f"period_ms: {request.period_ms} is not between {LEAST_MS} and {MOST_MS}")
        if self._running >= MAX_READERS:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this replica already sends samples to {MAX_READERS} readers; end some",
            )
        self._running += 1
        try:
            async for block in self._blocks(period_ms):
                yield block
        finally:
            self._running -= 1

    async def _blocks(self, period_ms: int) -> AsyncGenerator[SampleBlock, None]:
        newest, due_ms = 0, self._clock.mono_ms()
        metrics = [metric.name for metric in METRICS]
        while True:
            left = due_ms - self._clock.mono_ms()
            if left > 0:
                await self._clock.sleep(min(left, SIGN_MS))
                yield SampleBlock()
                continue
            found = self._views.samples(newest)
            newest = found.newest
            for start in range(0, len(found.devices), BLOCK):
                rows = slice(start, start + BLOCK)
                yield SampleBlock(
                    metrics=metrics,
                    devices=found.devices[rows],
                    at_ms=found.at_ms[rows].tolist(),
                    values=found.values[rows].astype("<f4").tobytes(),
                )
            due_ms = max(due_ms + period_ms, self._clock.mono_ms())
