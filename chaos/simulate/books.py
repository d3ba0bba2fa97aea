"""The story of a month's end: its ledger is closed once in each store, whatever happens meanwhile."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE
from chaos.simulate.play import Claim, Story
from chaos.simulate.stories import JOB, SHAPE, finished, job_ended, steady
from controlplane.domain.settlement import Keys
from gridkeeper.ids import RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import SettlementPolicy
from gridkeeper.records.books import EntryRecord, Totals
from gridkeeper.records.faults import LeaderRecord
from gridkeeper.records.objectives import SloHourRecord
from gridkeeper.records.settlement import AdjustmentRecord, ClosingRecord
from gridkeeper.sla.books import frame_of
from gridkeeper.sla.closing import clipped
from gridkeeper.sla.document import shipped_text
from gridkeeper.sla.months import month_window
from gridkeeper.v1 import records_pb2

EARLY_MS = 15_000
MONTH = "2025-12"
WINDOW = month_window(MONTH, "UTC")
CLOSED_MS = 180_000
STEP_MS = 3_600_000
POLICY = replace(default_policy(), settlement=SettlementPolicy(close_after_ms=5_000))
BOOKS: Shape = replace(SHAPE, policy=POLICY, early_ms=EARLY_MS)
CONTRACT = shipped_text("aws")
OBJECTIVES = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: devices}
spec:
  service: grid
  indicator:
    spec: {ratioMetric: {rawType: success, raw: {metricSource: {type: gridkeeper, spec: {sli: device-availability}}}}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{displayName: most, targetPercent: 99}]
"""


async def month_end(grid: SimGrid) -> tuple[Claim, ...]:
    """The leader of a region is killed shortly before the month ends, its store has another leader too, and the host
    comes back with a clock that is an hour ahead. When the month is closed, a time of a node is excluded."""
    await grid.apply_document("contract", "", CONTRACT)
    await grid.apply_document("objectives", "devices", OBJECTIVES)
    owner = await steady(grid)
    region, keys = owner.region, RegionKeys(owner.region)
    leader = grid.one(region, keys.leader, LeaderRecord)
    if leader is not None:
        await grid.kill_replica(leader.replica)
        grid.step_clock(leader.replica, STEP_MS)
        grid.stores[region].new_leader()
        grid.start_replica(leader.replica)
    stores: dict[str, Keys] = {
        **{str(name): RegionKeys(RegionId(name)) for name in grid.shape.regions},
        GLOBAL_STORE: KEYS,
    }

    def closings() -> dict[str, ClosingRecord]:
        found = {name: grid.all(name, at.prefix("closings"), ClosingRecord) for name, at in stores.items()}
        return {name: records[0] for name, records in found.items() if len(records) == 1}

    await grid.until(lambda: len(closings()) == len(stores), f"{MONTH} closed in each store", CLOSED_MS)
    closed = closings()
    scope = f"node/{owner.node}"
    await grid.exclude(scope, records_pb2.CAUSE_CUSTOMER, WINDOW.until_ms - 3 * STEP_MS, WINDOW.until_ms + STEP_MS)

    def adjusted() -> tuple[AdjustmentRecord, ...] | None:
        return grid.all(region, keys.prefix("adjustments"), AdjustmentRecord) or None

    booked = await grid.until(adjusted, "the adjustment", CLOSED_MS)
    await finished(grid)
    changes = [change for record in booked for change in record.changes]
    hours = [one for at in grid.shape.regions for one in grid.all(
        at, RegionKeys(RegionId(at)).prefix("slo-hours"), SloHourRecord)]  # fmt: skip
    again = {name: _again(grid, name, at.prefix("entries")) for name, at in stores.items()}
    same = [name for name, record in closed.items() if again[name] == grid.archive.files[record.segment]]
    return (
        *await job_ended(grid),
        Claim("the month is closed once per store", sorted(closed) == sorted(stores), f"{sorted(closed)}"),
        Claim("each segment is in the archive", all(c.segment in grid.archive.files for c in closed.values())),
        Claim("the entries give the same bytes again", sorted(same) == sorted(stores), f"only {same}", calm=True),
        Claim("what was excluded late is booked by class", all(_moves(one.change) for one in changes)),
        Claim("for devices of the node", {c.scope.split("/")[1] for c in changes} == {owner.node}),
        Claim("objectives were measured, each minute once", bool(hours) and all(
            len(set(one.minutes)) == len(one.minutes) for one in hours), f"{len(hours)} hours"),
    )  # fmt: skip


def _moves(change: Totals) -> bool:
    """Time moves to excluded, and none is lost."""
    whole = change.up_ms + change.degraded_ms + change.down_ms + change.excluded_ms + change.unknown_ms
    return whole == 0 and change.excluded_ms > 0


def _again(grid: SimGrid, store: str, prefix: str) -> bytes:
    entries: Iterable[EntryRecord] = grid.all(store, prefix, EntryRecord)
    out = io.BytesIO()
    frame: pl.DataFrame = clipped(frame_of(entries), WINDOW)
    frame.write_parquet(out)
    return out.getvalue()


STORIES: dict[str, Story] = {
    "month-end": Story("month-end", f"a month of {JOB} and its devices ends while leaders change", month_end, BOOKS)
}
