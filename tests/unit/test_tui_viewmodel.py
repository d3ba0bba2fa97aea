"""What the terminal interface derives from the watch: nothing missing, stale or hostile may look healthy, or break
it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.client import Alive, Gone, Partial, Put, Synced
from gridkeeper.ids import RegionId
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from gridkeeper.v1.api_pb2 import Object
from tui import sample
from tui.viewmodel import acts, commands, describe, events, explain, fleet, header, incidents, jobs, moves, node, sla
from tui.viewmodel.state import DEVICE, EVENT, INCIDENT, JOB, KEPT, NODE, Now, State
from tui.viewmodel.table import Ref, Table
from tui.viewmodel.text import (
    fit,
    plain,
    width,
)

NOW = Now(mono_ms=1_000_000, wall_ms=sample.NOW_MS)
WEIRD = (
    "[red]boo[/red]",
    "漢字漢字漢字",
    "x" * 10_000,
    "\x1b[31mred\x1b[0m",
    "a\nb\tc",
    "\u202eevil",
    "e\u0301\u200b",
    "",
)


def told(*objects: Object) -> State:
    """A synced state that holds ``objects``."""
    state = State()
    for item in objects:
        state.apply(Put(item), NOW.mono_ms)
    for region in {o.region for o in objects if o.region} or {"east"}:
        state.apply(Alive(RegionId(region), sample.NOW_MS), NOW.mono_ms)
    state.apply(Synced(), NOW.mono_ms)
    return state


def text_of(table: Table) -> str:
    return "\n".join(row.text() for row in table.rows)


def every_table(state: State, now: Now = NOW) -> list[Table]:
    return [
        fleet.FleetView().table(state, now),
        fleet.FleetView(fleet.Colouring.TEMPERATURE).table(state, now),
        fleet.FleetView(fleet.Colouring.UTILISATION).table(state, now),
        incidents.table(state, now),
        moves.table(state, now),
        jobs.table(state, now),
        sla.table(state, now),
        events.table(state, now),
        *(node.table(state, now, name) for name in [*state.all(NODE), "no-such-node"]),
    ]


# -- state --------------------------------------------------------------------------------------------------------


def test_folding_puts_and_removals() -> None:
    state = told(sample.device_object("east", "a1", "a1-n1", 0))
    before = state.version
    state.apply(Gone(api_pb2.KIND_DEVICE, "a1-n1/gpu0"), NOW.mono_ms)
    assert not state.all(DEVICE) and state.version > before
    assert state.devices_of["a1-n1"] == set()
    state.apply(Gone(api_pb2.KIND_DEVICE, "never-was/gpu0"), NOW.mono_ms)


def test_after_a_reconnect_what_was_not_repeated_is_gone() -> None:
    kept, lost = sample.node_object("east", "a1", "kept"), sample.node_object("east", "a1", "lost")
    state = told(kept, lost)
    state.restart()
    state.apply(Put(kept), NOW.mono_ms)
    assert set(state.all(NODE)) == {"kept", "lost"}, "what is being repeated is not judged before it is complete"
    state.apply(Alive(RegionId("east"), sample.NOW_MS), NOW.mono_ms)
    state.apply(Synced(), NOW.mono_ms)
    assert set(state.all(NODE)) == {"kept"}


def test_after_a_reconnect_a_silent_region_keeps_its_objects_marked_stale() -> None:
    """Silence is not absence."""
    east, west = sample.node_object("east", "a1", "a1-n1"), sample.node_object("west", "k1", "k1-n1")
    state = told(east, west)
    state.restart()
    later = Now(NOW.mono_ms + 60_000, NOW.wall_ms + 60_000)
    state.apply(Put(east), later.mono_ms)
    state.apply(Alive(RegionId("east"), later.wall_ms), later.mono_ms)
    state.apply(Partial(("region west does not answer",)), later.mono_ms)
    state.apply(Synced(), later.mono_ms)
    assert set(state.all(NODE)) == {"a1-n1", "k1-n1"}
    assert state.is_stale("west", later) and not state.is_stale("east", later)
    rows = {row.ref.name: row for row in fleet.FleetView().table(state, later).rows if row.ref}
    assert rows["k1-n1"].stale and not rows["a1-n1"].stale


def test_readings_refresh_what_exists_and_never_go_back() -> None:
    device = sample.device_object("east", "a1", "a1-n1", 0)
    state = told(device)
    old = Object()
    old.CopyFrom(device)
    old.revision = 1
    old.labels["health"] = "old"
    stranger = sample.device_object("east", "a1", "a1-n9", 0)
    state.refreshed([old, stranger])
    assert state.all(DEVICE) == {device.name: device}


def test_history_is_bounded() -> None:
    state = State()
    for number in range(KEPT[EVENT] * 2):
        item = sample.event_object(f"ev-{number}", "n/gpu0", 48, "m", 1_000_000 + number, ("nvml",))
        state.apply(Put(item), 0)
    kept = state.all(EVENT)
    assert len(kept) <= KEPT[EVENT] * 1.1 and f"ev-{KEPT[EVENT] * 2 - 1}" in kept and "ev-0" not in kept


def test_ages_follow_the_clock_of_the_grid_and_not_of_the_laptop() -> None:
    state = told(sample.node_object("east", "a1", "a1-n1"))
    wrong = Now(NOW.mono_ms + 5_000, wall_ms=12_345)
    assert state.now_ms(wrong) == sample.NOW_MS + 5_000
    assert State().now_ms(wrong) == 12_345


# -- connection ---------------------------------------------------------------------------------------------------


def test_the_pulse_says_how_old_the_data_is() -> None:
    state = State()
    assert "connecting" in plain(header.pulse(state, NOW))
    state = told(*sample.objects())
    assert "live" in plain(header.pulse(state, NOW))
    later = Now(NOW.mono_ms + 12_300, NOW.wall_ms)
    assert "STALE east, west 12.3 s" in plain(header.pulse(state, later))
    state.apply(Alive(RegionId("east"), sample.NOW_MS), later.mono_ms)
    assert "STALE west 12.3 s" in plain(header.pulse(state, later))
    state.apply(Alive(RegionId("west"), sample.NOW_MS), later.mono_ms)
    state.apply(Partial(("west: the global store is away",)), later.mono_ms)
    assert "PARTIAL" in plain(header.pulse(state, later))
    assert header.trouble(state) == "west: the global store is away"
    state.failed("no replica answers")
    assert "OFFLINE" in plain(header.pulse(state, later)) and header.trouble(state) == "no replica answers"


def test_no_incidents_is_only_said_when_it_is_known() -> None:
    assert "no incidents" not in plain(header.summary(State()))
    assert not incidents.table(State(), NOW).calm
    quiet = told(sample.node_object("east", "a1", "a1-n1"))
    assert "no incidents" in plain(header.summary(quiet))
    assert incidents.table(quiet, NOW).calm and "quiet night" in incidents.table(quiet, NOW).empty


# -- screens ------------------------------------------------------------------------------------------------------


def test_the_map_shows_every_state_by_glyph() -> None:
    states = [s for s in pb.HealthState.keys() if not s.endswith("UNSPECIFIED")]  # noqa: SIM118
    devices = [
        sample.device_object("east", "a1", "n", i, s.removeprefix("HEALTH_STATE_")) for i, s in enumerate(states)
    ]
    glyphs = [fleet.heat(d, fleet.Colouring.HEALTH).text for d in devices]
    assert len(set(glyphs)) == len(states), "two states share a glyph: colour alone would tell them apart"
    assert "■ " not in glyphs[1:], "only a healthy device looks healthy"


def test_a_device_without_health_is_unknown_and_never_healthy() -> None:
    bare = Object(kind=api_pb2.KIND_DEVICE, name="n/gpu0", region="east", device=api_pb2.DeviceView())
    bare.device.record.present = True
    assert fleet.device_mark(bare).word == "unknown"
    assert fleet.device_mark(None).word == "unknown"
    future = sample.device_object("east", "a1", "n", 0)
    future.device.health.state = 99  # type: ignore[assignment]
    assert fleet.device_mark(future).word == "unknown"
    future.device.health.state = pb.HEALTH_STATE_HEALTHY
    future.device.record.present = False
    assert fleet.device_mark(future).word == "missing"


def test_old_readings_are_not_shown_as_if_they_were_now() -> None:
    device = sample.device_object("east", "a1", "a1-n1", 0)
    assert fleet.heat(device, fleet.Colouring.TEMPERATURE).text.strip().isdigit()
    for metrics_age in (-1, fleet.TELEMETRY_STALE_MS + 1):
        device.device.metrics_age_ms = metrics_age
        assert fleet.heat(device, fleet.Colouring.TEMPERATURE).text.strip() == "?"


def test_a_node_row_counts_and_explains() -> None:
    state = told(*sample.objects())
    table = fleet.FleetView().table(state, NOW)
    rows = {row.ref.name: row for row in table.rows if row.ref}
    assert "7/8" in rows["b2-n1"].text() and "gpu5 drained: xid 48" in rows["b2-n1"].text()
    assert "unreachable" in rows["b2-n3"].text() and "0/8" in rows["b2-n3"].text()
    assert rows["b2-n1"].troubled and not rows["a1-n1"].troubled
    assert [p.name for p in rows["a1-n1"].picks] == [f"a1-n1/gpu{i}" for i in range(8)]
    assert [r.key for r in table.rows if r.heading] == ["east", "west"]


def test_devices_that_nobody_told_of_are_in_the_map_as_unknown() -> None:
    state = told(sample.node_object("east", "a1", "a1-n1"))
    (row,) = (r for r in fleet.FleetView().table(state, NOW).rows if r.ref)
    assert plain(row.cells[row.pick_column]).split() == ["?"] * 8
    orphan = told(sample.device_object("east", "a1", "lost", 0))
    assert any(r.ref == Ref(NODE, "lost") for r in fleet.FleetView().table(orphan, NOW).rows)


def test_unchanged_nodes_keep_their_row() -> None:
    state, view = told(*sample.objects()), fleet.FleetView()
    before = {r.key: r for r in view.table(state, NOW).rows if r.ref}
    state.apply(Put(sample.device_object("east", "a1", "a1-n1", 3, "SUSPECT")), NOW.mono_ms)
    after = {r.key: r for r in view.table(state, NOW).rows if r.ref}
    assert [k for k in after if after[k] is not before[k]] == ["east\x00\x00a1-n1"]


def test_the_inbox_begins_with_the_worst_and_tells_what_the_machine_did() -> None:
    table = incidents.table(told(*sample.objects()), NOW)
    assert [row.cells[3][0].text for row in table.rows] == [sample.HOT, "b2-n3", "a1-n3/gpu2", "k2-n1/gpu0"]
    first = table.rows[0].text()
    assert "drained in 4.8 s" in first and "llm-7b-cont east→west" in first and "rto 21.4 s" in first


def test_moves_show_progress_and_cost() -> None:
    state = told(*sample.objects())
    rows = {row.ref.name: row.text() for row in moves.table(state, NOW).rows if row.ref}
    assert "7 steps, 8.9 s" in rows["mig-llm-7b-cont-7"] and "21.4 s" in rows["mig-llm-7b-cont-7"]
    assert "pre copying" in rows["mig-speech-small-3"] and "a2-n3 → k2-n2" in rows["mig-speech-small-3"]
    assert moves.under_way(state) == 1
    assert {r.ref.kind for r in moves.table(state, NOW, "drains").rows if r.ref} == {int(api_pb2.KIND_DRAIN)}


def test_a_running_migration_is_never_shown_as_complete() -> None:
    record = pb.MigrationRecord(job="j", kind=pb.MIGRATION_KIND_PLANNED, state=pb.MIGRATION_STATE_RUNNING)
    assert "╌" in plain(moves.move_progress(record, 10))
    record.state = pb.MIGRATION_STATE_DONE
    assert plain(moves.move_progress(record, 10)) == "━" * 10
    record.state = pb.MIGRATION_STATE_FAILED
    assert "╌" in plain(moves.move_progress(record, 10))


def test_jobs_show_step_loss_checkpoint_and_what_a_crash_would_cost() -> None:
    rows = {row.key: row.text() for row in jobs.table(told(*sample.objects()), NOW).rows}
    assert all(part in rows["llm-7b-cont"] for part in ("1.7", "west", "k1-n3", "48391", "48300 39s ago", "91"))
    assert "no node has 16 free devices" in rows["ablation-13"]
    bare = told(Object(kind=api_pb2.KIND_JOB, name="bare", job=api_pb2.JobView()))
    assert "? unknown" in text_of(jobs.table(bare, NOW))


def test_the_sla_page_is_exact() -> None:
    state = told(*sample.objects())
    page = "\n".join(plain(line) for line in describe.lines(state, Ref(9, "job/llm-7b-cont"), NOW))
    assert "21400 ms" in page and "99.9989 %" in page
    rows = {row.key: row.text() for row in sla.table(state, NOW).rows if row.ref}
    assert "300.0" in rows["device/k2-n1/gpu0"] and "unknown" in rows["device/b2-n3/gpu0"]


@given(st.lists(st.integers(0, 10**10), min_size=5, max_size=5), st.integers(5, 60))
def test_every_class_with_time_has_a_place_in_the_bar(parts: list[int], columns: int) -> None:
    up, degraded, down, unknown, excluded = parts
    view = api_pb2.SlaView(
        totals=pb.Totals(up_ms=up, degraded_ms=degraded, down_ms=down, unknown_ms=unknown, excluded_ms=excluded)
    )
    bar = plain(sla.composition(view, columns))
    assert len(bar) == columns
    assert all(glyph in bar for glyph, ms in zip("━d×?╌", parts, strict=True) if ms)


def test_explanations_are_dated_from_the_first_step() -> None:
    text = "\n".join(plain(line) for line in explain.lines(sample.chain(), ["region west does not answer"]))
    assert (
        "may be incomplete: region west" in text
        and "+21.4 s" in text
        and text.index("backend.events") < text.index("migrate.confirm")
    )


def test_an_act_shows_what_it_hits() -> None:
    state = told(*sample.objects())
    text = "\n".join(plain(line) for line in acts.hits(state, Ref(NODE, "k1-n3"), acts.DRAIN_VERB, NOW))
    assert "8: gpu0" in text and "llm-7b-cont  at step 48391" in text and "91 steps since" in text
    assert "budget region" in text and "0 of 12 out now, 8 after" in text and "room" in text
    over = "\n".join(plain(line) for line in acts.hits(state, Ref(NODE, "b2-n1"), acts.DRAIN_VERB, NOW))
    assert "1 of 12 out now, 8 after" in over, "a device that is out already counts once"
    later = Now(NOW.mono_ms + 60_000, NOW.wall_ms)
    stale = "\n".join(plain(line) for line in acts.hits(state, Ref(NODE, "k1-n3"), acts.DRAIN_VERB, later))
    assert "STALE" in stale
    assert acts.verbs(Ref(EVENT, "x")) == () and acts.verbs(None) == ()


def test_commands_and_their_short_forms() -> None:
    for word, screen in (("no", "fleet"), ("de", "fleet"), ("inc", "incidents"), ("dr", "moves"), ("mig", "moves"),
                         ("jobs", "jobs"), ("sla", "sla"), ("ev", "events"), ("fleet", "fleet")):  # fmt: skip
        parsed = commands.parse(f":{word}")
        assert isinstance(parsed, commands.Goto) and parsed.place.screen == screen
    assert commands.parse("dr east") == commands.Goto(commands.Place("moves", "drains"), "east")
    assert commands.parse("device/east-1/gpu3") == commands.OpenObject(Ref(DEVICE, "east-1/gpu3"))
    assert commands.parse("q") == commands.Quit()
    for bad in ("nonsense", "nonsense/x", "", "/"):
        with pytest.raises(commands.BadCommand):
            commands.parse(bad)


# -- whatever arrives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in api_pb2.Kind.values() if k])
def test_an_object_that_is_all_missing_fields_is_shown(kind: int) -> None:
    """A server that knows less, or a record that did not decode, must not take the screen down."""
    views = {d.name: d for d in Object.DESCRIPTOR.oneofs_by_name["view"].fields}
    view = BY_NUMBER[kind].view
    empty = Object(kind=kind, name="bare", region="east")  # type: ignore[arg-type]
    getattr(empty, view).SetInParent()
    viewless = Object(kind=kind, name="none")  # type: ignore[arg-type]
    assert view in views
    state = told(empty, viewless)
    for table in every_table(state):
        text_of(table)
    for name in ("bare", "none", "gone"):
        assert describe.lines(state, Ref(kind, name), NOW)
    for verb in acts.verbs(Ref(kind, "bare")):
        acts.hits(state, Ref(kind, "bare"), verb, NOW)
    header.summary(state), header.regions(state, NOW, 80), header.pulse(state, NOW)


@pytest.mark.parametrize("name", WEIRD)
def test_hostile_names_stay_text_of_one_line(name: str) -> None:
    state = told(
        sample.node_object("east", name, name),
        sample.device_object("east", name, "n", 0),
        sample.job_object(name, "east", name, 7),
        sample.incident_object(name, subject=name, title=name, fault_class=name, drain=name),
        sample.event_object(name, name, 48, name, 5, (name,)),
    )
    shown = [cell for table in every_table(state) for row in table.rows for cell in row.cells]
    for kind in (NODE, JOB, INCIDENT, EVENT):
        shown += describe.lines(state, Ref(kind, name), NOW)
    for spans in shown:
        text = plain(spans)
        assert "\x1b" not in text and "\n" not in text and "\u202e" not in text
        assert width(fit(spans, 40)) == 40
    if name.startswith("[red]"):
        assert name in text_of(jobs.table(state, NOW))


def test_a_node_shows_its_maintenance_and_repairs_and_a_drain_its_cost() -> None:
    window = pb.MaintenanceRecord(
        id="w1", target="b2-n1", state=pb.MAINTENANCE_STATE_PLANNED, from_ms=sample.NOW_MS, until_ms=sample.NOW_MS + 1,
        announced_ms=sample.NOW_MS, reason="new firmware",
    )  # fmt: skip
    repair = pb.RepairRecord(
        id="r1", node="b2-n1", device="b2-n1/gpu5", state=pb.REPAIR_STATE_LOST, kind=pb.REPAIR_KIND_RESET_DEVICE,
        proposed_ms=sample.NOW_MS, reason="XID 48", result="nobody knows",
    )  # fmt: skip
    state = told(
        Object(kind=api_pb2.KIND_MAINTENANCE, name="w1", region="east", maintenance=window),
        Object(kind=api_pb2.KIND_REPAIR, name="r1", region="east", repair=repair),
    )
    for subject in ("b2-n1", "b2-n1/gpu5"):
        shown = "\n".join(plain(line) for line in describe.timeline(state, subject, sample.NOW_MS))
        assert "maintenance planned" in shown and "new firmware" in shown
        assert "repair (reset device) lost" in shown and "nobody knows" in shown
    other = "\n".join(plain(line) for line in describe.timeline(state, "b2-n2/gpu0", sample.NOW_MS))
    assert "maintenance" not in other and "repair" not in other
    hit = pb.JobCost(job="train", devices=8, step=9, checkpoint_step=4, checkpoint_age_ms=90_000, target_region="west")
    cost = pb.DrainCost(jobs=[hit], capacity_left=15, capacity_total=16)
    drain = pb.DrainRecord(
        id="d1", device="b2-n1/gpu5", state=pb.DRAIN_STATE_SHADOW, mode=pb.DRAIN_MODE_WAIT, cost=cost
    )
    held = told(Object(kind=api_pb2.KIND_DRAIN, name="d1", region="east", drain=drain))
    page = "\n".join(plain(line) for line in describe.lines(held, Ref(api_pb2.KIND_DRAIN, "d1"), NOW))
    assert "shadow" in page and "train  8 devices, step 9, checkpoint 4" in page and "→ west" in page
    assert "15 of 16 devices left in service" in page
