"""One agent's stream from hello to end: routes frames, keeps the session record honest about silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from controlplane.domain.fleet import BadTelemetry, FleetTable
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.eventlog import BadEvent, EventLog
from controlplane.shell.gatefeed import GateFeed
from controlplane.shell.hello import BadHello, Known, check_hello, register
from controlplane.shell.hostfeed import HostFeed
from controlplane.shell.jobfeed import JobFeed
from controlplane.shell.mirror import Mirror
from controlplane.shell.runs import BadWorkload
from controlplane.shell.session import AgentStream, Cursor, TooMuch
from controlplane.shell.silence import Beat, Links, SilenceWatch, heartbeat
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId, RegionId, ReplicaId, Revision, SpoolId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import LivenessPolicy
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.link import ControlSession, LinkClosed, parts
from gridkeeper.ports.store import Compare, KeyValue, OutcomeUnknown, PutOp, Store, StoreError
from gridkeeper.records.fleet import CursorRecord, DeviceRecord, NodeRecord, SessionRecord
from gridkeeper.timings import Timings
from gridkeeper.v1 import agent_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentFrame,
    ControlFrame,
    Hello,
    LogChunk,
    LogRequest,
    ProbeReport,
    Telemetry,
    Welcome,
    WorkloadReport,
)

log = logging.getLogger("gridkeeper.ingest")

MAX_WORKLOADS = 512
HELLO_MS = 10_000
RETRY_MS = 250


R = TypeVar("R")


def _read(kind: type[R], kv: KeyValue) -> Versioned[R | None]:
    """A record that does not decode must not keep its node out for ever."""
    record: R | None = None
    try:
        record = codec.decode(kind, kv.value)
    except codec.CorruptRecord as error:
        log.error("%s does not decode and is written anew: %s", kv.key, error)
    return Versioned(record, kv.mod_revision, kv.create_revision, 0)


class Ingest:
    """All streams of one replica."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        store: Store,
        local: Mirror,
        applier: Applier,
        table: FleetTable,
        jobs: JobFeed,
        clock: Clock,
        rng: Rng,
        timings: Timings,
        policy: Callable[[], LivenessPolicy],
        beat: Beat,
    ) -> None:
        self._region = region
        self._replica = replica
        self._store = store
        self._local = local
        self._applier = applier
        self._table = table
        self._jobs = jobs
        self._clock = clock
        self._rng = rng
        self._timings = timings
        self._keys = RegionKeys(region)
        self._events = EventLog(store, self._keys, clock)
        self._closing: set[asyncio.Task[None]] = set()
        self._beat = beat
        self._links = Links(timings)
        self.probe_answered: Callable[[AgentStream, ProbeReport], None] = lambda stream, report: None
        self.streams: dict[NodeId, AgentStream] = {}
        jobs.streams = lambda: len(self.streams)
        self.silence = SilenceWatch(self.streams, self._mark, beat, policy, clock, timings)
        self.host = HostFeed(region, replica, local, self.streams, applier, clock)
        self.gates = GateFeed(local, self.streams, clock)
        self.frames = 0

    @property
    def events_committed(self) -> int:
        return self._events.committed

    def heard_age_ms(self, node: NodeId) -> int:
        """Since the last frame of a node's stream; -1: not held here."""
        stream = self.streams.get(node)
        return self._clock.mono_ms() - stream.heard_ms if stream else -1

    async def serve(self, link: ControlSession) -> None:
        """Until the stream ends. Malformed input ends it with ``refuse``."""
        try:
            async with asyncio.timeout(HELLO_MS / 1000):
                first = await link.receive()
            if first.WhichOneof("frame") != "hello":
                raise BadHello("the first frame must be hello")
            ids = check_hello(first.hello, link.node, link.region)
            stream = await self._register(link, first.hello, ids)
        except BadHello as error:
            log.warning("stream of %s refused: %s", link.node, error)
            await link.refuse(str(error))
            return
        except (TimeoutError, StoreError, Conflict, LinkClosed) as error:
            log.warning("stream of %s not opened: %s", link.node, error)
            return
        try:
            await self._carry(stream)
        finally:
            stream.ended = True
            if self.streams.get(stream.node) is stream:
                del self.streams[stream.node]
                self._table.forget(stream.node)
            # Not awaited here: the RPC may be cancelled at any await, and a session left open would keep a dead node
            # alive for ever.
            closing = asyncio.get_running_loop().create_task(self._close(stream))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _register(self, link: ControlSession, hello: Hello, ids: tuple[DeviceId, ...]) -> AgentStream:
        node = NodeId(hello.node)
        known = await self._known(node, SpoolId(hello.spool))
        session = self._rng.token(8)
        wall = self._clock.wall_ms()
        registration = register(hello, ids, known, self._keys, self._replica, session, wall)
        revision = await self._applier.apply(registration.decision, f"agent/{node}", None)
        stream = AgentStream(
            node=node,
            session=session,
            link=link,
            devices=ids,
            cursor=Cursor(registration.cursor.spool, registration.cursor.sequence, revision),
            heard_ms=self._clock.mono_ms(),
            session_revision=revision,
            arrivals=self._links.opened(node),
        )
        previous = self.streams.get(node)
        if previous:
            previous.superseded.set()
        self.streams[node] = stream
        self._table.register(node, ids)
        log.info("%s", registration.decision.sentence)
        return stream

    async def _known(self, node: NodeId, spool: SpoolId) -> Known:
        """What the store has of the node, linearizably: the mirror may lag behind another replica."""
        page = await self._store.range(self._keys.prefix("devices") + node + "/")
        devices = {
            DeviceId(kv.key.removeprefix(self._keys.prefix("devices"))): _read(DeviceRecord, kv) for kv in page.items
        }
        cursor = await self._one(self._keys.cursor(node), CursorRecord)
        if cursor is not None and cursor.record is None:
            cursor = replace(cursor, record=await self._recovered(node, spool))
        return Known(
            await self._one(self._keys.node(node), NodeRecord),
            await self._one(self._keys.session(node), SessionRecord),
            cursor,
            devices,
        )

    async def _one(self, key: str, kind: type[R]) -> Versioned[R | None] | None:
        kv, _ = await self._store.get(key)
        return None if kv is None else _read(kind, kv)

    async def _recovered(self, node: NodeId, spool: SpoolId) -> CursorRecord:
        """Where the spool stands by the events that are there: each was written together with the cursor."""
        prefix = f"{self._keys.prefix('events')}{node}/{spool}/"
        page = await self._store.range(prefix)
        return CursorRecord(node, spool, max((int(kv.key.removeprefix(prefix)) for kv in page.items), default=0))

    async def _welcome(self, stream: AgentStream) -> None:
        timings = agent_pb2.Timings(
            stale_ms=self._timings.stale_ms,
            fence_ms=self._timings.fence_ms,
            takeover_ms=self._timings.takeover_ms,
            renewal_ms=self._timings.renewal_ms,
            heartbeat_ms=self._timings.heartbeat_ms,
            telemetry_ms=self._timings.telemetry_ms,
        )
        welcome = Welcome(replica=self._replica, timings=timings, acked_sequence=stream.cursor.sequence)
        await stream.link.send(ControlFrame(welcome=welcome))

    async def _carry(self, stream: AgentStream) -> None:
        """All tasks of a stream; the first one that ends, ends it."""
        try:
            await self._welcome(stream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._events.run(stream))
                group.create_task(self._jobs.command(stream))
                group.create_task(self._jobs.record(stream))
                group.create_task(self._jobs.commit_checkpoints(stream, self._clock.wall_ms))
                group.create_task(self._receive(stream))
                group.create_task(self._superseded(stream))
        except* (BadEvent, BadTelemetry, BadWorkload, TooMuch) as bad:
            reason = "; ".join(str(e) for e in bad.exceptions)
            log.warning("stream of %s ended for malformed input: %s", stream.node, reason)
            await stream.link.refuse(reason)
        except* LinkClosed as closed:
            log.info("stream of %s ended: %s", stream.node, closed.exceptions[0])

    async def _superseded(self, stream: AgentStream) -> None:
        await stream.superseded.wait()
        raise LinkClosed(f"{stream.node} opened a newer stream")

    async def _receive(self, stream: AgentStream) -> None:
        while True:
            message = await stream.link.receive()
            stream.heard_ms = self._clock.mono_ms()
            self.frames += 1 + len(message.more)
            answers = [answer for frame in parts(message) if (answer := self._route(stream, frame)) is not None]
            await stream.send(answers + self._jobs.due(stream))

    def _route(self, stream: AgentStream, frame: AgentFrame) -> ControlFrame | None:
        """Take what arrived. What is answered at once is returned."""
        match frame.WhichOneof("frame"):
            case "telemetry":
                self._telemetry(stream, frame.telemetry)
            case "events":
                if frame.events.events:
                    stream.offer_events(frame.events)
            case "heartbeat":
                heartbeat(stream, stream.heard_ms, self._beat.steady_ms(), self._timings.unreachable_ms)
            case "renewal":
                return self._jobs.renew(stream, frame.renewal)
            case "workloads":
                self._report(stream, frame.workloads)
            case "checkpoint":
                stream.offer_checkpoint(frame.checkpoint)
            case "host":
                self.host.offer(stream, frame.host)
            case "log":
                waiting = stream.logs.pop(frame.log.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame.log)
            case "probe":
                self.probe_answered(stream, frame.probe)
            case "hello":
                raise BadEvent("frame: a second hello on one stream; open a new stream instead")
            case other:
                raise BadEvent(f"frame: {other!r} is unknown to this version; upgrade the control plane first")
        return None

    def _telemetry(self, stream: AgentStream, telemetry: Telemetry) -> None:
        seen = stream.heard_ms - min(max(0, telemetry.age_ms), 3_600_000)
        self._table.ingest(stream.node, telemetry.values, telemetry.rows, telemetry.columns, seen)

    def _report(self, stream: AgentStream, report: WorkloadReport) -> None:
        if len(report.workloads) > MAX_WORKLOADS:
            raise BadWorkload(f"workloads: {len(report.workloads)} are more than {MAX_WORKLOADS}")
        stream.report_ms, stream.report_mono_ms = self._clock.wall_ms(), stream.heard_ms
        self._jobs.take(stream, report)

    async def stop(self) -> None:
        """Leave the rest to the end of the replica's own key, which says the same."""
        closing = tuple(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    async def _close(self, stream: AgentStream) -> None:
        """The stream has ended: say so durably, however long the store takes, unless a newer stream has said more."""
        while stream.marked_open:
            await self._mark(stream, is_open=False)
            if stream.marked_open:
                await self._clock.sleep(RETRY_MS)

    async def _mark(self, stream: AgentStream, is_open: bool) -> None:
        """Write the session record if it says otherwise and is still ours. Of a stream that has ended nobody says that
        it is open, however late that was decided."""
        async with stream.marking:
            if stream.marked_open != is_open and not (is_open and stream.ended):
                await self._write_mark(stream, is_open)

    async def _write_mark(self, stream: AgentStream, is_open: bool) -> None:
        key = self._keys.session(stream.node)
        silent_ms = 0 if is_open else max(0, self._clock.mono_ms() - stream.heard_ms)
        wall_ms = self._clock.wall_ms()
        record = SessionRecord(stream.node, self._replica, stream.session, is_open, wall_ms, silent_ms)
        try:
            result = await self._store.txn([Compare(key, stream.session_revision)], [PutOp(key, codec.encode(record))])
        except (StoreError, OutcomeUnknown) as error:
            log.warning("session of %s not marked open=%s: %s", stream.node, is_open, error)
            return
        if result.succeeded:
            stream.session_revision = Revision(result.revision)
            stream.marked_open = is_open
            return
        try:
            kv, _ = await self._store.get(key)
            ours = kv is not None and codec.decode(SessionRecord, kv.value).session == stream.session
        except (StoreError, codec.CorruptRecord) as error:
            log.warning("session of %s cannot be read: %s", stream.node, error)
            return
        if kv is not None and ours:
            stream.session_revision = kv.mod_revision
        else:
            stream.marked_open = is_open  # another stream's record now: nothing of ours to say

    async def job_log(self, node: NodeId, job: str, tail_bytes: int, timeout_ms: int = 5_000) -> LogChunk:
        """Ask the node for the end of a job's output. Raises ``LinkClosed``, ``TimeoutError``."""
        stream = self.streams.get(node)
        if stream is None:
            raise LinkClosed(f"the stream of {node} is not held by {self._replica}")
        number, stream.next_log = stream.next_log, stream.next_log + 1
        waiting: asyncio.Future[LogChunk] = asyncio.get_running_loop().create_future()
        stream.logs[number] = waiting
        try:
            await stream.link.send(ControlFrame(log_request=LogRequest(id=number, job=job, tail_bytes=tail_bytes)))
            async with asyncio.timeout(timeout_ms / 1000):
                return await waiting
        finally:
            stream.logs.pop(number, None)
