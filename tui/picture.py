"""``python -m tui.picture docs/tui.svg``: the picture of the fleet screen in the README, from the sample night."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tui import sample
from tui.app import GridApp
from tui.canned import CannedFeed
from tui.palette import DARK, LIGHT

STORY = " ".join(["down"] * 6 + ["right"] * 6)
"""The keys that lead to the device of the incident."""


class StillClock:
    """A clock that stands at the sample's moment."""

    def mono_ms(self) -> int:
        return 1_000_000

    def wall_ms(self) -> int:
        return sample.NOW_MS

    async def sleep(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)


async def draw(columns: int, rows: int, keys: tuple[str, ...] = (), light: bool = False, start: str = "") -> str:
    """The SVG of the app at that size after ``keys``."""
    feed = CannedFeed(sample.objects(), sample.NOW_MS, sample.chain())
    app = GridApp(feed.open, clock=StillClock(), start=start)
    async with app.run_test(size=(columns, rows)) as pilot:
        app.theme = LIGHT if light else DARK
        while not app.state.connection.synced:
            await pilot.pause()
        app.refresh_views()
        await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
        app.refresh_views()
        await pilot.pause()
        return app.export_screenshot(title="gridkeeper tui")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", default="120x36", help="columns x rows")
    parser.add_argument("--keys", default=STORY, help="keys to press first, separated by spaces")
    parser.add_argument("--start", default="", help="a command as after ':'")
    parser.add_argument("--light", action="store_true")
    options = parser.parse_args()
    columns, rows = (int(n) for n in options.size.split("x"))
    svg = asyncio.run(draw(columns, rows, tuple(options.keys.split()), options.light, options.start))
    options.file.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
