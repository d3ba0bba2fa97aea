"""The replicas of one region: one channel each, and calls that go to the next one when one does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from gridkeeper.client.errors import RETRIABLE, Unreachable, from_rpc
from gridkeeper.config import RegionEndpoints
from gridkeeper.ids import RegionId
from gridkeeper.v1 import api_pb2

R = TypeVar("R", bound=Message)

SERVICE = "/gridkeeper.v1.Grid/"


@dataclass(frozen=True, slots=True)
class Patience:
    """``call_ms``: deadline of one attempt at one replica; a paused process is not noticed by keep-alive, only by this.
    ``act_ms``: the same for acts, which commit to a store that may be electing a leader. ``stall_ms``: a watch says
    something at least once a second; silent for this long, it is dead."""

    call_ms: int = 5_000
    act_ms: int = 15_000
    stall_ms: int = 4_000


CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class WatchStalled(Exception):
    """The stream went silent."""


class Replicas:
    """Created inside the running event loop; close it. Prefers the replica that answered last."""

    def __init__(self, endpoints: RegionEndpoints, credentials: grpc.ChannelCredentials, patience: Patience) -> None:
        self.region: RegionId = endpoints.name
        self.addresses = endpoints.addresses
        self._channels = [
            grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS) for address in endpoints.addresses
        ]
        self._preferred = 0
        self._patience = patience

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def call(self, name: str, request: Message, response: type[R], act: bool = False) -> R:
        """One unary call, at each replica at most once. Raises ``Unreachable`` when none answers, else what the one
        that answered said."""
        failures: list[str] = []
        for offset in range(len(self._channels)):
            index = (self._preferred + offset) % len(self._channels)
            try:
                answer = await self.call_one(index, name, request, response, act)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIABLE:
                    self._preferred = index
                    raise from_rpc(error) from error
                failures.append(f"{self.addresses[index]}: {_cause(error)}")
            else:
                self._preferred = index
                return answer
        raise Unreachable(self.unreachable("; ".join(failures)))

    def unreachable(self, why: str) -> str:
        """The sentence for people."""
        return f"region {self.region} does not answer ({why}); check that its control plane runs and its address"

    async def call_one(self, index: int, name: str, request: Message, response: type[R], act: bool = False) -> R:
        """One attempt at one replica. Raises ``AioRpcError``."""
        method = self._channels[index].unary_unary(
            SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        timeout_ms = self._patience.act_ms if act else self._patience.call_ms
        answer: R = await method(request, timeout=timeout_ms / 1000)
        return answer

    async def samples(self, index: int, request: api_pb2.SamplesRequest) -> AsyncGenerator[api_pb2.SampleBlock, None]:
        """Blocks of one replica until its stream ends; a silent one counts as ended. Raises ``ClientError`` for what
        would fail at every replica."""
        read = self._stream(index, "Samples", request, api_pb2.SampleBlock)
        try:
            async with aclosing(read) as blocks:
                async for block in blocks:
                    yield block
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIABLE and error.code() not in _TRANSIENT:
                raise from_rpc(error) from error
        except TimeoutError:
            return

    async def watch(self, request: api_pb2.WatchRequest) -> AsyncGenerator[api_pb2.WatchEvent, None]:
        """Events of one stream from the preferred replica until it ends. Raises ``ClientError`` for what would fail at
        every replica, ``WatchStalled`` (with the cause) when another one may do; that one is preferred next."""
        index = self._preferred
        async with aclosing(self._stream(index, "Watch", request, api_pb2.WatchEvent)) as events:
            try:
                async for event in events:
                    yield event
            except grpc.aio.AioRpcError as error:
                self._preferred = (index + 1) % len(self._channels)
                if error.code() in RETRIABLE or error.code() in _TRANSIENT:
                    raise WatchStalled(f"{self.addresses[index]}: {_cause(error)}") from error
                raise from_rpc(error) from error
            except TimeoutError as error:
                self._preferred = (index + 1) % len(self._channels)
                raise WatchStalled(f"{self.addresses[index]}: silent for {self._patience.stall_ms} ms") from error
        self._preferred = (index + 1) % len(self._channels)
        raise WatchStalled(f"{self.addresses[index]}: the stream ended")

    async def _stream(self, index: int, name: str, request: Message, response: type[R]) -> AsyncGenerator[R, None]:
        method = self._channels[index].unary_stream(
            SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        call = method(request)
        try:
            while True:
                async with asyncio.timeout(self._patience.stall_ms / 1000):
                    event = await call.read()
                if not isinstance(event, response):  # grpc.aio.EOF
                    return
                yield event
        finally:
            call.cancel()


_TRANSIENT = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def _cause(error: grpc.aio.AioRpcError) -> str:
    """The first line of what gRPC says, short: its connection errors list every address family."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = (error.details() or error.code().name.lower()).splitlines()[0]
    lower = details.lower()
    if "connection refused" in lower:
        return "connection refused"
    if "handshake" in lower or "certificate" in lower:
        return "TLS handshake failed; check tls.certificate and tls.authority"
    if "failed to connect" in lower:
        return "cannot connect"
    return details[:200]
