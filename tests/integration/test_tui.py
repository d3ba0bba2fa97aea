"""The terminal interface driven by its keys on a feed that the test controls: going places, filters, evidence, acts,
data that moves, a grid that goes away and comes back, and content that is out to break it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from gridkeeper.client import Gone, Partial, Put
from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from tui import sample
from tui.app import GridApp
from tui.canned import CannedFeed
from tui.screens.dialogues import ActScreen
from tui.screens.pages import DescribeScreen, ExplainScreen, InfoScreen, LogScreen, YamlScreen
from tui.screens.tables import NodeScreen, TableScreen
from tui.viewmodel import commands
from tui.viewmodel.table import Ref
from tui.widgets.bars import Bar
from tui.widgets.lines import Lines
from tui.widgets.prompt import Prompt
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


# -- going places -------------------------------------------------------------------------------------------------


async def test_number_keys_and_commands_open_every_screen() -> None:
    async with synced() as ui:
        for number, (screen, title) in enumerate(commands.TABS, 1):
            await ui.press(str(number))
            assert root(ui) == screen
            assert title in ui.screen_text()
        for word, screen in (("no", "fleet"), ("inc", "incidents"), ("dr", "moves"), ("jobs", "jobs"), ("sla", "sla")):
            await ui.press("colon", *word, "enter")
            assert root(ui) == screen
        await ui.press("colon", *"mig speech", "enter")
        await ui.until(lambda: "speech-small" in ui.table.text, "the migrations")
        assert "llm-7b-cont" not in ui.table.text and "/speech" in ui.bar("crumb")


async def test_from_an_incident_to_its_evidence_and_back() -> None:
    async with synced() as ui:
        await ui.press("2", "enter")
        assert isinstance(ui.app.screen, DescribeScreen)
        await ui.until(lambda: "drained in 4.8 s" in ui.page(), "the incident's page")
        await ui.press("e")
        assert isinstance(ui.app.screen, ExplainScreen)
        await ui.until(lambda: "migrate.confirm" in ui.page(), "the chain of evidence")
        assert ui.page().index("backend.events") < ui.page().index("migrate.confirm")
        await ui.press("escape")
        assert root(ui) == "incidents"


async def test_from_the_map_to_a_device() -> None:
    async with synced() as ui:
        ui.table.select("east\x00\x00b2-n1")
        await ui.press("enter")
        assert isinstance(ui.app.screen, NodeScreen)
        await ui.until(lambda: "gpu5" in ui.table.text, "the devices")
        await ui.press(*["down"] * 5, "enter")
        assert isinstance(ui.app.screen, DescribeScreen)
        await ui.until(lambda: "▁" in ui.page() and "xid 48" in ui.page(), "sparklines and the timeline")
        await ui.press("escape", "escape")
        assert root(ui) == "fleet"


async def test_left_and_right_pick_a_device_in_the_map() -> None:
    async with synced() as ui:
        ui.table.select("east\x00\x00b2-n1")
        await ui.press(*["right"] * 6)
        assert ui.table.ref == Ref(int(api_pb2.KIND_DEVICE), sample.HOT)
        await ui.press("d")
        assert sample.HOT in ui.bar("crumb")


async def test_a_click_picks_and_a_second_one_opens() -> None:
    async with synced() as ui:
        await ui.pilot.click(RowTable, offset=(10, 4))
        first = ui.table.ref
        assert first is not None and not isinstance(ui.app.screen, NodeScreen)
        await ui.pilot.click(RowTable, offset=(10, 4))
        await ui.until(lambda: isinstance(ui.app.screen, NodeScreen), "the node's page")
        await ui.press("escape")
        await ui.pilot.click("#tabs", offset=(16, 0))
        await ui.until(lambda: root(ui) == "incidents", "the clicked tab")


async def test_deep_link_opens_its_object_at_once() -> None:
    async with synced(start=f"incident/{sample.INCIDENT_ID}") as ui:
        assert isinstance(ui.app.screen, DescribeScreen)
        await ui.until(lambda: "Double-bit memory error" in ui.page(), "the incident")


async def test_yaml_log_info_and_help() -> None:
    async with synced() as ui:
        await ui.press("4", "down", "down", "y")
        assert isinstance(ui.app.screen, YamlScreen)
        await ui.until(lambda: "last_step: 48391" in ui.page(), "the YAML")
        await ui.press("l")
        assert isinstance(ui.app.screen, LogScreen)
        await ui.until(lambda: "step 48391 loss" in ui.page(), "the log")
        await ui.press("i")
        assert isinstance(ui.app.screen, InfoScreen)
        await ui.until(lambda: "mara with role operator" in ui.page(), "who answers")
        await ui.press("question_mark")
        assert "chain of evidence" in ui.screen_text()
        await ui.press("escape", "q")
    assert ui.app.return_code in (0, None)


async def test_a_wrong_command_says_what_is_right_and_leads_nowhere() -> None:
    async with synced() as ui:
        await ui.press("colon", *"flete", "enter")
        assert root(ui) == "fleet"
        assert "'flete' is none" in ui.bar("status") and "incidents" in ui.bar("status")


# -- filter -------------------------------------------------------------------------------------------------------


async def test_filter_while_typing_inverse_selector_and_escape() -> None:
    async with synced() as ui:
        everything = ui.table.text
        await ui.press("slash", *"unreach")
        await ui.until(lambda: "b2-n3" in ui.table.text and "a1-n1" not in ui.table.text, "rows while typing")
        await ui.press("enter")
        assert not ui.app.screen.query_one(Prompt).display and "/unreach" in ui.bar("crumb")
        await ui.press("escape")
        await ui.until(lambda: ui.table.text == everything, "everything again")
        await ui.press("slash", *"!alive", "enter")
        await ui.until(lambda: "b2-n3" in ui.table.text and "a1-n1" not in ui.table.text, "rows without it")
        await ui.press("slash", *["backspace"] * 6, *"-l rack=k1", "enter")
        await ui.until(lambda: "k1-n1" in ui.table.text and "b2-n3" not in ui.table.text, "rows by label")
        await ui.press("escape", "f")
        await ui.until(lambda: "b2-n1" in ui.table.text and "a1-n1" not in ui.table.text, "faults only")


async def test_a_bad_selector_is_explained() -> None:
    async with synced() as ui:
        await ui.press("slash", *"-l rakc=k1", "enter")
        await ui.until(lambda: "rakc" in ui.screen_text() and "rack" in ui.screen_text(), "what is wrong")


async def test_keys_typed_into_the_filter_do_nothing_else() -> None:
    """``/`` is never anything but a filter."""
    async with synced() as ui:
        await ui.press("slash", *"xq1d?")
        assert root(ui) == "fleet" and ui.app.screen.query_one(Prompt).value == "xq1d?"
        assert ui.app.is_running


# -- data that moves ----------------------------------------------------------------------------------------------


async def test_what_the_watch_tells_appears_and_the_cursor_stays_on_its_object() -> None:
    async with synced() as ui:
        await ui.press("2", "down", "down")
        assert ui.table.ref is not None and "a1-n3" in ui.table.ref.name
        under = ui.table.ref
        worse = sample.incident_object(
            "inc-new", subject="a2-n1/gpu0", severity=pb.SEVERITY_FATAL, state=pb.INCIDENT_STATE_OPEN,
            title="Fell off the bus", opened_ms=sample.NOW_MS,
        )  # fmt: skip
        ui.feed.push(Put(worse))
        await ui.until(lambda: "Fell off the bus" in ui.table.text, "the new incident")
        assert ui.table.text.index("Fell off the bus") < ui.table.text.index("Double-bit")
        assert ui.table.ref == under
        assert "4 incidents, 2 fatal" in ui.bar("summary")
        ui.feed.push(Gone(api_pb2.KIND_INCIDENT, "inc-new"))
        await ui.until(lambda: "Fell off the bus" not in ui.table.text, "that it is gone")
        assert ui.table.ref == under


async def test_the_map_follows_a_device() -> None:
    async with synced() as ui:
        ui.feed.push(Put(sample.device_object("east", "a1", "a1-n1", 0, "DRAINING")))
        await ui.until(lambda: "▼ ■ ■" in ui.table.text.replace(" | ", " "), "the draining device")
        assert "▼ ■ ■ ■ ■ ■ ■ ■" in ui.screen_text()


async def test_heat_by_temperature_and_utilisation() -> None:
    async with synced() as ui:
        await ui.press("c")
        await ui.until(lambda: "by temperature" in ui.screen_text() and " 70  " in ui.screen_text(), "temperatures")
        await ui.press("c")
        await ui.until(lambda: "by utilisation" in ui.screen_text(), "utilisation")


async def test_a_quiet_night_says_so() -> None:
    feed = CannedFeed([sample.node_object("east", "a1", "a1-n1")], sample.NOW_MS)
    async with synced(feed=feed) as ui:
        await ui.press("2")
        await ui.until(lambda: "no incidents: quiet night" in ui.screen_text(), "the empty inbox")


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


# -- acts ---------------------------------------------------------------------------------------------------------


async def test_a_drain_needs_a_verb_a_reason_and_a_confirmation() -> None:
    async with synced() as ui:
        ui.table.select("west\x00\x00k1-n3")
        await ui.press("x")
        assert isinstance(ui.app.screen, ActScreen)
        await ui.press("d")
        text = ui.screen_text()
        assert "llm-7b-cont" in text and "48300" in text and "budget region" in text
        await ui.press("enter")
        assert "give a reason" in ui.screen_text(), "no reason, no act"
        await ui.press(*"fan noise", "enter")
        assert ui.app.focused is not None and ui.app.focused.id == "act-cancel", "enter twice must not drain"
        assert ui.feed.acts == []
        await ui.press("tab", "enter")
        await ui.until(lambda: ui.feed.acts == [("drain", "k1-n3", "fan noise")], "the drain")
        await ui.until(lambda: "drain of k1-n3 is under way" in ui.bar("status"), "the answer")


async def test_escape_and_cancel_do_nothing() -> None:
    async with synced() as ui:
        await ui.press("x", "d", *"why", "escape")
        await ui.press("x", "c", *"why", "enter", "enter")
        assert ui.feed.acts == [] and root(ui) == "fleet"


async def test_readonly_offers_and_does_nothing() -> None:
    async with synced(readonly=True) as ui:
        await ui.press("x")
        assert not isinstance(ui.app.screen, ActScreen)
        assert "read-only" in ui.bar("status") and "read-only" in ui.bar("summary")
        assert " act" not in ui.bar("hints")


async def test_an_act_that_is_refused_shows_the_reason() -> None:
    async with synced() as ui:
        ui.feed.cut("region east does not answer")
        await ui.press("x", "u", "enter", "tab", "enter")
        await ui.until(
            lambda: "not connected, nothing was done" in ui.bar("status") or "does not answer" in ui.bar("status"),
            "the refusal",
        )
        assert ui.feed.acts == []


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
