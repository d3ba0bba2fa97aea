"""What can be done to an object, and what it would hit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import words
from tui.viewmodel.describe import field
from tui.viewmodel.fleet import device_mark, device_names
from tui.viewmodel.jobs import checkpoint, last_step, redo
from tui.viewmodel.state import DEVICE, DRAIN, INCIDENT, JOB, NODE, REGION, Now, State
from tui.viewmodel.table import Ref
from tui.viewmodel.text import Span, Spans, Tone, clean, span


@dataclass(frozen=True, slots=True)
class Verb:
    """``key`` chooses it in the dialogue. ``destructive``: jobs may be stopped or moved by it."""

    name: str
    key: str
    summary: str
    destructive: bool = False
    needs_reason: bool = True


CORDON = Verb("cordon", "c", "place nothing new here; what runs goes on")
UNCORDON = Verb("uncordon", "u", "take back your own cordon", needs_reason=False)
DRAIN_VERB = Verb("drain", "d", "move its jobs away, take it out (within budgets)", destructive=True)
CANCEL = Verb("cancel drain", "c", "stop taking the device out")
ACKNOWLEDGE = Verb("acknowledge", "a", "say that a human looks at it", needs_reason=False)
MIGRATE = Verb("migrate", "m", "checkpoint, stop and start it elsewhere", destructive=True)
STOP = Verb("stop", "s", "checkpoint and stop; it does not start again", destructive=True)

VERBS: dict[int, tuple[Verb, ...]] = {
    NODE: (CORDON, UNCORDON, DRAIN_VERB),
    DEVICE: (CORDON, UNCORDON, DRAIN_VERB),
    DRAIN: (CANCEL,),
    INCIDENT: (ACKNOWLEDGE,),
    JOB: (MIGRATE, STOP),
}


def verbs(ref: Ref | None) -> tuple[Verb, ...]:
    return VERBS.get(ref.kind, ()) if ref is not None else ()


def hits(state: State, ref: Ref, verb: Verb, now: Now) -> list[Spans]:
    """What ``verb`` on ``ref`` would touch: devices, jobs with what they would lose, budgets, room elsewhere."""
    devices, jobs = _touched(state, ref)
    item = state.get(ref.kind, ref.name)
    region = item.region if item is not None else ""
    out: list[Spans] = []
    if item is None:
        out.append((Span("it is not there any more", Tone.BAD),))
    if state.is_stale(region, now):
        out.append((Span("STALE: what you see is old; look again before you act", Tone.BAD),))
    if devices:
        names = ", ".join(clean(d.rpartition("/")[2], 20) for d in devices[:16])
        more = f" and {len(devices) - 16} more" if len(devices) > 16 else ""
        out.append(field("devices", (Span(f"{len(devices)}: ", Tone.STRONG), Span(names + more))))
    if ref.kind in (NODE, DEVICE, JOB):
        out.extend(_jobs(state, jobs, now))
    if verb is DRAIN_VERB or verb is CORDON:
        out.extend(_budgets(state, region, devices))
    if verb.destructive:
        out.extend(_room(state, len(devices)))
    return out


def _touched(state: State, ref: Ref) -> tuple[list[str], list[str]]:
    """(devices, jobs)."""
    if ref.kind == NODE:
        devices = device_names(state, ref.name)
    elif ref.kind == DEVICE:
        devices = [ref.name]
    elif ref.kind == JOB:
        job = state.get(JOB, ref.name)
        return (list(job.job.ownership.devices) if job is not None else []), [ref.name]
    else:
        return [], []
    told = (state.get(DEVICE, d) for d in devices)
    return devices, sorted({d.device.job for d in told if d is not None and d.device.job})


def _jobs(state: State, jobs: Iterable[str], now: Now) -> list[Spans]:
    out: list[Spans] = []
    for name in jobs:
        item = state.get(JOB, name)
        if item is None:
            out.append(field("job", (span(name, Tone.BUSY), Span("  nothing is known of it", Tone.UNKNOWN))))
            continue
        view = item.job
        out.append(
            field(
                "job",
                (
                    span(name, Tone.BUSY),
                    Span(f"  at step {last_step(view)}, last checkpoint ", Tone.PLAIN),
                    *checkpoint(view, state.now_ms(now)),
                    Span(f", {redo(view)} steps since", Tone.PLAIN),
                ),
            )
        )
    return out or [field("jobs", (Span("none runs here", Tone.GOOD),))]


def _budgets(state: State, region: str, devices: list[str]) -> list[Spans]:
    item = state.get(REGION, region)
    if item is None or not item.region_view.budgets:
        return [field("budgets", (Span("unknown", Tone.UNKNOWN),))]
    out: list[Spans] = []
    for budget in item.region_view.budgets:
        name = budget.name
        held = {hold.device for hold in budget.holds}
        after = len(held | {d for d in devices if _counts(state, d, name)})
        if after == len(held) and name != "region":
            continue
        tone = Tone.BAD if after > budget.limit else Tone.PLAIN
        text = f"{len(held)} of {budget.limit} out now, {after} after"
        note = "  over the limit: it will be refused" if after > budget.limit else ""
        out.append(field(f"budget {clean(name, 40)} ", (Span(text, tone), Span(note, Tone.BAD))))
    return out


def _counts(state: State, device: str, budget: str) -> bool:
    item = state.get(DEVICE, device)
    if item is None:
        return True
    kind, _, name = re.split(r"[@\[]", budget, maxsplit=1)[0].partition("-")
    record = item.device.record
    mine = {"rack": record.rack, "zone": record.zone, "vendor": record.vendor, "job": item.device.job}.get(kind)
    return mine is None or re.sub(r"[^a-z0-9._-]+", "-", mine.lower()) == name


def _room(state: State, wanted: int) -> list[Spans]:
    out: list[Spans] = []
    for item in sorted(state.values(REGION), key=_free, reverse=True)[:4]:
        record = item.region_view.record
        tone = Tone.PLAIN if record.largest_free >= max(1, wanted) else Tone.WARN
        text = f"{record.free} free, at most {record.largest_free} on one node"
        out.append(field("room", (span(f"{item.name}: ", Tone.STRONG), Span(text, tone))))
    return out


def _free(item: Object) -> int:
    return item.region_view.record.largest_free


def title(ref: Ref, state: State) -> Spans:
    """What is acted on, with its state."""
    item = state.get(ref.kind, ref.name)
    mark = device_mark(item) if ref.kind == DEVICE else None
    if ref.kind == NODE and item is not None and item.node.HasField("liveness"):
        mark = words.mark(words.NODE, item.node.liveness.state)
    return (span(ref.name, Tone.STRONG), *((Span("  "), *mark.spans()) if mark else ()))
