"""What a policy would have done with a trace: drains, time out of service, interruptions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.backtest.trace import Drained, Fault, Trace
from gridkeeper.ids import DeviceId, node_of
from gridkeeper.records.common import Action


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one policy. Times in ms; ``out_ms``: device time out of service, ``degraded_ms``: in service but suspected of
    the worst. ``interruptions``: faults that end the job on a device in service; ``avoided``: those that fell on a
    device which was out by then. ``held_back``: drains that a budget or a breaker refused at first. ``replayed`` False:
    as recorded, where drains alone are told: what else is counted here is not known, and shown so."""

    policy: str
    devices: int
    span_ms: int
    drains: tuple[Drained, ...]
    out_ms: int
    degraded_ms: int
    faults: int
    interruptions: int
    avoided: int
    held_back: int
    incidents: int
    seconds: float = 0.0
    replayed: bool = True

    @property
    def acted(self) -> tuple[Drained, ...]:
        """Drains that took a device out."""
        return tuple(drain for drain in self.drains if drain.state == "admitted")

    @property
    def availability(self) -> tuple[int, int]:
        """In-service device time over all device time, as a ratio of integers (ms)."""
        total = self.devices * self.span_ms
        return total - self.out_ms, total


def as_recorded(trace: Trace) -> Outcome:
    """What the grid really did while it was recorded, as far as its drains tell."""
    out_ms = sum((d.back_ms or trace.until_ms) - d.admitted_ms for d in trace.recorded if d.admitted_ms)
    refused = sum(d.state == "refused" for d in trace.recorded)
    return Outcome(
        policy="as recorded", devices=len(trace.devices), span_ms=trace.until_ms - trace.from_ms,
        drains=tuple(sorted(trace.recorded, key=lambda d: (d.admitted_ms or d.wanted_ms, d.id))), out_ms=out_ms,
        degraded_ms=0, faults=len(trace.faults), interruptions=0, avoided=0, held_back=refused, incidents=0,
        replayed=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scored:
    """Against labels. ``false_drains``: rest only on faults labelled false. ``missed``: positions of faults labelled
    real after which their device (of a fault on the node: any device of it) was not drained within ``within_ms``.
    Lemons: labelled devices that were, or were not, drained at least once; ``marked``: those of the found that were to
    be replaced."""

    labelled_faults: int
    real_faults: int
    judged_drains: int
    false_drains: tuple[Drained, ...]
    missed: tuple[int, ...]
    within_ms: int
    lemons_found: Mapping[DeviceId, int]
    lemons_missed: tuple[DeviceId, ...]
    marked: tuple[DeviceId, ...]
    good_drained: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What ``new`` does and ``old`` does not, by device and the first fault that a drain rests on. ``moved``: pairs of
    drains for the same fault that begin at different times or ask for different actions."""

    only_new: tuple[Drained, ...]
    only_old: tuple[Drained, ...]
    moved: tuple[tuple[Drained, Drained], ...]
    same: int


def difference(old: Outcome, new: Outcome) -> Difference:
    """Drains of both, matched by what they rest on."""
    before = {_cause(drain): drain for drain in old.acted}
    after = {_cause(drain): drain for drain in new.acted}
    both = [(before[cause], after[cause]) for cause in after if cause in before]
    moved = tuple((a, b) for a, b in both if a.admitted_ms != b.admitted_ms or a.action is not b.action)
    return Difference(
        tuple(drain for cause, drain in after.items() if cause not in before),
        tuple(drain for cause, drain in before.items() if cause not in after),
        moved,
        len(both) - len(moved),
    )


def _cause(drain: Drained) -> tuple[DeviceId, int]:
    return drain.device, drain.faults[0] if drain.faults else drain.admitted_ms


def score(
    outcome: Outcome, faults: tuple[Fault, ...], lemons: Mapping[DeviceId, bool], within_ms: int
) -> Scored | None:
    """None: the trace has no labels at all."""
    labelled = [i for i, fault in enumerate(faults) if fault.truth]
    if not labelled and not lemons:
        return None
    judged, false = 0, list[Drained]()
    for drain in outcome.acted:
        truths = {faults[i].truth.value for i in drain.faults} - {""}
        judged += bool(truths)
        if truths == {"false"}:
            false.append(drain)
    first: dict[DeviceId, int] = {}
    begun: dict[str, list[Drained]] = {}  # by device, and by its node
    for drain in outcome.acted:
        first.setdefault(drain.device, drain.admitted_ms)
        for subject in (drain.device, node_of(drain.device)):
            begun.setdefault(subject, []).append(drain)
    missed = tuple(
        i
        for i in labelled
        if faults[i].truth.value == "real"
        and not any(_covers(drain, faults[i], within_ms) for drain in begun.get(faults[i].device or faults[i].node, ()))
    )
    bad = sorted(device for device, lemon in lemons.items() if lemon)
    replaced = {drain.device for drain in outcome.acted if drain.action is Action.REPLACE}
    return Scored(
        labelled_faults=len(labelled),
        real_faults=sum(faults[i].truth.value == "real" for i in labelled),
        judged_drains=judged,
        false_drains=tuple(false),
        missed=missed,
        within_ms=within_ms,
        lemons_found={device: first[device] for device in bad if device in first},
        lemons_missed=tuple(device for device in bad if device not in first),
        marked=tuple(device for device in bad if device in replaced),
        good_drained=tuple(sorted(d for d, lemon in lemons.items() if not lemon and d in first)),
    )


def _covers(drain: Drained, fault: Fault, within_ms: int) -> bool:
    """The device was out when the fault came, or was taken out soon after."""
    return drain.admitted_ms <= fault.at_ms + within_ms and (not drain.back_ms or drain.back_ms >= fault.at_ms)
