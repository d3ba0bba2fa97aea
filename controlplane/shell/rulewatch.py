"""Each replica runs the threshold rules over the telemetry that it receives, and writes durable findings."""

from __future__ import annotations

import logging
from collections.abc import Callable

from controlplane.domain.fleet import FleetTable
from controlplane.domain.rulebook import SILENT
from controlplane.domain.rules import STALE_MS, RuleEngine, Transition, finding_for
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.states import region_state
from gridkeeper import tracing
from gridkeeper.decision import ABSENT, Decision, Put
from gridkeeper.ids import NodeId, RegionId, ReplicaId, node_of
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import StoreError
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.rulewatch")


class RuleWatch:
    """Transitions that could not be written yet are kept and tried again: a finding is never lost to a store that was
    away for a moment."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        table: FleetTable,
        engine: RuleEngine,
        local: Mirror,
        applier: Applier,
        clock: Clock,
        rng: Rng,
        timings: Timings,
        heard_age_ms: Callable[[NodeId], int],
    ) -> None:
        self._heard_age_ms = heard_age_ms
        self._region = region
        self._actor = f"machine/{replica}"
        self._table = table
        self._engine = engine
        self._local = local
        self._applier = applier
        self._clock = clock
        self._rng = rng
        self._period_ms = max(50, timings.telemetry_ms // 2)
        self._keys = RegionKeys(region)
        self._waiting: dict[tuple[str, str], Transition] = {}

    async def run(self) -> None:
        """For ever, twice per telemetry period."""
        while True:
            for transition in self._engine.evaluate(self._table, self._clock.mono_ms()):
                self._waiting[(transition.device, transition.rule.name)] = transition
            if self._waiting and self._local.fresh:
                await self._write()
            await self._clock.sleep(self._period_ms)

    async def _write(self) -> None:
        state = region_state(self._region, self._local)
        for name, transition in list(self._waiting.items()):
            if transition.rule is SILENT and transition.raised and not self._heard(node_of(transition.device)):
                continue  # the whole node is silent: that is a matter of its liveness, not of each device
            device = state.devices.get(transition.device)
            if device is None:
                continue
            trace = self._trace()
            finding = finding_for(transition, device.record, state.findings, self._clock.wall_ms(), trace)
            if finding is None:
                self._waiting.pop(name, None)
                continue
            key = self._keys.finding(finding.id)
            old = state.findings.get(finding.id)
            put = Put(key, finding, old.revision if old else ABSENT)
            decision = Decision(
                "detect.rules", finding.sentence, (put,), subject=f"device/{finding.device}", trace=finding.trace,
                evidence=finding.evidence,
            )  # fmt: skip
            try:
                born = trace if finding.trace == trace else ""
                with tracing.root("fleet.rules", born, {"device": finding.device, "rule": finding.rule}):
                    revision = await self._applier.apply(decision, self._actor, None)
                await self._applier.caught_up(revision)
            except Conflict:
                continue
            except StoreError as error:
                log.warning("finding %s waits for the store: %s", finding.id, error)
                return
            self._waiting.pop(name, None)

    def _heard(self, node: NodeId) -> bool:
        return 0 <= self._heard_age_ms(node) <= STALE_MS // 3

    def _trace(self) -> str:
        return f"00-{self._rng.token(16)}-{self._rng.token(8)}-01"
