"""The few devices of a region that are not simply healthy and there: nearly all are, nearly always, and need no look.
Pure; kept from look to look, in step with what has changed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from controlplane.domain import health
from controlplane.domain.scopes import devices_of
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId
from gridkeeper.memo import differing
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState
from gridkeeper.snapshot import RegionState


@dataclass(slots=True)
class _Kept:
    unwell: set[DeviceId] = field(default_factory=set)
    odd: set[DeviceId] = field(default_factory=set)
    away: set[DeviceId] = field(default_factory=set)
    health: Mapping[DeviceId, Versioned[HealthRecord]] = field(default_factory=dict)
    devices: Mapping[DeviceId, Versioned[DeviceRecord]] = field(default_factory=dict)

    def at(self, state: RegionState) -> _Kept:
        if state.health is self.health and state.devices is self.devices:
            return self
        changed = {*differing(self.health, state.health), *differing(self.devices, state.devices)}
        for device in changed:
            held, card = state.health.get(device), state.devices.get(device)
            ill = held is not None and held.record.state is not HealthState.HEALTHY
            present = card is not None and card.record.present
            swapped = held is not None and card is not None and health.swapped(card.record, held.record)
            _sort(self.unwell, device, ill)
            _sort(self.away, device, held is not None and not present)
            _sort(self.odd, device, card is not None and (held is None or ill or not present or swapped))
        self.health, self.devices = state.health, state.devices
        return self


def _sort(held: set[DeviceId], device: DeviceId, belongs: bool) -> None:
    if belongs:
        held.add(device)
    else:
        held.discard(device)


def unwell(state: RegionState) -> Set[DeviceId]:
    """Devices whose health record says anything but healthy. Good until the next look."""
    return state.memo.of(_Kept).at(state).unwell


def odd(state: RegionState) -> Set[DeviceId]:
    """Devices of the inventory that are unwell, missing, not judged yet, or another card than the one that was judged.
    Good until the next look."""
    return state.memo.of(_Kept).at(state).odd


def in_service(state: RegionState) -> int:
    """Devices that are healthy or suspect, present and not cordoned."""
    kept = state.memo.of(_Kept).at(state)
    out = {device for device in kept.unwell if state.health[device].record.state not in health.IN_SERVICE}
    out |= kept.away
    for target in state.cordons:
        out.update(device for device in devices_of(state, target) if device in state.health)
    return len(state.health) - len(out)
