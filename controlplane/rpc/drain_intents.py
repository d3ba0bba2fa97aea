"""Pure: what a human's wish to drain becomes, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from controlplane.domain.cost import sentences
from controlplane.domain.drain import decide_drains
from controlplane.domain.drain_progress import UNDER_WAY
from controlplane.domain.health import OUT
from controlplane.rpc.intents import Plan, Wish, counted, devices_of, reference_of
from controlplane.rpc.refusal import invalid, precondition
from gridkeeper import codec
from gridkeeper.decision import ABSENT, Decision, Draft, Now, Put, Versioned, guards_of
from gridkeeper.ids import DeviceId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import DrainPolicy
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainRequestRecord, DrainState
from gridkeeper.records.fleet import HealthState
from gridkeeper.snapshot import GlobalState, RegionState, Settings
from gridkeeper.v1 import api_pb2, records_pb2

MONTH_MS = 31 * 86_400_000
MAX_PRIORITY = 1_000


@dataclass(frozen=True, slots=True)
class Manner:
    """How a human wants it done."""

    mode: DrainMode
    wait_ms: int
    priority: int = 0
    delay_ms: int = 0


def checked_manner(request: api_pb2.DrainRequest, policy: DrainPolicy) -> Manner:
    """What the request leaves open is as the policy says. Raises ``Refusal``."""
    modes = {
        records_pb2.DRAIN_MODE_UNSPECIFIED: DrainMode(policy.mode),
        records_pb2.DRAIN_MODE_CHECKPOINT: DrainMode.CHECKPOINT,
        records_pb2.DRAIN_MODE_WAIT: DrainMode.WAIT,
        records_pb2.DRAIN_MODE_DEADLINE: DrainMode.DEADLINE,
    }
    mode = modes.get(request.mode)
    if mode is None:
        raise invalid(f"mode: {request.mode} is none; use checkpoint, wait or deadline")
    for field in ("wait_ms", "delay_ms"):
        value = getattr(request, field)
        if not 0 <= value <= MONTH_MS:
            raise invalid(f"{field}: {value} is not between 0 and {MONTH_MS} (31 days)")
    if request.wait_ms and mode is not DrainMode.DEADLINE:
        raise invalid(f"wait_ms: {request.wait_ms} with the mode {mode.value}; only the mode deadline has one")
    if abs(request.priority) > MAX_PRIORITY:
        raise invalid(f"priority: {request.priority} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    wait_ms = (request.wait_ms or policy.wait_ms) if mode is DrainMode.DEADLINE else 0
    return Manner(mode, wait_ms, request.priority, request.delay_ms)


def drain(target: str, manner: Manner, wish: Wish, region: RegionState, now: Now) -> Plan:
    """A drain request per device that is not on its way out; the region's leader plans each under the budgets. One for
    a device whose drain waits for its jobs hurries it."""
    devices, requests = _wanted(target, manner, wish, region, now)
    objects = tuple(f"device/{device}" for device in devices)
    if not requests:
        states = {h.record.state.value for device in devices if (h := region.health.get(device))}
        return Plan(f"{target} is already asked for or out ({', '.join(sorted(states))})", objects)
    keys, draft = RegionKeys(region.region), Draft()
    for device, record in requests.items():
        draft.put(keys.drain_request(device), record, region.drain_requests.get(device))
    already = f"; {len(devices) - len(requests)} were asked for or out before" if len(requests) < len(devices) else ""
    sentence = f"drain of {target} asked for ({counted(len(requests), 'device')}, mode {manner.mode.value}){already}"
    sentence = f"{sentence}: {wish.reason}"
    guards = guards_of((keys.device(device), region.devices[device]) for device in requests)
    decision = Decision(
        "drain.request", sentence, draft.writes(), guards, reference_of(target), (wish.actor,), wish.trace
    )
    return Plan(f"{sentence}; the region's leader plans it within the budgets", objects, decision)


def _wanted(
    target: str, manner: Manner, wish: Wish, region: RegionState, now: Now
) -> tuple[tuple[DeviceId, ...], Mapping[DeviceId, DrainRequestRecord]]:
    devices = devices_of(target, region)
    if not devices:
        raise precondition(f"target: node {target} has no devices to drain; cordon it instead")
    waiting = {d.record.device for d in region.drains.values() if _may_be_hurried(d.record, manner)}
    record = DrainRequestRecord(
        DeviceId(""), wish.actor, wish.reason, now.ledger_ms, wish.trace, manner.mode, manner.wait_ms, manner.priority,
        now.ledger_ms + manner.delay_ms if manner.delay_ms else 0,
    )  # fmt: skip
    asked: dict[DeviceId, DrainRequestRecord] = {}
    for device in devices:
        health, before = region.health.get(device), region.drain_requests.get(device)
        if before is not None and not before.record.maintenance:
            continue
        out = health is not None and health.record.state in OUT - {HealthState.PROBATION}
        if not out or device in waiting:
            asked[device] = replace(record, device=device)
    return devices, asked


def _may_be_hurried(drain: DrainRecord, manner: Manner) -> bool:
    """A new wish changes it: its jobs are to move now, or its device is to stay out after a maintenance."""
    hurries = drain.state in UNDER_WAY and drain.mode is not DrainMode.CHECKPOINT
    return (hurries and manner.mode is DrainMode.CHECKPOINT) or bool(
        drain.maintenance and drain.state in UNDER_WAY | {DrainState.DRAINED}
    )


def rehearse(
    target: str, manner: Manner, wish: Wish, region: RegionState, world: GlobalState, settings: Settings, now: Now
) -> api_pb2.ActResponse:
    """What the leader would decide if it looked now: the drains as they would be recorded, admitted or refused, with
    their cost. It is the planner itself on a copy of the state that has the requests in it; nothing is written."""
    devices, requests = _wanted(target, replace(manner, delay_ms=0), wish, region, now)
    imagined = {device: Versioned(record, ABSENT, ABSENT, now.mono_ms) for device, record in requests.items()}
    asked = replace(region, drain_requests={**region.drain_requests, **imagined})
    planned: dict[DeviceId, DrainRecord] = {}
    for decision in decide_drains(asked, world, settings, now, most=len(asked.drain_requests) + len(region.health)):
        for write in decision.writes:
            if isinstance(write, Put) and isinstance(write.record, DrainRecord) and write.record.device in requests:
                planned[write.record.device] = write.record
    plan = [planned[device] for device in devices if device in planned]
    objects = [f"device/{device}" for device in devices]
    messages = [cast(Any, codec.to_message(record)) for record in plan]
    told = _told(target, devices, plan)
    return api_pb2.ActResponse(sentence=told, objects=objects, revision=region.revision, plan=messages)


def _told(target: str, devices: tuple[DeviceId, ...], plan: list[DrainRecord]) -> str:
    new = [record for record in plan if record.state in (DrainState.ADMITTED, DrainState.REFUSED)]
    refused = [record for record in new if record.state is DrainState.REFUSED]
    parts = [f"a drain of {target} would take out {len(new) - len(refused)} of {counted(len(devices), 'device')}"]
    if refused:
        parts.append(f"{len(refused)} would be refused ({refused[0].reason.rpartition('refused: ')[2]})")
    jobs = {job.job: job for record in new if record.cost for job in record.cost.jobs}
    admitted = [record for record in new if record.state is DrainState.ADMITTED and record.cost]
    if admitted and admitted[-1].cost:
        last = replace(admitted[-1].cost, jobs=tuple(jobs.values()))
        parts += sentences(last, admitted[-1].mode)
    return "; ".join(parts)
