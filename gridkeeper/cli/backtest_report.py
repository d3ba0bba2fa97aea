"""What ``gridkeeper backtest`` prints: text and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

from controlplane.backtest.outcome import Difference, Outcome, Scored
from controlplane.backtest.trace import Drained, Trace
from gridkeeper.cli.table import plain_lines
from gridkeeper.cli.text import moment, span

UNKNOWN = "?"
"""For what a recording does not tell."""


def percent(ratio: Fraction, digits: int = 4) -> str:
    """Cut off, not rounded: 99.99996 % is not shown as 100 %."""
    scaled = int(ratio * 100 * 10**digits)
    return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d} %"


def text(
    trace: Trace,
    new: Outcome,
    old: Outcome | None,
    difference: Difference | None,
    scored: Scored | None,
    old_scored: Scored | None,
    assumptions: Iterable[str],
    rows: int,
) -> Iterator[str]:
    """Line by line; ``rows``: of drains and differences at most, 0: all."""
    yield (
        f"{len(trace.faults)} faults on {len(trace.devices)} devices, {moment(trace.from_ms)} to "
        f"{moment(trace.until_ms)} ({span(new.span_ms)}), replayed in {new.seconds:.1f} s"
    )
    yield ""
    yield from _summary(new, old)
    yield from _labels(scored, old_scored)
    yield from _rules(new)
    if difference is not None and old is not None:
        yield from _difference(difference, old.policy, new.policy, rows)
    yield from _drains(new, rows)
    yield ""
    for note in (*assumptions, *trace.notes):
        yield f"note: {note}"


def _summary(new: Outcome, old: Outcome | None) -> Iterator[str]:
    columns = [new] if old is None else [old, new]
    titles = ["", *(outcome.policy for outcome in columns)]
    facts: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
        ("devices drained", lambda o: str(len(o.acted))),
        ("of which to be replaced", lambda o: str(sum(d.action.value == "replace" for d in o.acted))),
        ("would be drained (shadow)", lambda o: str(sum(d.state == "shadow" for d in o.drains))),
        ("held back by a budget or breaker at first", lambda o: str(o.held_back)),
        ("never admitted", lambda o: str(sum(d.state == "refused" for d in o.drains))),
        ("incidents", lambda o: str(o.incidents) if o.replayed else UNKNOWN),
        ("job-ending faults in service", lambda o: str(o.interruptions) if o.replayed else UNKNOWN),
        ("job-ending faults avoided", lambda o: str(o.avoided) if o.replayed else UNKNOWN),
        ("availability of devices", lambda o: percent(Fraction(*o.availability))),
        ("device time out of service", lambda o: span(o.out_ms)),
        ("device time degraded", lambda o: span(o.degraded_ms) if o.replayed else UNKNOWN),
    )
    yield from plain_lines(titles, [[name, *(value(outcome) for outcome in columns)] for name, value in facts])


def _labels(scored: Scored | None, old: Scored | None) -> Iterator[str]:
    if scored is None:
        return
    yield ""
    columns = [scored] if old is None else [old, scored]
    facts: list[list[str]] = []
    if scored.labelled_faults:
        facts.append(["false drains", *(_ratio(len(s.false_drains), s.judged_drains) for s in columns)])
        facts.append(["real faults missed", *(_ratio(len(s.missed), s.real_faults) for s in columns)])
    lemons = len(scored.lemons_found) + len(scored.lemons_missed)
    if lemons:
        facts.append(["lemons found", *(_ratio(len(s.lemons_found), lemons) for s in columns)])
        facts.append(["of these to be replaced", *(str(len(s.marked)) for s in columns)])
    facts.append(["good devices drained", *(str(len(s.good_drained)) for s in columns)])
    yield from plain_lines(["against labels", *("" for _ in columns)], facts)
    if scored.lemons_missed:
        yield f"lemons missed: {', '.join(scored.lemons_missed[:20])}"


def _ratio(part: int, whole: int) -> str:
    return f"{part} of {whole} ({percent(Fraction(part, whole), 1)})" if whole else f"{part} of 0"


def _rules(new: Outcome) -> Iterator[str]:
    counted = Counter((drain.rule, drain.action.value, drain.state) for drain in new.drains)
    if counted:
        yield ""
        ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        yield from plain_lines(("RULE", "ACTION", "STATE", "DRAINS"), [(*key, str(n)) for key, n in ordered])


def _difference(difference: Difference, old: str, new: str, rows: int) -> Iterator[str]:
    yield ""
    yield (
        f"{difference.same} drains are the same, {len(difference.moved)} at another time or with another action, "
        f"{len(difference.only_new)} only under {new}, {len(difference.only_old)} only under {old}"
    )
    listed = [(f"only {new}", drain) for drain in difference.only_new]
    listed += [(f"only {old}", drain) for drain in difference.only_old]
    listed += [("moved", after) for _, after in difference.moved]
    if listed:
        listed.sort(key=lambda item: (item[1].admitted_ms, item[1].id))
        shown = listed[:rows] if rows else listed
        yield from plain_lines(("WHERE", *_TITLES), [(where, *_cells(drain)) for where, drain in shown])
        if len(listed) > len(shown):
            yield f"… and {len(listed) - len(shown)} more (--rows 0 shows all)"


_TITLES = ("AT", "DEVICE", "STATE", "ACTION", "OUT FOR", "WHY")


def _cells(drain: Drained) -> tuple[str, ...]:
    out = span(drain.back_ms - drain.admitted_ms) if drain.back_ms else ("still out" if drain.admitted_ms else "-")
    return (
        moment(drain.admitted_ms or drain.wanted_ms),
        drain.device,
        drain.state,
        drain.action.value,
        out,
        drain.reason,
    )


def _drains(new: Outcome, rows: int) -> Iterator[str]:
    if not new.drains:
        return
    yield ""
    shown = new.drains[:rows] if rows else new.drains
    yield from plain_lines(_TITLES, [_cells(drain) for drain in shown])
    if len(new.drains) > len(shown):
        yield f"… and {len(new.drains) - len(shown)} more (--rows 0 shows all)"


def document(
    trace: Trace,
    new: Outcome,
    old: Outcome | None,
    difference: Difference | None,
    scored: Scored | None,
    assumptions: Iterable[str],
) -> dict[str, Any]:
    """The same as JSON; ratios are texts ``a/b``."""
    found: dict[str, Any] = {
        "kind": "Backtest",
        "trace": {
            "devices": len(trace.devices), "faults": len(trace.faults), "from_ms": trace.from_ms,
            "until_ms": trace.until_ms,
        },
        "outcome": _outcome(new),
        "notes": [*assumptions, *trace.notes],
    }  # fmt: skip
    if old is not None and difference is not None:
        found["against"] = _outcome(old)
        found["difference"] = {
            "same": difference.same,
            "moved": [[_drain(a), _drain(b)] for a, b in difference.moved],
            "only_new": [_drain(d) for d in difference.only_new],
            "only_old": [_drain(d) for d in difference.only_old],
        }
    if scored is not None:
        found["labels"] = {
            "labelled_faults": scored.labelled_faults,
            "real_faults": scored.real_faults,
            "judged_drains": scored.judged_drains,
            "false_drains": [d.id for d in scored.false_drains],
            "missed_faults": list(scored.missed),
            "within_ms": scored.within_ms,
            "lemons_found": dict(scored.lemons_found),
            "lemons_missed": list(scored.lemons_missed),
            "lemons_marked": list(scored.marked),
            "good_drained": list(scored.good_drained),
        }
    return found


def _outcome(outcome: Outcome) -> dict[str, Any]:
    """What is not known is null."""

    def known(figure: int) -> int | None:
        return figure if outcome.replayed else None

    up, total = outcome.availability
    return {
        "policy": outcome.policy,
        "seconds": round(outcome.seconds, 3),
        "drains": [_drain(drain) for drain in outcome.drains],
        "held_back": outcome.held_back,
        "incidents": known(outcome.incidents),
        "interruptions": known(outcome.interruptions),
        "avoided": known(outcome.avoided),
        "out_ms": outcome.out_ms,
        "degraded_ms": known(outcome.degraded_ms),
        "availability": f"{up}/{total}",
    }


def _drain(drain: Drained) -> dict[str, Any]:
    return {
        "id": drain.id, "device": drain.device, "state": drain.state, "wanted_ms": drain.wanted_ms,
        "admitted_ms": drain.admitted_ms, "back_ms": drain.back_ms, "action": drain.action.value, "rule": drain.rule,
        "reason": drain.reason, "faults": list(drain.faults),
    }  # fmt: skip
