"""``Archive`` in memory: one for the whole grid, as an object store would be."""

from __future__ import annotations

from gridkeeper.ports.archive import ArchiveUnavailable


class SimArchive:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    async def keep(self, name: str, data: bytes) -> None:
        self.files[name] = data

    async def read(self, name: str) -> bytes:
        if name not in self.files:
            raise ArchiveUnavailable(f"archive: {name}: there is none")
        return self.files[name]
