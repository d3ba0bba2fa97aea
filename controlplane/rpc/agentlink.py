"""AgentLink on grpc.aio: a stream becomes a ``ControlSession`` named by its certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc

from controlplane.rpc.refusal import Refusal
from controlplane.security.gate import Caller, NoLonger
from controlplane.security.guards import Guards
from controlplane.security.origin import ORIGIN, host_of
from controlplane.shell.ingest import Ingest
from gridkeeper.identity.spiffe import Kind
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.v1 import agent_pb2_grpc
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame

log = logging.getLogger("gridkeeper.agentlink")

MAX_MESSAGE = 4 * 1024 * 1024
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # No ping after each message to measure how much the connection could take: what comes in here is small, and the
    # pings and their answers, at both ends, are a third of what a message costs.
    ("grpc.http2.bdp_probe", 0),
    # Who pings more often than the interval above is cut off at the second time.
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_concurrent_streams", 256),  # per connection
    ("grpc.max_metadata_size", 32 * 1024),
)

Context = grpc.aio.ServicerContext[AgentFrame, ControlFrame]


class GrpcControlSession:
    """``ControlSession`` over one RPC. Writes from several tasks are put in order.

    Who sends more than the limits allow is read more slowly: what is not read stays with the sender, by HTTP/2's flow
    control. When the certificate ends or is revoked, so does the stream, with the next message of either side."""

    def __init__(
        self, caller: Caller, guards: Guards, clock: Clock, requests: AsyncIterator[AgentFrame], context: Context
    ) -> None:
        self._caller = caller
        self._guards = guards
        self._clock = clock
        self._node = caller.identity.name
        self._region = caller.identity.region
        self._requests = requests
        self._context = context
        self._writing = asyncio.Lock()
        self.refusal = ""
        self.trouble = ""

    @property
    def node(self) -> str:
        return self._node

    @property
    def region(self) -> str:
        return self._region

    def _check(self) -> None:
        """Raises ``LinkClosed`` for who may no longer come in."""
        trouble = self._guards.gate.trouble(self._caller)
        if trouble:
            self.trouble = trouble
            raise LinkClosed(trouble)

    async def send(self, frame: ControlFrame) -> None:
        self._check()
        try:
            async with self._writing:
                await self._context.write(frame)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, grpc.RpcError) as error:
            raise LinkClosed(f"{self._node} is gone: {error}") from error

    async def receive(self) -> AgentFrame:
        try:
            frame = await anext(self._requests)
        except StopAsyncIteration:
            raise LinkClosed(f"{self._node} closed its stream") from None
        except grpc.RpcError as error:
            raise LinkClosed(f"{self._node} is gone: {error}") from error
        self._check()
        name = self._caller.name
        wait_ms = max(
            self._guards.messages.take(name, 1 + len(frame.more)), self._guards.octets.take(name, frame.ByteSize())
        )
        if wait_ms:
            sentence = f"{name} sends more than its limits allow, and is read more slowly"
            self._guards.book.note(name, self._caller.origin, "agentlink.flood", f"node/{self._node}", sentence)
            await self._clock.sleep(wait_ms)
        return frame

    async def refuse(self, reason: str) -> None:
        self.refusal = reason


class AgentLinkServicer(agent_pb2_grpc.AgentLinkServicer):
    def __init__(self, ingest: Ingest, guards: Guards, clock: Clock) -> None:
        self._ingest = ingest
        self._guards = guards
        self._clock = clock

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[AgentFrame], context: Context
    ) -> None:
        ORIGIN.set(host_of(context.peer()))
        who = "?"
        try:
            caller = self._guards.gate.certified(context)
            who = str(caller)
            self._admit(caller)
        except NoLonger as gone:
            await self._turn_away(context, gone.who, gone.code, str(gone))
        except Refusal as refusal:
            await self._turn_away(context, who, refusal.code, str(refusal))
        session = GrpcControlSession(caller, self._guards, self._clock, aiter(request_iterator), context)
        await self._ingest.serve(session)
        if session.trouble:
            await self._turn_away(context, who, grpc.StatusCode.UNAUTHENTICATED, session.trouble)
        if session.refusal:
            await self._turn_away(context, who, grpc.StatusCode.INVALID_ARGUMENT, session.refusal)

    def _admit(self, caller: Caller) -> None:
        """Raises ``Refusal``."""
        if caller.identity.kind is not Kind.NODE:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED, f"{caller} is no node; agents connect with a node's certificate"
            )
        wait_ms = self._guards.connects.admit(str(caller))
        if wait_ms:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{caller} connects too often; connect again in {wait_ms} ms"
            )

    async def _turn_away(self, context: Context, who: str, code: grpc.StatusCode, why: str) -> NoReturn:
        trace = self._guards.book.note(who, ORIGIN.get(), "agentlink.connect", "", why)
        log.warning("refused the stream of %s at %s, trace %s: %s", who, context.peer(), trace, why)
        await context.abort(code, why)
