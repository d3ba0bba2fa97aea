"""Join tokens and revocations, for ``grid.GridService``."""

from __future__ import annotations

import grpc

from controlplane.rpc import identity_intents
from controlplane.rpc.acts import Actor
from controlplane.rpc.intents import Plan
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.sources import Views
from gridkeeper import codec
from gridkeeper.ports.clock import Rng
from gridkeeper.records.identity import JoinTokenRecord
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import ActResponse


class Identities:
    def __init__(self, views: Views, actor: Actor, rng: Rng) -> None:
        self._views = views
        self._actor = actor
        self._rng = rng

    async def create_token(self, request: api_pb2.JoinTokenRequest, who: str) -> api_pb2.JoinTokenResponse:
        """The secret is in this answer and nowhere else: not in the store, not in a log."""
        wish, views = self._actor.wish(who, request.reason), self._views
        token, secret = self._rng.token(8), self._rng.token(32)
        made: list[JoinTokenRecord] = []

        def plan() -> Plan:
            record, decision = identity_intents.create_token(
                token, secret, request.node, request.ttl_ms, wish, views.region(), views.now()
            )
            made[:] = [record]
            return Plan(decision.sentence, (), decision)

        act = await self._actor.carry_out("region", who, plan)
        return api_pb2.JoinTokenResponse(token=f"{token}.{secret}", record=_token(made[0]), sentence=act.sentence)

    async def cancel_token(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        return await self._actor.carry_out(
            "region", who, lambda: identity_intents.cancel_token(request.name, wish, self._views.region())
        )

    async def tokens(self) -> api_pb2.JoinTokensResponse:
        """Without what is stored of their secrets."""
        records = [_token(held.record) for held in self._views.region().tokens.values()]
        return api_pb2.JoinTokensResponse(records=records)

    async def revoke(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        return await self._actor.carry_out(
            "region", who, lambda: identity_intents.revoke(request.name, wish, views.region(), views.now())
        )

    async def reinstate(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        return await self._actor.carry_out(
            "region", who, lambda: identity_intents.reinstate(request.name, wish, self._views.region())
        )

    async def revocations(self) -> api_pb2.RevocationsResponse:
        if not self._views.info().region_store_reachable:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the region store does not answer; what is revoked is not known")
        records = []
        for held in self._views.region().revocations.values():
            message = codec.to_message(held.record)
            assert isinstance(message, records_pb2.RevocationRecord)
            records.append(message)
        return api_pb2.RevocationsResponse(records=records)


def _token(record: JoinTokenRecord) -> records_pb2.JoinTokenRecord:
    message = codec.to_message(record)
    assert isinstance(message, records_pb2.JoinTokenRecord)
    message.digest = ""
    return message
