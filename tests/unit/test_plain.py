"""``-o json`` is an interface: its shape never depends on the values, and numbers are numbers."""

from __future__ import annotations

import json
import math

from gridkeeper import codec
from gridkeeper.client.plain import enum_word, plain, plain_list, word
from gridkeeper.v1 import api_pb2, records_pb2
from tests.fixtures import records


def test_numbers_are_numbers_and_enums_are_words() -> None:
    message = codec.to_message(records.drain())
    shown = plain(message)
    assert shown["planned_ms"] == records.T0 + 20  # beyond 2**31: protobuf's own JSON makes a string of it
    assert shown["state"] == "evacuating"
    assert shown["jobs"] == ["train"]
    assert shown["stages"][1] == {"name": "admitted", "at_ms": records.T0 + 20}
    assert json.loads(json.dumps(shown)) == shown


def test_every_field_is_there_when_nothing_is_set() -> None:
    shown = plain(api_pb2.DeviceView())
    assert set(shown) == {field.name for field in api_pb2.DeviceView.DESCRIPTOR.fields}
    assert shown["record"] is None and shown["job"] == "" and shown["metrics"] == [] and shown["metrics_age_ms"] == 0


def test_only_the_view_that_is_set_appears() -> None:
    item = api_pb2.Object(kind=api_pb2.KIND_JOB, name="train", labels={"b": "2", "a": "1"})
    item.job.SetInParent()
    shown = plain(item)
    assert list(shown) == ["kind", "name", "region", "revision", "labels", "job"]
    assert shown["kind"] == "job"
    assert list(shown["labels"]) == ["a", "b"]


def test_what_is_not_known_is_null() -> None:
    assert plain(api_pb2.Metric(name="power", value=math.nan))["value"] is None
    assert plain(records_pb2.RunRecord(last_loss=math.inf))["last_loss"] is None


def test_a_member_that_this_version_does_not_know_stays_visible() -> None:
    kinds = api_pb2.Object.DESCRIPTOR.fields_by_name["kind"].enum_type
    assert enum_word(kinds, 999) == "999"
    assert word(records_pb2.HealthRecord(state=records_pb2.HEALTH_STATE_DRAINING), "state") == "draining"


def test_bytes_that_are_no_text_do_not_break_it() -> None:
    assert plain(api_pb2.JobLogsResponse(node="n", text=b"ok \xff"))["text"] == "ok �"


def test_a_listing_is_one_object() -> None:
    shown = plain_list("drain", [api_pb2.Object(name="d1")], ["region west is away"], 7)
    assert shown["kind"] == "DrainList"
    assert shown["partial"] == ["region west is away"]
    assert [item["name"] for item in shown["items"]] == ["d1"]
