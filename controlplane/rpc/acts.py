"""Carrying out what humans ask for: decide on the newest state, apply, and decide again when the state moved on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from controlplane.rpc import intents
from controlplane.rpc.intents import Plan, Wish
from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.sources import Acts, Conflict, StoreName, Views
from gridkeeper import tracing
from gridkeeper.ports.clock import Rng
from gridkeeper.v1.api_pb2 import ActResponse

log = logging.getLogger("gridkeeper.api")

ATTEMPTS = 6
CATCH_UP_MS = 500
"""After a lost race: how long to wait for the mirror to show what won."""


def new_trace(rng: Rng) -> str:
    """A W3C traceparent that begins with this act."""
    return f"00-{rng.token(16)}-{rng.token(8)}-01"


class Actor:
    """Applies plans through ``Acts``."""

    def __init__(self, views: Views, acts: Acts, rng: Rng) -> None:
        self._views = views
        self._acts = acts
        self._rng = rng

    def wish(self, actor: str, reason: str) -> Wish:
        """Raises ``Refusal``."""
        wish = Wish(actor, intents.checked_reason(reason), new_trace(self._rng))
        with tracing.root("api.act", wish.trace, {"actor": actor}):
            return wish

    async def carry_out(self, store: StoreName, actor: str, plan: Callable[[], Plan]) -> ActResponse:
        """``plan`` is asked anew after each lost race. Raises ``Refusal`` and the store's errors."""
        reachable = self._views.info()
        if not (reachable.region_store_reachable if store == "region" else reachable.global_store_reachable):
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                f"the {store} store does not answer replica {reachable.replica}; try again, or another replica",
            )
        apply = self._acts.apply_region if store == "region" else self._acts.apply_global
        for _ in range(ATTEMPTS):
            version = await self._views.changed(-1)
            wanted = plan()
            if wanted.decision is None:
                return ActResponse(sentence=wanted.sentence, objects=wanted.objects, revision=self._revision(store))
            try:
                revision = await apply(wanted.decision, actor)
            except Conflict as conflict:
                log.info("%s by %s lost a race and is decided again: %s", wanted.decision.step, actor, conflict)
                await self._moved_on(version)
                continue
            log.info("%s by %s: %s", wanted.decision.step, actor, wanted.sentence)
            return ActResponse(sentence=wanted.sentence, objects=wanted.objects, revision=revision)
        raise Refusal(
            grpc.StatusCode.ABORTED, f"others changed the same objects {ATTEMPTS} times in a row; look and try again"
        )

    def _revision(self, store: StoreName) -> int:
        return self._views.region().revision if store == "region" else self._views.world().revision

    async def _moved_on(self, version: int) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_MS / 1000):
                await self._views.changed(version)
        except TimeoutError:
            return


def checked_ttl(ttl_ms: int) -> int:
    """Raises ``Refusal``."""
    year = 366 * 86_400_000
    if not 0 <= ttl_ms <= year:
        raise invalid(f"ttl_ms: {ttl_ms} is not between 0 (never expires) and {year} (a year)")
    return ttl_ms
