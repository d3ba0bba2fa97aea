"""What the records say of each built-in indicator: a share at this minute, or the values of what has happened. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from failover.domain.lag import lags
from gridkeeper.decision import Versioned
from gridkeeper.records.books import AccountRecord, UptimeClass
from gridkeeper.records.faults import DrainState
from gridkeeper.records.fleet import HealthState, NodeState
from gridkeeper.records.jobs import TERMINAL_MIGRATION, MigrationState
from gridkeeper.sla.builtin import Asked
from gridkeeper.snapshot import GlobalState, RegionState

Share = tuple[int, int]
"""Good of total."""
Value = Fraction | None
"""None: worse than any edge."""

USABLE = frozenset({HealthState.HEALTHY, HealthState.SUSPECT, HealthState.DEGRADED})
SERVED = frozenset({UptimeClass.UP, UptimeClass.DEGRADED})


def share_in_region(asked: Asked, state: RegionState) -> Share | None:
    """None: nothing is known, or there is nothing to measure."""
    match asked.name:
        case "device-availability":
            good = sum(1 for one in state.health.values() if one.record.state in USABLE)
            return _share(good, len(state.health))
        case "node-availability":
            alive = sum(1 for one in state.liveness.values() if one.record.state is NodeState.ALIVE)
            return _share(alive, len(state.liveness))
        case "region-availability":
            held = state.accounts.get(f"region/{state.region}")
            if held is None or held.record.current in (UptimeClass.UNKNOWN, UptimeClass.EXCLUDED):
                return None
            return (int(held.record.current in SERVED), 1)
        case "capacity":
            served = sum(1 for one in _accounts(state.accounts, "device/") if one.current in SERVED)
            return (min(served, asked.sold), asked.sold)
        case _:
            raise AssertionError(f"{asked.name} is no share that a region measures")


def values_in_region(asked: Asked, state: RegionState, after_ms: int, until_ms: int) -> list[Value]:
    """Of what happened in (after, until], ledger time."""
    match asked.name:
        case "time-to-detect":
            return [
                _seconds(one.record.opened_ms - one.record.observed_ms)
                for one in state.incidents.values()
                if after_ms < one.record.opened_ms <= until_ms
            ]
        case "time-to-drain":
            found: list[Value] = []
            for drain in (one.record for one in state.drains.values()):
                ended = drain.stages[-1].at_ms if drain.stages else 0
                if not after_ms < ended <= until_ms:
                    continue
                if drain.state is DrainState.DRAINED:
                    found.append(_seconds(ended - drain.planned_ms))
                elif drain.state in (DrainState.FAILED, DrainState.EXPIRED):
                    found.append(None)
            return found
        case _:
            raise AssertionError(f"{asked.name} has no values in a region")


def share_in_world(asked: Asked, world: GlobalState, now_ms: int) -> Share | None:
    match asked.name:
        case "job-uptime":
            accounts = [a for a in _accounts(world.accounts, "job/") if a.current is not UptimeClass.EXCLUDED]
            return _share(sum(1 for one in accounts if one.current in SERVED), len(accounts))
        case "goodput":
            return _goodput(world, now_ms)
        case _:
            raise AssertionError(f"{asked.name} is no share that the global leader measures")


def values_in_world(asked: Asked, world: GlobalState, after_ms: int, until_ms: int) -> list[Value]:
    if asked.name == "replication-lag":
        return [_seconds(lag.work_ms) if lag.work_ms >= 0 else None for lag in lags(world)]
    found: list[Value] = []
    for move in (one.record for one in world.migrations.values()):
        ended = move.stages[-1].at_ms if move.stages else 0
        if move.state not in TERMINAL_MIGRATION or not after_ms < ended <= until_ms or not move.source_region:
            continue
        told = move.rto_ms if asked.name == "rto" else move.rpo_ms
        if move.state is MigrationState.DONE and told >= 0:
            found.append(_seconds(told))
        elif move.state is MigrationState.FAILED and asked.name == "rto":
            found.append(None)
    return found


def _goodput(world: GlobalState, now_ms: int) -> Share | None:
    """Of jobs that have made a step and go on or have ended: from the start of the first epoch to the last step, or to
    now while it should run."""
    spans: dict[str, tuple[int, int, int]] = {}
    for run in (one.record for one in world.runs.values()):
        productive = max(0, run.last_step_ms - run.first_step_ms) if run.first_step >= 0 else 0
        begun, end, sum_ms = spans.get(run.job, (run.started_ms, 0, 0))
        spans[run.job] = (min(begun, run.started_ms), max(end, run.ended_ms or now_ms), sum_ms + productive)
    lost: dict[str, int] = {}
    for move in (one.record for one in world.migrations.values()):
        if move.rpo_ms > 0:
            lost[move.job] = lost.get(move.job, 0) + move.rpo_ms
    good = total = 0
    for job, (begun, end, productive) in spans.items():
        if productive and end > begun:
            good += min(end - begun, max(0, productive - lost.get(job, 0)))
            total += end - begun
    return _share(good, total)


def _accounts(accounts: Mapping[str, Versioned[AccountRecord]], under: str) -> Iterable[AccountRecord]:
    return (held.record for scope, held in accounts.items() if scope.startswith(under))


def _share(good: int, total: int) -> Share | None:
    return (good, total) if total else None


def _seconds(ms: int) -> Fraction:
    return Fraction(max(0, ms), 1000)
