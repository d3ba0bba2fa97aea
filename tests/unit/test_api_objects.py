"""What users see is joined rightly from the records, carries the labels that selectors use, and is rebuilt only where
something changed."""

from __future__ import annotations

import pytest

from controlplane.rpc.listing import Pages, checked_selector, scene_of
from controlplane.rpc.live import sla_view, with_live
from controlplane.rpc.objects import LABELS, SPECS, ObjectCache, objects_of
from controlplane.rpc.partial import sentences
from controlplane.rpc.refusal import Refusal
from gridkeeper.ids import JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.records.fleet import CordonReason, CordonRecord, HealthState, NodeState
from gridkeeper.records.jobs import JobState, ReservationRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import ListRequest, Object
from tests.fixtures import records
from tests.fixtures.filled import every_kind, fleet
from tests.fixtures.grid import FakeGrid


def _fleet(devices: int = 2) -> FakeGrid:
    return fleet(devices, {"zone": "a", "region": "moon"})


def _whole() -> FakeGrid:
    return every_kind(_fleet())


def _one(grid: FakeGrid, kind: int, name: str) -> Object:
    return objects_of(kind, scene_of(grid))[name]


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_every_kind_sets_its_view_and_carries_its_labels(kind: int) -> None:
    items = objects_of(kind, scene_of(_whole()))
    assert items
    for name, item in items.items():
        assert (item.kind, item.name) == (kind, name)
        assert item.WhichOneof("view") == BY_NUMBER[kind].view
        assert set(LABELS[kind]) <= set(item.labels)
        assert item.revision > 0 or kind == api_pb2.KIND_REGION


def test_a_node_cannot_pass_for_another_region_by_its_labels() -> None:
    item = _one(_fleet(), api_pb2.KIND_NODE, "east-1")
    assert item.labels["zone"] == "a"
    assert item.labels["region"] == "east"


def test_usable_devices_are_healthy_not_cordoned_and_on_a_live_node() -> None:
    grid = _fleet(devices=4)
    assert _one(grid, api_pb2.KIND_NODE, "east-1").node.devices_usable == 4
    gpu0, gpu1 = (records.device(f"east-1/gpu{i}").id for i in (0, 1))
    grid.put(grid.keys.health(gpu0), records.health(gpu0, HealthState.DRAINED))
    grid.put(grid.keys.cordon(gpu1), CordonRecord(gpu1, (CordonReason("user/ann", "test", records.T0, 0),)))
    assert _one(grid, api_pb2.KIND_NODE, "east-1").node.devices_usable == 2
    grid.put(grid.keys.liveness(NodeId("east-1")), records.liveness(state=NodeState.UNREACHABLE))
    assert _one(grid, api_pb2.KIND_NODE, "east-1").node.devices_usable == 0


def test_a_device_without_a_health_record_is_unknown() -> None:
    grid = _fleet(devices=1)
    grid.delete(grid.keys.health(records.device().id))
    assert _one(grid, api_pb2.KIND_DEVICE, "east-1/gpu0").labels["health"] == "unknown"


def test_a_node_never_judged_is_unknown() -> None:
    grid = _fleet()
    grid.delete(grid.keys.liveness(NodeId("east-1")))
    assert _one(grid, api_pb2.KIND_NODE, "east-1").labels["state"] == "unknown"


def test_a_device_names_the_job_that_owns_or_has_reserved_it() -> None:
    grid = _whole()
    reserved = ReservationRecord(
        JobId("next"), records.migration().id, NodeId("east-1"), (records.device("east-1/gpu1").id,), records.T0
    )
    grid.put(grid.keys.reservation(JobId("next")), reserved)
    assert _one(grid, api_pb2.KIND_DEVICE, "east-1/gpu0").device.job == "train"
    assert _one(grid, api_pb2.KIND_DEVICE, "east-1/gpu1").device.job == "next"
    grid.put(KEYS.job(JobId("train")), records.job(state=JobState.SUCCEEDED))
    assert _one(grid, api_pb2.KIND_DEVICE, "east-1/gpu0").device.job == ""


def test_a_job_shows_the_run_of_its_present_epoch_and_its_head() -> None:
    item = _one(_whole(), api_pb2.KIND_JOB, "train")
    assert item.job.run.last_step == 40
    assert item.job.head.step == 40
    assert item.labels["region"] == "east"


def test_a_checkpoint_is_named_by_job_and_step() -> None:
    item = _one(_whole(), api_pb2.KIND_CHECKPOINT, "train/40")
    assert item.checkpoint.head
    assert list(item.checkpoint.regions) == ["east", "west"]


def test_live_parts_are_added_to_a_copy() -> None:
    grid = _whole()
    grid.temperatures["east-1/gpu0"] = (71.0, (70.0, 71.0))
    item = _one(grid, api_pb2.KIND_DEVICE, "east-1/gpu0")
    shown = with_live(item, grid, recent=True)
    assert [(m.name, m.known) for m in shown.device.metrics] == [("temperature", True), ("power", False)]
    assert list(shown.device.metrics[0].recent) == [70.0, 71.0]
    assert shown.device.metrics_age_ms == 250
    assert not item.device.metrics and item.device.metrics_age_ms == -1


def test_an_sla_counts_the_open_interval_and_its_uptime_is_exact() -> None:
    account = records.account()
    view = sla_view(account, account.since_ms + 5_000)
    assert view.totals.down_ms == 15_000
    assert view.elapsed_ms == view.totals.up_ms + view.totals.down_ms
    assert view.uptime == "4501/5251"  # 90020/105020
    early = sla_view(account, account.since_ms - 1)  # this replica's ledger clock is behind: never negative
    assert early.totals == sla_view(account, account.since_ms).totals


def test_only_what_changed_is_rebuilt() -> None:
    grid, cache = _fleet(devices=3), ObjectCache()
    before = cache.table(api_pb2.KIND_DEVICE, scene_of(grid))
    assert cache.table(api_pb2.KIND_DEVICE, scene_of(grid)) is before
    gpu1 = records.device("east-1/gpu1").id
    grid.put(grid.keys.health(gpu1), records.health(gpu1, HealthState.SUSPECT))
    after = cache.table(api_pb2.KIND_DEVICE, scene_of(grid))
    changed = [name for name, item in after.objects.items() if before.objects[name] is not item]
    assert changed == ["east-1/gpu1"]


def test_pages_come_from_one_moment() -> None:
    grid = _fleet(devices=5)
    pages = Pages(grid, ObjectCache())
    first = pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_size=2))
    gpu9, gpu4 = records.device("east-1/gpu9"), records.device("east-1/gpu4")
    grid.put(grid.keys.device(gpu9.id), gpu9)
    grid.delete(grid.keys.device(gpu4.id))
    names, token = [item.name for item in first.objects], first.next_page_token
    while token:
        page = pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_size=2, page_token=token))
        assert page.revision == first.revision
        names += [item.name for item in page.objects]
        token = page.next_page_token
    assert names == [f"east-1/gpu{i}" for i in range(5)]


def test_a_token_is_good_for_its_own_listing_only() -> None:
    grid = _fleet(devices=5)
    pages, other = Pages(grid, ObjectCache()), Pages(FakeGrid("east", grid.local, grid.globe, "east-2"), ObjectCache())
    token = pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_size=2)).next_page_token
    for request in (
        ListRequest(kind=api_pb2.KIND_NODE, page_size=2, page_token=token),
        ListRequest(kind=api_pb2.KIND_DEVICE, selector="health=healthy", page_token=token),
    ):
        with pytest.raises(Refusal, match="page_token: it belongs to a listing of another kind or selector"):
            pages.list(request)
    with pytest.raises(Refusal, match="list again without page_token"):
        other.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_token=token))


def test_a_token_expires_with_a_remedy_and_does_not_pile_up() -> None:
    grid = _fleet(devices=3)
    pages = Pages(grid, ObjectCache())
    token = pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_size=1)).next_page_token
    for _ in range(40):
        pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_size=1))
    with pytest.raises(Refusal, match="no longer held here; list again without page_token"):
        pages.list(ListRequest(kind=api_pb2.KIND_DEVICE, page_token=token))


@pytest.mark.parametrize("token", ["x", "AAAA", "W10=", "WzEsMl0=", "é", "[" * 5000, "eyJhIjoxfQ=="])
def test_a_forged_token_is_refused(token: str) -> None:
    with pytest.raises(Refusal, match="page_token"):
        Pages(_fleet(), ObjectCache()).list(ListRequest(kind=api_pb2.KIND_DEVICE, page_token=token))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ListRequest(kind=0), "kind: 0 is no kind of object; use one of region"),  # type: ignore[arg-type]
        (ListRequest(kind=99), "kind: 99 is no kind"),  # type: ignore[arg-type]
        (ListRequest(kind=api_pb2.KIND_NODE, page_size=-1), "page_size: -1 is not between"),
        (ListRequest(kind=api_pb2.KIND_NODE, page_size=5_001), "page_size: 5001"),
        (ListRequest(kind=api_pb2.KIND_DEVICE, selector="sate=x"), "no object here has the label 'sate'"),
        (ListRequest(kind=api_pb2.KIND_DEVICE, selector="state"), "is not key=value"),
    ],
)
def test_bad_listings_are_refused_by_field(request_: ListRequest, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        Pages(_fleet(), ObjectCache()).list(request_)


def test_labels_of_nodes_can_be_selected() -> None:
    grid = _fleet()
    selector = checked_selector("zone=a", (api_pb2.KIND_NODE,), scene_of(grid))
    assert selector.matches(_one(grid, api_pb2.KIND_NODE, "east-1").labels)


def test_what_does_not_decode_makes_the_answer_partial() -> None:
    grid = _fleet()
    grid.suspect = frozenset({grid.keys.health(records.device().id)})
    (sentence,) = sentences((api_pb2.KIND_DEVICE,), scene_of(grid), grid.info())
    assert "1 records do not decode" in sentence and "health/east-1/gpu0" in sentence
    assert sentences((api_pb2.KIND_DRAIN,), scene_of(grid), grid.info()) == ()


def test_a_store_that_is_away_makes_what_rests_on_it_partial() -> None:
    grid = _fleet()
    grid.set_reachable(local=True, world=False)
    assert sentences((api_pb2.KIND_NODE,), scene_of(grid), grid.info()) == ()
    assert "the global store does not answer" in sentences((api_pb2.KIND_JOB,), scene_of(grid), grid.info())[0]
    grid.set_reachable(local=False, world=True)
    assert "its store does not answer" in sentences((api_pb2.KIND_NODE,), scene_of(grid), grid.info())[0]
    assert sentences((api_pb2.KIND_JOB,), scene_of(grid), grid.info()) == ()
