"""The example training job as a job of a local grid, and the same training undisturbed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from gridkeeper.cli.local.children import GridError
from gridkeeper.v1 import records_pb2

_FINAL = re.compile(r"^done: (\d+) steps, final loss \S+ \((\S+)\), weights ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Training:
    """Arguments of ``gridkeeper/examples/train.py``."""

    steps: int
    step_ms: int
    checkpoint_every: int
    seed: int = 1

    def command(self, step_ms: int | None = None) -> tuple[str, ...]:
        script = Path(__file__).parents[2] / "examples" / "train.py"
        options = {
            "steps": self.steps,
            "step-ms": self.step_ms if step_ms is None else step_ms,
            "checkpoint-every": self.checkpoint_every,
            "seed": self.seed,
        }
        return (sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items()))


@dataclass(frozen=True, slots=True)
class Final:
    """What a run that has come to its end says of itself: its last loss, and SHA-256 of the weights."""

    steps: int
    loss_hex: str
    weights: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """An undisturbed run: loss by step, and its end."""

    losses: dict[int, str]
    final: Final


def job_spec(name: str, training: Training, devices: int) -> records_pb2.JobSpec:
    """Displaced, it goes to another region."""
    return records_pb2.JobSpec(
        name=name,
        namespace="default",
        command=training.command(),
        devices=devices,
        prefer_other_region=True,
        handles_sigusr1=True,
        grace_ms=10_000,
        max_restarts=3,
    )


def read_final(output: str) -> Final | None:
    """From the job's output; None if it has not come to its end."""
    found = _FINAL.findall(output)
    return Final(int(found[-1][0]), found[-1][1], found[-1][2]) if found else None


async def run_undisturbed(training: Training, directory: Path) -> Baseline:
    """The same training on its own, as fast as it goes. Raises ``GridError`` if it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    progress = directory / "progress.jsonl"
    progress.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *training.command(step_ms=0),
        env={"GRIDKEEPER_PROGRESS": str(progress), "GRIDKEEPER_EPOCH": "undisturbed"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    final = read_final(output.decode(errors="replace"))
    if process.returncode != 0 or final is None:
        raise GridError(
            f"the undisturbed run ended with {process.returncode}: {output.decode(errors='replace')[-500:]}"
        )
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    return Baseline({line["step"]: line["loss_hex"] for line in lines}, final)
