"""Protects: the demo says "true" only of runs that are, whatever goes wrong in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gridkeeper.cli import demo_checks as checks
from gridkeeper.cli.demo_checks import Verdict
from gridkeeper.cli.local.runs import StepLine, read_steps, steps_of
from gridkeeper.cli.local.training import Baseline, Final, read_final
from gridkeeper.ids import Epoch

STEPS = 30
FINAL = Final(STEPS, (1.0 / STEPS).hex(), "a" * 64)
BASELINE = Baseline({step: (1.0 / step).hex() for step in range(1, STEPS + 1)}, FINAL)
ONE, TWO = Epoch(1, 1), Epoch(1, 2)


def run(epoch: Epoch, node: str, first: int, last: int, at: int = 0) -> tuple[StepLine, ...]:
    return tuple(
        StepLine(epoch, node, step, (1.0 / step).hex(), at + 100 * index)
        for index, step in enumerate(range(first, last + 1))
    )


MOVED = run(ONE, "east-1", 1, 12) + run(TWO, "west-1", 13, STEPS, 5_000)
CRASHED = run(ONE, "east-1", 1, 14) + run(TWO, "west-1", 11, STEPS, 5_000)


def false(verdicts: tuple[Verdict, ...]) -> list[str]:
    return [verdict.claim for verdict in verdicts if not verdict.true]


def test_a_clean_move_and_a_clean_recovery_pass() -> None:
    assert false(checks.planned_move(MOVED, FINAL, BASELINE)) == []
    assert false(checks.crash(CRASHED, FINAL, BASELINE, 10)) == []
    assert false(checks.crash(tuple(reversed(CRASHED[14:])) + CRASHED[:14], FINAL, BASELINE, 10)) != [], "order counts"


def _bend(lines: tuple[StepLine, ...], index: int) -> tuple[StepLine, ...]:
    bent = dataclasses.replace(lines[index], loss_hex=(0.5).hex() + "1")
    return (*lines[:index], bent, *lines[index + 1 :])


@pytest.mark.parametrize(
    ("lines", "final", "part"),
    [
        ((), FINAL, "two epochs"),
        (run(ONE, "east-1", 1, STEPS), FINAL, "two epochs"),
        (run(ONE, "east-1", 1, 12) + run(TWO, "east-1", 13, STEPS, 5_000), FINAL, "two nodes"),
        (CRASHED, FINAL, "exactly once"),
        (MOVED[:-1], FINAL, "exactly once"),
        (MOVED[:5] + MOVED[6:], FINAL, "exactly once"),
        (run(ONE, "east-1", 1, 12) + run(TWO, "west-1", 13, STEPS, 1_000), FINAL, "no step of the old epoch"),
        (_bend(MOVED, 3), FINAL, "each step's loss"),
        (_bend(MOVED, 20), FINAL, "each step's loss"),
        (MOVED, None, "final loss"),
        (MOVED, dataclasses.replace(FINAL, weights="b" * 64), "final loss"),
        (MOVED, dataclasses.replace(FINAL, loss_hex="0x1p-1"), "final loss"),
        (MOVED, dataclasses.replace(FINAL, steps=STEPS - 1), "final loss"),
    ],
)
def test_what_is_wrong_with_a_move_is_found(lines: tuple[StepLine, ...], final: Final | None, part: str) -> None:
    assert any(part in claim for claim in false(checks.planned_move(lines, final, BASELINE)))


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (run(ONE, "east-1", 1, 14) + run(TWO, "west-1", 4, STEPS, 5_000), "at most one checkpoint interval"),
        (run(ONE, "east-1", 1, 14) + run(TWO, "west-1", 16, STEPS, 5_000), "at most one checkpoint interval"),
        (run(ONE, "east-1", 1, 14) + run(TWO, "west-1", 16, STEPS, 5_000), "all done"),
        (run(ONE, "east-1", 1, 14) + run(TWO, "west-1", 11, STEPS, 1_300), "no step of the old epoch"),
    ],
)
def test_what_is_wrong_with_a_recovery_is_found(lines: tuple[StepLine, ...], part: str) -> None:
    assert any(part in claim for claim in false(checks.crash(lines, FINAL, BASELINE, 10)))


def test_progress_files_are_read_by_epoch_and_a_torn_line_does_not_count(tmp_path: Path) -> None:
    text = '{"step": %d, "loss_hex": "0x1p-1", "wall_ms": %d}\n'
    for node, epoch, steps in (("west-1", "1.10", (3, 4)), ("east-1", "1.9", (1, 2)), ("east-1", "1.11", (5,))):
        directory = tmp_path / node / "jobs" / "train" / epoch
        directory.mkdir(parents=True)
        (directory / "progress.jsonl").write_text("".join(text % (s, 1000 + s) for s in steps) + '{"step": 9')
    (tmp_path / "east-1" / "jobs" / "train" / "1.12").mkdir()
    lines = steps_of("train", {"east-1": tmp_path / "east-1", "west-1": tmp_path / "west-1"})
    assert [(str(line.epoch), line.node, line.step) for line in lines] == [
        ("1.9", "east-1", 1), ("1.9", "east-1", 2), ("1.10", "west-1", 3), ("1.10", "west-1", 4), ("1.11", "east-1", 5),
    ]  # fmt: skip
    broken = tmp_path / "broken"
    broken.write_text("no json\n")
    with pytest.raises(ValueError, match="Expecting value"):
        read_steps(broken, "east-1", ONE)


def test_the_final_line_is_read_from_output() -> None:
    line = f"done: 30 steps, final loss 0.5 (0x1p-1), weights {'c' * 64}"
    assert read_final(f"resumed after step 3\n{line}\n") == Final(30, "0x1p-1", "c" * 64)
    assert read_final("done: 30 steps, final loss 0.5") is None
    assert read_final("") is None
