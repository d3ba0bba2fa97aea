"""A job with a checkpoint of a chosen size, under Gridkeeper's contract: what the migration benchmark moves.

Steps take the time asked for and cost nothing; between two checkpoints the share asked for of all 64 KiB pieces changes
(100 %: every chunk is another one each time, as with the weights of a model that trains). The bytes are random.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gridkeeper.examples.train import Progress, Signals, write_checkpoint

PIECE = 64 << 10


class Ballast:
    """What ``write_checkpoint`` needs of a trainer."""

    def __init__(self, mib: int, changed_percent: float) -> None:
        self.step = 0
        self._bytes = mib << 20
        self._changed = int(self._bytes / PIECE * changed_percent / 100)
        self._state = bytearray()

    def fill(self) -> None:
        self._state = bytearray(os.urandom(self._bytes))

    def save(self, directory: Path) -> None:
        end = self._changed * PIECE
        self._state[1:end:PIECE] = os.urandom(self._changed)
        self._state[2:end:PIECE] = os.urandom(self._changed)
        for name, content in (("state.bin", self._state), ("step", str(self.step).encode())):
            with open(directory / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def load(self, directory: Path) -> None:
        self._state = bytearray((directory / "state.bin").read_bytes())
        self.step = int((directory / "step").read_text())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--changed-percent", type=float, default=100.0)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--checkpoint-every", type=int, default=1_000_000)
    options = parser.parse_args()
    signals = Signals()
    signals.install()
    job = Ballast(options.mib, options.changed_percent)
    root, resume = Path(os.environ["GRIDKEEPER_CHECKPOINT_DIR"]), os.environ.get("GRIDKEEPER_RESUME_FROM", "")
    if resume:
        job.load(Path(resume))
    else:
        job.fill()
    progress = Progress(os.environ["GRIDKEEPER_PROGRESS"], os.environ.get("GRIDKEEPER_EPOCH", "0.0"))
    while True:
        began = time.monotonic()
        if job.step or resume:
            signals.pause(options.step_ms / 1000)
        job.step += 1
        progress.line(job.step, (time.monotonic() - began) * 1000, 0.0, 1)
        if signals.stop or signals.checkpoint or job.step % options.checkpoint_every == 0:
            signals.checkpoint = False
            write_checkpoint(job, root)  # type: ignore[arg-type]  # it uses step and save only
        if signals.stop:
            return 0


if __name__ == "__main__":
    sys.exit(main())
