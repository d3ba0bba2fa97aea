"""Protects: what Slurm's commands answer is understood, or said to be unknown; never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from failover.executors.batch import BatchError, BatchUnavailable, Placed, Standing, Ticket
from failover.executors.commands import NoAnswer, Output
from failover.executors.slurm import Slurm
from gridkeeper.ids import JobId
from gridkeeper.records.jobs import JobSpec

SPEC = JobSpec(JobId("train"), "default", ("true",), (), "", 2, "", (), False, False, 1_000, 0)


class Answers:
    """``Commands`` that answer one thing. ``asked``: the command lines."""

    def __init__(self, output: Output | Exception) -> None:
        self.output = output
        self.asked: list[Sequence[str]] = []

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Output:
        self.asked.append(argv)
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


def answering(text: str = "", code: int = 0, error: str = "") -> Slurm:
    return Slurm(Answers(Output(code, text, error)), "n1")


async def test_each_name_stands_where_its_liveliest_job_does() -> None:
    text = (
        "7|CANCELLED|a|None\n9|PENDING|a|Resources\n8|COMPLETING|b|None\n6|FAILED|c|NonZeroExitCode\n5|PENDING|b|x|y\n"
    )
    assert await answering(text).find(["a", "b", "c", "d"]) == {
        "a": Placed(Standing.WAITING, "job 9 is PENDING (Resources)"),
        "b": Placed(Standing.RUNNING, "job 8 is COMPLETING"),
        "c": Placed(Standing.ENDED, "job 6 is FAILED"),
    }


async def test_a_state_that_is_not_known_is_not_taken_for_an_end() -> None:
    found = await answering("7|SOMETHING_NEW|a|None\n").find(["a"])
    assert found["a"].standing is Standing.RUNNING


async def test_an_answer_of_another_form_is_an_error() -> None:
    with pytest.raises(BatchError, match="not of the form"):
        await answering("JOBID STATE\n").find(["a"])


@pytest.mark.parametrize(
    "answer",
    [
        Output(1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        Output(1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        Output(127, "", "sbatch cannot be run: no such file"),
        Output(-9, "", ""),
        NoAnswer("sbatch has not ended within 15000 ms"),
    ],
)
async def test_without_an_answer_nothing_is_concluded(answer: Output | Exception) -> None:
    slurm = Slurm(Answers(answer), "n1")
    for ask in (slurm.find(["a"]), slurm.cancel("a"), slurm.submit(ticket())):
        with pytest.raises(BatchUnavailable):
            await ask


async def test_a_refusal_is_told_in_slurms_words() -> None:
    slurm = answering(code=1, error="sbatch: error: invalid partition specified: gpu")
    with pytest.raises(BatchError, match="invalid partition specified: gpu") as caught:
        await slurm.submit(ticket())
    assert not isinstance(caught.value, BatchUnavailable)


async def test_many_names_are_asked_for_in_bounded_command_lines() -> None:
    answers = Answers(Output(0, "", ""))
    await Slurm(answers, "n1").find([f"name-{number}" for number in range(250)])
    assert len(answers.asked) == 3
    asked = {name for argv in answers.asked for name in _option(argv, "--name").split(",")}
    assert asked == {f"name-{number}" for number in range(250)}


async def test_a_submission_says_where_what_and_how_much() -> None:
    answers = Answers(Output(0, "17\n", ""))
    await Slurm(answers, "n1", ("--gres=gpu:{devices}",)).submit(ticket())
    (argv,) = answers.asked
    assert _option(argv, "--nodelist") == "n1"
    assert _option(argv, "--job-name") == "t"
    assert _option(argv, "--gres") == "gpu:2"
    assert _option(argv, "--output") == "/a 100%%/log", "sbatch takes % for a pattern"
    assert _option(argv, "--wrap") == "exec guard --state-dir '/a b'"
    assert "--no-requeue" in argv


def ticket() -> Ticket:
    return Ticket("t", ("guard", "--state-dir", "/a b"), Path("/a 100%/log"), SPEC, ("gpu0", "gpu1"))


def _option(argv: Sequence[str], name: str) -> str:
    return next(word.removeprefix(f"{name}=") for word in argv if word.startswith(f"{name}="))
