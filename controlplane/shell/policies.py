"""The policy that a replica decides by: its region's copy, or what it was started with until there is one."""

from __future__ import annotations

import logging
from dataclasses import replace

from controlplane.domain.policies import BadPolicy, policy_of
from controlplane.shell.mirror import Mirror
from gridkeeper.ids import Revision
from gridkeeper.snapshot import Settings

log = logging.getLogger("gridkeeper.policies")


class PolicyInForce:
    """``settings()`` is asked before each decision, so that a change counts from the next one on, without a restart. A
    copy that is not valid here, or no longer readable, leaves the one before in force."""

    def __init__(self, local: Mirror, world: Mirror, settings: Settings) -> None:
        self._local = local
        self._world = world
        self._settings = settings
        self._looked: dict[str, Revision] = {}
        self._wrong: dict[str, str] = {}

    def settings(self) -> Settings:
        self._look("global", self._world)
        self._look("region", self._local)
        return self._settings

    @property
    def problem(self) -> str:
        """Why the newest policy is not in force here; "" when it is."""
        self.settings()
        return self._wrong.get("region", "") or self._wrong.get("global", "")

    def _look(self, store: str, mirror: Mirror) -> None:
        held = mirror.one("policy")
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
        if store == "region" and policy != self._settings.policy:
            log.info("policy version %d is in force instead of %d", policy.version, self._settings.policy.version)
            self._settings = replace(self._settings, policy=policy)
