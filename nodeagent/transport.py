"""``Transport`` on grpc.aio with mutual TLS."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from gridkeeper.ports.link import LinkClosed, LinkRefused
from gridkeeper.v1 import agent_pb2_grpc
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame

REFUSALS = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT}
)
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
    # One channel per stream, closed with it: a dead peer is noticed by silence, not by the channel's own backoff.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    # As at the other end (``controlplane/rpc/agentlink.py``): an agent is sent little.
    ("grpc.http2.bdp_probe", 0),
)

Call = grpc.aio.StreamStreamCall[AgentFrame, ControlFrame]


def _error(error: grpc.aio.AioRpcError, address: str) -> LinkClosed:
    text = f"{address}: {error.code().name}: {error.details() or 'no details'}"
    return LinkRefused(text) if error.code() in REFUSALS else LinkClosed(text)


class GrpcAgentSession:
    """``AgentSession`` over one RPC on a channel of its own."""

    def __init__(self, address: str, channel: grpc.aio.Channel, call: Call) -> None:
        self._address = address
        self._channel = channel
        self._call = call

    async def send(self, frame: AgentFrame) -> None:
        try:
            await self._call.write(frame)
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        except (grpc.aio.UsageError, grpc.RpcError, ValueError) as error:
            raise await self._ended(str(error)) from error

    async def receive(self) -> ControlFrame:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _error(error, self._address) from error
        except (grpc.aio.UsageError, grpc.RpcError) as error:
            raise await self._ended(str(error)) from error
        if isinstance(frame, ControlFrame):
            return frame
        raise await self._ended("the server ended the stream")

    async def _ended(self, words: str) -> LinkClosed:
        """Why the call is over: its status says more than the failed read or write does."""
        if not self._call.done():
            return LinkClosed(f"{self._address}: {words}")
        code, details = await self._call.code(), await self._call.details()
        text = f"{self._address}: {code.name}: {details or words}"
        return LinkRefused(text) if code in REFUSALS else LinkClosed(text)

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close(grace=None)


class GrpcTransport:
    """Opens a channel and a stream per ``connect``. ``credentials``: those in force now."""

    def __init__(self, credentials: Callable[[], grpc.ChannelCredentials]) -> None:
        self._credentials = credentials

    async def connect(self, address: str) -> GrpcAgentSession:
        channel = grpc.aio.secure_channel(address, self._credentials(), options=OPTIONS)
        try:
            call: Call = agent_pb2_grpc.AgentLinkStub(channel).Connect()
            await call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            await channel.close(grace=None)
            raise _error(error, address) from error
        except BaseException:
            await channel.close(grace=None)
            raise
        return GrpcAgentSession(address, channel, call)
