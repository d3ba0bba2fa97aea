"""The whole system in one thread on virtual time: one seed is one history, and whatever the seed, the stories come true
and the safety rules hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.simulate.__main__ import main
from chaos.simulate.history import Acked, Commit, Gone, Injected, Renewed, Started, Stepped, Stored
from chaos.simulate.library import STORIES, run
from chaos.simulate.play import Outcome
from chaos.simulate.regions import REGIONS
from chaos.simulate.silences import SILENCES

SEEDS = dict.fromkeys(STORIES, range(1, 6)) | {
    "view-lost": range(1, 4),
    "leader-frozen": range(1, 3),
    "storm": range(1, 6),
    "shared-budget": range(1, 4),
}
SEEDS |= dict.fromkeys(SILENCES, range(1, 3)) | dict.fromkeys(REGIONS, range(1, 2)) | {"region-killed": range(1, 6)}
ROUGH = dict.fromkeys(STORIES, (1, 2)) | dict.fromkeys(REGIONS, (1,))
ROOT = Path(__file__).parents[2]
DIGESTS = """
from chaos.simulate.library import STORIES, run
for name in ("planned-move", "crash", "storm"):
    print(name, run(name, 1).history.digest())
"""


def faults(outcome: Outcome) -> str:
    """What was wrong, and the command that shows it."""
    wrong = [f"{claim.text}: {claim.detail}" for claim in outcome.false] + [str(v) for v in outcome.violations]
    rough = " --rough" if outcome.rough else ""
    again = f"python -m chaos.simulate --story {outcome.story} --seed {outcome.seed}{rough}"
    return "\n".join([*wrong, again]) if wrong else ""


@pytest.mark.parametrize("name", STORIES)
def test_each_story_comes_true_and_breaks_no_rule(name: str) -> None:
    wrong = [text for seed in SEEDS[name] if (text := faults(run(name, seed)))]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("name", STORIES)
def test_rules_hold_and_the_job_ends_as_it_should_when_stores_fail_now_and_then(name: str) -> None:
    wrong = [text for seed in ROUGH[name] if (text := faults(run(name, seed, rough=True)))]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("name", ["planned-move", "crash", "region-by-promises"])
def test_one_seed_is_one_history(name: str) -> None:
    first, again, other = run(name, 1), run(name, 1), run(name, 2)
    assert first.history.entries == again.history.entries
    assert first.history.digest() == again.history.digest()
    assert first.history.digest() != other.history.digest()


def test_rough_weather_too_is_one_history_per_seed() -> None:
    assert run("crash", 5, rough=True).history.digest() == run("crash", 5, rough=True).history.digest()


def test_the_history_does_not_depend_on_the_hash_seed() -> None:
    """Sets of strings iterate differently in the two processes."""
    printed = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4242")
    ]
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) == 3


def test_a_history_holds_every_kind_of_thing_that_invariants_look_at() -> None:
    """A recorder that was not wired would let every checker pass."""
    kinds = {type(entry) for entry in run("crash", 1).history}
    assert kinds == {Commit, Started, Stepped, Gone, Renewed, Acked, Stored, Injected}


def test_every_step_and_every_revision_is_recorded() -> None:
    history = run("planned-move", 1).history
    for store in ("global", "east", "west"):
        revisions = [entry.revision for entry in history if isinstance(entry, Commit) and entry.store == store]
        assert revisions == list(range(2, len(revisions) + 2))
    times = [entry.at_ms for entry in history]
    assert times == sorted(times)


def test_the_command_tells_the_story_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--story", "crash", "--seed", "1"]) == 0
    told = capsys.readouterr().out
    for word in (
        "FAULT    XID 48 on",
        "drain.plan: drain",
        "fence.bump_epoch: train is owned by",
        "crash seed 1 holds",
    ):
        assert word in told
    assert main(["--story", "node-lost", "--seeds", "1-2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_command_names_what_is_wrong_with_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "9-1"])
    assert "'9-1' is not A-B with A ≤ B" in capsys.readouterr().err
