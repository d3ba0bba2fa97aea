"""What the command line prints reads the same on a terminal, in a pipe and in a script."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rpc.listing import scene_of
from controlplane.rpc.objects import objects_of
from gridkeeper.cli.columns import COLUMNS, uptime
from gridkeeper.cli.main import COMMANDS, cli, run
from gridkeeper.cli.output import WatchPrinter
from gridkeeper.cli.session import find_config
from gridkeeper.cli.table import one_line, plain_lines, print_table
from gridkeeper.cli.text import age, moment, parse_moment, parse_span, size, span
from gridkeeper.client.changes import Alive, Gone, Partial, Put, Synced
from gridkeeper.client.errors import ClientError
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.kinds import KINDS, UnknownKind, checkpoint_name, kind_named, object_named
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object
from tests.fixtures import records
from tests.fixtures.grid import FakeGrid


def test_durations() -> None:
    assert [span(ms) for ms in (-1, 0, 850, 5_000, 12_345, 245_000, 7_380_000, 277_200_000)] == [
        *("-", "0ms", "850ms", "5s", "12.3s", "4m5s", "2h3m", "3d5h")
    ]
    assert age(0, 5) == "-" and age(10, 5) == "0ms" and age(1_000, 6_000) == "5s"
    assert [parse_span(text) for text in ("90s", "2h30m", "500ms", "1d", " 5m ")] == [
        *(90_000, 9_000_000, 500, 86_400_000, 300_000)
    ]


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    try:
        assert parse_span(text) >= 0
    except ValueError as error:
        assert "write for example 30s" in str(error)


def test_moments_and_sizes() -> None:
    assert moment(records.T0 + 5) == "2026-09-21 14:13:20.005Z"
    assert moment(0) == "-" and moment(2**62) == str(2**62)
    assert [size(n) for n in (0, 1023, 4096, 3 * 1024**3)] == ["0 B", "1023 B", "4.0 KiB", "3.0 GiB"]


def test_an_uptime_is_never_rounded_up_to_whole() -> None:
    assert uptime(api_pb2.SlaView(uptime="999999/1000000", uptime_percent=99.99999)) == "99.9999 %"
    assert uptime(api_pb2.SlaView()) == "-"


def test_a_pipe_gets_aligned_columns_without_colour() -> None:
    out = io.StringIO()
    print_table(("NAME", "STATE"), [("a", "failed"), ("longer", "ok")], frozenset({1}), out)
    assert out.getvalue() == "NAME    STATE\na       failed\nlonger  ok\n"


@given(st.text(max_size=40))
def test_text_from_outside_steers_no_terminal(text: str) -> None:
    (_, row) = plain_lines(("A",), [(text,)])
    assert "\n" not in row and "\x1b" not in row and all(c.isprintable() for c in one_line(text))


def test_every_kind_has_columns_that_work_on_an_empty_object() -> None:
    for info in KINDS:
        item = Object(kind=info.kind, name="x")
        getattr(item, info.view).SetInParent()
        assert all(column.cell(item, records.T0) is not None for column in COLUMNS[info.kind])


def test_kinds_go_by_singular_plural_and_short_form() -> None:
    for info in KINDS:
        assert {kind_named(word) for word in (info.singular, info.plural, *info.aliases)} == {info}
    assert object_named("device/east-1/gpu3")[1] == "east-1/gpu3"
    with pytest.raises(UnknownKind, match="use one of regions"):
        kind_named("pods")
    assert checkpoint_name("train/00000000000000000040") == "train/40"
    assert checkpoint_name("train/00000000000000000000") == "train/0"


def _node(name: str) -> Object:
    grid = FakeGrid("east")
    grid.put(grid.keys.node(NodeId(name)), records.node(name))
    return objects_of(api_pb2.KIND_NODE, scene_of(grid))[name]


def test_watching_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    printer = WatchPrinter(api_pb2.KIND_NODE, "table")
    changes = [
        Put(_node("east-1")),
        Put(_node("east-2")),
        Gone(api_pb2.KIND_NODE, "east-2"),
        Synced(),
        Alive(RegionId("east"), 1),
        Put(_node("a-much-longer-name")),
        Partial(("region west is away",)),
        Gone(api_pb2.KIND_NODE, "east-1"),
        Partial(()),
    ]
    for change in changes:
        printer.tell(change, records.T0)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "east-1", "a-much-longer-name", "node/east-1"]
    assert shown.err == "warning: region west is away\nwarning: whole again\n"


def test_watching_as_json_is_a_line_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    printer = WatchPrinter(api_pb2.KIND_NODE, "json")
    for change in (Put(_node("east-1")), Synced(), Gone(api_pb2.KIND_NODE, "east-1")):
        printer.tell(change, records.T0)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["change"] == "put" and first["object"]["name"] == "east-1"
    assert second == {"change": "deleted", "object": "node/east-1"}


def test_the_configuration_that_is_used(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    with pytest.raises(ClientError, match="start a grid with 'gridkeeper up'"):
        find_config("", {}, home, here)
    local = here / "var" / "grid" / "client.yaml"
    default = home / ".config" / "gridkeeper" / "client.yaml"
    for path in (local, default):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_config("", {}, home, here) == path
    assert find_config("", {"GRIDKEEPER_CONFIG": "/e.yaml"}, home, here) == Path("/e.yaml")
    assert find_config("o.yaml", {"GRIDKEEPER_CONFIG": "/e.yaml"}, home, here) == Path("o.yaml")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_exists_and_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: gridkeeper " + command)
    assert cli.get_command(None, command) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("+2h", 7_200_000),
        ("1970-01-01T00:00:05Z", 5_000),
        ("1970-01-01 00:00", 0),
        ("1970-01-01T02:00+02:00", 0),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise_or_counts_from_now(text: str, ms: int) -> None:
    assert parse_moment(text, 0) == ms


@pytest.mark.parametrize("text", ["tomorrow", "", "+x", "2026-13-01T00:00"])
def test_what_is_no_moment_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="write for example"):
        parse_moment(text, 0)
