"""Keeps what the store says of this replica's sessions and the streams that it holds in line.

A session that says "open" for a stream that nobody holds would keep a dead node alive for ever: left by an earlier
process of the same name, by a hello whose reply was lost, by an agent that vanished before its welcome. And a stream
whose node has since said hello to another replica is over, even if its connection has not noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from controlplane.shell.mirror import Mirror
from controlplane.shell.session import AgentStream
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import NodeId, RegionId, ReplicaId
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import Compare, PutOp, Store, StoreError
from gridkeeper.records.fleet import SessionRecord
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.ingest")


class SessionCare:
    """``streams``: those that the replica holds, by node; read, never changed."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        store: Store,
        local: Mirror,
        streams: Mapping[NodeId, AgentStream],
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._keys = RegionKeys(region)
        self._replica = replica
        self._store = store
        self._local = local
        self._streams = streams
        self._clock = clock
        self._limit_ms = timings.unreachable_ms

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._local.fresh:
                await self._look()
            await self._clock.sleep(max(50, self._limit_ms // 5))

    async def _look(self) -> None:
        for node, session in self._local.kind("sessions").items():
            record: SessionRecord = session.record
            stream = self._streams.get(NodeId(node))
            if stream is None:
                # One that is just being registered is not held yet either: give it time.
                forgotten = self._clock.mono_ms() - session.seen_ms >= self._limit_ms
                if record.open and record.replica == self._replica and forgotten:
                    await self._end(session)
            elif session.revision > stream.session_revision:
                if record.session != stream.session:
                    stream.superseded.set()
                else:
                    stream.session_revision, stream.marked_open = session.revision, record.open

    async def _end(self, session: Versioned[SessionRecord]) -> None:
        record = session.record
        key = self._keys.session(record.node)
        now = self._clock.mono_ms()
        silent_ms = max(0, now - session.seen_ms)  # at least: nobody has held it since
        ended = SessionRecord(record.node, record.replica, record.session, False, self._clock.wall_ms(), silent_ms)
        try:
            done = await self._store.txn([Compare(key, session.revision)], [PutOp(key, codec.encode(ended))])
        except StoreError as error:
            log.warning("session of %s, which no stream holds, not marked closed yet: %s", record.node, error)
            return
        if done.succeeded:
            log.warning("session of %s was open without a stream: marked closed", record.node)
