"""Why nodes are no place for a job, for people. Pure; looks at every node, so nothing decides by it."""

from __future__ import annotations

from failover.domain.closing import why_closed
from failover.domain.eligible import barred, drained_devices
from failover.domain.holders import Holders
from failover.domain.places import Request
from failover.domain.scoring import left_out
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.fleet import DeviceRecord
from gridkeeper.records.jobs import Candidate
from gridkeeper.snapshot import RegionState


def nodes_left_out(state: RegionState, request: Request, holders: Holders) -> tuple[Candidate, ...]:
    """Each node that has not what is asked for, with what is wrong with its devices, in order of name."""
    by_node: dict[NodeId, list[Versioned[DeviceRecord]]] = {node: [] for node in state.nodes}
    for held in state.devices.values():
        by_node.setdefault(held.record.node, []).append(held)
    found: list[Candidate] = []
    for node, devices in sorted(by_node.items()):
        whys = [_why(state, device.record, request, holders) for device in devices]
        free = whys.count("")
        if free < request.devices:
            parts = [f"{whys.count(why)} {why}" for why in sorted(set(whys) - {""})]
            told = f": {', '.join(parts)}" if parts else ""
            found.append(left_out(node, f"{free} of its {len(devices)} devices can be given{told}"))
    return tuple(found)


def _why(state: RegionState, device: DeviceRecord, request: Request, holders: Holders) -> str:
    """Why this device is not given to the job; "" if it may be."""
    bad = barred(state, device.id)
    if bad:
        return bad.replace(f"{device.id} is", "is").replace("it is", "is")
    if device.id in drained_devices(state):
        return "kept free by a drain"
    node = state.nodes.get(device.node)
    if node is not None and node.record.scheduler:
        siblings = node.record.devices
        closed = why_closed(device.node, siblings, state.cordons, state.health, drained_devices(state))
        if closed:
            return f"closed to {node.record.scheduler}, because {closed}"
    if request.model and device.model != request.model:
        return f"of model {device.model}"
    if device.id in request.avoid:
        return "to be left by the job"
    jobs = _holders(holders, device.id, request)
    return f"held by {', '.join(jobs)}" if jobs else ""


def _holders(holders: Holders, device: DeviceId, request: Request) -> list[str]:
    others: list[str] = [*holders.others(device, request.job)]
    living = holders.by_device.get(device, {}).get(request.job) == 0
    return [*others, f"{request.job} itself, which still runs"] if living else others
