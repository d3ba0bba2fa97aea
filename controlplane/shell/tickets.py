"""Approved tickets go to the desk: at least once, under one key each, until it has answered or their time is up."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from controlplane.domain.repair import to
from controlplane.domain.repair_index import Repair, latest_ms
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from gridkeeper.ids import RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError
from gridkeeper.ports.tickets import TicketDesk, TicketRefused, TicketUnavailable
from gridkeeper.records.care import RepairKind, RepairState
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.tickets")

IDLE_MS = 1_000
RETRY_FIRST_MS, RETRY_MAX_MS = 1_000, 60_000
ANSWER_S = 10.0
MAX_ANSWER = 4_096
LATER = frozenset({408, 425, 429})


class HttpDesk:
    """``TicketDesk`` over HTTP. ``token_file``: its content goes along as a bearer token; "": none. Read anew for each
    ticket, so that it can be changed; it is in no store and in no log."""

    def __init__(self, token_file: str = "") -> None:
        self._token_file = token_file

    async def open_ticket(self, url: str, key: str, body: bytes) -> str:
        return await asyncio.to_thread(self._post, url, key, body)

    def _post(self, url: str, key: str, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        try:
            if self._token_file:
                headers["Authorization"] = f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return _named(answer.read(MAX_ANSWER), answer.headers.get("Location", ""))
        except urllib.error.HTTPError as error:
            why = f"{url} answers {error.code} {error.reason}"
            if error.code >= 500 or error.code in LATER:
                raise TicketUnavailable(why) from error
            raise TicketRefused(why) from error
        except (OSError, http.client.HTTPException) as error:
            raise TicketUnavailable(f"{url}: {error}") from error


def _named(answer: bytes, location: str) -> str:
    """``id``, ``key`` or ``number`` of a JSON answer, else where it says that the ticket is."""
    try:
        value = json.loads(answer)
    except ValueError:
        return location[:200]
    found = next((value[n] for n in ("id", "key", "number") if n in value), location) if isinstance(value, dict) else ""
    return str(found)[:200]


class Tickets:
    """Of one term of leading a region."""

    def __init__(
        self,
        region: RegionId,
        fence: Fence,
        actor: str,
        local: Mirror,
        applier: Applier,
        desk: TicketDesk,
        settings: Callable[[], Settings],
        clock: Clock,
        time: LedgerTime,
    ) -> None:
        self._keys = RegionKeys(region)
        self._fence = fence
        self._actor = actor
        self._local = local
        self._applier = applier
        self._desk = desk
        self._settings = settings
        self._clock = clock
        self._time = time
        self._tries: dict[str, tuple[int, int]] = {}  # id -> how often, not before

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._local.fresh:
                waiting = [
                    repair
                    for _, repair in sorted(self._local.kind("repairs").items())
                    if repair.record.kind is RepairKind.TICKET and repair.record.state is RepairState.APPROVED
                ]
                self._tries = {r.record.id: self._tries[r.record.id] for r in waiting if r.record.id in self._tries}
                for repair in waiting:
                    await self._take(repair)
            await self._clock.sleep(IDLE_MS)

    async def _take(self, repair: Repair) -> None:
        count, not_before = self._tries.get(repair.record.id, (0, 0))
        if self._clock.mono_ms() < not_before:
            return
        try:
            name = await self._desk.open_ticket(repair.record.command, repair.record.id, body_of(repair))
            await self._end(repair, RepairState.DONE, f"ticket {name} is open" if name else "the ticket is open")
        except TicketRefused as error:
            await self._end(repair, RepairState.FAILED, str(error))
        except TicketUnavailable as error:
            waited = self._time.now().ledger_ms - latest_ms(repair.record)
            if waited >= self._settings().policy.repair.timeout_ms:
                await self._end(repair, RepairState.FAILED, f"no answer for {waited} ms: {error}")
                return
            pause = min(RETRY_MAX_MS, RETRY_FIRST_MS << min(count, 10))
            self._tries[repair.record.id] = (count + 1, self._clock.mono_ms() + pause)
            log.warning("ticket %s is tried again in %d ms: %s", repair.record.id, pause, error)

    async def _end(self, repair: Repair, state: RepairState, result: str) -> None:
        decision = to(self._keys, repair, state, result, self._time.now().ledger_ms)
        try:
            await apply_all([decision], self._applier, self._actor, self._fence)
        except StoreError as error:
            log.warning("the end of ticket %s waits for the store: %s", repair.record.id, error)


def body_of(repair: Repair) -> bytes:
    """What the desk is told: JSON, keys as here."""
    record = repair.record
    return json.dumps(
        {
            "id": record.id,
            "region": record.region,
            "node": record.node,
            "device": record.device,
            "uuid": record.uuid,
            "reason": record.reason,
            "incident": record.incident,
            "drain": record.drain,
            "attempt": record.attempt,
            "decided_by": record.decided_by,
            "proposed_ms": record.proposed_ms,
        }
    ).encode()
