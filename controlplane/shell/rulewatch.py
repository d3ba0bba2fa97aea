"""Each replica runs the policy's rules over the telemetry that it receives, and writes durable findings."""

from __future__ import annotations

import logging
from collections.abc import Callable

from controlplane.domain.fleet import FleetTable
from controlplane.domain.rowlabels import Inventory
from controlplane.domain.rulefindings import Transition, finding_for
from controlplane.domain.rules import SILENT, STALE_MS, RuleEngine
from controlplane.rpc.rows import device_jobs
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.states import global_state, region_state
from gridkeeper import tracing
from gridkeeper.decision import ABSENT, Decision, Put
from gridkeeper.ids import NodeId, RegionId, ReplicaId, node_of
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Policy
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import StoreError
from gridkeeper.snapshot import GlobalState, RegionState

log = logging.getLogger("gridkeeper.rulewatch")


class RuleWatch:
    """The engine tells a transition again until the store shows it: a finding is never lost to a store that was away
    for a moment."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        table: FleetTable,
        local: Mirror,
        world: Mirror,
        applier: Applier,
        policies: PolicyInForce,
        clock: Clock,
        rng: Rng,
        heard_age_ms: Callable[[NodeId], int],
    ) -> None:
        self._heard_age_ms = heard_age_ms
        self._region = region
        self._actor = f"machine/{replica}"
        self._table = table
        self._local = local
        self._world = world
        self._applier = applier
        self._policies = policies
        self._policy: Policy = policies.settings().policy
        self._engine = RuleEngine(self._policy)
        self._clock = clock
        self._rng = rng
        self._period_ms = max(50, policies.settings().timings.telemetry_ms // 2)
        self._keys = RegionKeys(region)

    async def run(self) -> None:
        """For ever, twice per telemetry period."""
        while True:
            policy = self._policies.settings().policy
            if policy is not self._policy:
                self._engine.adopt(policy)
                self._policy = policy
            if self._local.fresh:
                state = region_state(self._region, self._local)
                found = self._engine.evaluate(
                    self._table, state.findings, _inventory(state, global_state(self._world)), self._clock.mono_ms()
                )
                await self._write(found, state)
            await self._clock.sleep(self._period_ms)

    async def _write(self, found: tuple[Transition, ...], state: RegionState) -> None:
        for transition in found:
            if transition.raised is SILENT and not self._heard(node_of(transition.device)):
                continue  # the whole node is silent: that is a matter of its liveness, not of each device
            device = state.devices.get(transition.device)
            if device is None:
                continue
            trace = self._trace()
            finding = finding_for(
                transition, device.record, state.findings, self._policy.version, self._clock.wall_ms(), trace
            )
            if finding is None:
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

    def _heard(self, node: NodeId) -> bool:
        return 0 <= self._heard_age_ms(node) <= STALE_MS // 3

    def _trace(self) -> str:
        return f"00-{self._rng.token(16)}-{self._rng.token(8)}-01"


def _inventory(state: RegionState, world: GlobalState) -> Inventory:
    return Inventory(
        nodes=state.nodes,
        devices=state.devices,
        health=state.health,
        jobs_from=(state.reservations, world.ownership, world.jobs),
        jobs=lambda: device_jobs(state, world),
    )
