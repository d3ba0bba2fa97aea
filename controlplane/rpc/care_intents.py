"""Pure: what humans announce, change and call off of maintenance, and how they decide on repairs."""

from __future__ import annotations

from controlplane.domain import maintenance
from controlplane.domain.maintenance import BadWindow
from controlplane.domain.repair import to
from controlplane.rpc.intents import Plan, Wish, devices_of, reference_of
from controlplane.rpc.refusal import invalid, not_found, precondition
from gridkeeper.decision import Now
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import RepairState
from gridkeeper.snapshot import RegionState, Settings
from gridkeeper.v1 import api_pb2

YEAR_MS = 366 * 86_400_000
MAX_LENGTH_MS = 90 * 86_400_000
MAX_LEAD_MS = 31 * 86_400_000
MAX_WINDOWS = 2_000
"""Of one region, those that are over included (they are forgotten after a while)."""


def plan_maintenance(request: api_pb2.MaintenanceRequest, wish: Wish, region: RegionState, now: Now) -> Plan:
    """A new window, or another end of the one that ``request.id`` names. Saying the same again changes nothing."""
    if request.id:
        return _moved(request, wish, region, now)
    devices_of(request.target, region)
    if not 0 <= request.lead_ms <= MAX_LEAD_MS:
        raise invalid(f"lead_ms: {request.lead_ms} is not between 0 and {MAX_LEAD_MS} (31 days)")
    if not 0 <= request.from_ms <= now.ledger_ms + YEAR_MS:
        raise invalid(f"from_ms: {request.from_ms} is not within the next year; ms since the Unix epoch")
    _checked_length(request.from_ms, request.until_ms)
    for name, held in region.maintenance.items():
        record = held.record
        same = (record.target, record.from_ms, record.until_ms, record.lead_ms)
        if record.state not in maintenance.OVER and same == (
            request.target, request.from_ms, request.until_ms, request.lead_ms
        ):  # fmt: skip
            return Plan(f"maintenance {name} of {record.target} is announced already", (f"maintenance/{name}",))
    if len(region.maintenance) >= MAX_WINDOWS:
        raise precondition(f"region {region.region} has {MAX_WINDOWS} windows already; cancel some first")
    span = (request.from_ms, request.until_ms)
    try:
        decision = maintenance.announce(
            region, request.target, span, request.lead_ms, wish.actor, wish.reason, now, wish.trace
        )
    except BadWindow as error:
        raise precondition(str(error)) from error
    return Plan(decision.sentence, (decision.subject, reference_of(request.target)), decision)


def _moved(request: api_pb2.MaintenanceRequest, wish: Wish, region: RegionState, now: Now) -> Plan:
    held = region.maintenance.get(request.id)
    if held is None:
        raise not_found("maintenance", request.id, region.maintenance.keys(), f"in region {region.region}")
    _checked_length(held.record.from_ms, request.until_ms)
    if held.record.until_ms == request.until_ms and held.record.state not in maintenance.OVER:
        return Plan(f"maintenance {request.id} ends then already", (f"maintenance/{request.id}",))
    try:
        decision = maintenance.move_end(region, held, request.until_ms, wish.actor, now)
    except BadWindow as error:
        raise precondition(str(error)) from error
    return Plan(decision.sentence, (decision.subject,), decision)


def _checked_length(from_ms: int, until_ms: int) -> None:
    if until_ms - from_ms > MAX_LENGTH_MS:
        raise invalid(f"until_ms: the window is {until_ms - from_ms} ms long; at most {MAX_LENGTH_MS} (90 days)")


def cancel_maintenance(name: str, wish: Wish, region: RegionState, settings: Settings, now: Now) -> Plan:
    """Before it begins it never was; within it, it ends now."""
    held = region.maintenance.get(name)
    if held is None:
        raise not_found("maintenance", name, region.maintenance.keys(), f"in region {region.region}")
    objects = (f"maintenance/{name}", reference_of(held.record.target))
    if held.record.state in maintenance.OVER:
        return Plan(f"maintenance {name} is {held.record.state.value} already", objects)
    decision = maintenance.call_off(region, settings, held, wish.actor, wish.reason, now)
    return Plan(decision.sentence, objects, decision)


def decide_repair(name: str, approve: bool, wish: Wish, region: RegionState, now: Now) -> Plan:
    """A human disposes of what the machine proposed."""
    held = region.repairs.get(name)
    if held is None:
        raise not_found("repair", name, region.repairs.keys(), f"in region {region.region}")
    record, objects = held.record, (f"repair/{name}", reference_of(held.record.device or held.record.node))
    wanted = RepairState.APPROVED if approve else RepairState.REJECTED
    if record.state is wanted:
        return Plan(f"repair {name} is {wanted.value} already, by {record.decided_by}", objects)
    withdrawn = record.state is RepairState.APPROVED and not approve
    if record.state is not RepairState.PROPOSED and not withdrawn:
        raise precondition(
            f"repair {name} is {record.state.value}; only one that is proposed or approved waits for you"
        )
    keys = RegionKeys(region.region)
    decision = to(keys, held, wanted, f"by {wish.actor}: {wish.reason}", now.ledger_ms, wish.actor, wish.trace)
    return Plan(decision.sentence, objects, decision)
