"""Files of a simulated host: checkpoint directories and small state files, in memory."""

from __future__ import annotations

import re
from pathlib import Path

from chaos.simulate.checkpoints import FileData, MemoryTree
from gridkeeper.ports.disk import DiskError

_STEP = re.compile(r"^step-(\d+)$")


class SimFiles:
    """``CheckpointDirs``, and what simulated jobs read and write. ``tree`` is what a ``SimCheckpointStore`` of the same
    host works on."""

    def __init__(self, tree: MemoryTree | None = None) -> None:
        self.tree = tree or MemoryTree()

    def put(self, directory: Path, name: str, data: bytes) -> None:
        """A directory with one file; appears whole."""
        self.tree.write(directory, {name: FileData(0o644, data)})

    def get(self, directory: Path, name: str) -> bytes | None:
        found = self.tree.directories.get(directory, {}).get(name)
        return found.data if found else None

    def steps(self, directory: Path) -> tuple[int, ...]:
        found = (_STEP.match(path.name) for path in self.tree.directories if path.parent == directory)
        return tuple(sorted(int(match.group(1)) for match in found if match))

    def has(self, directory: Path) -> bool:
        return self.tree.exists(directory)

    async def remove(self, directory: Path) -> None:
        for path in [p for p in self.tree.directories if p == directory or directory in p.parents]:
            del self.tree.directories[path]


class SimState:
    """``StateFile`` in memory; survives the agent object that uses it."""

    def __init__(self) -> None:
        self._data: bytes | None = None
        self.unwritable = False
        self.saves = 0

    def load(self) -> bytes | None:
        return self._data

    async def save(self, data: bytes) -> None:
        if self.unwritable:
            raise DiskError("simulated state file: no space left on device")
        self._data = data
        self.saves += 1
