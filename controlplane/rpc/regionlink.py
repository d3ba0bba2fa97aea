"""RegionLink on grpc.aio, both ends: what replicas of different regions ask each other."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NoReturn

import grpc

from controlplane.rpc.refusal import Refusal
from controlplane.security.gate import Caller, NoLonger
from controlplane.security.guards import Guards
from controlplane.security.origin import host_of
from gridkeeper.identity.spiffe import Kind, replica_host
from gridkeeper.ids import Extent, RegionId, ReplicaId
from gridkeeper.ports.peers import Answer, Ask, NoAnswer
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
    """A replica asks for its own region and for nobody else."""

    def __init__(self, region: RegionId, answer: Callable[[Ask], Awaitable[str]], guards: Guards) -> None:
        self._region = region
        self._answer = answer
        self._guards = guards

    async def Promise(self, request: PromiseRequest, context: Context) -> PromiseAnswer:
        who = "?"
        try:
            caller = self._guards.gate.certified(context)
            who = str(caller)
            self._admit(caller, request)
        except NoLonger as gone:
            await self._turn_away(context, gone.who, gone)
        except Refusal as refusal:
            await self._turn_away(context, who, refusal)
        seen = Extent(request.generation, request.revision)
        ask = Ask(caller.identity.region, ReplicaId(caller.identity.name), seen, request.alive)
        return PromiseAnswer(refusal=await self._answer(ask), region=self._region)

    def _admit(self, caller: Caller, request: PromiseRequest) -> None:
        """Raises ``Refusal``."""
        identity = caller.identity
        if (identity.kind, identity.region, identity.name) != (Kind.REPLICA, request.region, request.replica):
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller} may not ask for replica {request.replica[:80]!r} of region {request.region[:80]!r}; a "
                "replica asks with its own certificate",
            )
        wait_ms = self._guards.reads.admit(str(caller))
        if wait_ms:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{caller} asks too often; ask again in {wait_ms} ms")

    async def _turn_away(self, context: Context, who: str, refusal: Refusal) -> NoReturn:
        trace = self._guards.book.note(who, host_of(context.peer()), "regionlink.promise", "", str(refusal))
        log.warning("refused a promise to %s at %s, trace %s: %s", who, context.peer(), trace, refusal)
        await context.abort(refusal.code, str(refusal))


class GrpcRegions:
    """``OtherRegions``. Created inside the running event loop; close it. A server is known by the name of its region's
    replicas in its certificate, not by its address: any other certificate of the grid ends the handshake."""

    def __init__(self, credentials: grpc.ChannelCredentials, trust_domain: str) -> None:
        self._credentials = credentials
        self._trust_domain = trust_domain
        self._channels: OrderedDict[tuple[RegionId, str], grpc.aio.Channel] = OrderedDict()

    async def ask(self, region: RegionId, address: str, ask: Ask, timeout_ms: int) -> Answer:
        stub = regions_pb2_grpc.RegionLinkStub(await self._channel(region, address))
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
        return Answer(RegionId(answer.region), answer.refusal)

    async def _channel(self, region: RegionId, address: str) -> grpc.aio.Channel:
        channel = self._channels.pop((region, address), None)
        if channel is None:
            name = ("grpc.ssl_target_name_override", replica_host(region, self._trust_domain))
            channel = grpc.aio.secure_channel(address, self._credentials, options=(*OPTIONS, name))
        self._channels[region, address] = channel
        while len(self._channels) > MOST_CHANNELS:
            await self._channels.popitem(last=False)[1].close()
        return channel

    async def close(self) -> None:
        while self._channels:
            await self._channels.popitem()[1].close()
