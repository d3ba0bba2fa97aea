"""What settles the two sides of a contract: recording exclusions, and showing what was closed, signed and adjusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.rpc import exclusions
from controlplane.rpc.acts import Actor
from controlplane.rpc.listing import from_token, to_token
from controlplane.rpc.refusal import invalid
from controlplane.rpc.sources import Acts, StoreName, Views
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ports.store import StoreUnavailable
from gridkeeper.records.settlement import AdjustmentRecord, Cause
from gridkeeper.sla.months import BadMonth, month_window
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import ActResponse

PAGE = 40
"""Adjustments per page: each names up to 500 scopes."""
STORES: tuple[StoreName, ...] = ("region", "global")
CAUSES = {
    records_pb2.CAUSE_MAINTENANCE: Cause.MAINTENANCE,
    records_pb2.CAUSE_CUSTOMER: Cause.CUSTOMER,
    records_pb2.CAUSE_FORCE_MAJEURE: Cause.FORCE_MAJEURE,
}


class SettlementDesk:
    """One replica's answers. Methods raise ``Refusal`` and store errors."""

    def __init__(self, views: Views, acts: Acts, actor: Actor) -> None:
        self._views = views
        self._acts = acts
        self._actor = actor

    async def record(self, request: api_pb2.ExclusionRequest, who: str) -> ActResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        if not request.reason.strip():
            raise invalid("reason: it is empty; an exclusion says why the time is left out")
        cause = CAUSES.get(request.cause)
        if cause is None:
            raise invalid(f"cause: {request.cause} is none; use one of {', '.join(Cause)}")
        evidence = tuple(request.evidence)
        asked = exclusions.Asked(request.scope, cause, request.from_ms, request.until_ms, evidence)
        return await self._actor.carry_out(
            "global", who, lambda: exclusions.record(asked, wish, views.region(), views.world(), views.now())
        )

    async def retract(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        if not request.reason.strip():
            raise invalid("reason: it is empty; a retraction says why the exclusion does not hold")
        return await self._actor.carry_out(
            "global", who, lambda: exclusions.retract(request.name, wish, views.world(), views.now())
        )

    async def shown(self, request: api_pb2.SettlementRequest) -> api_pb2.SettlementResponse:
        answer = api_pb2.SettlementResponse()
        if not request.page_token:
            region, world, info = self._views.region(), self._views.world(), self._views.info()
            answer.exclusions.extend(_messages(world.exclusions.values()))
            for state in (region, world):
                answer.closings.extend(_messages(state.closings.values()))
                answer.heads.extend(_messages(state.ledger_heads.values()))
            if not info.global_store_reachable:
                answer.partial.append(f"region {info.region}: exclusions may be older than the global store's")
        if request.month:
            await self._adjustments(request, answer)
        return answer

    async def _adjustments(self, request: api_pb2.SettlementRequest, answer: api_pb2.SettlementResponse) -> None:
        try:
            month_window(request.month, request.zone)
        except BadMonth as error:
            raise invalid(str(error)) from error
        number, after = 0, ""
        if request.page_token:
            told = from_token(request.page_token, (int, str))
            number, after = int(told[0]), str(told[1])
            if not 0 <= number < len(STORES):
                raise invalid("page_token: this is none that we gave out; ask again without page_token")
        where = f"region {self._views.info().region}"
        try:
            page = await self._acts.history(
                "adjustments", STORES[number], f"{request.zone}/{request.month}/", after=after, limit=PAGE
            )
        except StoreUnavailable as error:
            answer.partial.append(f"{where}: the {STORES[number]} store's adjustments are missing: {error}")
        else:
            answer.partial.extend(f"{where}: adjustment {name} does not decode" for name in page.suspect)
            records = [item.record for item in page.items]
            answer.adjustments.extend(codec.to_message(r) for r in records if isinstance(r, AdjustmentRecord))  # type: ignore[misc]
            if page.more:
                answer.next_page_token = to_token(number, max([*(item.name for item in page.items), *page.suspect]))
                return
        if number + 1 < len(STORES):
            answer.next_page_token = to_token(number + 1, "")


def _messages(held: Iterable[Versioned[Any]]) -> Iterable[Any]:
    return [codec.to_message(one.record) for one in held]
