"""What class of time a device, a region or a job is in, and since when. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from failover.domain.indexes import run_of
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId
from gridkeeper.records.books import UptimeClass
from gridkeeper.records.care import MaintenanceRecord, MaintenanceState
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import CordonRecord, HealthRecord, HealthState
from gridkeeper.records.jobs import TERMINAL_JOB, JobRecord, JobState, RunPhase
from gridkeeper.snapshot import GlobalState, RegionState, Settings

MAINTENANCE = "maintenance"
"""A cordon of this owner is maintenance that began when it was announced: its time is excluded. Windows that are
planned ahead are excluded by their own records."""


@dataclass(frozen=True, slots=True)
class Standing:
    """``since_ms``: ledger time from which the class holds, as far as the records know."""

    uptime: UptimeClass
    since_ms: int
    reason: str
    refs: tuple[str, ...] = ()


def class_of(state: HealthState) -> UptimeClass:
    """The class of a device in that health. Suspect is watched and works; what is out of service is down."""
    match state:
        case HealthState.HEALTHY | HealthState.SUSPECT:
            return UptimeClass.UP
        case HealthState.DEGRADED:
            return UptimeClass.DEGRADED
        case (
            HealthState.DRAINING
            | HealthState.DRAINED
            | HealthState.REPAIRING
            | HealthState.PROBATION
            | HealthState.RETIRED
        ):
            return UptimeClass.DOWN
        case HealthState.UNKNOWN:
            return UptimeClass.UNKNOWN
        case _:
            assert_never(state)


def _maintenance(cordons: Iterable[Versioned[CordonRecord] | None]) -> Standing | None:
    for cordon in cordons:
        for reason in cordon.record.reasons if cordon else ():
            if reason.owner == MAINTENANCE:
                return Standing(UptimeClass.EXCLUDED, reason.created_ms, f"maintenance: {reason.reason}")
    return None


Step = tuple[Standing, int]
"""What held up to a time, ledger ms."""


def announced(state: RegionState) -> dict[str, list[MaintenanceRecord]]:
    """Windows of announced maintenance by target. One that was cancelled never was; one that ended early ends then."""
    found: dict[str, list[MaintenanceRecord]] = {}
    for window in state.maintenance.values():
        if window.record.state is not MaintenanceState.CANCELLED:
            found.setdefault(window.record.target, []).append(window.record)
    return found


def through(windows: Sequence[MaintenanceRecord], standing: Standing, since_ms: int, now_ms: int) -> tuple[Step, ...]:
    """``standing``, with the announced time excluded: exactly [from, until) of each window, also of those that began
    and ended while nobody kept the books. ``since_ms``: from when on they are open."""
    steps: list[Step] = []
    spans = [s for s in _merged(windows) if s[0] <= now_ms and s[1] > since_ms]
    for number, (from_ms, until_ms, record) in enumerate(spans):
        excluded = Standing(UptimeClass.EXCLUDED, from_ms, f"maintenance: {record.reason}", (record.id,))
        steps.append((excluded, min(until_ms, now_ms)))
        if until_ms > now_ms:
            return tuple(steps)
        following = spans[number + 1][0] if number + 1 < len(spans) else now_ms
        known_ms = min(following, max(until_ms, standing.since_ms))
        if known_ms > until_ms:  # its record has changed since, and what it was before is not in it any more
            steps.append((Standing(UptimeClass.UNKNOWN, until_ms, "nobody kept the books after maintenance"), known_ms))
        steps.append((replace(standing, since_ms=known_ms), following))
    return tuple(steps) or ((standing, now_ms),)


def _merged(windows: Sequence[MaintenanceRecord]) -> list[tuple[int, int, MaintenanceRecord]]:
    """Spans in order of time; those that touch are one."""
    spans: list[tuple[int, int, MaintenanceRecord]] = []
    for window in sorted(windows, key=lambda w: (w.from_ms, w.id)):
        if spans and window.from_ms <= spans[-1][1]:
            begin, end, first = spans[-1]
            spans[-1] = (begin, max(end, window.until_ms), first)
        else:
            spans.append((window.from_ms, window.until_ms, window))
    return spans


def of_device(state: RegionState, health: HealthRecord) -> Standing:
    """Maintenance is excluded, whatever else holds; then the device's health speaks."""
    cordons = state.cordons
    excluded = _maintenance((cordons.get(health.device), cordons.get(health.node))) if cordons else None
    if excluded is not None:
        return excluded
    refs = tuple(str(ref) for ref in (health.incident, health.drain) if ref)
    reason = f"{health.state.value}: {health.reason}" if health.reason else health.state.value
    return Standing(class_of(health.state), health.since_ms, reason, refs)


def of_region(by_device: Mapping[DeviceId, Standing], devices: int, settings: Settings) -> Standing | None:
    """A region is up while no more of its devices are out than its budget holds back for faults, degraded while any
    is left, down when none is; unknown while most are. Devices in maintenance do not count, and a region that has no
    others is excluded. None: it has no devices yet. ``by_device``: of all of them. ``devices``: in the inventory."""
    standings = by_device.values()
    if not standings:
        return None
    counts = Counter([s.uptime for s in standings])
    total = (devices or len(standings)) - counts[UptimeClass.EXCLUDED]
    usable = counts[UptimeClass.UP] + counts[UptimeClass.DEGRADED]
    spare = max((p.fraction for p in settings.policy.budgets if p.kind == "region"), default=0.0)
    if total <= 0:
        uptime = UptimeClass.EXCLUDED
    elif 2 * counts[UptimeClass.UNKNOWN] > total:
        uptime = UptimeClass.UNKNOWN
    elif usable == 0:
        uptime = UptimeClass.DOWN
    elif total - usable > int(spare * total):
        uptime = UptimeClass.DEGRADED
    else:
        uptime = UptimeClass.UP
    away = counts[UptimeClass.EXCLUDED]
    excluded = f", {away} in maintenance" if away else ""
    return Standing(uptime, max(s.since_ms for s in standings), f"{usable} of {total} devices usable{excluded}")


def stepping(world: GlobalState) -> frozenset[JobId]:
    """Jobs that have ever told of a step, in any epoch."""
    return frozenset(run.record.job for run in world.runs.values() if run.record.first_step >= 0)


def of_job(world: GlobalState, job: JobRecord, now_ms: int, steps: bool) -> Standing | None:
    """A job is up while it makes steps, down while it should and does not, unknown while its host is silent; time
    after it ended, or was asked to stop, is its owner's. ``steps``: it has ever told of one. None: it has not, so
    nothing can be said of it (a job need not report progress)."""
    name = job.spec.name
    refs = (str(job.migration),) if job.migration else ()
    if job.state in TERMINAL_JOB:
        return Standing(UptimeClass.EXCLUDED, job.ended_ms or now_ms, f"{job.state.value}: {job.reason}", refs)
    if job.desired is Desired.STOP:
        return Standing(UptimeClass.EXCLUDED, now_ms, "asked to stop", refs)
    owner = world.ownership.get(name)
    held = run_of(world, name, owner.record.epoch) if owner else None
    run = held.record if held else None
    if owner is None or not steps:
        return None
    alive = run is not None and run.phase is RunPhase.RUNNING
    if owner.record.revoke is not None and alive:
        revoke = owner.record.revoke
        return Standing(UptimeClass.UNKNOWN, revoke.at_ms, f"its host is silent: {revoke.reason}", refs)
    if job.state is JobState.RUNNING and alive and run is not None and run.first_step >= 0:
        return Standing(UptimeClass.UP, run.first_step_ms, f"runs on {owner.record.node}, epoch {run.epoch}", refs)
    ended = run.ended_ms if run is not None and run.phase is RunPhase.EXITED else 0
    reason = f"{job.state.value}: {job.reason}" if job.reason else job.state.value
    return Standing(UptimeClass.DOWN, ended or now_ms, reason, refs)
