"""Watching several regions as one: nothing is shown twice, nothing that vanished stays, and a silent region is said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.client.changes import Change, Gone, Merger, Partial, Put, Synced
from gridkeeper.ids import RegionId
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

EAST, WEST = RegionId("east"), RegionId("west")


def _node(name: str, region: str, revision: int = 1) -> Object:
    return Object(kind=api_pb2.KIND_NODE, name=name, region=region, revision=revision)


def _job(name: str, revision: int, state: str = "running") -> Object:
    return Object(kind=api_pb2.KIND_JOB, name=name, revision=revision, labels={"state": state})


def _both() -> Merger:
    merger = Merger((EAST, WEST))
    merger.synced(EAST)
    merger.synced(WEST)
    return merger


def test_synced_comes_once_and_only_when_every_region_has_answered() -> None:
    merger = Merger((EAST, WEST))
    assert merger.synced(EAST) == []
    assert merger.lost(WEST, "west is away") == [Partial(("west is away",)), Synced()]
    assert merger.synced(WEST) == [Partial(())]


def test_a_job_that_both_regions_tell_is_told_once() -> None:
    merger = _both()
    assert merger.put(EAST, _job("train", 5)) == [Put(_job("train", 5))]
    assert merger.put(WEST, _job("train", 5)) == []


def test_a_region_that_lags_does_not_bring_the_past_back() -> None:
    merger = _both()
    merger.put(EAST, _job("train", 7, "stopped"))
    assert merger.put(WEST, _job("train", 5, "running")) == []


def test_what_a_region_does_not_repeat_after_reconnecting_is_gone() -> None:
    merger = _both()
    merger.put(EAST, _node("east-1", "east"))
    merger.put(EAST, _node("east-2", "east"))
    merger.lost(EAST, "east is away")
    merger.connecting(EAST)
    assert merger.put(EAST, _node("east-1", "east")) == []
    assert merger.synced(EAST) == [Gone(api_pb2.KIND_NODE, "east-2"), Partial(())]


def test_objects_of_a_silent_region_stay_and_are_said_to_be_old() -> None:
    merger = _both()
    merger.put(WEST, _node("west-1", "west"))
    assert merger.lost(WEST, "west is away") == [Partial(("west is away",))]


def test_a_job_deleted_while_a_region_is_silent_does_not_stay() -> None:
    merger = _both()
    merger.put(EAST, _job("train", 5))
    merger.put(WEST, _job("train", 5))
    merger.lost(WEST, "west is away")
    assert merger.deleted(EAST, api_pb2.KIND_JOB, "train") == [Gone(api_pb2.KIND_JOB, "train")]


def test_jobs_stay_while_every_region_is_silent() -> None:
    merger = _both()
    merger.put(EAST, _job("train", 5))
    merger.put(WEST, _job("train", 5))
    merger.lost(EAST, "east is away")
    assert merger.lost(WEST, "west is away") == [Partial(("east is away", "west is away"))]


def test_a_region_that_says_itself_what_is_missing() -> None:
    merger = _both()
    assert merger.reports(EAST, "its store is away") == [Partial(("its store is away",))]
    assert merger.reports(EAST, "its store is away") == []
    assert merger.reports(EAST, "") == [Partial(())]


STEPS = st.lists(
    st.tuples(
        st.sampled_from([EAST, WEST]),
        st.sampled_from(["connect", "put", "delete", "synced", "lost"]),
        st.sampled_from(["a", "b"]),
        st.integers(1, 5),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_consumer_ends_with_what_the_regions_hold(steps: list[tuple[RegionId, str, str, int]]) -> None:
    """Whatever happens in between: once both regions are connected again and have told the same, the consumer who
    applied all changes holds exactly that."""
    merger = Merger((EAST, WEST))
    seen: dict[tuple[int, str], Object] = {}

    def apply(changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Put):
                seen[change.object.kind, change.object.name] = change.object
            elif isinstance(change, Gone):
                del seen[change.kind, change.name]  # never something that was not told before

    for region, step, name, revision in steps:
        if step == "connect":
            merger.connecting(region)
        elif step == "put":
            apply(merger.put(region, _job(name, revision)))
            apply(merger.put(region, _node(f"{region}-{name}", region, revision)))
        elif step == "delete":
            apply(merger.deleted(region, api_pb2.KIND_JOB, name))
        elif step == "synced":
            apply(merger.synced(region))
        else:
            apply(merger.lost(region, f"{region} is away"))
    truth = _job("final", 9)
    for region in (EAST, WEST):
        merger.connecting(region)
        apply(merger.put(region, truth))
        apply(merger.put(region, _node(f"{region}-final", region, 9)))
        apply(merger.synced(region))
    assert set(seen) == {
        (api_pb2.KIND_JOB, "final"),
        (api_pb2.KIND_NODE, "east-final"),
        (api_pb2.KIND_NODE, "west-final"),
    }
