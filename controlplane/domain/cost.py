"""What taking a device out will cost, named before it is done. Pure.

``capacity`` counts devices in service by their health records (healthy or suspect, present, not cordoned). Whether a
node is heard this instant is left out: it changes from second to second, and a cost is for the record.
"""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.domain.health import IN_SERVICE
from controlplane.domain.unwell import in_service
from controlplane.domain.words import duration, listed
from failover.domain.births import Cause, new_migration
from failover.domain.indexes import run_of
from failover.domain.regions import choose_region
from gridkeeper.decision import Now
from gridkeeper.ids import DeviceId, JobId
from gridkeeper.policy.model import PlacementPolicy
from gridkeeper.records.faults import DrainCost, DrainMode, JobCost
from gridkeeper.records.jobs import MigrationKind
from gridkeeper.snapshot import GlobalState, RegionState


class Capacity:
    """Devices of a region that are in service, while drains are being admitted one after another. Counted when first
    asked for: most ticks admit none."""

    def __init__(self, state: RegionState) -> None:
        self._state = state
        self._left: int | None = None
        self.total = len(state.devices)

    @property
    def left(self) -> int:
        if self._left is None:
            self._left = in_service(self._state)
        return self._left

    def without(self, device: DeviceId) -> int:
        """What is left when ``device`` is out as well."""
        return self.left - _in_service(self._state, device)

    def take(self, device: DeviceId) -> None:
        """``device`` is on its way out."""
        self._left = self.without(device)


def _in_service(state: RegionState, device: DeviceId) -> bool:
    health, inventory = state.health[device], state.devices.get(device)
    if health.record.state not in IN_SERVICE or inventory is None or not inventory.record.present:
        return False
    return not state.cordons or (device not in state.cordons and inventory.record.node not in state.cordons)


def cost_of(
    world: GlobalState,
    device: DeviceId,
    jobs: Iterable[JobId],
    capacity: Capacity,
    budgets: str,
    now: Now,
    policy: PlacementPolicy,
) -> DrainCost:
    """``jobs``: those on the device. ``budgets``: their use with the drain in it, as the book tells it."""
    hit = tuple(_job(world, job, now, policy) for job in sorted(jobs))
    return DrainCost(hit, capacity.without(device), capacity.total, tuple(budgets.split(", ")))


def _job(world: GlobalState, job: JobId, now: Now, policy: PlacementPolicy) -> JobCost:
    """All devices of the job lose it: it stops as a whole."""
    owner, head, record = world.ownership.get(job), world.heads.get(job), world.jobs.get(job)
    run = run_of(world, job, owner.record.epoch) if owner else None
    target = None
    if owner is not None and record is not None:
        spec = record.record.spec
        move = new_migration(world, job, owner, Cause(MigrationKind.PLANNED, "", now.ledger_ms), "", now)
        target = choose_region(spec, world, move, policy)
    return JobCost(
        job=job,
        devices=len(owner.record.devices) if owner else 0,
        step=run.record.last_step if run else -1,
        checkpoint_step=head.record.step if head else -1,
        checkpoint_age_ms=max(0, now.ledger_ms - head.record.committed_ms) if head else -1,
        target_region=target or "",
    )


def sentences(cost: DrainCost, mode: DrainMode) -> tuple[str, ...]:
    """One per job, then what is left; for people."""
    told = tuple(_told(job, mode) for job in cost.jobs) or ("no job is on it",)
    left = f"{cost.capacity_left} of {cost.capacity_total} devices of the region are left in service"
    return (*told, f"{left}; budgets {listed(cost.budgets, 8)}")


def _told(job: JobCost, mode: DrainMode) -> str:
    step = f"step {job.step}" if job.step >= 0 else "no step yet"
    saved = (
        f"checkpoint of step {job.checkpoint_step}, {duration(job.checkpoint_age_ms)} old"
        if job.checkpoint_step >= 0
        else "no checkpoint"
    )
    where = f"to region {job.target_region}" if job.target_region else "and no region has room for it now"
    does = {
        DrainMode.CHECKPOINT: f"is stopped after a checkpoint and moves {where}",
        DrainMode.WAIT: "goes on to its own end",
        DrainMode.DEADLINE: f"may end by itself; else it is stopped after a checkpoint and moves {where}",
    }[mode]
    devices = f"{job.devices} device" + ("" if job.devices == 1 else "s")
    return f"job {job.job} ({devices}, {step}, {saved}) {does}"
