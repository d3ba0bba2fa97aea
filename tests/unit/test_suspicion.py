"""How long a silence must be depends on the link, and an observer that is late convicts nobody."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from controlplane.domain.suspicion import Arrivals, LocalHealth
from controlplane.shell.session import AgentStream, Cursor
from controlplane.shell.silence import Beat, Links, SilenceWatch, heartbeat
from gridkeeper.ids import NodeId, Revision, SpoolId
from gridkeeper.policy.model import LivenessPolicy
from gridkeeper.timings import Timings

BEAT = 1_000
MOST = 10_000
PHI = 8.0
POLICY = LivenessPolicy()
N1 = NodeId("n1")


def learnt(gaps: list[int]) -> Arrivals:
    arrivals, now = Arrivals(BEAT), 0
    arrivals.beat(now, MOST)
    for gap in gaps:
        now += gap
        arrivals.beat(now, MOST)
    return arrivals


def test_a_steady_link_is_suspected_after_little_more_than_three_heartbeats() -> None:
    """Protects: fast detection where the link allows it."""
    assert 3 * BEAT <= learnt([BEAT] * 600).limit_ms(PHI, MOST) <= 3.5 * BEAT


def test_a_link_that_turned_bad_is_believed_within_a_few_gaps_and_trusted_again_slowly() -> None:
    """Protects: a burst of jitter convicts nobody a second time, and does not blind the detector for ever."""
    steady = [BEAT] * 600
    burst = learnt([*steady, 4_000, 500, 3_000, 600])
    assert burst.limit_ms(PHI, MOST) > 8_000
    after = learnt([*steady, 4_000, 500, 3_000, 600, *[BEAT] * 60])
    assert after.limit_ms(PHI, MOST) > 5_000
    assert learnt([*steady, 4_000, 500, *[BEAT] * 600]).limit_ms(PHI, MOST) < 3.5 * BEAT


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-50, 100_000), max_size=60), st.floats(0.5, 20), st.integers(1, 60_000))
def test_the_limit_stays_within_its_bounds_whatever_arrives(gaps: list[int], phi: float, most: int) -> None:
    """Protects: no sender can make its silence suspicious at once, or never."""
    limit = learnt(gaps).limit_ms(phi, most)
    assert 3 * BEAT <= limit <= max(most, 3 * BEAT)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20_000), max_size=40), st.floats(1, 12), st.floats(0, 30_000), st.floats(0, 30_000))
def test_suspicion_grows_with_silence(gaps: list[int], phi: float, a: float, b: float) -> None:
    """Protects: phi is monotone, and ``limit_ms`` is where it is reached."""
    arrivals = learnt(gaps)
    low, high = sorted((a, b))
    assert arrivals.phi(low) <= arrivals.phi(high)
    limit = arrivals.limit_ms(phi, 10**9)
    assert limit == 3 * BEAT or abs(arrivals.phi(limit) - phi) < 0.01


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=60))
def test_a_process_that_was_held_up_knows_it_before_its_own_timer_says_so(delays: list[int]) -> None:
    """Protects: at no moment does ``steady_since`` reach back beyond a delay of more than the limit."""
    health, now, held_up_ms = LocalHealth(0), 0, 0
    for late in delays:
        now += health.every_ms + late
        if late > POLICY.local_lag_ms:
            held_up_ms = now
            assert health.steady_since(now, POLICY.local_lag_ms) == now, "asked before the beat"
        health.beat(now, POLICY.local_lag_ms)
        assert health.steady_since(now, POLICY.local_lag_ms) == held_up_ms


def stream(clock: SimClock, arrivals: Arrivals) -> AgentStream:
    return AgentStream(
        N1, "s", None, (), Cursor(SpoolId("s"), 0, Revision(0)), clock.mono_ms(), Revision(0), arrivals,  # type: ignore[arg-type]
    )  # fmt: skip


class Observer:
    """A watch over one stream, on virtual time. ``hold_up``: the whole process stands still for so long."""

    def __init__(self, clock: SimClock) -> None:
        self.clock = clock
        self.health = LocalHealth(clock.mono_ms())
        self.beat = Beat(self.health, lambda: POLICY, clock)
        self.stream = stream(clock, Links(Timings()).opened(N1))
        self.watch = SilenceWatch({N1: self.stream}, self._mark, self.beat, lambda: POLICY, clock, Timings())
        self.marks: list[tuple[int, bool]] = []

    async def _mark(self, stream: AgentStream, is_open: bool) -> None:
        stream.marked_open = is_open
        self.marks.append((self.clock.mono_ms(), is_open))

    def hear(self) -> None:
        self.stream.heard_ms = self.clock.mono_ms()
        heartbeat(self.stream, self.clock.mono_ms(), self.beat.steady_ms(), MOST)


async def starved(seed: int) -> list[tuple[int, bool]]:
    """Heartbeats come each second; the process gets the processor for short moments between long delays, and reads
    what has come only after it has looked at its timers."""
    clock = SimClock(asyncio.get_running_loop())
    observer, dice = Observer(clock), random.Random(seed)
    for _ in range(400):
        observer.health.beat(clock.mono_ms(), POLICY.local_lag_ms)
        for seen, is_open in observer.watch.overdue():
            await observer._mark(seen, is_open)
        observer.hear()
        await clock.sleep(dice.choice((50, 100, 1_500, 4_000, 9_000, 30_000)))
    return observer.marks


def test_a_starved_observer_suspects_nobody() -> None:
    """Protects: Lifeguard's rule. Without it each delay of more than the limit would look like everybody's death."""
    for seed in range(20):
        assert run_virtual(starved(seed), limit_s=10**7) == []


async def silent_then_back() -> tuple[list[tuple[int, bool]], int]:
    clock = SimClock(asyncio.get_running_loop())
    observer = Observer(clock)
    running = [asyncio.ensure_future(observer.beat.run()), asyncio.ensure_future(observer.watch.run())]
    for _ in range(300):
        observer.hear()
        await clock.sleep(BEAT)
    heard = observer.stream.heard_ms
    await clock.sleep(8_000)
    observer.hear()
    await clock.sleep(500)
    for task in running:
        task.cancel()
    return [(at_ms - heard, is_open) for at_ms, is_open in observer.marks], heard


def test_an_observer_that_keeps_time_marks_a_silent_stream_and_marks_it_open_again() -> None:
    """Protects: the rule above does not cost the detection itself."""
    [(closed, first), (opened, second)], _ = run_virtual(silent_then_back(), limit_s=10_000)
    assert (first, second) == (False, True)
    assert 3 * BEAT <= closed <= 4.5 * BEAT
    assert opened <= 9_000 + 250


def test_a_link_is_remembered_over_a_reconnect_without_its_gap() -> None:
    """Protects: an agent that reconnects does not start as an unknown link, nor is the break taken for jitter."""
    links = Links(Timings())
    first = links.opened(N1)
    for number in range(600):
        first.beat(number * BEAT, MOST)
    limit = first.limit_ms(PHI, MOST)
    again = links.opened(N1)
    again.beat(10**6, MOST)
    again.beat(10**6 + BEAT, MOST)
    assert abs(again.limit_ms(PHI, MOST) - limit) <= 1
