"""What a query may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """``rows``: of the result. ``memory_bytes``: of address space above what the tables take. ``cpu_s``, ``wall_s``:
    seconds, then its process is killed."""

    rows: int = 10_000
    memory_bytes: int = 2 * 1024 * 1024 * 1024
    cpu_s: int = 20
    wall_s: float = 30.0
