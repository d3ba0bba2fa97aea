"""Who is dead, how soon, and how often wrongly: the real detector against a fixed time-out of equal median.

    make bench-detector                # two to three minutes
    .venv/bin/python -m benchmarks.detector --nodes 100 --seconds 1200

In virtual time, with the real objects: each node's link statistics and the replica's watch over silence
(``controlplane/shell/silence``), its local health, the leader's judgement (``controlplane/domain/liveness``) and the
peers' probing (``nodeagent/probing``), all with the default policy and timings. Only the network between them, the
store's delay and the clock are modelled: see ``detector_world``.

Two figures per condition. *Detection*: nodes that die at a random moment, from death to the judgement ``unreachable``.
*False convictions*: judgements of nodes that live, per node and hour. The yardstick is a fixed time-out on the same
arrivals, tuned to the same median detection time as ours *in that condition*; it is checked as a timer is, also by a
starved observer before it reads what has come meanwhile. Where nobody was convicted, the rate is 0 and its 95 % upper
bound (3 / node-hours) is printed.
"""

from __future__ import annotations

import argparse
import math
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import last_line, machine, quantile, say, table
from benchmarks.detector_world import HEARTBEAT_MS, Case, Weather, arrivals, stalls
from chaos.simulate.loop import run_virtual
from controlplane.domain.suspicion import LocalHealth
from controlplane.shell.session import AgentStream, Cursor
from controlplane.shell.silence import Beat, Links, SilenceWatch, heartbeat
from gridkeeper.ids import NodeId, Revision, SpoolId
from gridkeeper.snapshot import Settings
from gridkeeper.timings import Timings

CONDITIONS = (
    Weather(0.0),
    Weather(0.01),
    Weather(0.05),
    Weather(0.20),
    Weather(0.0, jitter=10.0),
    Weather(0.05, jitter=10.0),
    Weather(0.0, starved=True),
    Weather(0.05, jitter=10.0, starved=True),
)
BEAT_MS = 100
LEARN_MS = 60_000
"""No node dies, and nothing is counted, before links are this old."""


class HandClock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 0

    def mono_ms(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return self.now

    async def sleep(self, ms: int) -> None:
        raise AssertionError("the benchmark drives the detector itself")


@dataclass
class Node:
    """``times``: when its heartbeats come (ms). ``dies_ms`` infinite: it lives."""

    stream: AgentStream
    times: NDArray[np.float64]
    dies_ms: float = math.inf
    last_ms: float = 0.0  # when its newest heartbeat came
    next: int = 0


@dataclass
class Found:
    """``detection_ms`` and ``heard_ms`` (death minus last heartbeat, processed): one each per node that died."""

    detection_ms: list[float] = field(default_factory=list)
    since_heard_ms: list[float] = field(default_factory=list)
    undetected: int = 0
    false: int = 0
    suspicions: int = 0
    hours: float = 0.0
    gaps: list[float] = field(default_factory=list)


class Run:
    """One observer over many nodes, in one condition."""

    def __init__(self, weather: Weather, living: int, dying: int, seconds: int, settings: Settings) -> None:
        self._weather = weather
        self._settings = settings
        self._seconds = seconds
        self._rng = np.random.default_rng(zlib.crc32(repr(weather).encode()))
        self._clock = HandClock()
        self._health = LocalHealth(0, BEAT_MS)
        policy = settings.policy.liveness
        self._beat = Beat(self._health, lambda: policy, self._clock)
        links = Links(settings.timings)
        self._nodes: dict[NodeId, Node] = {}
        self._streams: dict[NodeId, AgentStream] = {}
        for number in range(living + dying):
            name = NodeId(f"n{number}")
            stream = AgentStream(
                name,
                "s",
                None,
                (),
                Cursor(SpoolId("s"), 0, Revision(0)),
                0,
                Revision(0),
                links.opened(name),  # type: ignore[arg-type]
            )
            node = Node(stream, arrivals(self._rng, weather, seconds))
            if number >= living:
                node.dies_ms = self._rng.uniform(LEARN_MS, 1000 * seconds - 60_000)
                node.times = node.times[node.times < node.dies_ms]
            self._nodes[name] = node
            self._streams[name] = stream
        self._watch = SilenceWatch(
            self._streams, self._never, self._beat, lambda: policy, self._clock, settings.timings
        )
        self.found = Found(hours=living * (seconds - LEARN_MS / 1000) / 3600)

    async def _never(self, stream: AgentStream, is_open: bool) -> None:
        raise AssertionError("the benchmark marks for itself")

    def play(self) -> Found:
        """Time goes on in steps of the watch; while the observer is held up it does nothing, and then first looks at
        its timers, and only then reads what has come."""
        step = max(20, self._settings.timings.heartbeat_ms // 5)
        pauses = stalls(self._rng, self._seconds) if self._weather.starved else []
        order = self._order()
        at = 0
        for now in range(0, 1000 * self._seconds, step):
            while pauses and now >= pauses[0][1]:
                pauses.pop(0)
            if pauses and pauses[0][0] <= now:
                continue
            self._clock.now = now
            late = now - self._health_ms > 2 * step if now else False
            if late:
                self._look(now)
            self._pulse(now)
            steady = self._beat.steady_ms()
            while at < len(order) and order[at][0] <= now:
                self._hear(self._nodes[order[at][1]], order[at][0], now, steady)
                at += 1
            self._look(now)
        self.found.undetected = sum(
            math.isfinite(n.dies_ms) for n in self._nodes.values() if n.stream.node in self._streams
        )
        return self.found

    _health_ms = 0

    def _pulse(self, now: int) -> None:
        """The observer's own timer, each ``BEAT_MS`` while it runs; the first one after a pause comes late."""
        lag = self._settings.policy.liveness.local_lag_ms
        if now - self._health_ms > 4 * BEAT_MS:
            self._health.beat(now, lag)
        else:
            for moment in range(self._health_ms + BEAT_MS, now + 1, BEAT_MS):
                self._health.beat(moment, lag)
        self._health_ms = now

    def _order(self) -> list[tuple[float, NodeId]]:
        times = np.concatenate([node.times for node in self._nodes.values()])
        names = [name for name, node in self._nodes.items() for _ in range(len(node.times))]
        return [(float(times[i]), names[i]) for i in np.argsort(times, kind="stable")]

    def _hear(self, node: Node, came: float, now: int, steady: int) -> None:
        gap = now - node.last_ms
        if now > LEARN_MS and gap > 2 * HEARTBEAT_MS and math.isinf(node.dies_ms):
            self.found.gaps.append(gap)
        node.last_ms = now
        node.next += 1
        # Exact to the millisecond while the observer runs; what came while it was held up is read now.
        read = max(round(came), steady)
        node.stream.heard_ms = read
        heartbeat(node.stream, read, steady, self._settings.timings.unreachable_ms)

    def _look(self, now: int) -> None:
        for stream, is_open in self._watch.overdue():
            stream.marked_open = is_open
            if not is_open:
                self._suspected(self._nodes[stream.node], now)

    def _suspected(self, node: Node, now: int) -> None:
        silent = now - node.stream.heard_ms
        dead = node.dies_ms <= now
        back = math.inf if dead else (node.times[node.next] - now if node.next < len(node.times) else HEARTBEAT_MS)
        if not dead and (math.isfinite(node.dies_ms) or now <= LEARN_MS):
            return
        after = self._judged(silent, back)
        if dead:
            del self._streams[node.stream.node]
            if after is not None:
                self.found.detection_ms.append(now + after - node.dies_ms)
                self.found.since_heard_ms.append(node.dies_ms - node.last_ms)
            return
        self.found.suspicions += 1
        self.found.false += after is not None

    def _judged(self, silent: int, back: float) -> int | None:
        async def main() -> int | None:
            return await Case(self._settings, self._weather, self._rng, silent, max(1.0, back)).convicted_after()

        return run_virtual(main())


def fixed(found: Found, p50_ms: float) -> tuple[float, int]:
    """The fixed time-out (ms) with that median detection time on the same deaths, and its false convictions."""
    timeout = p50_ms + quantile(found.since_heard_ms, 0.5)
    return timeout, sum(gap > timeout for gap in found.gaps)


def measure(weather: Weather, living: int, dying: int, seconds: int, settings: Settings) -> dict[str, object]:
    found = Run(weather, living, dying, seconds, settings).play()
    p50, p99 = quantile(found.detection_ms, 0.5), quantile(found.detection_ms, 0.99)
    timeout, wrong = fixed(found, p50)
    return {
        "loss": weather.loss,
        "jitter": weather.jitter,
        "starved": weather.starved,
        "p50_s": round(p50 / 1000, 3),
        "p99_s": round(p99 / 1000, 3),
        "false_per_node_hour": found.false / found.hours,
        "fixed_false_per_node_hour": wrong / found.hours,
        "false": found.false,
        "fixed_false": wrong,
        "fixed_timeout_s": round(timeout / 1000, 3),
        "suspicions": found.suspicions,
        "node_hours": round(found.hours, 1),
        "deaths": len(found.detection_ms),
        "undetected": found.undetected,
    }


def rate(count: int, hours: float) -> str:
    return f"{count / hours:.5f}" if count else f"0 (< {3 / hours:.5f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500, help="nodes that live (default 500)")
    parser.add_argument("--dying", type=int, default=300, help="nodes that die (default 300)")
    parser.add_argument("--seconds", type=int, default=3_600, help="virtual time per condition (default 3600)")
    options = parser.parse_args()
    settings = Settings(Timings())
    say(f"{machine()}; default policy and timings; {options.nodes} nodes that live, {options.dying} that die")
    rows, results = [], []
    for weather in CONDITIONS:
        got = measure(weather, options.nodes, options.dying, options.seconds, settings)
        results.append(got)
        ours, theirs, hours = int(str(got["false"])), int(str(got["fixed_false"])), float(str(got["node_hours"]))
        factor = "-" if not theirs else f"{theirs / ours:.0f} ×" if ours else f"> {theirs / 3:.0f} ×"
        rows.append(
            (
                f"loss {weather.loss:.0%}" + (", 10 × jitter" if weather.jitter > 1 else "")
                + (", starved" if weather.starved else ""),
                got["p50_s"], got["p99_s"], got["fixed_timeout_s"], got["suspicions"], rate(ours, hours),
                rate(theirs, hours), factor,
            )
        )  # fmt: skip
        say(f"{rows[-1]}")
    columns = ("condition", "p50 s", "p99 s", "fixed s", "suspected", "false /node h", "fixed /node h", "fewer by")
    table(f"Detection and false convictions, {results[0]['node_hours']} node-hours each", columns, rows)
    last_line(conditions=results)


if __name__ == "__main__":
    main()
