"""Measures the applied objectives each minute and keeps their alerts: a duty of a store's leader, beside leading."""

from __future__ import annotations

import logging
from collections.abc import Callable

from controlplane.domain.objectives import decide_objectives, measured_here
from controlplane.domain.settlement import Keys
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.states import global_state, region_state
from gridkeeper.configfile import ConfigError
from gridkeeper.ids import RegionId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError
from gridkeeper.records.documents import DocumentKind
from gridkeeper.sla.budget import MINUTE_MS
from gridkeeper.sla.builtin import Where
from gridkeeper.sla.objectives import Goal, parse_slos
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.objectives")

JUST_AFTER_MS = 500


class Objectives:
    """Of one term. ``region`` None: of the global store."""

    def __init__(
        self,
        region: RegionId | None,
        keys: Keys,
        local: Mirror,
        world: Mirror,
        applier: Applier,
        actor: str,
        fence: Fence,
        settings: Callable[[], Settings],
        clock: Clock,
        time: LedgerTime,
    ) -> None:
        self._region = region
        self._keys = keys
        self._local = local
        self._world = world
        self._applier = applier
        self._actor = actor
        self._fence = fence
        self._settings = settings
        self._clock = clock
        self._time = time
        self._read: dict[str, tuple[int, tuple[Goal, ...]]] = {}  # document -> its revision, what it says

    async def run(self) -> None:
        """For ever, just after each minute of the ledger's time."""
        while True:
            await self._clock.sleep(MINUTE_MS - self._time.now().ledger_ms % MINUTE_MS + JUST_AFTER_MS)
            try:
                await self.look()
            except StoreError as error:
                log.warning("objectives wait for their store: %s", error)

    async def look(self) -> None:
        """Raises ``StoreError``."""
        if not self._local.fresh or not self._world.loaded:
            return
        goals, whole = self._goals()
        where = Where.REGION if self._region else Where.GLOBAL
        alerts = self._settings().policy.alerts
        state = region_state(self._region, self._local) if self._region else global_state(self._world)
        decisions = decide_objectives(
            measured_here(goals, where, str(self._region or "")), self._keys, state,
            (*alerts.alertmanagers, *alerts.webhooks), self._time.now(), whole and self._world.fresh,
        )  # fmt: skip
        await apply_all(decisions, self._applier, self._actor, self._fence)

    def _goals(self) -> tuple[list[Goal], bool]:
        """What all documents say, an SLO's name once (the first document's); and whether all could be read."""
        found: dict[str, Goal] = {}
        whole = not any("/documents/" in key for key in self._world.suspect)
        read: dict[str, tuple[int, tuple[Goal, ...]]] = {}
        for name, held in sorted(self._world.kind("documents").items()):
            if held.record.kind is not DocumentKind.OBJECTIVES:
                continue
            revision, goals = self._read.get(name, (-1, ()))
            if revision != held.revision:
                try:
                    goals = parse_slos(held.record.text, name).goals
                except ConfigError as error:
                    log.error("%s cannot be read, so what it said before holds: %s", name, error)
                    whole = False
            read[name] = (held.revision, goals)
            for goal in goals:
                found.setdefault(goal.name, goal)
        self._read = read
        return list(found.values()), whole
