"""What a job on a local grid wrote: its progress and its output, read from the nodes' files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gridkeeper.ids import Epoch


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of ``GRIDKEEPER_PROGRESS`` as ``gridkeeper/examples/train.py`` writes it. ``wall_ms``: when it was
    written; all processes of a local grid share one clock."""

    epoch: Epoch
    node: str
    step: int
    loss_hex: str
    wall_ms: int


def read_steps(path: Path, node: str, epoch: Epoch) -> tuple[StepLine, ...]:
    """Every complete line, in order. A last line without its end was cut by a SIGKILL and does not count. Raises
    ``ValueError`` on one that is no progress line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        record = json.loads(line)
        found.append(StepLine(epoch, node, int(record["step"]), str(record["loss_hex"]), int(record["wall_ms"])))
    return tuple(found)


def steps_of(job: str, states: dict[str, Path]) -> tuple[StepLine, ...]:
    """All steps of a job by epoch, each epoch's in the order in which they were written. ``states``: node -> the
    agent's state directory."""
    runs = [
        (Epoch.parse(directory.name), node, directory / "progress.jsonl")
        for node, state in states.items()
        for directory in (state / "jobs" / job).glob("*.*")
    ]
    return tuple(line for epoch, node, path in sorted(runs) for line in read_steps(path, node, epoch))
