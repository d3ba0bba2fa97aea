"""What is recorded is what was told, each change once, also when a recording goes on after a stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridkeeper import codec
from gridkeeper import recording as rec
from gridkeeper.cli.record import span_ms
from gridkeeper.client.changes import Gone, Put, Synced
from gridkeeper.recorder import Recorder
from gridkeeper.recording import Row, Table
from gridkeeper.records.fleet import HealthState
from gridkeeper.telemetry import COLUMN, METRICS
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import DeviceView, JobView, NodeView, Object, SampleBlock
from tests.fixtures import records

AT = 1_790_000_500_000


def m(record: Any) -> Any:
    return codec.to_message(record)


def node(labels: dict[str, str]) -> Put:
    return Put(Object(kind=api_pb2.KIND_NODE, name="east-1", node=NodeView(record=m(records.node(labels=labels)))))


def device(state: HealthState, at_ms: int = AT) -> Put:
    view = DeviceView(record=m(records.device()), health=m(records.health(state=state)))
    return Put(Object(kind=api_pb2.KIND_DEVICE, name="east-1/gpu0", device=view), at_ms)


def event(sequence: int) -> Put:
    made = records.event(sequence)
    return Put(Object(kind=api_pb2.KIND_EVENT, name=made.id, region="east", event=m(made)), AT)


def finding(active: bool, at_ms: int) -> Put:
    made = dataclasses.replace(records.finding(), active=active)
    return Put(Object(kind=api_pb2.KIND_FINDING, name=made.id, finding=m(made)), at_ms)


def rows(directory: Path, table: Table, *columns: str) -> list[Row]:
    return rec.read(directory, table).select(columns).rows()


def test_changes_are_recorded_once_each(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    told = [node({"tier": "a"}), device(HealthState.HEALTHY), event(1), Synced(), event(2)]
    for change in (*told, *told):
        recorder.take(change, AT)
    recorder.take(device(HealthState.SUSPECT, AT + 5), AT)
    recorder.take(device(HealthState.HEALTHY, AT + 9), AT)
    assert recorder.write() == 6
    assert rows(tmp_path, rec.EVENTS, "id") == [(records.event(1).id,), (records.event(2).id,)]
    assert rows(tmp_path, rec.HEALTH, "state") == [("healthy",), ("suspect",), ("healthy",)]
    assert rows(tmp_path, rec.INVENTORY, "at_ms", "device", "labels") == [(AT, "east-1/gpu0", ["tier=a"])]
    assert recorder.write() == 0


def test_a_finding_is_dated_by_its_evidence_and_its_end_by_when_it_was_told(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.take(finding(True, AT), AT)
    recorder.take(finding(False, AT + 7_000), AT)
    recorder.write()
    seen = records.finding().observed_ms
    assert rows(tmp_path, rec.FINDINGS, "at_ms", "active") == [(seen, True), (AT + 7_000, False)]


def test_a_recording_that_goes_on_tells_nothing_twice(tmp_path: Path) -> None:
    """Protects: a fault that a backtest would count twice."""
    first = Recorder(tmp_path)
    for change in (device(HealthState.HEALTHY), event(1), finding(True, AT)):
        first.take(change, AT)
    first.write()
    second = Recorder(tmp_path)
    for change in (device(HealthState.HEALTHY, AT + 50), event(1), finding(True, AT + 50), event(2), Synced()):
        second.take(change, AT + 50)
    assert second.write() == 1
    assert len(rows(tmp_path, rec.EVENTS, "id")) == 2


def test_memory_is_of_what_there_is(tmp_path: Path) -> None:
    """Protects: a recorder that runs for a year; what has ended is forgotten, and still comes out once when read."""
    first = Recorder(tmp_path)
    first.take(event(1), AT)
    first.write()
    second = Recorder(tmp_path)
    second.take(Synced(), AT)
    second.take(event(2), AT)
    second.take(Gone(api_pb2.KIND_EVENT, records.event(2).id), AT)
    for change in (event(1), event(2)):
        second.take(change, AT)
    second.write()
    assert rows(tmp_path, rec.EVENTS, "id") == [(records.event(1).id,), (records.event(2).id,)]


def test_a_job_has_its_devices_until_its_run_is_over(tmp_path: Path) -> None:
    owner, run = m(records.ownership()), m(records.run())
    recorder = Recorder(tmp_path)

    def job(ended_ms: int) -> Put:
        over = records_pb2.RunRecord()
        over.CopyFrom(run)
        over.ended_ms = ended_ms
        return Put(Object(kind=api_pb2.KIND_JOB, name="train", job=JobView(ownership=owner, run=over)), AT)

    for change in (job(0), job(0), job(AT + 40), Gone(api_pb2.KIND_JOB, "train")):
        recorder.take(change, AT + 60)
    recorder.write()
    assert rows(tmp_path, rec.OWNERSHIP, "at_ms", "job", "devices") == [
        (AT, "train", ["east-1/gpu0"]),
        (AT + 40, "train", []),
    ]


def test_samples_keep_what_is_not_known_and_leave_out_what_is_not_understood(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    values = np.array([[7.0, 55.0], [np.nan, 56.0]], "<f4")
    block = SampleBlock(
        metrics=["of_the_future", "temperature"], devices=["n/a", "n/b"], at_ms=[AT, AT + 1], values=values.tobytes()
    )
    recorder.sample(block)
    assert recorder.waiting == 2
    assert recorder.write() == 2
    back = rec.read(tmp_path, rec.TELEMETRY)
    assert back["temperature"].to_list() == [55.0, 56.0]
    others = back.drop("at_ms", "device", "temperature").to_numpy()
    assert np.isnan(others).all() and others.shape == (2, len(METRICS) - 1)
    assert COLUMN["temperature"] == 0


def test_durations() -> None:
    assert [span_ms(text) for text in ("90s", "15m", "1h", "7d")] == [90_000, 900_000, 3_600_000, 604_800_000]
    with pytest.raises(Exception, match="no duration"):
        span_ms("1 hour")
