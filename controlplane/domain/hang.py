"""Hung jobs: a job that has made steps and makes none any more, while its devices spin or idle; and its odd one out.
Pure but for its memory of the pauses that each run recovered from.

The witness is the job's own progress line. A run is judged from its second step on (before, its usual step time is not
known: it may be compiling), while its agent reports it and while no checkpoint of it is being stored. A checkpoint that
was stored or asked for excuses what came before it, and a run is given half as long again as the longest pause that it
came back from by itself: it may pause for each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from controlplane.domain.peers import MAD_TO_SIGMA, RESOLUTION
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId
from gridkeeper.policy.model import PeerPolicy

PAUSE_FACTOR = 1.5
SPINNING = 50.0
IDLE = 10.0
"""Utilisation in percent from which a device spins, and below which it idles."""

ODD_METRICS: tuple[tuple[str, str, str, float], ...] = (
    ("utilisation", "utilisation", "%", 20.0),
    ("power", "power", "W", 50.0),
    ("clock_sm", "SM clock", "MHz", 200.0),
)
"""(column, words, unit, least difference): by what the odd one out of a hung job is known, the clearest first."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """One run of a job as its agent reports it now. ``last_age_ms``: since its newest step; ``span_ms``: from its first
    step to that one. ``mark``: changes when a checkpoint was stored or asked for."""

    job: JobId
    epoch: Epoch
    node: NodeId
    devices: tuple[DeviceId, ...]
    running: bool
    storing: bool
    first_step: int
    last_step: int
    span_ms: int
    last_age_ms: int
    mark: tuple[int, int]


@dataclass(slots=True)
class _Memory:
    epoch: Epoch
    step: int
    step_ms: int  # when that step was made
    mark: tuple[int, int]
    excused_ms: int  # the newest checkpoint
    pause_ms: int = 0  # the longest one that it came back from


@dataclass(frozen=True, slots=True)
class Hang:
    """``quiet_ms``: since its last step or checkpoint. ``limit_ms``: that it was given."""

    pulse: Pulse
    quiet_ms: int
    limit_ms: int
    step_ms: float


@dataclass(slots=True)
class HangWatch:
    """``look`` with every report; the memory is of the runs that were in the last one."""

    _runs: dict[JobId, _Memory] = field(default_factory=dict)

    def look(self, pulses: Sequence[Pulse], policy: PeerPolicy, now_ms: int) -> tuple[dict[JobId, Hang], set[JobId]]:
        """(jobs that hang, jobs that do not); of those in neither nothing can be said."""
        hung: dict[JobId, Hang] = {}
        well: set[JobId] = set()
        kept: dict[JobId, _Memory] = {}
        for pulse in pulses:
            memory = kept[pulse.job] = self._remember(pulse, now_ms)
            if not pulse.running:
                well.add(pulse.job)  # it is not running: whatever it is, it does not hang
                continue
            if pulse.last_step <= pulse.first_step or pulse.span_ms <= 0 or pulse.storing:
                continue
            step_ms = pulse.span_ms / (pulse.last_step - pulse.first_step)
            quiet_ms = now_ms - max(memory.step_ms, memory.excused_ms)
            limit_ms = round(max(policy.hang_ms, policy.hang_steps * step_ms, PAUSE_FACTOR * memory.pause_ms))
            if quiet_ms >= limit_ms:
                hung[pulse.job] = Hang(pulse, quiet_ms, limit_ms, step_ms)
            else:
                well.add(pulse.job)
        self._runs = kept
        return hung, well

    def _remember(self, pulse: Pulse, now_ms: int) -> _Memory:
        made_ms = now_ms - pulse.last_age_ms
        memory = self._runs.get(pulse.job)
        if memory is None or memory.epoch != pulse.epoch:
            return _Memory(pulse.epoch, pulse.last_step, made_ms, pulse.mark, made_ms)
        if pulse.last_step != memory.step:
            if memory.step >= pulse.first_step >= 0:
                memory.pause_ms = max(memory.pause_ms, made_ms - memory.step_ms)
            memory.step, memory.step_ms = pulse.last_step, made_ms
        if pulse.mark != memory.mark:
            memory.mark, memory.excused_ms = pulse.mark, now_ms
        return memory


@dataclass(frozen=True, slots=True)
class OddOne:
    """The device that differs from the rest of a hung job. ``device`` "": none does, or it cannot be said."""

    device: DeviceId
    words: str
    evidence: tuple[str, ...]


def odd_one_out(devices: Sequence[DeviceId], values: Mapping[str, Sequence[float]], policy: PeerPolicy) -> OddOne:
    """``values``: column -> one value per device, NaN where it is not known. A device is the odd one by the first
    metric in which it alone lies more than ``sigmas`` robust standard deviations *and* the metric's least difference
    from the median of the others, in either direction."""
    known = np.asarray(values["utilisation"], np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return OddOne(DeviceId(""), "nothing is known of its devices", ())
    level = float(np.median(known))
    state = "spin" if level >= SPINNING else "idle" if level < IDLE else "work a little"
    together = f"its devices {state} (median utilisation {level:.0f} %)"
    for column, words, unit, least in ODD_METRICS:
        found = _odd(np.asarray(values[column], np.float64), least, policy)
        if found is not None:
            place, value, median, others = found
            device = devices[place]
            said = (
                f"{together}; the odd one out is {device}: {words} {value:,.0f} {unit}, the {others} others have "
                f"median {median:,.0f}"
            )
            return OddOne(device, said, (f"{device}:{column}={value:g}", f"median={median:g}", f"others={others}"))
    return OddOne(DeviceId(""), f"{together}, none unlike the rest", (f"utilisation median={level:g}",))


def _odd(values: np.ndarray, least: float, policy: PeerPolicy) -> tuple[int, float, float, int] | None:
    """(place, value, median of the others, how many) of the only one that differs."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 3:
        return None  # of two, either may be the odd one
    found: list[tuple[int, float, float, int]] = []
    for place in known.tolist():
        others = values[known[known != place]]
        median = float(np.median(others))
        mad = float(np.median(np.abs(others - median)))
        away = abs(float(values[place]) - median)
        if away >= least and away > policy.sigmas * max(MAD_TO_SIGMA * mad, RESOLUTION * abs(median)):
            found.append((place, float(values[place]), median, len(others)))
    return found[0] if len(found) == 1 else None


def sentence(hang: Hang, odd: OddOne) -> str:
    """What is told of a job that hangs."""
    pulse = hang.pulse
    return (
        f"job {pulse.job} hangs on {pulse.node}: no step since {pulse.last_step}, {hang.quiet_ms / 1000:.0f} s ago "
        f"(usual step {hang.step_ms / 1000:.2f} s, given {hang.limit_ms / 1000:.0f} s); {odd.words}"
    )
