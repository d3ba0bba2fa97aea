"""The agent's stream to its region's control plane: one at a time, opened again for ever.

Renewals go out every ``renewal_ms`` even without jobs, so their acknowledgements are the server's sign of life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.link import AgentSession, LinkClosed, LinkRefused, Transport
from gridkeeper.timings import BadTimings, Timings
from gridkeeper.v1.agent_pb2 import (
    AgentFrame,
    Welcome,
)
from nodeagent.gatekeeper import Gatekeeper
from nodeagent.probing import Probing
from nodeagent.spool import Spool
from nodeagent.stream import SILENT_LEAST_MS, Inventory, LinkCounters, NewHello, Repairs, Stream, Workloads

log = logging.getLogger("gridkeeper.agent.uplink")

BACKOFF_FIRST_MS = 100
BACKOFF_MAX_MS = 5_000
REFUSED_MS = 5_000
"""After a refusal (identity, malformed hello) a try at once would only be refused again."""
SETTLED_MS = 10_000
"""A stream that lasted this long was good: the next backoff starts small again."""


class Uplink:
    """Keeps a stream to one of ``servers``."""

    def __init__(
        self,
        transport: Transport,
        servers: Sequence[str],
        spool: Spool,
        workloads: Workloads,
        inventory: Inventory,
        repairs: Repairs,
        clock: Clock,
        rng: Rng,
        timings: Timings,
        probing: Probing | None = None,
        gatekeeper: Gatekeeper | None = None,
        credentials: Callable[[], int] | None = None,
    ) -> None:
        """``credentials``: the number of the certificate in force; when it changes, the stream moves to a new
        connection with the new one, and the old one is closed after that."""
        self._transport = transport
        self._servers = tuple(servers)
        self._spool = spool
        self._workloads = workloads
        self._inventory = inventory
        self._repairs = repairs
        self._clock = clock
        self._rng = rng
        self._timings = timings
        self._probing = probing
        self._gatekeeper = gatekeeper
        self._credentials = credentials
        self._connected_with = 0
        self.counters = LinkCounters()

    async def run(self) -> None:
        """For ever: connect, serve, and after a loss connect to the next server with full jitter (0.1 s to 5 s)."""
        failures, turn = 0, int(self._rng.uniform(0, len(self._servers)))
        while True:
            address = self._servers[turn % len(self._servers)]
            began = self._clock.mono_ms()
            pause = 0.0
            try:
                await self._serve(address)
            except NewHello as error:
                log.info("Saying hello to %s again: %s.", address, error)
                pause = self._rng.uniform(0, BACKOFF_FIRST_MS)
            except LinkRefused as error:
                log.error("%s refuses this agent: %s", address, error)
                turn += 1
                pause = self._rng.uniform(REFUSED_MS / 2, REFUSED_MS)
            except LinkClosed as error:
                failures = 0 if self._clock.mono_ms() - began > SETTLED_MS else failures + 1
                log.warning("The stream to %s is over: %s", address, error)
                turn += 1
                pause = self._rng.uniform(0, min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** min(failures, 10)))
            finally:
                self.counters.connected = False
            self.counters.reconnects += 1
            await self._clock.sleep(round(pause))

    async def _serve(self, address: str) -> None:
        """One stream after the other, each opened before the last is closed, to an end that is no change of
        certificates. Raises ``LinkClosed``."""
        session, last = await self._connect(address), None
        try:
            while True:
                stream, acked = await self._begin(session)
                if last is not None:
                    await last.close()
                log.info("Connected to %s (%s).", self.counters.replica, address)
                session, last = await self._carry(stream, acked, address), session
        finally:
            await session.close()
            if last is not None:
                await last.close()

    async def _connect(self, address: str) -> AgentSession:
        limit_ms = self._limit_ms()
        if self._credentials is not None:
            self._connected_with = self._credentials()
        try:
            async with asyncio.timeout(limit_ms / 1000):
                return await self._transport.connect(address)
        except TimeoutError:
            raise LinkClosed(f"no connection within {limit_ms} ms") from None

    def _limit_ms(self) -> int:
        return max(SILENT_LEAST_MS, 5 * self._timings.heartbeat_ms)

    async def _begin(self, session: AgentSession) -> tuple[Stream, int]:
        """Say hello. Returns the stream, and up to where its events are acknowledged."""
        version, limit_ms = self._inventory.version, self._limit_ms()
        hello = self._inventory.hello(self._spool.id)
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await session.send(AgentFrame(hello=hello))
                welcome = await session.receive()
        except TimeoutError:
            raise LinkClosed(f"no welcome within {limit_ms} ms") from None
        if welcome.WhichOneof("frame") != "welcome":
            raise LinkClosed(f"the first frame was {welcome.WhichOneof('frame')}, not welcome")
        self._take_timings(welcome.welcome)
        if not await self._spool.welcome(welcome.welcome.acked_sequence):
            raise NewHello("the server's cursor does not fit the spool")
        self.counters.connected, self.counters.replica = True, welcome.welcome.replica
        stream = Stream(
            session,
            hello,
            version,
            self._timings,
            self._spool,
            self._workloads,
            self._inventory,
            self._repairs,
            self._clock,
            self.counters,
            self._probing,
            self._gatekeeper,
        )
        return stream, welcome.welcome.acked_sequence

    async def _carry(self, stream: Stream, acked: int, address: str) -> AgentSession:
        """Until there is a connection with a renewed certificate, which is returned. Raises ``LinkClosed``."""
        if self._credentials is None:
            await stream.run(acked)
            raise AssertionError("a stream ends by an error")
        running = asyncio.ensure_future(stream.run(acked))
        renewing = asyncio.ensure_future(self._renewed(self._credentials, address))
        moved = False
        try:
            await asyncio.wait((running, renewing), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            moved = True
            return renewing.result()
        finally:
            running.cancel()
            renewing.cancel()
            _, fresh = await asyncio.gather(running, renewing, return_exceptions=True)
            if not moved and not isinstance(fresh, BaseException):
                await fresh.close()

    async def _renewed(self, credentials: Callable[[], int], address: str) -> AgentSession:
        """A connection with the next certificate, once there is one."""
        while credentials() == self._connected_with:
            await self._clock.sleep(self._timings.heartbeat_ms)
        while True:
            try:
                return await self._connect(address)
            except LinkClosed as error:
                log.warning("%s is not reached with the renewed certificate yet: %s", address, error)
                await self._clock.sleep(REFUSED_MS)

    def _take_timings(self, welcome: Welcome) -> None:
        told = welcome.timings
        try:
            self._timings = replace(
                self._timings,
                stale_ms=told.stale_ms,
                fence_ms=told.fence_ms,
                takeover_ms=told.takeover_ms,
                renewal_ms=told.renewal_ms,
                heartbeat_ms=told.heartbeat_ms,
                telemetry_ms=told.telemetry_ms,
            )
        except BadTimings as error:
            raise LinkRefused(f"the welcome's timings are unsafe: {error}") from error
        if min(told.fence_ms, told.renewal_ms, told.heartbeat_ms, told.telemetry_ms) <= 0:
            raise LinkRefused(f"the welcome's timings are not positive: {told}")
        self._workloads.set_timings(self._timings)
