"""Who is dead, how soon, and how often wrongly: the real detector against a fixed time-out of equal median.

    make bench-detector                # about four minutes
    .venv/bin/python -m benchmarks.detector --hours 200 --deaths 50

In virtual time, with the real objects: each node's link statistics and the replica's watch over silence
(``controlplane/shell/silence``), its local health, the leader's judgement (``controlplane/domain/liveness``) and the
peers' probing (``nodeagent/probing``), all with the default policy and timings. Only the network between them, the
store's delay and the clock are modelled: see ``detector_world``.

Two figures per condition. *Detection*: nodes that die at a random moment, from death to the judgement ``unreachable``.
*False convictions*: judgements of nodes that live, per node and hour. The yardstick is a fixed time-out on the same
arrivals, tuned to the same median detection time as ours *in that condition*; it is checked as a timer is, also by a
starved observer before it reads what has come meanwhile. Where nobody was convicted, the rate is 0, its 95 % upper
bound (3 / node-hours) is printed, and the factor is what that bound allows.
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
from controlplane.domain.suspicion import FLOOR_BEATS, LocalHealth
from controlplane.shell.session import AgentStream, Cursor
from controlplane.shell.silence import Beat, Links, SilenceWatch, heartbeat
from gridkeeper.ids import NodeId, Revision, SpoolId
from gridkeeper.snapshot import Settings

CONDITIONS = (
    Weather(0.0),
    Weather(0.01),
    Weather(0.05),
    Weather(0.20),
    Weather(0.01, burst_s=1.0),
    Weather(0.05, burst_s=1.0),
    Weather(0.20, burst_s=1.0),
    Weather(0.0, jitter=10.0),
    Weather(0.05, jitter=10.0),
    Weather(0.0, starved=True),
    Weather(0.05, jitter=10.0, starved=True),
)
RARE = {Weather(0.20): 10, Weather(0.05, burst_s=1.0): 3}
"""How many times as many node-hours a condition gets in which even the fixed time-out is seldom wrong."""
BEAT_MS = 100
LEARN_MS = 120_000
"""Nothing is counted, and no node dies, before links are this old."""
TRACE_S = 7_200
STARVED_S = 1_800
TICK_MS = 200


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


class OnTime(Beat):
    """Of an observer that has kept its own time since it started."""

    def steady_ms(self) -> int:
        return 0


@dataclass
class Found:
    """``detection_ms``: one per node that died; ``since_heard_ms``: from its last heartbeat (as read) to its death.
    ``gaps``: between heartbeats (as read) of nodes that live, those that a time-out might convict."""

    detection_ms: list[float] = field(default_factory=list)
    since_heard_ms: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    false: int = 0
    suspicions: int = 0
    hours: float = 0.0


class Watched:
    """Nodes under one real watch. ``times``: when heartbeats come (ms); ``dies_ms`` infinite: it lives."""

    def __init__(self, settings: Settings, weather: Weather, rng: np.random.Generator, found: Found) -> None:
        self.settings = settings
        self.found = found
        self.clock = HandClock()
        self.health = LocalHealth(0, BEAT_MS)
        self._weather = weather
        self._rng = rng
        policy = settings.policy.liveness
        self.beat = (Beat if weather.starved else OnTime)(self.health, lambda: policy, self.clock)
        self._links = Links(settings.timings)
        self.streams: dict[NodeId, AgentStream] = {}
        self.watch = SilenceWatch(self.streams, self._never, self.beat, lambda: policy, self.clock, settings.timings)

    async def _never(self, stream: AgentStream, is_open: bool) -> None:
        raise AssertionError("the benchmark marks for itself")

    def opened(self, name: str) -> AgentStream:
        node = NodeId(name)
        stream = AgentStream(
            node, "s", None, (), Cursor(SpoolId("s"), 0, Revision(0)), 0, Revision(0), self._links.opened(node)  # type: ignore[arg-type]
        )  # fmt: skip
        self.streams[node] = stream
        return stream

    def hear(self, stream: AgentStream, at_ms: int, steady_ms: int) -> None:
        stream.heard_ms = at_ms
        heartbeat(stream, at_ms, steady_ms, self.settings.timings.unreachable_ms)

    def judged(self, silent_ms: int, back_ms: float) -> int | None:
        """Ms from the mark to the conviction, None: there was none. ``back_ms``: when it is heard again."""

        async def main() -> int | None:
            case = Case(self.settings, self._weather, self._rng, silent_ms, max(1.0, back_ms))
            return await case.convicted_after()

        return run_virtual(main())

    def suspected(self, stream: AgentStream, now: int, back_ms: float) -> None:
        """A node that lives was marked silent."""
        self.found.suspicions += 1
        self.found.false += self.judged(now - stream.heard_ms, back_ms) is not None

    def lost(self, stream: AgentStream, now: int, dies_ms: float) -> bool:
        """A node that is dead was marked silent. Whether it was convicted."""
        after = self.judged(now - stream.heard_ms, math.inf)
        if after is not None:
            self.found.detection_ms.append(now + after - dies_ms)
        return after is not None


class Alone(Watched):
    """An observer that keeps time: nodes do not influence each other, so each is watched by itself, and the watch is
    only asked in gaps of at least three heartbeats, below which it never marks anybody."""

    def play(self, times: NDArray[np.float64], dies_ms: float) -> None:
        self.streams.clear()
        stream = self.opened("n0")
        dead = math.isfinite(dies_ms)
        rounded = np.rint(times[times < dies_ms] if dead else times).astype(np.int64)
        heard: list[int] = rounded.tolist()
        looked_at = (np.diff(rounded) > FLOOR_BEATS * HEARTBEAT_MS) & (rounded[:-1] >= LEARN_MS) & (not dead)
        hear, begun = self.hear, 0
        for end in (*np.flatnonzero(looked_at).tolist(), len(heard) - 1):
            for at in heard[begun : end + 1]:
                hear(stream, at, 0)
            begun = end + 1
            if begun < len(heard):
                self.found.gaps.append(heard[begun] - heard[end])
                self._through(stream, heard[end], heard[begun], dies_ms)
            elif dead:
                self._through(stream, heard[end], math.inf, dies_ms)
        if dead:
            self.found.since_heard_ms.append(dies_ms - heard[-1])
        else:
            self.found.hours += (heard[-1] - LEARN_MS) / 3_600_000

    def _through(self, stream: AgentStream, at: int, back: float, dies_ms: float) -> None:
        """A gap, tick by tick."""
        now = at + round(self._rng.uniform(0, TICK_MS)) + (FLOOR_BEATS - 1) * HEARTBEAT_MS
        while now < back:
            self.clock.now = now
            for marked, is_open in self.watch.overdue():
                assert marked is stream and not is_open
                if math.isfinite(back):
                    self.suspected(stream, now, back - now)
                else:
                    assert self.lost(stream, now, dies_ms), "the dead are found"
                return
            now += TICK_MS


class Starved(Watched):
    """An observer that is held up: one timeline for all nodes. While it is held up it does nothing; then it first looks
    at its timers, and only then reads what has come."""

    _beat_ms = 0

    def play(self, traces: list[tuple[NDArray[np.float64], float]], seconds: int) -> None:
        self._dies = {NodeId(f"n{i}"): dies for i, (_, dies) in enumerate(traces)}
        self._times = {NodeId(f"n{i}"): times[times < dies] for i, (times, dies) in enumerate(traces)}
        self._next = dict.fromkeys(self._dies, 0)
        self._read = dict.fromkeys(self._dies, 0)
        for name in self._dies:
            self.opened(name)
        order = sorted((float(at), name) for name, times in self._times.items() for at in times)
        pauses, position = stalls(self._rng, seconds), 0
        for now in range(0, 1000 * seconds, TICK_MS):
            while pauses and now >= pauses[0][1]:
                pauses.pop(0)
            if pauses and pauses[0][0] <= now:
                continue
            self.clock.now = now
            if now - self._beat_ms > 4 * BEAT_MS:
                self._look(now)
            self._pulse(now)
            steady = self.beat.steady_ms()
            while position < len(order) and order[position][0] <= now:
                at, name = order[position]
                self._hear(name, max(round(at), steady), now, steady)
                position += 1
            self._look(now)
        living = sum(math.isinf(dies) for dies in self._dies.values())
        self.found.hours += living * (1000 * seconds - LEARN_MS) / 3_600_000

    def _pulse(self, now: int) -> None:
        """The observer's own timer; the first one after it was held up comes late."""
        lag = self.settings.policy.liveness.local_lag_ms
        moments = [now] if now - self._beat_ms > 4 * BEAT_MS else range(self._beat_ms + BEAT_MS, now + 1, BEAT_MS)
        for moment in moments:
            self.health.beat(moment, lag)
        self._beat_ms = now

    def _hear(self, name: NodeId, at: int, now: int, steady: int) -> None:
        gap = at - self._read[name]
        if now > LEARN_MS and gap > FLOOR_BEATS * HEARTBEAT_MS and math.isinf(self._dies[name]):
            self.found.gaps.append(gap)
        self._read[name] = at
        self._next[name] += 1
        self.hear(self.streams[name], at, steady)

    def _look(self, now: int) -> None:
        for stream, is_open in self.watch.overdue():
            stream.marked_open = is_open
            dies, times = self._dies[stream.node], self._times[stream.node]
            if is_open:
                continue
            if dies <= now:
                self.found.since_heard_ms.append(dies - self._read[stream.node])
                assert self.lost(stream, now, dies), "the dead are found"
                del self.streams[stream.node]
            elif math.isinf(dies) and now > LEARN_MS and self._next[stream.node] < len(times):
                self.suspected(stream, now, times[self._next[stream.node]] - now)


def measure(weather: Weather, hours: float, deaths: int, settings: Settings) -> dict[str, object]:
    rng, found = np.random.default_rng(zlib.crc32(repr(weather).encode())), Found()

    def dying(seconds: int) -> float:
        return float(rng.uniform(LEARN_MS + 180_000, 1000 * seconds - 60_000))

    if weather.starved:
        traces = [(arrivals(rng, weather, STARVED_S), dying(STARVED_S)) for _ in range(deaths)]
        traces += [(arrivals(rng, weather, STARVED_S), math.inf) for _ in range(round(hours / 8 * 3600 / STARVED_S))]
        Starved(settings, weather, rng, found).play(traces, STARVED_S)
    else:
        alone = Alone(settings, weather, rng, found)
        for _ in range(deaths):
            alone.play(arrivals(rng, weather, 600), dying(600))
        while found.hours < hours:
            alone.play(arrivals(rng, weather, TRACE_S), math.inf)
    p50, p99 = quantile(found.detection_ms, 0.5), quantile(found.detection_ms, 0.99)
    timeout = p50 + quantile(found.since_heard_ms, 0.5)
    wrong = sum(gap > timeout for gap in found.gaps)
    return {
        "loss": weather.loss,
        "jitter": weather.jitter,
        "starved": weather.starved,
        "burst_s": weather.burst_s,
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
    }


def rate(count: int, hours: float) -> str:
    return f"{count / hours:.5f}" if count else f"0 (< {3 / hours:.5f})"


def row(got: dict[str, object]) -> tuple[object, ...]:
    ours, theirs, hours = int(str(got["false"])), int(str(got["fixed_false"])), float(str(got["node_hours"]))
    factor = "-" if theirs < 3 else f"{theirs / ours:.0f} ×" if ours else f"> {theirs / 3:.0f} ×"
    words = [
        f"{got['loss']:.0%} loss" + (f" in bursts of {got['burst_s']:g} s" if got["burst_s"] else ""),
        "10 × jitter" if got["jitter"] != 1 else "",
        "starved" if got["starved"] else "",
    ]
    return (
        ", ".join(word for word in words if word), got["p50_s"], got["p99_s"], got["fixed_timeout_s"], hours,
        got["suspicions"], rate(ours, hours), rate(theirs, hours), factor,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2_000, help="node-hours per condition (see RARE; starved: 1/8)")
    parser.add_argument("--deaths", type=int, default=200, help="nodes that die, per condition")
    options = parser.parse_args()
    say(f"{machine()}; default policy and timings")
    results = [measure(w, options.hours * RARE.get(w, 1), options.deaths, Settings()) for w in CONDITIONS]
    columns = ("condition", "p50 s", "p99 s", "fixed s", "node h", "suspected", "false/h", "fixed false/h", "fewer")
    table("Detection and false convictions per node-hour", columns, [row(got) for got in results])
    last_line(conditions=results)


if __name__ == "__main__":
    main()
