"""The terminal interface driven by its keys: going places, filters, evidence, acts, data that moves."""

from __future__ import annotations

from gridkeeper.client import Gone, Put
from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from tests.integration.tui_driver import root, synced
from tui import sample
from tui.canned import CannedFeed
from tui.screens.dialogues import ActScreen
from tui.screens.pages import DescribeScreen, ExplainScreen, InfoScreen, LogScreen, YamlScreen
from tui.screens.tables import NodeScreen
from tui.viewmodel import commands
from tui.viewmodel.table import Ref
from tui.widgets.prompt import Prompt
from tui.widgets.rowtable import RowTable

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
