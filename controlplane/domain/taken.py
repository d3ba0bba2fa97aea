"""A region that was taken for lost hears of it when it is back, and says so where its operators look. Pure.

While the verdict stands, its leader sees it for at least the hold-down (``failover.domain.grants``), so the incident is
opened once per verdict; it is over when the region takes part again and nothing runs here that another region owns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from controlplane.domain.words import listed, made_id
from gridkeeper.decision import ABSENT, Decision, Now, Put
from gridkeeper.ids import DrainId, IncidentId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.records.jobs import RunPhase
from gridkeeper.records.regions import LossRecord, LossState
from gridkeeper.snapshot import GlobalState, RegionState

TAKEN = "taken-for-lost"
"""Fault class of the incident."""


def decide_taken(state: RegionState, world: GlobalState, now: Now) -> Iterator[Decision]:
    """At most one: open the incident of the verdict on our own region, or resolve it."""
    loss = world.losses.get(state.region)
    if loss is None or not world.fresh or KEYS.loss(state.region) in world.suspect_keys:
        return
    standing = [
        held
        for _, held in sorted(state.incidents.items())
        if held.record.fault_class == TAKEN and held.record.state is not IncidentState.RESOLVED
    ]
    keys = RegionKeys(state.region)
    if loss.record.state is LossState.DECLARED:
        record = _opened(state, world, loss.record, now)
        if standing or record.id in state.incidents:
            return
        sentence = f"incident {record.id} opened: {record.title}"
        put = Put(keys.incident(record.id), record, ABSENT)
        yield Decision("incident.open", sentence, (put,), (), f"incident/{record.id}", (), record.trace)
        return
    for held in standing[:1]:
        left = _left(state, world)
        if left:
            return
        resolution = "the region takes part again, and nothing runs here of what is owned elsewhere"
        over = replace(held.record, state=IncidentState.RESOLVED, resolved_ms=now.ledger_ms, resolution=resolution)
        put = Put(keys.incident(held.record.id), over, held.revision)
        sentence = f"incident {held.record.id} resolved: {resolution}"
        yield Decision("incident.open", sentence, (put,), (), f"incident/{held.record.id}", (), held.record.trace)


def _opened(state: RegionState, world: GlobalState, loss: LossRecord, now: Now) -> IncidentRecord:
    subject = f"region:{state.region}"
    moved = sorted(
        f"{m.record.job} to {m.record.target_region or 'wherever there is room'}"
        for m in world.migrations.values()
        if m.record.source_region == state.region and m.record.requested_ms >= loss.decided_ms
    )
    title = (
        f"region {state.region} was taken for lost by {loss.decided_by} while it was not heard ({loss.reason}): its "
        f"{loss.jobs} jobs are fenced here and taken over elsewhere ({listed(moved)}); they stay where they go"
    )
    return IncidentRecord(
        id=IncidentId(made_id(subject, TAKEN, loss.decided_ms)),
        region=state.region,
        subject=subject,
        fault_class=TAKEN,
        state=IncidentState.OPEN,
        severity=Severity.ERROR,
        title=title,
        opened_ms=now.ledger_ms,
        observed_ms=loss.silent_ms,
        last_ms=loss.decided_ms,
        count=loss.jobs,
        findings=(),
        drain=DrainId(""),
        acknowledged_by="",
        resolved_ms=0,
        resolution="",
        trace=loss.trace,
    )


def _left(state: RegionState, world: GlobalState) -> bool:
    """Something of an epoch that has lost its job is not known to be gone from this region's nodes."""
    for run in world.runs.values():
        owner = world.ownership.get(run.record.job)
        ended = run.record.phase is RunPhase.EXITED and run.record.stop_confirmed
        if run.record.region == state.region and not ended and owner and owner.record.epoch > run.record.epoch:
            return True
    return False
