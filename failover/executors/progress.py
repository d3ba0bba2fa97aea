"""Reading a job's progress file (JSON lines) as it grows."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from gridkeeper.ports.jobs import Progress

NO_PROGRESS = Progress(-1, -1, 0, 0, math.nan)
MAX_READ = 1 << 18
"""Bytes per look; a job that writes faster is followed at this rate and the newest part is taken."""
MAX_STEP = 1 << 53


def parse_line(line: bytes) -> tuple[int, float] | None:
    """(step, loss or NaN) of one progress line; None for what is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    step, loss = values.get("step"), values.get("loss")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < MAX_STEP:
        return None
    number = isinstance(loss, (int, float)) and not isinstance(loss, bool)
    try:
        return step, float(loss) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return step, math.nan


class ProgressFile:
    """One epoch's file. Lines that are no progress are skipped; a half-written one waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._partial = b""
        self.progress = NO_PROGRESS

    def look(self, now_ms: int) -> Progress:
        """Read what is new; ``now_ms`` dates it (boot-time clock)."""
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:  # the job began the file anew
                    self._offset, self._partial = 0, b""
                first = self.progress.first_step < 0
                if size - self._offset > MAX_READ and not first:
                    self._offset, self._partial = size - MAX_READ, b""
                file.seek(self._offset)
                data = file.read(MAX_READ)
        except OSError:
            return self.progress
        self._offset += len(data)
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()[-MAX_READ:]
        for line in lines:
            parsed = parse_line(line)
            if parsed:
                self._take(*parsed, now_ms)
        return self.progress

    def _take(self, step: int, loss: float, now_ms: int) -> None:
        old = self.progress
        if old.first_step < 0:
            self.progress = Progress(step, step, now_ms, now_ms, loss)
        else:
            self.progress = Progress(old.first_step, step, old.first_step_at_ms, now_ms, loss)
