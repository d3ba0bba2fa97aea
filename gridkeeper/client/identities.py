"""Join tokens and revocations. Each region keeps its own, so that it needs no other to know who may come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gridkeeper.client import fanout
from gridkeeper.client.answers import Act
from gridkeeper.client.errors import InvalidRequest, NotFound
from gridkeeper.client.replicas import Replicas
from gridkeeper.ids import RegionId
from gridkeeper.v1 import api_pb2, records_pb2


@dataclass(frozen=True, slots=True)
class Everywhere:
    """One sentence per region that did it; ``partial``: those that did not, and why."""

    sentences: tuple[str, ...]
    partial: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    records: tuple[tuple[RegionId, records_pb2.JoinTokenRecord], ...]
    partial: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Revocations:
    """A target is there once per region that refuses it."""

    records: tuple[tuple[RegionId, records_pb2.RevocationRecord], ...]
    partial: tuple[str, ...]


class Identities:
    def __init__(self, regions: Mapping[RegionId, Replicas]) -> None:
        self._regions = regions

    async def create_token(self, region: str, node: str, ttl_ms: int, reason: str) -> api_pb2.JoinTokenResponse:
        """For one host of ``region``; ``node`` "": of any name. ``ttl_ms`` 0: an hour."""
        request = api_pb2.JoinTokenRequest(node=node, ttl_ms=ttl_ms, reason=reason)
        return await self._of(region).call("CreateJoinToken", request, api_pb2.JoinTokenResponse, act=True)

    async def cancel_token(self, region: str, token: str, reason: str) -> Act:
        request = api_pb2.ObjectRequest(name=token, reason=reason)
        replicas = self._of(region)
        answer = await replicas.call("CancelJoinToken", request, api_pb2.ActResponse, act=True)
        return Act(answer.sentence, tuple(answer.objects), answer.revision, replicas.region)

    async def tokens(self) -> Tokens:
        async def ask(replicas: Replicas) -> tuple[tuple[RegionId, records_pb2.JoinTokenRecord], ...]:
            answer = await replicas.call("JoinTokens", api_pb2.JoinTokensRequest(), api_pb2.JoinTokensResponse)
            return tuple((replicas.region, record) for record in answer.records)

        answers, errors = await fanout.everywhere(tuple(self._regions.values()), ask)
        return Tokens(tuple(record for answer in answers for record in answer), tuple(errors))

    async def revoke(self, target: str, reason: str) -> Everywhere:
        """From now on refused in every region that answers. ``target``: node/<region>/<node>, user/<name> or
        serial/<hex>."""
        return await self._everywhere("Revoke", api_pb2.ObjectRequest(name=target, reason=reason))

    async def reinstate(self, target: str, reason: str) -> Everywhere:
        return await self._everywhere("Reinstate", api_pb2.ObjectRequest(name=target, reason=reason))

    async def revocations(self) -> Revocations:
        async def ask(replicas: Replicas) -> tuple[tuple[RegionId, records_pb2.RevocationRecord], ...]:
            answer = await replicas.call("Revocations", api_pb2.RevocationsRequest(), api_pb2.RevocationsResponse)
            return tuple((replicas.region, record) for record in answer.records)

        answers, errors = await fanout.everywhere(tuple(self._regions.values()), ask)
        return Revocations(tuple(record for answer in answers for record in answer), tuple(errors))

    async def _everywhere(self, name: str, request: Any) -> Everywhere:
        async def ask(replicas: Replicas) -> str:
            answer = await replicas.call(name, request, api_pb2.ActResponse, act=True)
            return answer.sentence

        answers, errors = await fanout.everywhere(tuple(self._regions.values()), ask, tolerate=NotFound)
        return Everywhere(tuple(answers), tuple(errors))

    def _of(self, region: str) -> Replicas:
        found = self._regions.get(RegionId(region))
        if found is None:
            known = ", ".join(self._regions)
            raise InvalidRequest(f"region: {region[:80]!r} is not in the client configuration; it has {known}")
        return found
