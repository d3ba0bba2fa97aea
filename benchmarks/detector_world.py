"""The world in which ``benchmarks/detector`` runs the real detector: links that lose and delay, observers that are held
up, peers that probe. Virtual time; everything from a seed.

A node's stream is TCP: what the network loses comes late, not never. A heartbeat takes 20 ms and a log-normal jitter
(median 20 ms, sigma 1); each loss adds a retransmission time-out of 200 ms, doubling; the stream delivers in order; an
agent that hears nothing back for three heartbeats opens a new one. In a burst of jitter (30 s, every 5 min in the mean,
each link for itself) the jitter is ten times as large.

Packets are lost independently of each other, or in bursts, as a full queue, a flapping port or a route that converges
lose them (Gilbert's model: a link that loses everything while it is bad, for an exponential time, and nothing while it
is good). Independent losses are the gentler kind: a packet that is sent again a second later fares better.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaos.simulate.clock import SimClock
from controlplane.domain.liveness import decide_liveness
from gridkeeper import keys
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import NodeId, RegionId, ReplicaId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.probe import Probed
from gridkeeper.records.care import ProbeRecord, WitnessRecord
from gridkeeper.records.faults import ReplicaRecord
from gridkeeper.records.fleet import LivenessRecord, NodeRecord, NodeState, SessionRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.v1.agent_pb2 import ProbeReport, ProbeRequest
from nodeagent.probing import Probing

HEARTBEAT_MS = 1_000
LATENCY_MS, JITTER_MS, SIGMA = 20.0, 20.0, 1.0
RTO_MS, CONNECT_RTO_MS = 200.0, 1_000.0
"""Linux: least retransmission time-out of an open connection, and of one that is being opened."""
GIVE_UP_MS, ATTEMPT_MS = 3_000.0, 5_000.0
"""An agent gives up a stream on which nothing came back for three heartbeats, and an attempt to open one after five."""
BURST_S, CALM_S, BURST = 30.0, 300.0, 10.0
STORE_MS = 3
"""From a decision to its sight in every mirror: a put of the local etcd was measured at 1.5 ms."""
TICK_MS = 500
REGION = RegionId("east")
SUSPECT = NodeId("n0")
PEERS = 8


@dataclass(frozen=True, slots=True)
class Weather:
    """``loss``: of packets, in the mean. ``jitter``: its factor in bursts (1: none). ``starved``: the observer is held
    up again and again (1 to 12 s, every minute in the mean). ``burst_s``: how long a link that loses goes on losing, in
    the mean; 0: each packet for itself."""

    loss: float = 0.0
    jitter: float = 1.0
    starved: bool = False
    burst_s: float = 0.0


RESENDS = 20
"""A packet is sent again so often at most; the last one arrives."""


class Link:
    """What one link loses from 0 to ``until_ms``."""

    def __init__(self, rng: np.random.Generator, weather: Weather, until_ms: float) -> None:
        self._rng = rng
        self._loss = weather.loss
        self._edges: NDArray[np.float64] | None = None
        if weather.burst_s and weather.loss:
            bad_ms = 1000 * weather.burst_s
            good_ms = bad_ms * (1 - weather.loss) / weather.loss
            pairs = int(until_ms / (bad_ms + good_ms) * 1.5) + 50
            spans = np.empty(2 * pairs)
            spans[0::2], spans[1::2] = rng.exponential(good_ms, pairs), rng.exponential(bad_ms, pairs)
            if rng.uniform() < weather.loss:
                spans[0] = 0.0  # bad from the beginning: the rest of an exponential time is distributed like all of it
            self._edges = np.cumsum(spans)

    def late(self, sent_ms: NDArray[np.float64], first_ms: float) -> NDArray[np.float64]:
        """Milliseconds that losses add to the delivery of packets sent then. ``first_ms``: until one is sent again the
        first time; doubles."""
        if self._edges is None:
            if not self._loss:
                return np.zeros(sent_ms.shape)
            losses = np.minimum(self._rng.geometric(1 - self._loss, sent_ms.shape) - 1, RESENDS)
            return np.asarray(first_ms * (2.0**losses - 1))
        added = np.zeros(sent_ms.shape)
        waiting = self._is_bad(sent_ms)
        for resend in range(1, RESENDS + 1):
            if not waiting.any():
                break
            added[waiting] = first_ms * (2.0**resend - 1)
            waiting[waiting] = self._is_bad(sent_ms[waiting] + added[waiting])
        return added

    def _is_bad(self, at_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
        assert self._edges is not None
        return np.asarray(np.searchsorted(self._edges, at_ms) % 2 == 1)

    def connected(self, at_ms: float, jitter_ms: float) -> float:
        """How long it takes until a new connection has carried its first message: SYN, SYN-ACK, four flights of TLS."""
        now = at_ms
        for flight in range(6):
            rto_ms = CONNECT_RTO_MS if flight < 2 else RTO_MS
            now += float(self.late(np.array([now]), rto_ms)[0])
            now += LATENCY_MS + jitter_ms * math.exp(SIGMA * self._rng.standard_normal())
        return now - at_ms


def arrivals(rng: np.random.Generator, weather: Weather, seconds: int) -> NDArray[np.float64]:
    """When the heartbeats of one node are delivered (ms)."""
    sent = rng.uniform(0, HEARTBEAT_MS) + HEARTBEAT_MS * np.arange(seconds) + rng.uniform(0, 5, seconds)
    factor = np.ones(seconds)
    if weather.jitter > 1:
        factor = np.where(_bursts(rng, sent), weather.jitter, 1.0)
    jitter = factor * JITTER_MS * np.exp(SIGMA * rng.standard_normal(seconds))
    link = Link(rng, weather, 1000.0 * seconds + 600_000)
    took = LATENCY_MS + jitter + link.late(sent, RTO_MS)
    for index in np.flatnonzero(took > GIVE_UP_MS):
        anew = _reconnected(rng, link, float(sent[index]) + GIVE_UP_MS, JITTER_MS * float(factor[index]))
        took[index] = min(took[index], GIVE_UP_MS + anew)
    return np.asarray(np.maximum.accumulate(sent + took))


def _reconnected(rng: np.random.Generator, link: Link, at_ms: float, jitter_ms: float) -> float:
    """How long an agent takes to be heard on a new stream: attempts of at most ``ATTEMPT_MS``, with its backoff."""
    total = 0.0
    for attempt in range(100):
        total += rng.uniform(0, min(5_000, 100 * 2**attempt))
        took = link.connected(at_ms + total, jitter_ms)
        total += min(took, ATTEMPT_MS)
        if took <= ATTEMPT_MS:
            break
    return total


def _bursts(rng: np.random.Generator, times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the link is in a burst, at each of ``times``."""
    count = int(times[-1] / 1000 / (BURST_S + CALM_S)) * 3 + 20
    lengths = np.empty(2 * count)
    lengths[0::2], lengths[1::2] = rng.exponential(CALM_S, count), rng.exponential(BURST_S, count)
    edges = 1000 * (np.cumsum(lengths) - rng.uniform(0, CALM_S))
    return np.asarray(np.searchsorted(edges, times) % 2 == 1)


def stalls(rng: np.random.Generator, seconds: int) -> list[tuple[int, int]]:
    """When the observer does not run: (from, until) in ms."""
    found, at = [], 0.0
    while at < 1000 * seconds:
        at += rng.exponential(60_000) + 1
        length = rng.uniform(1_000, 12_000)
        found.append((int(at), int(at + length)))
        at += length
    return found


class ModelProber:
    """``Prober`` over a modelled link of its own, which is in a burst of jitter or not, as chance has it."""

    def __init__(self, clock: SimClock, rng: np.random.Generator, weather: Weather, dead: bool) -> None:
        self._clock = clock
        self._link = Link(rng, weather, 600_000)
        self._began_ms = clock.mono_ms()
        self._dead = dead
        burst = weather.jitter > 1 and rng.uniform() < BURST_S / (BURST_S + CALM_S)
        self._jitter = JITTER_MS * (weather.jitter if burst else 1.0)

    async def probe(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        took = math.inf if self._dead else self._link.connected(self._clock.mono_ms() - self._began_ms, self._jitter)
        if took > timeout_ms:
            await self._clock.sleep(timeout_ms)
            return Probed(False, f"no answer within {timeout_ms} ms")
        await self._clock.sleep(round(took))
        return Probed(True, "", round(1000 * took), boot_id="boot")


class Case:
    """One suspicion, played to its end by the real leader's decision and the peers' real probing. Times are ms since
    the session was marked; ``back_ms``: when the node is heard again (infinite: it is dead)."""

    def __init__(
        self, settings: Settings, weather: Weather, rng: np.random.Generator, silent_ms: int, back_ms: float
    ) -> None:
        self._settings = settings
        self._keys = RegionKeys(REGION)
        self._clock = SimClock(asyncio.get_running_loop())
        self._items: dict[str, Versioned[Any]] = {}
        self._revision = 0
        self._changed = asyncio.Event()
        self._silent_ms = silent_ms
        self._back_ms = back_ms
        self._probing = {
            peer: Probing(ModelProber(self._clock, rng, weather, dead=math.isinf(back_ms)), self._clock)
            for peer in self._nodes()[1:]
        }
        self._asked: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def _nodes() -> list[NodeId]:
        return [SUSPECT, *(NodeId(f"n{number}") for number in range(1, PEERS + 1))]

    async def convicted_after(self) -> int | None:
        """When the node was called unreachable; None: it never was."""
        began = self._clock.mono_ms()
        await self._found()
        back = asyncio.ensure_future(self._return())
        try:
            while True:
                for decision in decide_liveness(self._state(), GlobalState(), self._settings, self._now()):
                    await self._apply(decision)
                judged: LivenessRecord = self._items[self._keys.liveness(SUSPECT)].record
                if judged.state is not NodeState.ALIVE:
                    return self._clock.mono_ms() - began
                if back.done():
                    return None
                self._changed.clear()
                await self._wait(back)
        finally:
            for task in (back, *self._tasks):
                task.cancel()
            await asyncio.gather(back, *self._tasks, return_exceptions=True)

    async def _wait(self, back: asyncio.Future[None]) -> None:
        tick = asyncio.ensure_future(self._clock.sleep(TICK_MS))
        changed = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait((tick, changed, back), return_when=asyncio.FIRST_COMPLETED)
        for task in (tick, changed):
            task.cancel()

    async def _return(self) -> None:
        await (self._clock.sleep(round(self._back_ms)) if math.isfinite(self._back_ms) else asyncio.Event().wait())
        await self._write((self._keys.session(SUSPECT), self._session(SUSPECT, True)))

    async def _found(self) -> None:
        for number, node in enumerate(self._nodes()):
            record = NodeRecord(
                node, REGION, f"rack-{number % 3}", (), "boot", "0", ("nvml",), (), 0, probe_address=f"{node}:7444"
            )
            self._put(self._keys.node(node), record)
            self._put(self._keys.session(node), self._session(node, True))
            self._put(self._keys.liveness(node), LivenessRecord(node, NodeState.ALIVE, 0, "heard by a", boot_id="boot"))
        self._put(self._keys.replica(ReplicaId("a")), ReplicaRecord(ReplicaId("a"), REGION, "a", "a", "0", 0))
        await self._write((self._keys.session(SUSPECT), self._session(SUSPECT, False)))

    def _session(self, node: NodeId, is_open: bool) -> SessionRecord:
        silent_ms = 0 if is_open else self._silent_ms
        return SessionRecord(node, ReplicaId("a"), "s", is_open, self._clock.wall_ms(), silent_ms)

    def _put(self, key: str, record: Any) -> None:
        self._revision += 1
        old = self._items.get(key)
        revision = Revision(self._revision)
        self._items[key] = Versioned(record, revision, old.created if old else revision, self._clock.mono_ms())

    async def _write(self, *pairs: tuple[str, Any]) -> None:
        await self._clock.sleep(STORE_MS)
        for key, record in pairs:
            self._put(key, record)
        self._changed.set()

    async def _apply(self, decision: Decision) -> None:
        held = ((w.key, self._items.get(w.key), w.expected) for w in (*decision.writes, *decision.guards))
        await self._clock.sleep(STORE_MS)
        if any((item.revision if item else ABSENT) != expected for _, item, expected in held):
            return
        for write in decision.writes:
            if isinstance(write, Put):
                self._put(write.key, write.record)
                if isinstance(write.record, ProbeRecord):
                    self._ask(write.record)
            else:
                self._items.pop(write.key, None)

    def _ask(self, question: ProbeRecord) -> None:
        timeout_ms = self._settings.policy.liveness.witness_ms * 3 // 4
        request = ProbeRequest(
            node=question.node, address=question.address, round=question.round, timeout_ms=timeout_ms
        )
        for peer in question.peers:
            task = asyncio.ensure_future(self._answer(peer, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, peer: NodeId, request: ProbeRequest) -> None:
        report: ProbeReport | None = await self._probing[peer].report(request)
        if report is not None:
            record = WitnessRecord(
                SUSPECT, peer, report.round, report.reached, report.rtt_us, report.detail, 0, report.refused,
                report.boot_id,
            )  # fmt: skip
            await self._write((self._keys.witness(SUSPECT, peer), record))

    def _state(self) -> RegionState:
        kinds: dict[str, dict[str, Versioned[Any]]] = {}
        for key, value in self._items.items():
            assert keys.kind_of(key)
            kind, _, name = key[len(self._keys.root) :].partition("/")
            kinds.setdefault(kind, {})[name] = value
        return RegionState(REGION, Revision(self._revision), **kinds)  # type: ignore[arg-type]

    def _now(self) -> Now:
        return Now(self._clock.mono_ms(), self._clock.wall_ms())
