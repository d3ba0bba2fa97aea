"""Whether a region is lost: who decides it, when, and what becomes of its jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.rpc import moves
from controlplane.rpc.intents import Wish
from controlplane.rpc.refusal import Refusal
from failover.domain.grants import decide_grant
from failover.domain.losses import decide_losses, queued
from gridkeeper.decision import Decision
from gridkeeper.ids import JobId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import Mode, Policy, RegionLossPolicy
from gridkeeper.records.jobs import GrantRecord, MigrationKind, MigrationState, RegionRecord
from gridkeeper.records.regions import LossRecord
from gridkeeper.snapshot import Settings
from tests.unit.failover_parts import TIGHT
from tests.unit.failover_world import Grid, spec_of

EAST, WEST, NORTH = RegionId("east"), RegionId("west"), RegionId("north")
LOSS = RegionLossPolicy(after_ms=10_000, veto_window_ms=5_000)
WISH = Wish("user/ann", "the site has no power", "")


class Two(Grid):
    """East owns the jobs and falls silent; west's process leads globally. Capacity as west last published it."""

    def __init__(
        self, policy: RegionLossPolicy = LOSS, mode: Mode = Mode.ACT, west: int = 4, more: bool = False
    ) -> None:
        nodes = {"east": {"e1": 8}, "west": {"w1": west}} | ({"north": {"n1": 2}} if more else {})
        super().__init__(nodes, Settings(TIGHT, Policy(region_loss=policy, mode=mode)))
        self.silent = {EAST}
        for _ in range(3):
            self.pulse()

    def pulse(self) -> None:
        """Everybody but the silent lives."""
        self.read_ownership()
        for host in self.hosts.values():
            if host.region not in self.silent:
                self.tick(host)
        for region in self.regions:
            if region not in self.silent:
                view = self.leaders[region]
                view.look(self.time_ms)
                term = self.memory.record(KEYS.grant(region)).term
                decided = decide_grant(
                    region, view.world(), self.settings, self.now(region), term, ReplicaId(f"{region}-r")
                )
                if decided:
                    self.apply(decided)
                self.lead(region)
        self.lead("global")

    def run_job(self, name: str, **changes: object) -> None:
        """It runs in east with a checkpoint that is in both regions."""
        self.silent.discard(EAST)
        self.submit(spec_of(name, regions=(EAST,), **changes))
        for _ in range(12):
            self.pulse()
            self.advance(200)
        self.checkpoint(JobId(name))
        # It may go anywhere once it runs.
        job, owner = self.job(name), self.owner(name)
        spec = replace(job.spec, regions=())
        self.memory.put(KEYS.job(JobId(name)), replace(job, spec=spec))
        self.memory.put(KEYS.ownership(JobId(name)), replace(owner, spec=spec))
        self.copy(WEST)
        assert owner.region == EAST

    def lose_east(self) -> None:
        self.silent.add(EAST)
        self.power_off(NodeId("e1"))

    def decide(self) -> tuple[Decision, ...]:
        view = self.leaders["global"]
        view.look(self.time_ms)
        return decide_losses(view.world(), self.settings, self.now("global"), WEST)

    def losses(self, ms: int) -> None:
        """The global leader decides on losses, every 500 ms."""
        for _ in range(ms // 500):
            self.advance(500)
            self.pulse()
            for decision in self.decide():
                self.apply(decision)

    @property
    def loss(self) -> LossRecord | None:
        record = self.memory.record(KEYS.loss(EAST))
        assert record is None or isinstance(record, LossRecord)
        return record

    @property
    def grant(self) -> GrantRecord:
        record = self.memory.record(KEYS.grant(EAST))
        assert isinstance(record, GrantRecord)
        return record


def state(grid: Two) -> str:
    return grid.loss.state.value if grid.loss else "none"


def test_a_silent_region_is_suspected_then_declared_and_its_job_is_recovered_after_r() -> None:
    """Protects: the whole way, with the invariants of the small grid (one owner, checkpoints) at every write."""
    grid = Two()
    grid.run_job("train")
    grid.lose_east()
    grid.losses(LOSS.after_ms - 1_500)
    assert state(grid) == "none" and not grid.migrations("train")[1:]
    grid.losses(3_000)
    assert state(grid) == "suspected" and not grid.grant.revoked
    grid.losses(LOSS.veto_window_ms)
    assert state(grid) == "declared" and grid.grant.revoked and grid.loss and grid.loss.jobs == 1
    [move] = [m for m in grid.migrations("train") if m.kind is MigrationKind.RECOVERY]
    assert move.state is MigrationState.FENCING, "no start before R"
    grid.losses(TIGHT.takeover_ms + 2_000)
    assert grid.owner("train").region == WEST


def test_a_region_that_is_heard_in_time_keeps_its_jobs() -> None:
    grid = Two()
    grid.run_job("train")
    grid.silent.add(EAST)
    grid.losses(LOSS.after_ms + 1_000)
    assert state(grid) == "suspected"
    grid.silent.discard(EAST)
    grid.losses(1_000)
    assert state(grid) == "returned" and not grid.grant.revoked and grid.owner("train").region == EAST


def test_a_veto_holds_and_an_approval_does_not_wait_for_the_window() -> None:
    grid = Two(replace(LOSS, veto_window_ms=50_000))
    grid.run_job("train")
    grid.lose_east()
    grid.losses(LOSS.after_ms + 1_000)

    def say(approve: bool) -> None:
        view = grid.leaders["global"]
        view.look(grid.time_ms)
        plan = moves.decide_loss(EAST, approve, WISH, view.world(), grid.now("global"))
        assert plan.decision and grid.apply(plan.decision)

    say(False)
    grid.losses(60_000)
    assert state(grid) == "vetoed" and not grid.grant.revoked
    say(True)
    grid.losses(1_000)
    assert state(grid) == "declared" and grid.loss and grid.loss.decided_by == "user/ann"


@pytest.mark.parametrize(
    ("policy", "mode"), [(replace(LOSS, automatic=False), Mode.ACT), (LOSS, Mode.SHADOW), (LOSS, Mode.OFF)]
)
def test_without_the_policys_leave_only_a_human_declares_it(policy: RegionLossPolicy, mode: Mode) -> None:
    grid = Two(policy, mode)
    grid.run_job("train")
    grid.lose_east()
    grid.losses(60_000)
    assert state(grid) == "suspected" and not grid.grant.revoked


def test_when_more_than_one_region_is_silent_the_machine_declares_none() -> None:
    """Protects: rule 7, when everything looks dead, the observer is what is broken."""
    grid = Two(more=True)
    grid.silent |= {EAST, NORTH}
    grid.losses(60_000)
    assert state(grid) == "suspected" and not grid.grant.revoked


def test_a_region_never_declares_itself_lost_and_time_without_the_observer_does_not_count() -> None:
    grid = Two()
    grid.lose_east()
    grid.advance(LOSS.after_ms * 2)
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    now = grid.now("global")
    assert not decide_losses(view.world(), grid.settings, replace(now, steady_ms=now.mono_ms - 1), WEST)
    assert [d.subject for d in decide_losses(view.world(), grid.settings, now, EAST)] == ["region/west"]
    stale = replace(view.world(), fresh=False)
    assert not decide_losses(stale, grid.settings, now, WEST)


def test_the_suspicion_is_void_if_the_grant_was_extended_meanwhile() -> None:
    """Protects: a decider that saw late what was written cannot act on it."""
    grid = Two()
    grid.silent.add(EAST)
    grid.advance(LOSS.after_ms + 1)
    [decision] = grid.decide()
    grid.memory.put(KEYS.grant(EAST), replace(grid.grant, extended_ms=grid.time_ms))
    assert not grid.apply(decision)


def test_jobs_of_a_lost_region_are_recovered_by_priority_within_capacity_and_the_rest_waits_with_a_reason() -> None:
    grid = Two(west=4)
    for name, priority in (("low", -1), ("first", 9), ("plain", 0)):
        grid.run_job(name, priority=priority)
    grid.lose_east()
    grid.losses(LOSS.after_ms + LOSS.veto_window_ms + 1_500)
    assert state(grid) == "declared"
    moving = {n for n in ("low", "first", "plain") if any(m.kind is MigrationKind.RECOVERY for m in grid.migrations(n))}
    assert moving == {"first", "plain"}, "four free devices take two jobs of two"
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    [(job, why)] = queued(view.world()).items()
    assert job == "low" and "region east is lost" in why and "goes first" in why
    grid.losses(TIGHT.takeover_ms + 3_000)
    assert grid.owner("first").region == grid.owner("plain").region == WEST
    assert grid.owner("low").region == EAST and "is lost" in grid.job("low").reason
    grid.want_stop(JobId("plain"))
    grid.losses(3 * TIGHT.takeover_ms)
    assert grid.owner("low").region == WEST, "it follows as soon as there is room"


def test_what_fits_no_node_elsewhere_does_not_hold_up_the_others() -> None:
    grid = Two(west=4)
    grid.run_job("huge", priority=9, devices=6)
    grid.run_job("small")
    grid.lose_east()
    grid.losses(LOSS.after_ms + LOSS.veto_window_ms + 1_500)
    assert any(m.kind is MigrationKind.RECOVERY for m in grid.migrations("small"))
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    assert "has 6 free devices" in queued(view.world())[JobId("huge")]


def test_a_lost_region_is_held_down_for_r_when_it_returns_and_takes_nothing_back() -> None:
    grid = Two()
    grid.run_job("train")
    grid.lose_east()
    grid.losses(LOSS.after_ms + LOSS.veto_window_ms + TIGHT.takeover_ms + 5_000)
    assert grid.owner("train").region == WEST
    grid.new_leader("east")
    grid.memory.put(KEYS.grant(EAST), replace(grid.grant, revoked="lost"))  # new_leader wrote a fresh one
    grid.silent.discard(EAST)
    grid.losses(TIGHT.takeover_ms - 1_000)
    assert grid.grant.revoked and state(grid) == "declared"
    before = len(grid.log)
    grid.losses(2_000)
    assert not grid.grant.revoked and state(grid) == "returned"
    assert any("its jobs are fenced here" in line for line in grid.log[before:])
    grid.losses(10_000)
    assert grid.owner("train").region == WEST


@pytest.mark.parametrize("approve", [True, False])
def test_a_word_on_a_region_that_is_heard_is_refused(approve: bool) -> None:
    grid = Two()
    world = grid.leaders["global"].world()
    with pytest.raises(Refusal, match="not suspected"):
        moves.decide_loss(EAST, approve, WISH, world, grid.now("global"))
    with pytest.raises(Refusal, match="region"):
        moves.decide_loss(RegionId("mars"), approve, WISH, world, grid.now("global"))


def test_capacity_of_a_region_in_doubt_or_lost_is_not_counted() -> None:
    grid = Two()
    grid.run_job("train")
    record: RegionRecord = grid.memory.record(KEYS.region(WEST))
    grid.lose_east()
    grid.memory.put(KEYS.grant(EAST), replace(grid.grant, revoked="gone"))
    grid.memory.put(KEYS.region(WEST), replace(record, in_doubt=True))
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    assert JobId("train") in queued(view.world())
