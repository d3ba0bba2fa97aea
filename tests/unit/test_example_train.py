"""Protects: the example job keeps its side of the contract, and resumes exactly, whatever interrupted it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gridkeeper.examples import train

STEPS = 45
EVERY = 10
COMMON = ("--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--hidden", "24", "--batch", "64", "--seed", "7")


class Run:
    """One start of the job, as an agent would start it."""

    def __init__(self, root: Path, epoch: str, resume: Path | None = None, step_ms: int = 10, *more: str) -> None:
        self.checkpoints = root / epoch
        self.checkpoints.mkdir(parents=True)
        self.progress = root / f"{epoch}.progress"
        environment = os.environ | {
            "GRIDKEEPER_CHECKPOINT_DIR": str(self.checkpoints),
            "GRIDKEEPER_RESUME_FROM": str(resume or ""),
            "GRIDKEEPER_PROGRESS": str(self.progress),
            "GRIDKEEPER_EPOCH": epoch,
        }
        command = [sys.executable, train.__file__, *COMMON, "--step-ms", str(step_ms), *more]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def lines(self) -> list[dict[str, Any]]:
        if not self.progress.exists():
            return []
        return [json.loads(line) for line in self.progress.read_text().splitlines()]

    def saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*"))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "the job did not get there"
            time.sleep(0.005)

    def end(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], str]:
    """(loss by step, the last line of the output)."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), "1.1", step_ms=0)
    code, output = run.end()
    assert code == 0, output
    assert [line["step"] for line in run.lines()] == list(range(1, STEPS + 1))
    assert run.saved() == [10, 20, 30, 40, 45]
    assert list(run.checkpoints.glob(".*")) == []
    return {line["step"]: line["loss_hex"] for line in run.lines()}, output.splitlines()[-1]


def test_progress_lines_say_what_dashboards_need(tmp_path: Path) -> None:
    run = Run(tmp_path, "1.3", step_ms=0)
    assert run.end()[0] == 0
    for line in run.lines():
        assert float.fromhex(line["loss_hex"]) == line["loss"]
        assert line["epoch"] == "1.3"
        assert line["step_time_ms"] >= 0
        assert line["samples"] == 64


def test_asked_to_stop_it_saves_and_repeats_nothing(tmp_path: Path, undisturbed: tuple[dict[int, str], str]) -> None:
    losses, last_line = undisturbed
    seen: list[int] = []
    resume = None
    for epoch, until in (("1.1", 7), ("1.2", 22), ("1.3", 10_000)):
        run = Run(tmp_path, epoch, resume)
        if until <= STEPS:
            run.wait_for(lambda run=run, until=until: bool(run.lines()) and run.lines()[-1]["step"] >= until)
            run.process.send_signal(signal.SIGTERM)
        code, output = run.end()
        assert code == 0, output
        for line in run.lines():
            assert line["loss_hex"] == losses[line["step"]]
        seen += [line["step"] for line in run.lines()]
        newest = run.saved()[-1]
        assert newest == seen[-1], "the last checkpoint holds the last step"
        resume = run.checkpoints / f"step-{newest}"
    assert seen == list(range(1, STEPS + 1))
    assert output.splitlines()[-1] == last_line


def test_killed_it_goes_on_from_the_last_checkpoint(tmp_path: Path, undisturbed: tuple[dict[int, str], str]) -> None:
    losses, last_line = undisturbed
    first = Run(tmp_path, "1.1")
    first.wait_for(lambda: bool(first.lines()) and first.lines()[-1]["step"] >= 2 * EVERY + 3)
    first.process.kill()
    first.end()
    newest = first.saved()[-1]
    second = Run(tmp_path, "1.2", first.checkpoints / f"step-{newest}", 0)
    code, output = second.end()
    assert code == 0, output
    assert [line["step"] for line in second.lines()] == list(range(newest + 1, STEPS + 1))
    assert all(line["loss_hex"] == losses[line["step"]] for line in second.lines())
    assert output.splitlines()[-1] == last_line
    third = Run(tmp_path, "1.3", second.checkpoints / f"step-{STEPS}", 0)
    assert third.end()[1].splitlines()[-1] == last_line, "resumed when all is done, it says the same again"


def test_sigusr1_asks_for_a_checkpoint_and_training_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "1.1", None, 30)
    run.wait_for(lambda: len(run.lines()) >= 1)
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for(lambda: len(run.saved()) >= 1)
    assert run.saved()[0] < EVERY
    run.wait_for(lambda: run.lines()[-1]["step"] > run.saved()[0])
    run.process.kill()
    run.end()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    first = Run(tmp_path, "1.1", step_ms=0)
    assert first.end()[0] == 0
    for resume, more, part in (
        (first.checkpoints / "step-10", ("--seed", "8"), "--seed: 8 differs from 7"),
        (first.checkpoints / "step-11", (), "No such file"),
    ):
        run = Run(tmp_path, f"1.{len(more) + 2}", resume, 0, *more)
        code, output = run.end()
        assert code == 2
        assert part in output
        assert run.lines() == []


def test_bad_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in ((["--steps", "0"], "--steps: 0"), (["--step-ms", "-1"], "must not be negative")):
        with pytest.raises(SystemExit) as ended:
            train.main(arguments)
        assert ended.value.code == 2
        assert part in capsys.readouterr().err
