"""The leader's questions about silent nodes go out to the agents whose streams this replica holds, and their answers
into the region's store. Who is asked, and what follows from an answer, is decided elsewhere (``domain/witnesses``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from controlplane.shell.mirror import Mirror
from controlplane.shell.session import AgentStream
from gridkeeper import codec
from gridkeeper.decision import ABSENT
from gridkeeper.ids import NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import LivenessPolicy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.ports.store import Compare, OutcomeUnknown, PutOp, Store, StoreError
from gridkeeper.records.care import ProbeRecord, WitnessRecord
from gridkeeper.v1.agent_pb2 import ControlFrame, ProbeReport, ProbeRequest

log = logging.getLogger("gridkeeper.probing")

IDLE_MS = 1_000
MAX_SENDING = 1_024
"""Requests and answers under way at a time; one for which there is no room is lost, and its round goes on without."""
MAX_DETAIL = 200


class ProbeDesk:
    """``streams``: those that the replica holds; read, never changed."""

    def __init__(
        self,
        region: RegionId,
        store: Store,
        local: Mirror,
        streams: Mapping[NodeId, AgentStream],
        policy: Callable[[], LivenessPolicy],
        clock: Clock,
    ) -> None:
        self._keys = RegionKeys(region)
        self._store = store
        self._local = local
        self._streams = streams
        self._policy = policy
        self._clock = clock
        self._open: dict[NodeId, tuple[int, Revision, set[NodeId]]] = {}
        """Node asked about -> round, revision of the question, peers that were asked here and have not answered."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever."""
        seen: object = None
        try:
            while True:
                probes = self._local.kind("probes")
                if probes is not seen:
                    seen = probes
                    self._pass_on()
                await self._local.wait_moved(IDLE_MS)
        finally:
            for task in self._tasks:
                task.cancel()

    def _pass_on(self) -> None:
        probes = self._local.kind("probes")
        for node in [node for node in self._open if node not in probes]:
            del self._open[node]
        for name, held in sorted(probes.items()):
            record: ProbeRecord = held.record
            node = NodeId(name)
            known = self._open.get(node)
            if known is not None and known[1] >= held.revision:
                continue
            here = {peer for peer in record.peers if peer in self._streams}
            self._open[node] = (record.round, held.revision, here)
            request = ProbeRequest(
                node=node,
                address=record.address,
                round=record.round,
                timeout_ms=self._policy().witness_ms * 3 // 4,
            )
            for peer in sorted(here):
                self._spawn(self._ask(self._streams[peer], request))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= MAX_SENDING:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, stream: AgentStream, request: ProbeRequest) -> None:
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                await stream.link.send(ControlFrame(probe_request=request))
        except (LinkClosed, TimeoutError) as error:
            log.info("%s is not asked about %s: %s", stream.node, request.node, error)

    def answered(self, stream: AgentStream, report: ProbeReport) -> None:
        """An agent's answer; one to a question that was not put to it, or not now, is dropped."""
        node = NodeId(report.node)
        known = self._open.get(node)
        if known is None or known[0] != report.round or stream.node not in known[2]:
            log.info("an answer of %s about %s is dropped: it was not asked for", stream.node, report.node[:80])
            return
        known[2].discard(stream.node)
        self._spawn(self._write(stream.node, node, known[1], report))

    async def _write(self, peer: NodeId, node: NodeId, question: Revision, report: ProbeReport) -> None:
        key = self._keys.witness(node, peer)
        detail = "".join(c for c in report.detail[:MAX_DETAIL] if c.isprintable())
        boot_id = "".join(c for c in report.boot_id[:MAX_DETAIL] if c.isprintable())
        rtt_us = min(max(-1, report.rtt_us), 1 << 40) if report.reached else -1
        record = WitnessRecord(
            node, peer, report.round, report.reached, rtt_us, detail, self._clock.wall_ms(),
            report.refused and not report.reached, boot_id,
        )  # fmt: skip
        old = self._local.kind("witnesses").get(f"{node}/{peer}")
        # The question must still be the one that is there: answers to an older one are of no use, and nobody would
        # delete what is written about a node that has been heard meanwhile.
        compares = [Compare(self._keys.probe(node), question), Compare(key, old.revision if old else ABSENT)]
        try:
            done = await self._store.txn(compares, [PutOp(key, codec.encode(record))])
        except (StoreError, OutcomeUnknown) as error:
            log.warning("the answer of %s about %s is lost: %s", peer, node, error)
            return
        if not done.succeeded:
            log.info("the answer of %s about %s is out of date", peer, node)
