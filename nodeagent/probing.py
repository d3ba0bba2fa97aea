"""Probing peers for the control plane: which requests are carried out, how often each is tried, what is reported."""

from __future__ import annotations

import asyncio
import logging

from gridkeeper.ids import BadName, NodeId, checked_name
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.probe import CannotProbe, Probed, Prober
from gridkeeper.v1.agent_pb2 import ProbeReport, ProbeRequest

log = logging.getLogger("gridkeeper.agent.probing")

MAX_PROBES = 8
"""Requests under way at a time; more are dropped, which says nothing of the node asked about."""
ATTEMPTS = 3
"""Of each request, beginning a quarter of its time apart: one lost packet costs a whole second of a connection's setup,
and it must not look like a dead host."""
LEAST_MS, MOST_MS = 50, 30_000
MAX_DETAIL = 200


class Probing:
    """Carries out the control plane's requests."""

    def __init__(self, prober: Prober, clock: Clock) -> None:
        self._prober = prober
        self._clock = clock
        self._under_way = 0

    async def report(self, request: ProbeRequest) -> ProbeReport | None:
        """None: this host has nothing to say of it."""
        try:
            node = NodeId(checked_name("probe_request.node", request.node))
        except BadName as error:
            log.warning("A probe is not carried out: %s", error)
            return None
        if self._under_way >= MAX_PROBES:
            log.warning("A probe of %s is not carried out: %d are under way", node, self._under_way)
            return None
        self._under_way += 1
        try:
            found = await self._look(node, request.address, min(max(request.timeout_ms, LEAST_MS), MOST_MS))
        except CannotProbe as error:
            log.warning("A probe of %s cannot be carried out: %s", node, error)
            return None
        finally:
            self._under_way -= 1
        return ProbeReport(
            node=node,
            round=request.round,
            reached=found.reached,
            rtt_us=found.rtt_us,
            detail=found.detail[:MAX_DETAIL],
            refused=found.refused,
            boot_id=found.boot_id,
        )

    async def _look(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        """The first attempt that reached it; else what the others came to: an answer of the host before none."""
        tasks = [asyncio.ensure_future(self._attempt(node, address, timeout_ms, number)) for number in range(ATTEMPTS)]
        found: list[Probed] = []
        failed: list[CannotProbe] = []
        try:
            for task in asyncio.as_completed(tasks):
                try:
                    probed = await task
                except CannotProbe as error:
                    failed.append(error)
                    continue
                if probed.reached:
                    return probed
                found.append(probed)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not found:
            raise failed[0]
        return next((probed for probed in found if probed.refused), found[0])

    async def _attempt(self, node: NodeId, address: str, timeout_ms: int, number: int) -> Probed:
        late_ms = number * timeout_ms // 4
        await self._clock.sleep(late_ms)
        return await self._prober.probe(node, address, timeout_ms - late_ms)
