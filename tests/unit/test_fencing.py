"""Protects rule 4.1's pure pieces: who may go on, who may take over, and which checkpoint becomes the newest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failover.domain.fencing import (
    Refusal,
    command_for,
    commit_head,
    epoch_refused,
    may_acknowledge,
    takeover_allowed,
)
from failover.domain.indexes import next_epoch, released
from gridkeeper.decision import ABSENT, Decision, Guard, Put, Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    CheckpointRecord,
    HeadRecord,
    OwnershipRecord,
    Revoke,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import BadTimings, Timings
from tests.unit.failover_world import spec_of

TIMINGS = Timings()
JOB, NODE, EAST = JobId("train"), NodeId("east-1"), RegionId("east")
EPOCH = Epoch(1, 4)
OWNER = OwnershipRecord(
    JOB, EPOCH, EAST, NODE, (DeviceId("east-1/gpu0"),), Desired.RUN, 0, None, -1, "", MigrationId("m"),
    spec_of("train"), "",
)  # fmt: skip
INTENT = Revoke(MigrationId("m"), "why", 1)


def held(record: OwnershipRecord, seen_ms: int = 0) -> Versioned[OwnershipRecord]:
    return Versioned(record, Revision(7), Revision(1), seen_ms)


def run_in(phase: RunPhase, confirmed: bool = True, epoch: Epoch = EPOCH) -> Versioned[RunRecord]:
    record = RunRecord(JOB, epoch, EAST, NODE, phase, 0, 0, confirmed, False, -1, 0, 9, 0, 0, 0, 0, 0.0, "")
    return Versioned(record, Revision(9), Revision(9), 0)


@pytest.mark.parametrize(
    ("owner", "node", "epoch", "age", "grant", "granted"),
    [
        (OWNER, NODE, EPOCH, 0, True, True),
        (OWNER, NODE, EPOCH, TIMINGS.stale_ms - 1, True, True),
        (OWNER, NODE, EPOCH, TIMINGS.stale_ms, True, False),
        (OWNER, NODE, EPOCH, -1, True, False),
        (OWNER, NODE, EPOCH, 0, False, False),
        (OWNER, NodeId("east-2"), EPOCH, 0, True, False),
        (OWNER, NODE, Epoch(1, 3), 0, True, False),
        (OWNER, NODE, Epoch(1, 5), 0, True, False),
        (OWNER, NODE, Epoch(2, 4), 0, True, False),
        (replace(OWNER, revoke=INTENT), NODE, EPOCH, 0, True, False),
        (replace(OWNER, desired=Desired.STOP), NODE, EPOCH, 0, True, True),  # it has its grace period
        (None, NODE, EPOCH, 0, True, False),
    ],
)
def test_only_the_owner_seen_freshly_under_a_grant_is_acknowledged(
    owner: OwnershipRecord | None, node: NodeId, epoch: Epoch, age: int, grant: bool, granted: bool
) -> None:
    view = held(owner) if owner else None
    assert may_acknowledge(view, node, epoch, age, grant, TIMINGS) is granted


def test_a_takeover_waits_the_whole_r() -> None:
    assert not takeover_allowed(1_000, 1_000 + TIMINGS.takeover_ms - 1, TIMINGS)
    assert takeover_allowed(1_000, 1_000 + TIMINGS.takeover_ms, TIMINGS)
    assert not takeover_allowed(50_000, 1_000, TIMINGS), "a clock that seems to run back grants nothing"


def test_r_outlasts_s_and_f_on_clocks_as_slow_as_tolerated() -> None:
    """Protects: a replica's clock, by which S passes, may be as slow as an agent's, by which F does. An intent is
    committed just after a view of the slowest clock was read; who takes over has the fastest one."""
    tight = Timings(stale_ms=10_000, fence_ms=10_000, takeover_ms=24_000, clock_ratio=1.2, renewal_ms=300)
    last_acknowledgement = tight.stale_ms * tight.clock_ratio
    dead = last_acknowledgement + tight.fence_ms * tight.clock_ratio
    assert takeover_allowed(0, round(dead), tight)
    assert not takeover_allowed(0, round(dead) - 1, tight)
    with pytest.raises(BadTimings, match="24000"):
        replace(tight, takeover_ms=23_999)


@pytest.mark.parametrize(
    ("revoke", "run", "waited", "free"),
    [
        (None, None, TIMINGS.takeover_ms * 10, False),  # silence alone frees nothing
        (INTENT, None, TIMINGS.takeover_ms - 1, False),
        (INTENT, None, TIMINGS.takeover_ms, True),
        (None, run_in(RunPhase.EXITED), 0, True),
        (None, run_in(RunPhase.EXITED, confirmed=False), 0, False),
        (None, run_in(RunPhase.STOPPING), 0, False),
        (None, run_in(RunPhase.RUNNING), 0, False),
        (None, run_in(RunPhase.EXITED, epoch=Epoch(1, 3)), 0, False),  # another epoch's end
    ],
)
def test_an_epoch_is_over_only_by_a_confirmed_stop_or_r_after_the_intent(
    revoke: Revoke | None, run: Versioned[RunRecord] | None, waited: int, free: bool
) -> None:
    owner = held(replace(OWNER, revoke=revoke), 500)
    assert bool(released(GlobalState(), owner, run, 500 + waited, TIMINGS)) is free


def test_a_revoke_intent_is_a_stop() -> None:
    assert command_for(OWNER) is Desired.RUN
    assert command_for(replace(OWNER, revoke=INTENT)) is Desired.STOP
    assert command_for(replace(OWNER, desired=Desired.STOP)) is Desired.STOP


def test_no_stop_is_sent_while_the_intent_may_be_withdrawn() -> None:
    """A stop is final for its epoch; under the intent nothing is renewed all the same."""
    silent = replace(OWNER, revoke=replace(INTENT, withdrawable=True))
    assert command_for(silent) is Desired.RUN
    assert command_for(replace(silent, desired=Desired.STOP)) is Desired.STOP
    assert not may_acknowledge(held(silent), NODE, EPOCH, 0, True, TIMINGS)


@given(st.builds(Epoch, st.integers(1, 3), st.integers(0, 9)), st.builds(Epoch, st.integers(1, 3), st.integers(0, 9)))
def test_lower_epochs_are_refused_and_the_next_is_never_refused(highest: Epoch, epoch: Epoch) -> None:
    assert epoch_refused(highest, epoch) is (epoch < highest)
    assert not epoch_refused(None, epoch)
    for generation in (1, 2, 3):
        after = next_epoch(GlobalState(generation=generation), held(replace(OWNER, epoch=highest)))
        assert after > highest
        assert not epoch_refused(highest, after)


def test_the_first_epoch_carries_the_stores_generation() -> None:
    assert next_epoch(GlobalState(generation=3), None) == Epoch(3, 1)


# -- the head's transaction ---------------------------------------------------------------

HEAD = HeadRecord(JOB, 20, Epoch(1, 3), "d20", 10, (EAST, RegionId("west")), 1)


def world(owner: OwnershipRecord | None = OWNER, head: HeadRecord | None = HEAD, **more: object) -> GlobalState:
    state = GlobalState(
        ownership={JOB: held(owner)} if owner else {},
        heads={JOB: Versioned(head, Revision(11), Revision(2), 0)} if head else {},
    )
    return replace(state, **more)  # type: ignore[arg-type]


def commit(state: GlobalState, step: int = 30, epoch: Epoch = EPOCH, suspect: bool = False) -> Decision | Refusal:
    return commit_head(
        job=JOB, epoch=epoch, step=step, digest="d", size_bytes=5, region=EAST, world=state, ledger_ms=99,
        suspect=suspect,
    )  # fmt: skip


def test_a_commit_compares_ownership_and_head_and_names_one_region() -> None:
    decision = commit(world())
    assert isinstance(decision, Decision)
    assert Guard(KEYS.ownership(JOB), Revision(7)) in decision.guards
    writes = {w.key: w for w in decision.writes}
    head = writes[KEYS.head(JOB)]
    assert isinstance(head, Put)
    assert head.expected == 11
    assert head.record == HeadRecord(JOB, 30, EPOCH, "d", 5, (EAST,), 99)
    kept = writes[KEYS.checkpoint(JOB, 30)]
    assert isinstance(kept, Put)
    assert (kept.expected, kept.record) == (ABSENT, CheckpointRecord(JOB, 30, EPOCH, "d", 5, EAST, False, 99))


@pytest.mark.parametrize(
    ("state", "step", "epoch", "words"),
    [
        (world(), 20, EPOCH, "never goes back"),
        (world(), 19, EPOCH, "never goes back"),
        (world(), 30, Epoch(1, 3), "owned at epoch 1.4"),
        (world(), 30, Epoch(1, 5), "owned at epoch 1.4"),
        (world(owner=None), 30, EPOCH, "nobody owns"),
        (world(), -1, EPOCH, "negative"),
        (world(suspect_keys=frozenset({KEYS.head(JOB)}), heads={}), 30, EPOCH, "does not decode"),
        (world(suspect_keys=frozenset({KEYS.ownership(JOB)}), ownership={}), 30, EPOCH, "does not decode"),
    ],
)
def test_what_can_never_be_committed_is_refused_with_the_reason(
    state: GlobalState, step: int, epoch: Epoch, words: str
) -> None:
    outcome = commit(state, step, epoch)
    assert isinstance(outcome, Refusal)
    assert words in outcome.sentence


def test_a_suspect_checkpoint_is_kept_but_does_not_become_the_head() -> None:
    decision = commit(world(), suspect=True)
    assert isinstance(decision, Decision)
    assert [w.key for w in decision.writes] == [KEYS.checkpoint(JOB, 30)]
    assert Guard(KEYS.head(JOB), Revision(11)) in decision.guards
    kept = CheckpointRecord(JOB, 30, EPOCH, "d", 5, EAST, True, 99)
    name = KEYS.checkpoint_name(JOB, 30)
    repeated = world(checkpoints={name: Versioned(kept, Revision(12), Revision(12), 0)})
    assert isinstance(commit(repeated, suspect=True), Refusal), "said again, it is not written again"
    redone = commit(replace(repeated, ownership={JOB: held(replace(OWNER, epoch=Epoch(1, 5)))}), epoch=Epoch(1, 5))
    assert isinstance(redone, Decision), "the next epoch reaches the same step anew"
    assert {w.key: w.expected for w in redone.writes}[KEYS.checkpoint(JOB, 30)] == 12
