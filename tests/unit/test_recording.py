"""The files of a recording: what is written comes back, a crash leaves no half file, older files stay readable."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper import recording
from gridkeeper.ids import DeviceId, JobId, RegionId
from gridkeeper.recording import DRAINS, EVENTS, OWNERSHIP, TABLES, TELEMETRY, BadRecording
from gridkeeper.records.common import Label
from gridkeeper.telemetry import METRICS
from tests.fixtures import records as made


def test_each_record_fills_the_columns_of_its_table(tmp_path: Path) -> None:
    """Protects: a column that slips by one place would give a backtest other faults than there were."""
    device, event, owner = made.device(), made.event(), made.ownership()
    finding, health = made.finding(evidence=("e1", "e2")), made.health()
    incident, drain = made.incident(findings=("f1",)), made.drain(evidence=("e1",))
    rows: dict[str, tuple[Any, recording.Row]] = {
        "inventory": (device, recording.inventory_row(device, (Label("tier", "a"),), 5)),
        "events": (event, recording.event_row(event, RegionId("east"))),
        "ownership": (owner, recording.ownership_row(owner, 5)),
        "findings": (finding, recording.finding_row(finding, 5)),
        "health": (health, recording.health_row(health)),
        "incidents": (incident, recording.incident_row(incident)),
        "drains": (drain, recording.drain_row(drain)),
    }
    assert {*rows, "telemetry"} == set(TABLES)
    for name, (record, row) in rows.items():
        table = TABLES[name]
        recording.write(tmp_path, table, recording.frame(table, [row]))
        back = recording.read(tmp_path, table).row(0, named=True)
        assert tuple(back.values()) == row
        for column, value in back.items():
            held = getattr(record, column, value)
            if column not in ("labels", "epoch"):
                assert value == (list(held) if isinstance(held, tuple) else held), f"{name}.{column}"


def test_telemetry_comes_back_with_what_is_not_known(tmp_path: Path) -> None:
    """Protects: NaN stays NaN; read as 0 it would convict a healthy card."""
    values = np.arange(2 * len(METRICS), dtype=np.float32).reshape(2, -1)
    values[1, 3] = np.nan
    frame = recording.telemetry_frame([DeviceId("n/a"), DeviceId("n/b")], np.array([7, 8]), values)
    recording.write(tmp_path, TELEMETRY, frame)
    back = recording.read(tmp_path, TELEMETRY)
    assert back["device"].to_list() == ["n/a", "n/b"]
    np.testing.assert_array_equal(back.drop("at_ms", "device").to_numpy(), values)
    with pytest.raises(BadRecording, match="shape"):
        recording.telemetry_frame([DeviceId("n/a")], np.array([7]), values)


def test_a_file_of_an_older_schema_is_read_with_its_later_columns_unknown(tmp_path: Path) -> None:
    old = pl.DataFrame({"at_ms": [1], "job": ["a"], "epoch": ["1.1"], "region": ["r"], "node": ["n"], "more": [1]})
    recording.write(tmp_path, OWNERSHIP, old)
    assert recording.read(tmp_path, OWNERSHIP).row(0, named=True) == {
        "at_ms": 1, "job": "a", "epoch": "1.1", "region": "r", "node": "n", "devices": None,
    }  # fmt: skip


def test_what_a_crash_left_is_not_read_and_not_in_the_way(tmp_path: Path) -> None:
    first = recording.write(tmp_path, OWNERSHIP, recording.frame(OWNERSHIP, [recording.left_row(JobId("a"), "1.1", 9)]))
    first.with_name("000000000000005-000001.half").write_bytes(b"PAR1 torn")
    second = recording.write(tmp_path, OWNERSHIP, recording.frame(OWNERSHIP, [recording.left_row(JobId("b"), "", 5)]))
    assert recording.files_of(tmp_path, OWNERSHIP) == (second, first)
    assert recording.read(tmp_path, OWNERSHIP)["at_ms"].to_list() == [5, 9]


def test_a_directory_that_is_no_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="no recording"):
        recording.read(tmp_path, EVENTS)
    recording.write(tmp_path, OWNERSHIP, recording.frame(OWNERSHIP, [recording.left_row(JobId("a"), "1.1", 9)]))
    assert recording.read(tmp_path, DRAINS).is_empty()
    recording.files_of(tmp_path, OWNERSHIP)[0].write_bytes(b"not parquet")
    with pytest.raises(BadRecording, match="ownership"):
        recording.read(tmp_path, OWNERSHIP)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 9)), max_size=12))
def test_the_newest_row_of_each_key_is_where_a_recorder_goes_on(changes: list[tuple[int, str, int]]) -> None:
    """Protects: after a restart nothing is told twice and nothing is left out."""
    with TemporaryDirectory() as made:
        directory = Path(made)
        expected: dict[str, tuple[int, int]] = {}
        at = 0
        for step, job, epoch in changes:
            at += step
            recording.write(
                directory, OWNERSHIP, recording.frame(OWNERSHIP, [recording.left_row(JobId(job), str(epoch), at)])
            )
            expected[job] = (at, epoch)
        found = recording.newest(directory, OWNERSHIP)
    assert {key[0]: (row[0], int(str(row[2]))) for key, row in found.items()} == expected


def test_the_documentation_names_every_table_and_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    for table in TABLES.values():
        section = text.split(f"## {table.name}\n", 1)[1].split("\n## ", 1)[0]
        columns = [column for column in table.schema if table is not TELEMETRY or column in ("at_ms", "device")]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == columns
