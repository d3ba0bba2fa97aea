"""AgentLink on grpc.aio: a stream becomes a ``ControlSession`` named by its certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from controlplane.shell.ingest import Ingest
from gridkeeper.identity.spiffe import BadIdentity, Kind
from gridkeeper.identity.tls import peer_identity
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
)

Context = grpc.aio.ServicerContext[AgentFrame, ControlFrame]


class GrpcControlSession:
    """``ControlSession`` over one RPC. Writes from several tasks are put in order."""

    def __init__(self, node: str, region: str, requests: AsyncIterator[AgentFrame], context: Context) -> None:
        self._node = node
        self._region = region
        self._requests = requests
        self._context = context
        self._writing = asyncio.Lock()
        self.refusal = ""

    @property
    def node(self) -> str:
        return self._node

    @property
    def region(self) -> str:
        return self._region

    async def send(self, frame: ControlFrame) -> None:
        try:
            async with self._writing:
                await self._context.write(frame)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, grpc.RpcError) as error:
            raise LinkClosed(f"{self._node} is gone: {error}") from error

    async def receive(self) -> AgentFrame:
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            raise LinkClosed(f"{self._node} closed its stream") from None
        except grpc.RpcError as error:
            raise LinkClosed(f"{self._node} is gone: {error}") from error

    async def refuse(self, reason: str) -> None:
        self.refusal = reason


class AgentLinkServicer(agent_pb2_grpc.AgentLinkServicer):
    def __init__(self, ingest: Ingest, trust_domain: str) -> None:
        self._ingest = ingest
        self._trust_domain = trust_domain

    async def Connect(  # type: ignore[override]
        self, request_iterator: AsyncIterator[AgentFrame], context: Context
    ) -> None:
        try:
            identity = peer_identity(context.auth_context(), self._trust_domain)
        except BadIdentity as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if identity.kind is not Kind.NODE:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"{identity} is no node; agents connect with a node's certificate"
            )
        session = GrpcControlSession(identity.name, identity.region, aiter(request_iterator), context)
        await self._ingest.serve(session)
        if session.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, session.refusal)
