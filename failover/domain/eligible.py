"""Which devices of a region may take new work, whoever holds them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from failover.domain.closing import why_closed
from gridkeeper.decision import Versioned
from gridkeeper.hearing import heard
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.memo import differing
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.fleet import HealthState, NodeState
from gridkeeper.snapshot import RegionState

BARRED_BY_DRAIN = frozenset(
    {DrainState.PLANNED, DrainState.ADMITTED, DrainState.EVACUATING, DrainState.REFUSED, DrainState.EXPIRED}
)
"""A drain in one of these states keeps new work off its device; a refused one too (rule 7)."""

HEALTHY = (HealthState.HEALTHY,)
USABLE = (HealthState.HEALTHY, HealthState.SUSPECT)


def barred(state: RegionState, device: DeviceId) -> str:
    """Why nothing new is placed on this device; "" if it may be. What is missing or does not decode is unknown, and
    unknown is not healthy."""
    return _out(state, device, HEALTHY)


def usable(state: RegionState, device: DeviceId) -> bool:
    """It can run work: as ``barred``, but a suspect device still counts."""
    return not _out(state, device, USABLE)


def silent(state: RegionState, node: NodeId) -> bool:
    """Its session has ended, or the replica that held it is gone: not judged yet, but no place for new work."""
    return heard(state, node) is False


def _out(state: RegionState, device: DeviceId, good: tuple[HealthState, ...]) -> str:
    record = state.devices.get(device)
    if record is None:
        return "it is not in the inventory"
    node = record.record.node
    unread = state.suspect_keys and state.suspect_keys.intersection(relied_keys(RegionKeys(state.region), node, device))
    if unread:
        return f"{min(unread)} does not decode"
    why = _node_out(state, node)
    if why:
        return why
    if device in state.cordons:
        return f"{device} is cordoned"
    if not record.record.present:
        return "it is missing"
    health = state.health.get(device)
    if health is None or not any(health.record.state is state for state in good):
        return f"it is {health.record.state.value if health else 'of unknown health'}"
    if health.record.uuid and record.record.uuid != health.record.uuid:
        return "another card than the one that was judged is in it"
    return ""


def _node_out(state: RegionState, node: NodeId) -> str:
    liveness = state.liveness.get(node)
    if liveness is None or liveness.record.state is not NodeState.ALIVE:
        return f"node {node} is {liveness.record.state.value if liveness else 'not known to be alive'}"
    if silent(state, node):
        return f"node {node} is not heard now"
    return f"{node} is cordoned" if node in state.cordons else ""


def relied_keys(keys: RegionKeys, node: NodeId, device: DeviceId) -> tuple[str, ...]:
    """The keys that ``barred`` reads, as far as their change must undo a placement."""
    return (
        keys.liveness(node),
        keys.cordon(node),
        keys.cordon(device),
        keys.device(device),
        keys.health(device),
    )


def drained_devices(state: RegionState) -> frozenset[DeviceId]:
    """Devices that a drain keeps new work off."""
    return state.memo.once(_drained_devices, state.drains)


def _drained_devices(drains: Mapping[str, Versioned[DrainRecord]]) -> frozenset[DeviceId]:
    return frozenset(d.record.device for d in drains.values() if d.record.state in BARRED_BY_DRAIN)


def eligible(state: RegionState) -> Mapping[NodeId, list[DeviceId]]:
    """Devices that may take new work, taken or not, by node; nodes without any are left out."""
    return _looked_at(state).eligible


def usable_count(state: RegionState) -> int:
    """How many devices are ``usable``."""
    return _looked_at(state).total


def _looked_at(state: RegionState) -> _Look:
    return state.memo.of(_Newest).at(state)


@dataclass(slots=True)
class _Look:
    """What one look at a region found. ``usable``, ``devices``: per node. ``total``: of ``usable``."""

    eligible: Mapping[NodeId, list[DeviceId]] = field(default_factory=dict)
    usable: dict[NodeId, int] = field(default_factory=dict)
    devices: dict[NodeId, set[DeviceId]] = field(default_factory=dict)
    total: int = 0


class _Newest:
    """The newest look, and the state that it was for: the next one looks anew only at nodes of which something has
    changed since."""

    def __init__(self) -> None:
        self._state: RegionState | None = None
        self._look = _Look()

    def at(self, state: RegionState) -> _Look:
        last = self._state
        if last is state:
            return self._look
        same = last is not None and (last.region, last.suspect_keys) == (state.region, state.suspect_keys)
        if last is None or not same or last.replicas is not state.replicas:
            last, self._look = RegionState(state.region), _Look()
        nodes = _changed_nodes(last, state, self._look)
        if nodes:
            fit = dict(self._look.eligible)
            for node in nodes:
                _judge(state, node, self._look, fit)
            self._look.eligible = fit
        self._state = state
        return self._look


def _changed_nodes(last: RegionState, state: RegionState, look: _Look) -> set[NodeId]:
    """Nodes of which something that counts has changed. Keeps in step which devices a node has."""
    nodes: set[NodeId] = set()
    for device in differing(last.devices, state.devices):
        for of in (last, state):
            if (record := of.devices.get(device)) is not None:
                nodes.add(record.record.node)
                here = look.devices.setdefault(record.record.node, set())
                if of is state:
                    here.add(device)
                else:
                    here.discard(device)
    devices = {DeviceId(device) for device in differing(last.health, state.health)}
    nodes.update(NodeId(node) for node in differing(last.liveness, state.liveness))
    nodes.update(NodeId(node) for node in differing(last.sessions, state.sessions))
    for target in differing(last.cordons, state.cordons):
        nodes.add(NodeId(target))
        devices.add(DeviceId(target))
    for name in differing(last.drains, state.drains):
        devices.update(held.record.device for of in (last, state) if (held := of.drains.get(name)) is not None)
    nodes.update(record.record.node for device in devices if (record := state.devices.get(device)) is not None)
    return nodes


def _judge(state: RegionState, node: NodeId, look: _Look, fit: dict[NodeId, list[DeviceId]]) -> None:
    drained, found, count = drained_devices(state), list[DeviceId](), 0
    if state.suspect_keys or not _node_out(state, node):  # what holds for a whole node is asked once
        for device in sorted(look.devices.get(node, ())):
            held = state.health.get(device)
            if held is None or _out(state, device, USABLE):
                continue
            count += 1
            if held.record.state is HealthState.HEALTHY and device not in drained:
                found.append(device)
    if found and (owned := state.nodes.get(node)) is not None and owned.record.scheduler:
        devices = look.devices.get(node, set())
        if why_closed(node, devices, state.cordons, state.health, drained):
            found = []  # its batch system is told to start nothing there, so it would not start this either
    look.total += count - look.usable.get(node, 0)
    look.usable[node] = count
    if not found:
        fit.pop(node, None)
    elif fit.get(node) != found:
        fit[node] = found
