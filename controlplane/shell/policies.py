"""The policy that a replica decides by: its region's copy, or what it was started with until there is one."""

from __future__ import annotations

import logging
from dataclasses import replace

from controlplane.domain.policies import BadPolicy, policy_of
from controlplane.shell.mirror import Mirror
from gridkeeper.ids import RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Mode
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.policies")


class PolicyInForce:
    """``settings()`` is asked before each decision, so that a change counts from the next one on, without a restart. A
    copy that is not valid here, or no longer readable, leaves the one before in force. A replica that has read none
    since it started knows no such one, and what it was started with may allow what the policy forbids: until it can
    read the copy, it drains nothing by itself (shadow mode)."""

    def __init__(self, region: RegionId, local: Mirror, world: Mirror, settings: Settings) -> None:
        self._key = RegionKeys(region).policy
        self._local = local
        self._world = world
        self._settings = self._started_with = settings
        self._shadow = replace(settings, policy=replace(settings.policy, mode=Mode.SHADOW))
        self._read = False
        self._looked: dict[str, Revision] = {}
        self._wrong: dict[str, str] = {}

    def settings(self) -> Settings:
        self._look("global", self._world)
        self._look("region", self._local)
        if not self._read:
            self._settings = self._shadow if self._is_unreadable else self._started_with
        return self._settings

    @property
    def _is_unreadable(self) -> bool:
        return "region" in self._wrong or self._key in self._local.suspect

    @property
    def problem(self) -> str:
        """Why the newest policy is not in force here; "" when it is."""
        self.settings()
        wrong = self._wrong.get("region", "")
        if self._key in self._local.suspect:
            wrong = f"{self._key} does not decode: apply the policy again"
        if wrong and not self._read:
            wrong += "; until then nothing is drained automatically here (shadow mode)"
        return wrong or self._wrong.get("global", "")

    def _look(self, store: str, mirror: Mirror) -> None:
        held = mirror.one("policy")
        if store == "region" and held is None:
            self._wrong.pop(store, None)
            self._looked.pop(store, None)
        if held is None or self._looked.get(store) == held.revision:
            return
        self._looked[store] = held.revision
        self._wrong.pop(store, None)
        try:
            policy = policy_of(held.record)
        except BadPolicy as error:
            self._wrong[store] = str(error)
            log.error("%s", error)
            return
        if store == "region":
            self._read = True
        if store == "region" and policy != self._settings.policy:
            log.info("policy version %d is in force instead of %d", policy.version, self._settings.policy.version)
            self._settings = replace(self._settings, policy=policy)
