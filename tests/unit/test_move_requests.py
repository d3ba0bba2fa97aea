"""Protects the reasons for which a job is moved: each with its evidence, none on what is merely unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from failover.domain.jobs import decide_jobs
from failover.domain.migrate import decide_migrations
from failover.domain.requests import decide_requests
from gridkeeper.decision import Decision, Put
from gridkeeper.ids import DeviceId, FindingId, JobId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DrainState, FindingRecord, IncidentState
from gridkeeper.records.jobs import JobState, MigrationKind, MigrationRecord, MigrationState, RunPhase
from tests.unit.failover_world import SETTINGS, Grid, spec_of

TRAIN, EAST = JobId("train"), RegionId("east")
KEYS_EAST = RegionKeys(EAST)


def running(**spec: object) -> Grid:
    grid = Grid({"east": {"east-1": 4}, "west": {"west-1": 4}})
    grid.submit(spec_of("train", regions=(EAST,), **spec))
    grid.run(12)
    assert grid.job("train").state is JobState.RUNNING
    return grid


def requests(grid: Grid, fresh: bool = True, suspect: frozenset[str] = frozenset()) -> tuple[Decision, ...]:
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    world = replace(view.world(), fresh=fresh, suspect_keys=suspect)
    return decide_requests(view.region(EAST), world, SETTINGS, grid.now("east"))


def born(decisions: tuple[Decision, ...]) -> MigrationRecord:
    [decision] = decisions
    [record] = [w.record for w in decision.writes if w.key.startswith(KEYS.prefix("migrations"))]  # type: ignore[union-attr]
    assert isinstance(record, MigrationRecord)
    return record


def crash(grid: Grid, code: int = 1, settle: bool = True) -> None:
    grid.crash(TRAIN, code)
    for host in grid.hosts.values():
        grid.report(host)
    requests(grid)  # the region sees it: from here the settling time runs
    if settle:
        grid.time_ms += SETTINGS.timings.settle_ms


def blame(grid: Grid, scope: Scope, severity: Severity, after_ms: int = 0) -> None:
    """An incident with one finding on the job's first device, last seen ``after_ms`` after now."""
    device = grid.owner("train").devices[0]
    grid.drain(device)
    keys, name = KEYS_EAST, device.replace("/", "-")
    incident = grid.memory.record(keys.incident(f"i-{name}"))
    when = grid.time_ms + after_ms
    grid.memory.put(keys.incident(incident.id), replace(incident, severity=severity, observed_ms=when, last_ms=when))
    finding = FindingRecord(
        FindingId(f"f-{name}"), EAST, grid.owner("train").node, device, scope, "memory", "xid-48", severity,
        Action.WATCH, "seen", ("e-1",), when, "rule", 1, True, "",
    )  # fmt: skip
    grid.memory.put(keys.finding(finding.id), finding)
    drain = grid.memory.record(keys.drain(f"d-{name}"))
    grid.memory.put(keys.drain(drain.id), replace(drain, state=DrainState.CANCELLED))


def test_a_healthy_running_job_stays() -> None:
    assert requests(running()) == ()


def test_an_evacuating_drain_asks_for_a_planned_move_with_its_evidence() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    [decision] = requests(grid)
    record = born((decision,))
    assert (record.kind, record.id, record.state) == (MigrationKind.PLANNED, "train-e1.1", MigrationState.PLANNED)
    assert (record.drain, record.incident) == ("d-east-1-gpu0", "i-east-1-gpu0")
    assert record.fault_ms == grid.memory.record(KEYS_EAST.incident(record.incident)).observed_ms
    assert {"d-east-1-gpu0", "i-east-1-gpu0", "f-east-1-gpu0"} <= set(decision.evidence)
    guarded = {g.key for g in decision.guards} | {w.key for w in decision.writes}
    assert {KEYS.grant(EAST), KEYS.ownership(TRAIN), KEYS.job(TRAIN)} <= guarded


@pytest.mark.parametrize(
    ("state", "asked"),
    [(s, s in (DrainState.ADMITTED, DrainState.EVACUATING, DrainState.EXPIRED)) for s in DrainState],
)
def test_only_an_admitted_drain_moves_a_job(state: DrainState, asked: bool) -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    key = KEYS_EAST.drain("d-east-1-gpu0")
    grid.memory.put(key, replace(grid.memory.record(key), state=state))
    assert bool(requests(grid)) is asked


def test_a_drain_of_another_device_moves_nobody() -> None:
    grid = running()
    others = {DeviceId(f"east-1/gpu{i}") for i in range(4)} - set(grid.owner("train").devices)
    grid.drain(min(others))
    assert requests(grid) == ()


def test_a_cancelled_move_is_not_asked_again_for_the_same_drain() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    [decision] = requests(grid)
    assert grid.apply(decision)
    record = grid.migrations("train")[-1]
    grid.memory.put(KEYS.migration(record.id), replace(record, state=MigrationState.CANCELLED))
    assert requests(grid) == ()
    grid.drain(grid.owner("train").devices[1])
    assert born(requests(grid)).id == "train-e1.1-2", "another drain is another reason"


def test_a_move_whose_drain_is_given_up_is_cancelled_while_the_job_still_runs() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    assert grid.apply(requests(grid)[0])
    key = KEYS_EAST.drain("d-east-1-gpu0")
    grid.memory.put(key, replace(grid.memory.record(key), state=DrainState.CANCELLED))
    assert born(requests(grid)).state is MigrationState.CANCELLED


def test_a_crash_is_settled_first_and_then_counts_against_the_job() -> None:
    grid = running()
    crash(grid, settle=False)
    assert requests(grid) == ()
    grid.time_ms += SETTINGS.timings.settle_ms
    [decision] = requests(grid)
    record = born((decision,))
    assert (record.kind, record.drain, record.incident) == (MigrationKind.RECOVERY, "", "")
    assert "exit status 1" in record.reason
    assert grid.apply(decision)
    assert grid.job("train").restarts == 1


@pytest.mark.parametrize(
    ("scope", "severity", "blamed"),
    [
        (Scope.DEVICE, Severity.FATAL, True),
        (Scope.DEVICE, Severity.ERROR, True),
        (Scope.LINK, Severity.ERROR, True),
        (Scope.DEVICE, Severity.WARNING, False),
        (Scope.PROCESS, Severity.FATAL, False),
    ],
)
def test_only_evidence_of_failing_hardware_excuses_a_crash(scope: Scope, severity: Severity, blamed: bool) -> None:
    grid = running()
    blame(grid, scope, severity)
    grid.advance(100)
    crash(grid)
    [decision] = requests(grid)
    assert grid.apply(decision)
    record = grid.migrations("train")[-1]
    assert (record.incident == "i-east-1-gpu0") is blamed
    assert (grid.job("train").restarts == 0) is blamed


def test_evidence_that_comes_after_the_exit_still_explains_it() -> None:
    grid = running()
    crash(grid, settle=False)
    ended = grid.time_ms
    blame(grid, Scope.DEVICE, Severity.FATAL, after_ms=400)
    grid.time_ms += SETTINGS.timings.settle_ms
    record = born(requests(grid))
    assert record.incident == "i-east-1-gpu0"
    assert record.fault_ms == ended, "the fault is never later than the exit"


def test_evidence_before_the_exit_dates_the_fault_and_old_evidence_does_not() -> None:
    grid = running()
    blame(grid, Scope.DEVICE, Severity.FATAL)
    seen = grid.time_ms
    grid.advance(900)
    crash(grid)
    assert born(requests(grid)).fault_ms == seen
    old = running()
    blame(old, Scope.DEVICE, Severity.FATAL, after_ms=-61_000)
    crash(old)
    record = born(requests(old))
    assert record.incident == ""
    assert record.fault_ms == old.time_ms - SETTINGS.timings.settle_ms


def test_resolved_incidents_explain_nothing() -> None:
    grid = running()
    blame(grid, Scope.DEVICE, Severity.FATAL)
    key = KEYS_EAST.incident("i-east-1-gpu0")
    grid.memory.put(key, replace(grid.memory.record(key), state=IncidentState.RESOLVED))
    crash(grid)
    assert born(requests(grid)).incident == ""


def test_exit_zero_asks_for_nothing() -> None:
    grid = running()
    crash(grid, code=0)
    assert requests(grid) == ()


def test_a_fenced_run_recovers_at_once_and_counts_nothing() -> None:
    grid = running()
    [(host, proc)] = grid.alive()
    grid.end(host, proc, 0, 9, by_us=True, reason="fenced")
    grid.report(host)
    [decision] = requests(grid)
    assert born((decision,)).kind is MigrationKind.RECOVERY
    assert grid.apply(decision)
    assert grid.job("train").restarts == 0


@pytest.mark.parametrize("landed", [False, True])
def test_an_end_that_is_not_confirmed_is_fenced_also_before_the_first_step(landed: bool) -> None:
    """A process in uninterruptible sleep: the job goes on elsewhere, R after its revoke intent."""
    grid = running()
    owner, migration = grid.owner("train"), grid.migrations("train")[-1]
    key = KEYS.run(TRAIN, owner.epoch.generation, owner.epoch.number)
    first = -1 if landed else 0
    grid.memory.put(key, replace(grid.memory.record(key), phase=RunPhase.STOPPING, first_step=first))
    if landed:
        grid.memory.put(KEYS.migration(migration.id), replace(migration, state=MigrationState.STARTING))
    assert requests(grid) == ()
    grid.time_ms += owner.spec.grace_ms + 2 * SETTINGS.timings.fence_ms
    decisions = requests(grid)
    written = [w.record for w in decisions[0].writes if isinstance(w, Put)]
    [born_now] = [r for r in written if isinstance(r, MigrationRecord) and r.id != migration.id]
    assert born_now.kind is MigrationKind.RECOVERY
    assert "not confirmed" in born_now.reason


def test_one_crash_too_many_is_counted_and_fails_the_job() -> None:
    grid = running(max_restarts=0)
    crash(grid)
    [decision] = requests(grid)
    assert [w.key for w in decision.writes] == [KEYS.job(TRAIN)]
    assert grid.apply(decision)
    assert requests(grid) == ()
    grid.lead("global")
    assert grid.job("train").state is JobState.FAILED


def test_nothing_is_asked_for_on_what_is_unknown() -> None:
    grid = running()
    crash(grid)
    assert requests(grid, fresh=False) == ()
    epoch = grid.owner("train").epoch
    for key in (
        KEYS.job(TRAIN), KEYS.ownership(TRAIN), KEYS.head(TRAIN), KEYS.migration(grid.migrations("train")[-1].id),
        KEYS.run(TRAIN, epoch.generation, epoch.number),
    ):  # fmt: skip
        assert requests(grid, suspect=frozenset({key})) == (), key
    del grid.memory.items[KEYS.grant(EAST)]
    assert requests(grid) == ()


def test_the_global_leader_decides_nothing_on_what_is_unknown() -> None:
    grid = running()
    grid.drain(grid.owner("train").devices[0])
    grid.apply(requests(grid)[0])
    for region in 2 * ("east", "west"):
        grid.lead(region)  # reserves, then offers
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    world, now = view.world(), grid.now("global")
    assert decide_migrations(world, SETTINGS, now)
    assert decide_migrations(replace(world, fresh=False), SETTINGS, now) == ()
    assert decide_jobs(replace(world, fresh=False), SETTINGS, now) == ()
    for key in (KEYS.head(TRAIN), KEYS.ownership(TRAIN), KEYS.job(TRAIN)):
        unsure = replace(world, suspect_keys=frozenset({key}))
        assert decide_migrations(unsure, SETTINGS, now) == (), key
        assert decide_jobs(unsure, SETTINGS, now) == (), key


def test_a_head_that_does_not_decode_never_means_from_scratch() -> None:
    grid = running()
    grid.cut(grid.owner("train").node)
    grid.run(60)
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    world = replace(view.world(), heads={}, suspect_keys=frozenset({KEYS.head(TRAIN)}))
    assert not [d for d in decide_migrations(world, SETTINGS, grid.now("global")) if d.step == "fence.bump_epoch"]


def test_a_suspicious_second_migration_of_a_job_is_closed() -> None:
    grid = running()
    stray = replace(grid.migrations("train")[0], id="stray", state=MigrationState.COPYING)  # type: ignore[arg-type]
    grid.memory.put(KEYS.migration(stray.id), stray)
    grid.lead("global")
    assert grid.memory.record(KEYS.migration(stray.id)).state is MigrationState.FAILED
