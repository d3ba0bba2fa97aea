"""How long a silence is worth a question: per node by what its link is like, and never by an observer that is itself
late. Pure: time comes in, nothing is read, nothing waits.

*The link* (phi accrual, Hayashibara et al. 2004): the suspicion of a silence of t is phi = -log10 of the chance that a
heartbeat of a living node is still under way after t. The distribution that is learnt per link is an exponential tail
after the mean gap, as wide as the gaps of this link scatter: unlike the normal distribution of the original it does not
call a gap impossible that lost packets make merely rare, since retransmissions back off exponentially. A worse link is
believed at once, a better one slowly.

*The observer* (Lifeguard, Dadgar et al. 2018): whoever processes late hears late. A process whose own timers come late
convicts nobody, and what it timed so far counts for nothing: every silence is timed anew from the end of the delay.
"""

from __future__ import annotations

import math

LN10 = math.log(10.0)
FLOOR_BEATS = 3
"""No silence of less than so many heartbeats is suspicious, however steady the link was."""
LEAST_SCATTER = 1 / 8
"""Of a heartbeat: no link is believed to be steadier. With phi = 8 this alone allows a gap of 3.3 heartbeats."""
FIRST_SCATTER = 1 / 4
"""Of a heartbeat: what is assumed of a link that nothing is known of."""
WORSE, BETTER = 1 / 16, 1 / 64
"""Weights of one more gap that scatters more, or less, than the link was believed to."""


class Arrivals:
    """What is known of one link, in three numbers. ``heartbeat_ms``: what the sender was told to keep to."""

    __slots__ = ("_heartbeat", "_last", "_mean", "_variance")

    def __init__(self, heartbeat_ms: int) -> None:
        self._heartbeat = float(heartbeat_ms)
        self._mean = float(heartbeat_ms)
        self._variance = (FIRST_SCATTER * heartbeat_ms) ** 2
        self._last: int | None = None

    def beat(self, at_ms: int, most_ms: int) -> None:
        """A heartbeat arrived. ``most_ms``: a longer gap teaches no more than this."""
        if self._last is not None:
            gap = float(min(max(0, at_ms - self._last), most_ms))
            squared = (gap - self._mean) ** 2
            self._variance += (WORSE if squared > self._variance else BETTER) * (squared - self._variance)
            self._mean += BETTER * (gap - self._mean)
        self._last = at_ms

    def forget_last(self) -> None:
        """The next gap says nothing of the link: the observer was late, or the stream is new."""
        self._last = None

    @property
    def scatter_ms(self) -> float:
        """Standard deviation of the gaps, never below ``LEAST_SCATTER`` heartbeats."""
        return max(LEAST_SCATTER * self._heartbeat, math.sqrt(self._variance))

    def phi(self, silent_ms: float) -> float:
        """Suspicion of a silence of ``silent_ms``."""
        return max(0.0, silent_ms - self._mean) / (LN10 * self.scatter_ms)

    def limit_ms(self, phi: float, most_ms: int) -> int:
        """The silence from which the suspicion is ``phi``, within [3 heartbeats, ``most_ms``]."""
        least = FLOOR_BEATS * self._heartbeat
        wanted = self._mean + phi * LN10 * self.scatter_ms
        return round(min(max(wanted, least), max(float(most_ms), least)))


class LocalHealth:
    """Whether this process keeps its own time. It beats each ``every_ms``; a beat that comes more than ``lag_ms`` late
    (a starved event loop, a pause of the garbage collector, a stopped process or machine) starts a new time."""

    def __init__(self, now_ms: int, every_ms: int = 100) -> None:
        self.every_ms = every_ms
        self.delays = 0
        self.worst_ms = 0
        self._beat_ms = now_ms
        self._steady_ms = now_ms

    def beat(self, now_ms: int, lag_ms: int) -> int:
        """The beat's own timer fired. Returns by how much too late, 0 if that is within ``lag_ms``."""
        late_ms = now_ms - self._beat_ms - self.every_ms
        self._beat_ms = now_ms
        if late_ms <= lag_ms:
            return 0
        self.delays += 1
        self.worst_ms = max(self.worst_ms, late_ms)
        self._steady_ms = now_ms
        return late_ms

    def steady_since(self, now_ms: int, lag_ms: int) -> int:
        """Since when this process has kept time. ``now_ms``: it does not at this moment; whoever asks may have been
        woken before the beat that will say so."""
        return now_ms if now_ms - self._beat_ms > self.every_ms + lag_ms else self._steady_ms
