"""Grids of real processes, and an observer on their public API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from tests.e2e.observer import Observer

Stage = Callable[[GridOptions], AbstractAsyncContextManager[tuple[LocalGrid, Observer]]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """``async with stage(GridOptions(...)) as (grid, seen)``: a running grid and its observer."""

    @asynccontextmanager
    async def run(options: GridOptions) -> AsyncIterator[tuple[LocalGrid, Observer]]:
        async with LocalGrid(tmp_path / "grid", options) as grid, Observer(grid.client_config()) as seen:
            yield grid, seen

    return run
