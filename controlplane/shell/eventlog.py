"""Events of one stream become durable: each event created if absent and the node's cursor moved, in one transaction."""

from __future__ import annotations

import logging

from controlplane.shell.session import AgentStream, Cursor
from gridkeeper import codec, tracing
from gridkeeper.ids import EventId, Revision, SpoolId
from gridkeeper.keys import RegionKeys, event_id
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.ports.store import Compare, Op, OutcomeUnknown, PutOp, Store, StoreUnavailable
from gridkeeper.records.fleet import CursorRecord, EventKind, EventRecord
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentEvent, ControlFrame, EventAck

log = logging.getLogger("gridkeeper.ingest")

BATCH = 64
"""Events per transaction: with the cursor, half of etcd's 128 operations."""
MAX_MESSAGE = 1024
MAX_AGE_MS = 366 * 24 * 3600 * 1000
RETRY_MS = 250


class BadEvent(ValueError):
    """An event that no honest agent sends; the message names the field, the value and the remedy."""


def event_record(event: AgentEvent, stream: AgentStream, wall_ms: int) -> EventRecord:
    """The durable form. Raises ``BadEvent``."""
    if event.age_ms < 0 or event.age_ms > MAX_AGE_MS:
        raise BadEvent(f"event.age_ms: {event.age_ms} is not between 0 and {MAX_AGE_MS}; it is the age when sent")
    device = stream.device(event.slot)
    if device and device not in stream.devices:
        raise BadEvent(f"event.slot: {event.slot[:80]!r} is not in {stream.node}'s hello; send the inventory first")
    try:
        name = records_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_")
        kind = EventKind[name]
    except (ValueError, KeyError):
        raise BadEvent(f"event.kind: {event.kind} is unknown here; upgrade the control plane first") from None
    return EventRecord(
        id=event_id(stream.node, stream.cursor.spool, event.sequence),
        node=stream.node,
        spool=stream.cursor.spool,
        sequence=event.sequence,
        device=device,
        kind=kind,
        code=event.code,
        message=event.message[:MAX_MESSAGE],
        sources=tuple(event.sources[:8]),
        count=max(1, event.count),
        pid=event.pid,
        job=event.job[:64],
        age_ms=event.age_ms,
        observed_ms=wall_ms - event.age_ms,
        trace=event.trace[:64],
    )


class EventLog:
    """Commits event batches in order. One instance per replica; the cursor's revision keeps two replicas apart."""

    def __init__(self, store: Store, keys: RegionKeys, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self.committed = 0

    async def run(self, stream: AgentStream) -> None:
        """Commit this stream's batches and acknowledge each. Raises ``LinkClosed`` when another stream took over, and
        ``BadEvent``."""
        while True:
            events = list((await stream.next_events()).events)
            while len(events) < BATCH and (more := stream.more_events()) is not None:
                events.extend(more.events)
            for start in range(0, len(events), BATCH):
                await self._commit(stream, events[start : start + BATCH])
            ack = ControlFrame(event_ack=EventAck(sequence=stream.cursor.sequence))
            with tracing.spans("ack", (e.trace for e in events), {"node": stream.node}):
                await stream.link.send(ack)

    async def _commit(self, stream: AgentStream, events: list[AgentEvent]) -> None:
        wall = self._clock.wall_ms()
        lowest = min((e.sequence for e in events), default=1)
        if lowest <= 0:
            raise BadEvent(f"event.sequence: {lowest} is not positive; sequences start at 1")
        fresh = [event_record(e, stream, wall) for e in events if e.sequence > stream.cursor.sequence]
        fresh = list({e.id: e for e in sorted(fresh, key=lambda e: e.sequence)}.values())
        if not fresh:
            return
        expected = stream.cursor.sequence + 1
        for event in fresh:
            if event.sequence != expected:
                raise BadEvent(f"event.sequence: {event.sequence} after {expected - 1}; the spool sends without gaps")
            expected += 1
        cursor = CursorRecord(stream.node, stream.cursor.spool, fresh[-1].sequence)
        key = self._keys.cursor(stream.node)
        value = codec.encode(cursor)
        ops: list[Op] = [PutOp(self._keys.event(EventId(e.id)), codec.encode(e)) for e in fresh]
        ops.append(PutOp(key, value))
        compares = [Compare(self._keys.event(EventId(e.id)), Revision(0)) for e in fresh]
        with tracing.spans("ingest.commit", (e.trace for e in fresh), {"node": stream.node, "events": len(fresh)}):
            await self._write(stream, compares, ops, cursor)

    async def _write(self, stream: AgentStream, compares: list[Compare], ops: list[Op], cursor: CursorRecord) -> None:
        """Until the transaction is in; its last operation puts the cursor. Raises ``LinkClosed``."""
        last = ops[-1]
        assert isinstance(last, PutOp)
        key, value = last.key, last.value
        while True:
            try:
                result = await self._store.txn([*compares, Compare(key, stream.cursor.revision)], ops)
            except OutcomeUnknown as error:
                log.warning("events of %s up to %d: outcome unknown, reading: %s", stream.node, cursor.sequence, error)
                if await self._settled(stream, key, value, cursor.sequence):
                    return
                continue
            except StoreUnavailable as error:
                # Not durable, so not acknowledged: the agent keeps them in its spool until the store is back.
                log.warning("events of %s wait for the store: %s", stream.node, error)
                await self._clock.sleep(RETRY_MS)
                continue
            if not result.succeeded:
                raise LinkClosed(f"the cursor of {stream.node} moved: another replica holds its stream now")
            self.committed += len(ops) - 1
            stream.cursor = Cursor(stream.cursor.spool, cursor.sequence, result.revision)
            return

    async def _settled(self, stream: AgentStream, key: str, value: bytes, sequence: int) -> bool:
        """After a lost reply: True if our transaction is in, False if it may be sent again (its compare still guards
        it against the first one arriving late)."""
        while True:
            try:
                found, _ = await self._store.get(key)
                break
            except StoreUnavailable:
                await self._clock.sleep(RETRY_MS)
        if found is not None and found.value == value and found.mod_revision != stream.cursor.revision:
            stream.cursor = Cursor(SpoolId(stream.cursor.spool), sequence, found.mod_revision)
            return True
        if found is not None and found.mod_revision != stream.cursor.revision:
            raise LinkClosed(f"the cursor of {stream.node} moved: another replica holds its stream now")
        return False
