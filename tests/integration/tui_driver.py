"""Drives the terminal interface by its keys, on a feed and a clock that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from tui import sample
from tui.app import GridApp
from tui.canned import CannedFeed
from tui.screens.tables import NodeScreen, TableScreen
from tui.widgets.bars import Bar
from tui.widgets.lines import Lines
from tui.widgets.rowtable import RowTable

DEADLINE_S = 20.0


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self._ms = 1_000_000
        self._moved = asyncio.Event()

    def advance(self, ms: int) -> None:
        self._ms += ms
        self._moved.set()
        self._moved = asyncio.Event()

    def mono_ms(self) -> int:
        return self._ms

    def wall_ms(self) -> int:
        return sample.NOW_MS + self._ms - 1_000_000

    async def sleep(self, ms: int) -> None:
        until = self._ms + ms
        await asyncio.sleep(0)
        while self._ms < until:
            await self._moved.wait()


class Driven:
    """An app under a pilot, with its feed and its clock."""

    def __init__(self, app: GridApp, pilot: Pilot[None], feed: CannedFeed, clock: HandClock) -> None:
        self.app, self.pilot, self.feed, self.clock = app, pilot, feed, clock

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, condition: Callable[[], bool], why: str) -> None:
        """Wait for a condition that the screens come to by themselves."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    self.app.refresh_views()
                    await self.pilot.pause()
        except TimeoutError:
            raise AssertionError(f"never came true: {why}; the screen shows:\n{self.screen_text()}") from None

    def screen_text(self) -> str:
        """What is on the terminal, line by line."""
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    @property
    def table(self) -> RowTable:
        return self.app.screen.query_one(RowTable)

    def bar(self, name: str) -> str:
        screen = self.app.top()
        assert screen is not None
        return screen.query_one(f"#{name}", Bar).text

    def page(self) -> str:
        return self.app.screen.query_one("#page", Lines).text


@asynccontextmanager
async def driven(
    size: tuple[int, int] = (120, 36), feed: CannedFeed | None = None, readonly: bool = False, start: str = ""
) -> AsyncIterator[Driven]:
    feed = feed or CannedFeed(sample.objects(), sample.NOW_MS, sample.chain())
    clock = HandClock()
    app = GridApp(feed.open, clock=clock, readonly=readonly, start=start)
    async with app.run_test(size=size) as pilot:
        ui = Driven(app, pilot, feed, clock)
        await pilot.pause()
        yield ui


@asynccontextmanager
async def synced(
    size: tuple[int, int] = (120, 36), feed: CannedFeed | None = None, readonly: bool = False, start: str = ""
) -> AsyncIterator[Driven]:
    async with driven(size, feed, readonly, start) as ui:
        await ui.until(lambda: ui.app.state.connection.synced, "the first sync")
        ui.app.refresh_views()
        await ui.pilot.pause()
        yield ui


def root(ui: Driven) -> str:
    screen = ui.app.screen
    return screen.tab if isinstance(screen, TableScreen) and not isinstance(screen, NodeScreen) else ""
