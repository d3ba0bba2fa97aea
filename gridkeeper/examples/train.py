"""A training job that Gridkeeper can stop, move and resume without losing or repeating a step. NumPy only; copy it.

It fits a small neural network to data that it makes from a seed, and is exact: however often it was stopped, killed and
resumed, on whichever host, the losses of the steps that count are equal to an undisturbed run's to the last bit. For
that a checkpoint holds everything that the next step depends on: weights, optimizer, step and the random generator.

The contract, which is all that makes a job movable:
  GRIDKEEPER_CHECKPOINT_DIR  a checkpoint is a directory written here and then renamed to step-<n>
  GRIDKEEPER_RESUME_FROM     the checkpoint to start from; empty or unset on the first start
  GRIDKEEPER_PROGRESS        a file that gets one JSON line per step
  SIGTERM                    checkpoint, exit 0
  SIGUSR1                    checkpoint after the current step, go on
Without these variables it just trains: python train.py --steps 100
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# One thread: sums are then always added in the same order. To be set before NumPy is imported.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

Array = NDArray[np.float64]
FEATURES = 16
SAMPLES = 2048
ADAM = (1e-3, 0.9, 0.999, 1e-8)  # rate, two decays, epsilon


class Trainer:
    """The model, its optimizer and its random generator. All state is in ``weights``, ``first``, ``second`` (Adam's
    moments), ``step`` and ``chance``."""

    def __init__(self, seed: int, hidden: int, batch: int) -> None:
        self.settings = {"seed": seed, "hidden": hidden, "batch": batch}
        data = np.random.Generator(np.random.PCG64(seed))
        teacher = data.standard_normal((FEATURES, 1))
        self.inputs: Array = data.standard_normal((SAMPLES, FEATURES))
        self.targets: Array = np.sin(self.inputs @ teacher) + 0.1 * data.standard_normal((SAMPLES, 1))
        self.chance = np.random.Generator(np.random.PCG64(seed + 1))
        shapes = {"w1": (FEATURES, hidden), "b1": (hidden,), "w2": (hidden, hidden), "b2": (hidden,), "w3": (hidden, 1)}
        self.weights: dict[str, Array] = {
            name: self.chance.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) == 2 else np.zeros(shape)
            for name, shape in shapes.items()
        }
        self.first: dict[str, Array] = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.second: dict[str, Array] = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.batch = batch
        self.step = 0
        self.loss = float("nan")  # of the newest step

    def train_step(self) -> None:
        """One step of Adam on a random batch; ``loss`` is the batch's before the step."""
        rows = self.chance.integers(0, SAMPLES, self.batch)
        x, y, w = self.inputs[rows], self.targets[rows], self.weights
        h1 = np.tanh(x @ w["w1"] + w["b1"])
        h2 = np.tanh(h1 @ w["w2"] + w["b2"])
        error = h2 @ w["w3"] - y
        self.loss = float(np.mean(error * error))
        d3 = 2.0 * error / self.batch
        d2 = (d3 @ w["w3"].T) * (1.0 - h2 * h2)
        d1 = (d2 @ w["w2"].T) * (1.0 - h1 * h1)
        gradients = {"w1": x.T @ d1, "b1": d1.sum(0), "w2": h1.T @ d2, "b2": d2.sum(0), "w3": h2.T @ d3}
        self.step += 1
        rate, decay1, decay2, epsilon = ADAM
        for name, gradient in gradients.items():
            self.first[name] = decay1 * self.first[name] + (1.0 - decay1) * gradient
            self.second[name] = decay2 * self.second[name] + (1.0 - decay2) * gradient * gradient
            mean = self.first[name] / (1.0 - decay1**self.step)
            spread = self.second[name] / (1.0 - decay2**self.step)
            w[name] = w[name] - rate * mean / (np.sqrt(spread) + epsilon)

    def digest(self) -> str:
        """SHA-256 of the weights: equal iff they are equal to the last bit."""
        total = hashlib.sha256()
        for name in sorted(self.weights):
            total.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return total.hexdigest()

    def save(self, directory: Path) -> None:
        """Write ``state.npz`` and ``meta.json``, fsynced."""
        arrays = {
            f"{part}.{name}": array
            for part, group in (("weights", self.weights), ("first", self.first), ("second", self.second))
            for name, array in group.items()
        }
        with open(directory / "state.npz", "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # keywords are arrays here
            file.flush()
            os.fsync(file.fileno())
        meta = {
            "step": self.step,
            "loss_hex": self.loss.hex(),
            "random": self.chance.bit_generator.state,
            **self.settings,
        }
        with open(directory / "meta.json", "w") as file_:
            json.dump(meta, file_)
            file_.flush()
            os.fsync(file_.fileno())

    def load(self, directory: Path) -> None:
        """Continue from ``directory``. Raises ``ValueError`` if it is of a run with other settings."""
        meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
        for name, value in self.settings.items():
            if meta[name] != value:
                raise ValueError(
                    f"--{name}: {value} differs from {meta[name]} in {directory}; start with --{name} {meta[name]}"
                )
        with np.load(directory / "state.npz", allow_pickle=False) as arrays:
            for part, group in (("weights", self.weights), ("first", self.first), ("second", self.second)):
                for name in group:
                    group[name] = arrays[f"{part}.{name}"]
        self.chance.bit_generator.state = meta["random"]
        self.step = int(meta["step"])
        self.loss = float.fromhex(meta["loss_hex"])


def write_checkpoint(trainer: Trainer, root: Path) -> Path:
    """``root/step-<n>``: there whole, or not at all, also after a crash of the host."""
    target = root / f"step-{trainer.step}"
    if target.exists():
        return target
    scratch = root / f".writing-{trainer.step}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    trainer.save(scratch)
    _fsync_directory(scratch)
    os.rename(scratch, target)
    _fsync_directory(root)
    return target


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Signals:
    """What was asked of us. A signal also ends ``pause``."""

    stop: bool = False
    checkpoint: bool = False
    _pipe: tuple[int, int] = field(default=(-1, -1))

    def install(self) -> None:
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.stop = True
        else:
            self.checkpoint = True

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stop and (left := end - time.monotonic()) > 0:
            if select.select([self._pipe[0]], [], [], left)[0]:
                os.read(self._pipe[0], 4096)


class Progress:
    """Appends a line at a time, each with one write, so that a line is there or not."""

    def __init__(self, path: str, epoch: str) -> None:
        self._file = open(path, "ab", buffering=0) if path else None  # noqa: SIM115 - open as long as we run
        self._epoch = epoch

    def line(self, step: int, step_time_ms: float, loss: float, samples: int) -> None:
        if self._file is None:
            return
        record = {
            "step": step,
            "step_time_ms": round(step_time_ms, 3),
            "loss": loss,
            "loss_hex": loss.hex(),
            "samples": samples,
            "epoch": self._epoch,
            "pid": os.getpid(),
            "wall_ms": time.time_ns() // 1_000_000,
        }
        self._file.write(json.dumps(record).encode() + b"\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small network; stops, moves and resumes exactly.")
    parser.add_argument("--steps", type=int, default=300, help="steps in all (default 300)")
    parser.add_argument("--step-ms", type=float, default=100.0, help="take at least this long for a step (default 100)")
    parser.add_argument("--checkpoint-every", type=int, default=20, help="steps between checkpoints (default 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=128, help="neurons in each of the two layers (default 128)")
    parser.add_argument("--batch", type=int, default=256, help="samples per step (default 256)")
    options = parser.parse_args(arguments)
    for name in ("steps", "checkpoint_every", "hidden", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: {getattr(options, name)} is less than 1")
    if options.step_ms < 0 or options.seed < 0:
        parser.error("--step-ms and --seed: must not be negative")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    signals = Signals()
    signals.install()
    trainer = Trainer(options.seed, options.hidden, options.batch)
    root = os.environ.get("GRIDKEEPER_CHECKPOINT_DIR", "")
    resume = os.environ.get("GRIDKEEPER_RESUME_FROM", "")
    if resume:
        try:
            trainer.load(Path(resume))
        except (OSError, ValueError, KeyError) as error:
            print(f"cannot resume from {resume}: {error}", file=sys.stderr, flush=True)
            return 2
        print(f"resumed after step {trainer.step}", flush=True)
    progress = Progress(os.environ.get("GRIDKEEPER_PROGRESS", ""), os.environ.get("GRIDKEEPER_EPOCH", ""))
    saved = trainer.step
    while trainer.step < options.steps and not signals.stop:
        began = time.monotonic()
        trainer.train_step()
        signals.pause(options.step_ms / 1000 - (time.monotonic() - began))
        progress.line(trainer.step, (time.monotonic() - began) * 1000, trainer.loss, options.batch)
        due = trainer.step % options.checkpoint_every == 0 or trainer.step == options.steps
        if root and (due or signals.checkpoint or signals.stop):
            signals.checkpoint = False
            write_checkpoint(trainer, Path(root))
            saved = trainer.step
            print(f"step {trainer.step}: loss {trainer.loss!r}, checkpoint written", flush=True)
    if trainer.step < options.steps:
        if root and trainer.step > saved:
            write_checkpoint(trainer, Path(root))
        print(f"asked to stop: stopped after step {trainer.step}", flush=True)
        return 0
    loss = trainer.loss
    print(f"done: {trainer.step} steps, final loss {loss!r} ({loss.hex()}), weights {trainer.digest()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
