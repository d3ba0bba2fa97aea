"""One open stream: what is sent on it, in which order, and what is done with what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gridkeeper import tracing
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorError
from gridkeeper.ports.link import AgentSession, LinkClosed, parts
from gridkeeper.timings import Timings
from gridkeeper.v1.agent_pb2 import (
    AgentFrame,
    CheckpointAck,
    CheckpointReady,
    Command,
    ControlFrame,
    Heartbeat,
    Hello,
    HostCommand,
    HostReport,
    LogChunk,
    LogRequest,
    ProbeRequest,
    Renewal,
    RenewalAck,
    RenewalItem,
    Telemetry,
    WorkloadReport,
)
from nodeagent.gatekeeper import Gatekeeper
from nodeagent.outbox import Outbox, Urgency
from nodeagent.probing import Probing
from nodeagent.spool import BATCH, Spool

log = logging.getLogger("gridkeeper.agent.uplink")

SILENT_HEARTBEATS = 3
UNRENEWED_PART = 4
"""Jobs that are not renewed are taken to another replica after F divided by this: with two replicas each is tried
before SIGTERM comes at three quarters of F."""
SILENT_LEAST_MS = 500
WINDOW = 4 * BATCH
"""Events sent and not acknowledged at any time."""
REPEAT_MS = 1_000
"""Reports and announcements of checkpoints are repeated this often."""
MAX_LOG_REQUESTS = 4


class Workloads(Protocol):
    """What the uplink needs of the supervisor."""

    @property
    def changed(self) -> asyncio.Event: ...

    @property
    def unrenewed_ms(self) -> int:
        """Since the oldest renewal was sent that a job which is to go on rests on; 0 without such jobs."""
        ...

    @property
    def unrecorded_ms(self) -> int:
        """Since the oldest end of an epoch that is not on record yet; 0 without one."""
        ...

    def set_timings(self, timings: Timings) -> None: ...

    def take(self, command: Command) -> None: ...

    def renewal(self) -> tuple[RenewalItem, ...]: ...

    def renewed(self, granted: Sequence[RenewalItem], sent_ms: int) -> None: ...

    def report(self) -> WorkloadReport | None: ...

    def announcements(self) -> tuple[CheckpointReady, ...]: ...

    def checkpoint_ack(self, ack: CheckpointAck) -> None: ...

    async def log_tail(self, job: str, tail_bytes: int) -> bytes: ...


class Inventory(Protocol):
    """What the uplink needs of the device watches."""

    @property
    def version(self) -> int:
        """Grows when the devices of ``hello`` change."""
        ...

    def hello(self, spool_id: str) -> Hello: ...

    def telemetry(self) -> Telemetry | None:
        """The newest sample that was not sent yet, with its age; None if there is none."""
        ...


class Repairs(Protocol):
    """What the uplink needs of the host's repairs."""

    def take(self, command: HostCommand) -> None: ...

    def report(self, repair: str) -> HostReport | None:
        """None: nothing to say yet."""
        ...


@dataclass(slots=True)
class LinkCounters:
    connected: bool = False
    replica: str = ""
    reconnects: int = 0
    events_sent: int = 0
    frames_sent: int = 0


class NewHello(LinkClosed):
    """Spool or inventory changed: the stream must begin anew. Not a fault, so no backoff."""


class Stream:
    """One open stream: its tasks and what they share."""

    def __init__(
        self,
        session: AgentSession,
        hello: Hello,
        version: int,
        timings: Timings,
        spool: Spool,
        workloads: Workloads,
        inventory: Inventory,
        repairs: Repairs,
        clock: Clock,
        counters: LinkCounters,
        probing: Probing | None = None,
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        self._session = session
        self._slots = frozenset(device.slot for device in hello.devices)
        self._spool_id = hello.spool
        self._version = version
        self._timings = timings
        self._spool = spool
        self._workloads = workloads
        self._inventory = inventory
        self._repairs = repairs
        self._clock = clock
        self._counters = counters
        self._probing = probing
        self._gatekeeper = gatekeeper
        self._outbox = Outbox()
        self._heard_ms = self._began_ms = clock.mono_ms()
        self._sent = 0  # highest sequence sent on this stream
        self._acked = 0
        self._acked_event = asyncio.Event()
        self._next_renewal = 1
        self._renewals: dict[int, int] = {}  # id -> when it was sent
        self._logs = 0

    async def run(self, acked: int) -> None:
        """Until the stream ends. Raises ``LinkClosed``."""
        self._sent = self._acked = acked
        try:
            async with asyncio.TaskGroup() as group:
                for work in (
                    self._send(),
                    self._receive(group),
                    self._events(),
                    self._every(self._timings.renewal_ms, Urgency.RENEWAL, self._renewal),
                    self._every(self._timings.heartbeat_ms, Urgency.HEARTBEAT, self._heartbeat),
                    self._every(self._timings.telemetry_ms, Urgency.TELEMETRY, self._telemetry),
                    self._reports(),
                    self._silence(),
                    self._unserved(),
                ):
                    group.create_task(work)
        except* LinkClosed as closed:
            first = closed.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _send(self) -> None:
        while True:
            frame = await self._outbox.next()
            await self._session.send(frame)
            self._counters.frames_sent += 1 + len(frame.more)

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._session.receive()
            self._heard_ms = self._clock.mono_ms()
            for frame in parts(message):
                await self._route(frame, group)

    async def _route(self, frame: ControlFrame, group: asyncio.TaskGroup) -> None:
        match frame.WhichOneof("frame"):
            case "event_ack":
                await self._event_ack(frame.event_ack.sequence)
            case "renewal_ack":
                self._renewal_ack(frame.renewal_ack)
            case "command":
                self._workloads.take(frame.command)
            case "checkpoint_ack":
                self._workloads.checkpoint_ack(frame.checkpoint_ack)
            case "host_command":
                self._host_command(frame.host_command)
            case "log_request":
                if self._logs < MAX_LOG_REQUESTS:
                    self._logs += 1
                    group.create_task(self._log(frame.log_request))
            case "probe_request":
                if self._probing is not None:
                    group.create_task(self._probe(self._probing, frame.probe_request))
            case "node_gate":
                if self._gatekeeper is not None:
                    self._gatekeeper.take(frame.node_gate)
            case other:
                log.warning("A frame of kind %s is ignored; is the control plane newer than this agent?", other)

    # Events

    async def _events(self) -> None:
        """Offer events whenever there are some and the window has room."""
        while True:
            self._check_spool()
            self._spool.changed.clear()
            if self._sent < self._spool.last and self._sent - self._acked < WINDOW:
                self._acked_event.clear()
                self._outbox.put(Urgency.EVENTS, self._batch)
            await _first(self._spool.changed.wait(), self._acked_event.wait())
            self._acked_event.clear()

    def _check_spool(self) -> None:
        if self._spool.id != self._spool_id:
            raise NewHello("the spool has a new id")

    def _batch(self) -> AgentFrame | None:
        if self._spool.id != self._spool_id:
            return None
        batch = self._spool.pending(self._sent, self._slots)
        if not batch.events:
            return None
        self._sent = batch.events[-1].sequence
        self._counters.events_sent += len(batch.events)
        for event in batch.events:
            with tracing.span("uplink.send", event.trace, {"sequence": event.sequence, "age_ms": event.age_ms}):
                pass
        self._spool.changed.set()  # there may be more
        return AgentFrame(events=batch)

    async def _event_ack(self, sequence: int) -> None:
        if self._spool.id != self._spool_id:
            raise NewHello("the spool has a new id")
        self._acked = max(self._acked, min(sequence, self._sent))
        await self._spool.ack(self._acked)
        self._acked_event.set()

    # Renewals, telemetry, signs of life

    async def _every(self, period_ms: int, urgency: Urgency, make: Callable[[], AgentFrame | None]) -> None:
        """At multiples of the period since the stream's start, so that what is due together goes in one message."""
        while True:
            self._outbox.put(urgency, make)
            await self._clock.sleep(period_ms - (self._clock.mono_ms() - self._began_ms) % period_ms)

    def _renewal(self) -> AgentFrame:
        """Made right before it is sent: the deadline counts from here."""
        number, self._next_renewal = self._next_renewal, self._next_renewal + 1
        now = self._clock.mono_ms()
        self._renewals[number] = now
        for old in [n for n, sent in self._renewals.items() if now - sent > self._timings.fence_ms]:
            del self._renewals[old]
        return AgentFrame(renewal=Renewal(id=number, jobs=self._workloads.renewal()))

    def _renewal_ack(self, ack: RenewalAck) -> None:
        sent_ms = self._renewals.pop(ack.id, None)
        if sent_ms is not None:
            self._workloads.renewed(ack.granted, sent_ms)

    def _heartbeat(self) -> AgentFrame:
        return AgentFrame(heartbeat=Heartbeat())

    def _telemetry(self) -> AgentFrame | None:
        if self._inventory.version != self._version:
            return None  # its rows would not be those of the hello
        telemetry = self._inventory.telemetry()
        return None if telemetry is None else AgentFrame(telemetry=telemetry)

    async def _silence(self) -> None:
        """Raises when the server is silent, or when the hello is out of date."""
        limit = max(SILENT_LEAST_MS, SILENT_HEARTBEATS * max(self._timings.heartbeat_ms, self._timings.renewal_ms))
        while True:
            silent = self._clock.mono_ms() - self._heard_ms
            if silent >= limit:
                raise LinkClosed(f"the server has been silent for {silent} ms")
            if self._inventory.version != self._version:
                raise NewHello("the inventory has changed")
            await self._clock.sleep(min(limit - silent, self._timings.heartbeat_ms))

    async def _unserved(self) -> None:
        """Raises when this replica answers but does nothing for a job: it has not acknowledged its renewals for a
        quarter of F, or not recorded its end for F. It may be cut off from the global store while another one of the
        region is not. The stream gets as long to do better."""
        began, fence = self._clock.mono_ms(), self._timings.fence_ms
        while True:
            await self._clock.sleep(fence // UNRENEWED_PART)
            age, ended = self._workloads.unrenewed_ms, self._workloads.unrecorded_ms
            if age >= fence // UNRENEWED_PART:
                raise LinkClosed(f"no renewal of a job was acknowledged for {age} ms")
            if ended >= fence and self._clock.mono_ms() - began >= fence:
                raise LinkClosed(f"the end of a job has not been recorded for {ended} ms")

    # Repairs

    def _host_command(self, command: HostCommand) -> None:
        """Each repetition is answered by where it stands."""
        self._repairs.take(command)

        def answer() -> AgentFrame | None:
            report = self._repairs.report(command.id)
            return None if report is None else AgentFrame(host=report)

        self._outbox.put(Urgency.HOST, answer, command.id)

    # Jobs

    async def _reports(self) -> None:
        """Each second, and at once on change."""
        while True:
            self._outbox.put(Urgency.WORKLOADS, self._report)
            for ready in self._workloads.announcements():
                self._outbox.put(Urgency.CHECKPOINT, _checkpoint(ready), f"{ready.job}@{ready.epoch.number}")
            await _first(self._workloads.changed.wait(), self._clock.sleep(REPEAT_MS))
            self._workloads.changed.clear()

    def _report(self) -> AgentFrame | None:
        report = self._workloads.report()
        return None if report is None else AgentFrame(workloads=report)

    async def _probe(self, probing: Probing, request: ProbeRequest) -> None:
        report = await probing.report(request)
        if report is not None:
            self._outbox.put(Urgency.PROBE, lambda: AgentFrame(probe=report), report.node)

    async def _log(self, request: LogRequest) -> None:
        try:
            chunk = LogChunk(id=request.id, text=await self._workloads.log_tail(request.job, request.tail_bytes))
        except ExecutorError as error:
            chunk = LogChunk(id=request.id, error=str(error))
        finally:
            self._logs -= 1
        self._outbox.put(Urgency.LOG, lambda: AgentFrame(log=chunk), str(request.id))


def _checkpoint(ready: CheckpointReady) -> Callable[[], AgentFrame]:
    return lambda: AgentFrame(checkpoint=ready)


async def _first(*waits: Awaitable[object]) -> None:
    """Until the first of ``waits`` is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
