"""The terminal interface when the grid goes away and comes back, on small and large terminals, and with content that is
out to break it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rich.cells import cell_len

from gridkeeper.client import Partial
from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from tests.integration.tui_driver import Driven, HandClock, driven, root, synced
from tui import sample
from tui.app import GridApp
from tui.canned import CannedFeed
from tui.screens.pages import ExplainScreen
from tui.viewmodel import commands
from tui.widgets.lines import Lines

# -- a grid that goes away ----------------------------------------------------------------------------------------


async def test_disconnect_is_shown_with_the_age_of_the_data_and_heals_by_itself() -> None:
    async with synced() as ui:
        assert "live" in ui.bar("summary")
        ui.feed.cut("no replica of any region answers; check that the control plane runs")
        await ui.until(lambda: "OFFLINE" in ui.bar("summary"), "the loss")
        ui.clock.advance(7_000)
        await ui.until(lambda: "data 7.0 s old" in ui.bar("summary"), "the age of the data")
        await ui.until(lambda: "no replica of any region answers" in ui.bar("status"), "the reason")
        await ui.until(lambda: "~" in ui.screen_text(), "rows marked as old")
        assert "vision-pretrain" in ui.table.text, "what was known stays visible"
        await ui.press("2")
        assert root(ui) == "incidents", "the keys go on working"
        ui.feed.mend()
        ui.clock.advance(5_000)
        await ui.until(lambda: "live" in ui.bar("summary"), "that it heals")
        assert "OFFLINE" not in ui.screen_text()
        assert ui.feed.opened >= 2


async def test_one_silent_region_is_marked_and_the_other_is_not() -> None:
    async with synced(size=(160, 50)) as ui:
        ui.clock.advance(9_000)
        ui.feed.alive("east")
        ui.feed.push(Partial(("region west does not answer (connection refused)",)))
        await ui.until(lambda: "STALE west" in ui.bar("summary"), "the stale region")
        await ui.until(lambda: "region west does not answer" in ui.bar("status"), "the reason")
        marked = [line for line in ui.screen_text().splitlines() if line.startswith("~")]
        assert marked and all("k1" in line or "k2" in line for line in marked)
        ui.feed.alive("west")
        ui.feed.push(Partial(()))
        await ui.until(lambda: "live" in ui.bar("summary"), "that it is whole again")
        assert not [line for line in ui.screen_text().splitlines() if line.startswith("~")]


async def test_a_grid_that_never_answers_stops_no_key() -> None:
    feed = CannedFeed(sample.objects(), sample.NOW_MS)
    feed.hold = asyncio.Event()
    async with driven(feed=feed) as ui:
        for key in "23456":
            await ui.press(key)
        assert root(ui) == "events" and "connecting" in ui.bar("summary")
        await ui.press("colon", *"device/a/b", "enter")
        assert "not known yet" in ui.screen_text() or "asking" in ui.screen_text()
        await ui.press("e")
        assert isinstance(ui.app.screen, ExplainScreen)
        feed.hold.set()
        await ui.until(lambda: "live" in ui.bar("summary"), "the connection, once it answers")


async def test_a_feed_that_cannot_be_opened_is_shown_and_tried_again() -> None:
    feed = CannedFeed(sample.objects(), sample.NOW_MS)
    attempts = 0

    @asynccontextmanager
    async def opened() -> AsyncIterator[CannedFeed]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise FileNotFoundError(2, "No such file", "client.pem")
        yield feed

    clock = HandClock()
    app = GridApp(opened, clock=clock)
    async with app.run_test(size=(100, 30)) as pilot:
        ui = Driven(app, pilot, feed, clock)
        await ui.until(lambda: "client.pem" in ui.bar("status"), "the reason")
        clock.advance(5_000)
        await ui.until(lambda: app.state.connection.synced, "the second attempt")


async def test_an_explanation_that_fails_says_why_and_is_asked_again() -> None:
    async with synced() as ui:
        await ui.press("2")
        ui.feed.cut("region east does not answer")
        await ui.until(lambda: "OFFLINE" in ui.bar("summary"), "the loss")
        await ui.press("e")
        await ui.until(lambda: "not connected" in ui.page() or "does not answer" in ui.page(), "why there is none")
        ui.feed.mend()
        ui.clock.advance(10_000)
        await ui.until(lambda: ui.app.state.connection.error == "", "the connection")
        ui.clock.advance(10_000)
        await ui.until(lambda: "migrate.confirm" in ui.page(), "the explanation")


# -- sizes and hostile content ------------------------------------------------------------------------------------


def fits(ui: Driven, size: tuple[int, int]) -> None:
    lines = ui.screen_text().splitlines()
    assert len(lines) <= size[1]
    assert max(cell_len(line) for line in lines) <= size[0]
    assert not any("\x1b" in line or "\n" in line for line in lines)


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (250, 70), (40, 12)])
async def test_every_screen_fits(size: tuple[int, int]) -> None:
    async with synced(size=size) as ui:
        for number in range(1, len(commands.TABS) + 1):
            await ui.press(str(number))
            fits(ui, size)
            assert not ui.app.screen.show_horizontal_scrollbar
            assert ui.table.size.width <= size[0] and ui.table.max_scroll_x == 0
            if size[0] >= 80:
                assert "live" in ui.screen_text().splitlines()[0], "how fresh the data is, is always visible"
                assert "? help" in ui.screen_text()
        await ui.press("1", "enter")
        fits(ui, size)
        await ui.press("enter", "e", "x", "escape", "question_mark")
        fits(ui, size)


async def test_a_resized_terminal_is_laid_out_anew() -> None:
    async with synced(size=(80, 24)) as ui:
        side = ui.app.screen.query_one("#side", Lines)
        assert not side.display
        await ui.pilot.resize_terminal(200, 50)
        await ui.until(lambda: bool(side.display) and "node a1-n1" in side.text, "the detail beside the table")
        await ui.pilot.resize_terminal(80, 24)
        await ui.until(lambda: not side.display, "the table alone")
        fits(ui, (80, 24))


HOSTILE = {
    "markup": "[red]boo[/red][/]",
    "action": "[@click=app.quit]x[/]",
    "wide": "漢" * 60,
    "long": "x" * 10_000,
    "escapes": "\x1b[2J\n\t\u202e",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_names_are_shown_and_break_nothing(name: str) -> None:
    feed = CannedFeed(
        [
            sample.node_object("east", name, name),
            sample.device_object("east", name, name, 0),
            sample.job_object(name, "east", name, 7),
            sample.incident_object(
                name, subject=name, title=name, fault_class=name, severity=pb.SEVERITY_ERROR, opened_ms=sample.NOW_MS
            ),
            sample.event_object(name, name, 48, name, 5, (name,)),
        ],
        sample.NOW_MS,
        [api_pb2.Link(step=name, object=name, at_ms=5, sentence=name)],
    )
    async with synced(size=(80, 24), feed=feed) as ui:
        for key in "123456":
            await ui.press(key)
            fits(ui, (80, 24))
            await ui.press("d")
            fits(ui, (80, 24))
            await ui.press("e")
            await ui.until(lambda: "asking" not in ui.screen_text(), "the answer")
            fits(ui, (80, 24))
            await ui.press("escape", "x", "escape")
        await ui.press("2")
        if name.startswith("["):
            assert name in ui.screen_text(), "markup is text"
        ui.feed.push(Partial((name,)))
        await ui.until(lambda: "◌" in ui.bar("status"), "the sentence")
        fits(ui, (80, 24))
