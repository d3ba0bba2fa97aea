"""Tells Alertmanagers and webhooks of alerts: at least once, under one key each, until they have answered.

Who was told is in the alert's record, so another leader neither tells it again nor leaves it out. Who tells and dies
before that is written down is followed by one that tells it again under the same key.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.domain import objectives
from controlplane.domain.objectives import Held
from controlplane.domain.settlement import Keys
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all
from controlplane.shell.mirror import Mirror
from gridkeeper.policy.model import AlertsPolicy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.notify import Pager, PagerUnavailable
from gridkeeper.ports.store import StoreError
from gridkeeper.records.objectives import SloAlertRecord
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.paging")

LOOK_MS = 1_000
RETRY_FIRST_MS, RETRY_MAX_MS = 1_000, 60_000
BATCH = 100


@dataclass(slots=True)
class _Place:
    """``tokens``: requests that it may still get; ``sent``: key -> when an Alertmanager was last reminded."""

    tokens: float
    filled_ms: int
    failures: int = 0
    not_before_ms: int = 0


class Paging:
    """Of one term. ``books``: region/<name> or global."""

    def __init__(
        self,
        books: str,
        keys: Keys,
        local: Mirror,
        applier: Applier,
        actor: str,
        fence: Fence,
        pager: Pager,
        settings: Callable[[], Settings],
        clock: Clock,
    ) -> None:
        self._books = books
        self._keys = keys
        self._local = local
        self._applier = applier
        self._actor = actor
        self._fence = fence
        self._pager = pager
        self._settings = settings
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._reminded: dict[tuple[str, str], int] = {}  # place, key -> when

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                log.warning("that an alert was told waits for the store, and it may be told again: %s", error)
            await self._clock.sleep(LOOK_MS)

    async def look(self) -> None:
        """Raises ``StoreError``."""
        if not self._local.fresh:
            return
        policy = self._settings().policy.alerts
        alerts = [held for _, held in sorted(self._local.kind("slo-alerts").items()) if held.record.since_ms]
        alive = {self._key(held.record) for held in alerts}
        self._reminded = {pair: at for pair, at in self._reminded.items() if pair[1] in alive}
        places = (*policy.alertmanagers, *policy.webhooks)
        self._places = {place: self._places.get(place) or self._new(policy) for place in places}
        told = await asyncio.gather(
            *(self._alertmanager(place, alerts, policy) for place in policy.alertmanagers),
            *(self._webhook(place, alerts, policy) for place in policy.webhooks),
        )
        decisions = []
        for held in alerts:
            now_know = [place for place, knows in zip(places, told, strict=True) if self._key(held.record) in knows]
            if not set(now_know) <= set(held.record.told):
                decisions.append(objectives.told(self._keys, held, now_know))
        await apply_all(decisions, self._applier, self._actor, self._fence)

    def _key(self, record: SloAlertRecord) -> str:
        """One for each time that it begins, and each time that it ends."""
        state = "firing" if record.firing else "resolved"
        return f"{self._books}/{record.slo}/{record.objective}/{record.name}/{record.since_ms}/{state}"

    async def _alertmanager(self, place: str, alerts: Sequence[Held], policy: AlertsPolicy) -> set[str]:
        now_ms, due = self._clock.mono_ms(), []
        for record in (held.record for held in alerts):
            last_ms = self._reminded.get((place, self._key(record)))
            waiting = last_ms is None or (record.firing and now_ms - last_ms >= policy.resend_ms)
            if waiting and (record.firing or place not in record.told):
                due.append(record)
        known: set[str] = set()
        for first in range(0, len(due), BATCH):
            batch = due[first : first + BATCH]
            body = json.dumps([self._posted(record, policy) for record in batch]).encode()
            if not await self._send(place, f"{place.rstrip('/')}/api/v2/alerts", "", body, policy):
                break
            known.update(self._key(record) for record in batch)
            self._reminded.update({(place, self._key(record)): now_ms for record in batch})
        return known

    def _posted(self, record: SloAlertRecord, policy: AlertsPolicy) -> dict[str, object]:
        ends_ms = self._clock.wall_ms() + 3 * policy.resend_ms if record.firing else record.ended_ms
        return {
            "labels": {"alertname": record.alert, **{label.key: label.value for label in record.labels}},
            "annotations": {"summary": record.summary},
            "startsAt": _rfc3339(record.since_ms),
            "endsAt": _rfc3339(ends_ms),
        }

    async def _webhook(self, place: str, alerts: Sequence[Held], policy: AlertsPolicy) -> set[str]:
        known: set[str] = set()
        for record in (held.record for held in alerts):
            if place in record.told:
                continue
            key = self._key(record)
            body = {
                "key": key,
                "state": "firing" if record.firing else "resolved",
                "alert": record.alert,
                "labels": {label.key: label.value for label in record.labels},
                "summary": record.summary,
                "since_ms": record.since_ms,
                "ended_ms": record.ended_ms,
            }
            if not await self._send(place, place, key, json.dumps(body).encode(), policy):
                break
            known.add(key)
        return known

    async def _send(self, place: str, url: str, key: str, body: bytes, policy: AlertsPolicy) -> bool:
        """False: not now."""
        held, now_ms = self._places[place], self._clock.mono_ms()
        grown = (now_ms - held.filled_ms) * policy.per_minute / 60_000
        held.tokens, held.filled_ms = min(float(policy.per_minute), held.tokens + grown), now_ms
        if now_ms < held.not_before_ms or held.tokens < 1:
            return False
        held.tokens -= 1
        try:
            await self._pager.post(url, key, body)
        except PagerUnavailable as error:
            pause = min(RETRY_MAX_MS, RETRY_FIRST_MS << min(held.failures, 10))
            held.failures, held.not_before_ms = held.failures + 1, self._clock.mono_ms() + pause
            log.warning("%s is told again in %d ms: %s", place, pause, error)
            return False
        held.failures = 0
        return True

    def _new(self, policy: AlertsPolicy) -> _Place:
        return _Place(float(policy.per_minute), self._clock.mono_ms())


def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
