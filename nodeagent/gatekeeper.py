"""Keeps the batch system's gate of this host as the control plane wants it.

Level-triggered: the newest wish on the newest stream counts, and is carried out again now and then, for as long as it
stands. Without a wish (this agent has just started, or heard none) the gate stays as it is. Losing the control plane
changes nothing: the last wish stands.
"""

from __future__ import annotations

import asyncio
import logging

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.gate import GateError, HostGate
from gridkeeper.v1.agent_pb2 import NodeGate

log = logging.getLogger("gridkeeper.agent.gate")

AGAIN_MS = 30_000
RETRY_MS = 10_000


class Gatekeeper:
    """One per agent on a host that a batch system owns. ``take`` is called by the stream, on the loop."""

    def __init__(self, gate: HostGate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._wish: NodeGate | None = None
        self._news = asyncio.Event()
        self._trouble = ""

    def take(self, wish: NodeGate) -> None:
        if wish != self._wish:
            self._wish = wish
            self._news.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._news.clear()
            wait_ms = await self._carry_out() if self._wish is not None else AGAIN_MS
            await self._until(self._clock.mono_ms() + wait_ms)

    async def _carry_out(self) -> int:
        """How long this holds, in ms."""
        assert self._wish is not None
        try:
            done = await (self._gate.close(self._wish.reason) if self._wish.closed else self._gate.open())
        except GateError as error:
            if str(error) != self._trouble:
                log.warning("%s is not told that this host is closed: %s", self._gate.title, error)
            self._trouble = str(error)
            return RETRY_MS
        self._trouble = ""
        if done:
            log.info("%s.", done)
        return AGAIN_MS

    async def _until(self, at_ms: int) -> None:
        waiting = asyncio.ensure_future(self._news.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(max(0, at_ms - self._clock.mono_ms())))
        try:
            await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleeping.cancel()
