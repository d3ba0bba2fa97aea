"""What must be true of a disturbed training run for the demo to have succeeded. Pure: lines in, verdicts out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from gridkeeper.cli.local.runs import StepLine
from gridkeeper.cli.local.training import Baseline, Final
from gridkeeper.ids import Epoch


@dataclass(frozen=True, slots=True)
class Verdict:
    """``claim``: what should hold. ``detail``: what was found."""

    claim: str
    true: bool
    detail: str


def by_epoch(lines: tuple[StepLine, ...]) -> dict[Epoch, list[StepLine]]:
    """In the order of the epochs."""
    found: dict[Epoch, list[StepLine]] = {}
    for line in sorted(lines, key=lambda line: line.epoch):
        found.setdefault(line.epoch, []).append(line)
    return found


def two_epochs(lines: tuple[StepLine, ...]) -> Verdict:
    epochs = by_epoch(lines)
    where = ", ".join(f"{epoch} on {run[0].node}" for epoch, run in epochs.items()) or "none"
    nodes = {run[0].node for run in epochs.values()}
    return Verdict("the job ran in two epochs, on two nodes", len(epochs) == 2 and len(nodes) == 2, where)


def each_step_once(lines: tuple[StepLine, ...], steps: int) -> Verdict:
    counts = Counter(line.step for line in lines)
    twice = sorted(step for step, count in counts.items() if count > 1)
    missing = sorted(set(range(1, steps + 1)) - counts.keys())
    beyond = sorted(counts.keys() - set(range(1, steps + 1)))
    detail = f"{len(counts)} steps, {len(twice)} done twice {twice[:5]}, {len(missing) + len(beyond)} missing or beyond"
    return Verdict(f"steps 1 to {steps} each done exactly once", not (twice or missing or beyond), detail)


def all_steps(lines: tuple[StepLine, ...], steps: int) -> Verdict:
    missing = sorted(set(range(1, steps + 1)) - {line.step for line in lines})
    return Verdict(f"steps 1 to {steps} all done", not missing, f"{len(missing)} missing {missing[:5]}")


def old_epoch_is_silent(lines: tuple[StepLine, ...]) -> Verdict:
    """No step of an epoch is logged after the first of the next one. One clock: all ran on this machine."""
    claim = "no step of the old epoch after the new epoch's first"
    epochs = list(by_epoch(lines).values())
    gaps = [min(line.wall_ms for line in new) - max(line.wall_ms for line in old) for old, new in pairwise(epochs)]
    if not gaps:
        return Verdict(claim, False, "there is only one epoch")
    return Verdict(claim, all(gap > 0 for gap in gaps), f"the new epoch began {min(gaps)} ms after the old one's last")


def little_redone(lines: tuple[StepLine, ...], interval: int) -> Verdict:
    claim = f"at most one checkpoint interval ({interval} steps) redone"
    epochs = list(by_epoch(lines).values())
    redone = [old[-1].step + 1 - new[0].step for old, new in pairwise(epochs)]
    if not redone:
        return Verdict(claim, False, "there is only one epoch")
    good = all(0 <= count <= interval for count in redone)
    return Verdict(claim, good, f"{', '.join(map(str, redone))} steps redone")


def same_losses(lines: tuple[StepLine, ...], baseline: Baseline) -> Verdict:
    wrong = [line for line in lines if baseline.losses.get(line.step) != line.loss_hex]
    detail = f"{len(lines)} losses compared, {len(wrong)} differ"
    if wrong:
        detail += f"; first at step {wrong[0].step} of epoch {wrong[0].epoch}"
    return Verdict("each step's loss equals the undisturbed run's, to the last bit", bool(lines) and not wrong, detail)


def same_end(final: Final | None, baseline: Baseline) -> Verdict:
    claim = "final loss and weights equal the undisturbed run's, to the last bit"
    if final is None:
        return Verdict(claim, False, "the job's output has no final loss")
    detail = f"loss {float.fromhex(final.loss_hex)!r} = {final.loss_hex}, weights {final.weights[:16]}…"
    if final != baseline.final:
        expected = baseline.final
        detail += f", but undisturbed {expected.loss_hex}, weights {expected.weights[:16]}…"
    return Verdict(claim, final == baseline.final, detail)


def planned_move(lines: tuple[StepLine, ...], final: Final | None, baseline: Baseline) -> tuple[Verdict, ...]:
    """Story 1."""
    steps = baseline.final.steps
    return (
        two_epochs(lines),
        each_step_once(lines, steps),
        old_epoch_is_silent(lines),
        same_losses(lines, baseline),
        same_end(final, baseline),
    )


def crash(lines: tuple[StepLine, ...], final: Final | None, baseline: Baseline, interval: int) -> tuple[Verdict, ...]:
    """Story 2."""
    return (
        two_epochs(lines),
        all_steps(lines, baseline.final.steps),
        old_epoch_is_silent(lines),
        little_redone(lines, interval),
        same_losses(lines, baseline),
        same_end(final, baseline),
    )
