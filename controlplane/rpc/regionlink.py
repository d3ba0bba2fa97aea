"""RegionLink on grpc.aio, both ends: what replicas of different regions ask each other."""

from __future__ import annotations

import logging
from collections import OrderedDict

import grpc

from controlplane.shell.promises import Promiser
from gridkeeper.identity.spiffe import BadIdentity, Kind
from gridkeeper.identity.tls import peer_identity
from gridkeeper.ids import Extent, ReplicaId
from gridkeeper.ports.peers import Ask, NoAnswer
from gridkeeper.v1 import regions_pb2_grpc
from gridkeeper.v1.regions_pb2 import PromiseAnswer, PromiseRequest

log = logging.getLogger("gridkeeper.regionlink")

MOST_CHANNELS = 64
"""Kept open at once, to the replicas asked last."""
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Context = grpc.aio.ServicerContext[PromiseRequest, PromiseAnswer]


class RegionLinkServicer(regions_pb2_grpc.RegionLinkServicer):
    """A replica speaks for its own region and for nobody else."""

    def __init__(self, promiser: Promiser, trust_domain: str) -> None:
        self._promiser = promiser
        self._trust_domain = trust_domain

    async def Promise(self, request: PromiseRequest, context: Context) -> PromiseAnswer:
        try:
            identity = peer_identity(context.auth_context(), self._trust_domain)
        except BadIdentity as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if (identity.kind, identity.region, identity.name) != (Kind.REPLICA, request.region, request.replica):
            log.warning("refused a promise to %s, asked for by %s", request.region[:80], identity)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{identity} may not ask for replica {request.replica[:80]!r} of region {request.region[:80]!r}; a "
                "replica asks with its own certificate",
            )
        seen = Extent(request.generation, request.revision)
        ask = Ask(identity.region, ReplicaId(identity.name), seen, request.alive)
        return PromiseAnswer(refusal=await self._promiser.answer(ask))


class GrpcRegions:
    """``OtherRegions``. Created inside the running event loop; close it."""

    def __init__(self, credentials: grpc.ChannelCredentials) -> None:
        self._credentials = credentials
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()

    async def ask(self, address: str, ask: Ask, timeout_ms: int) -> str:
        stub = regions_pb2_grpc.RegionLinkStub(await self._channel(address))
        request = PromiseRequest(
            region=ask.region,
            replica=ask.replica,
            generation=ask.seen.generation,
            revision=ask.seen.revision,
            alive=ask.alive,
        )
        try:
            answer: PromiseAnswer = await stub.Promise(request, timeout=timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise NoAnswer(f"{address}: {error.code().name}: {error.details()}") from error
        return answer.refusal

    async def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.pop(address, None)
        if channel is None:
            channel = grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)
        self._channels[address] = channel
        while len(self._channels) > MOST_CHANNELS:
            await self._channels.popitem(last=False)[1].close()
        return channel

    async def close(self) -> None:
        while self._channels:
            await self._channels.popitem()[1].close()
