"""Which checkpoints are kept.

Protects rule 2: collection never takes the newest verified one, what a job was started from, or what is not known.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from failover.domain.retention import decide_removed, decide_retention, due_removal, is_orphan, kept_steps
from failover.domain.scrub import Stored
from gridkeeper.decision import Delete, Guard, Now, Put, Versioned
from gridkeeper.ids import Epoch, JobId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import DAY_MS, HOUR_MS, CheckpointPolicy, Policy
from gridkeeper.records.jobs import CheckpointRecord, HeadRecord, OwnershipRecord
from gridkeeper.snapshot import GlobalState, Settings
from tests.fixtures.records import ownership

JOB, EAST, WEST = JobId("train"), RegionId("east"), RegionId("west")
POLICY = CheckpointPolicy(keep_last=2, keep_hourly=2, keep_daily=2, keep_doubtful_ms=DAY_MS, grace_ms=HOUR_MS)
NOON = 1_000 * DAY_MS
SETTINGS = Settings(policy=Policy(checkpoints=POLICY))


def record(step: int, at_ms: int = NOON, suspect: bool = False, damage: str = "") -> CheckpointRecord:
    return CheckpointRecord(JOB, step, Epoch(1, 2), f"d{step}", 1, EAST, suspect, at_ms, (), damage)


def world(
    records: list[CheckpointRecord], resume_step: int = -1, head: int | None = None, number: int = 2
) -> GlobalState:
    def at(value: object, revision: int = 7) -> Versioned:  # type: ignore[type-arg]
        return Versioned(value, Revision(revision), Revision(1), 0)

    sound = [r for r in records if not r.suspect and not r.damage]
    newest = max((r for r in sound if head is None or r.step == head), key=lambda r: r.step, default=None)
    owner: OwnershipRecord = replace(ownership("train"), resume_step=resume_step, epoch=Epoch(1, number))
    heads = {}
    if newest:
        heads[JOB] = at(HeadRecord(JOB, newest.step, newest.epoch, newest.digest, 1, (EAST,), newest.committed_ms), 9)
    return GlobalState(
        heads=heads,
        ownership={JOB: at(owner, 8)},
        checkpoints={KEYS.checkpoint_name(JOB, r.step): at(r) for r in records},
    )


def marked(state: GlobalState, now_ms: int = NOON) -> set[int]:
    steps = set()
    for decision in decide_retention(state, SETTINGS, Now(0, now_ms)):
        assert Guard(KEYS.head(JOB), Revision(9)) in decision.guards
        assert Guard(KEYS.ownership(JOB), Revision(8)) in decision.guards
        for write in decision.writes:
            assert isinstance(write, Put) and write.record.expires_ms == now_ms + HOUR_MS
            steps.add(write.record.step)
    return steps


def test_the_last_ones_and_the_newest_of_hours_and_days_are_kept() -> None:
    minutes = [
        record(step, NOON - (60 - step) * 60_000) for step in range(1, 60)
    ]  # steps 1..59 in the hour before noon
    assert kept_steps(minutes, POLICY, NOON) == {58, 59}
    older = [record(0, NOON - DAY_MS), *(replace(m, step=m.step + 10) for m in minutes)]
    assert kept_steps(older, POLICY, NOON) == {0, 68, 69}


def test_the_head_and_what_the_job_was_started_from_are_never_marked() -> None:
    records = [record(step) for step in range(10)]
    assert marked(world(records, resume_step=3)) == {0, 1, 2, 4, 5, 6, 7}
    assert marked(world(records, head=4)) == {0, 1, 2, 3, 5, 6, 7}, "the head had gone back to 4"


def test_suspect_and_damaged_ones_stay_for_their_time_and_do_not_count() -> None:
    records = [record(1), record(2), record(3, suspect=True), record(4, damage="east: gone"), record(5), record(6)]
    assert marked(world(records)) == {1, 2}
    assert marked(world(records), NOON + DAY_MS) == {1, 2, 3, 4}


def test_what_is_not_known_is_not_deleted() -> None:
    records = [record(step) for step in range(10)]
    for key in (KEYS.head(JOB), KEYS.ownership(JOB)):
        assert marked(replace(world(records), suspect_keys=frozenset({key}))) == set()
    assert marked(replace(world(records), heads={})) == set()


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(-10 * DAY_MS, 0), st.booleans(), st.booleans()),
        max_size=30, unique_by=lambda r: r[0],
    ),
    st.integers(-1, 40),
)  # fmt: skip
def test_the_newest_sound_one_always_stays(rows: list[tuple[int, int, bool, bool]], resume: int) -> None:
    """Whatever is there, and applied again and again: the head and the start stay, and it comes to rest."""
    records = [record(step, NOON + ago, suspect, "x" if damaged else "") for step, ago, suspect, damaged in rows]
    state = world(records, resume_step=resume)
    gone = marked(state)
    sound = [r.step for r in records if not r.suspect and not r.damage]
    assert not {*sorted(sound)[-1:], resume} & gone
    left = [replace(r, expires_ms=1) if r.step in gone else r for r in records]
    assert marked(world(left, resume_step=resume)) == set()


def test_bytes_go_after_the_grace_time_and_the_last_region_deletes_the_record() -> None:
    old = replace(record(1), regions=(WEST,), expires_ms=NOON)
    state = world([old, record(2)])
    what = Stored(JOB, 1, "d1")
    assert due_removal(state, EAST, NOON - 1) is None
    assert due_removal(state, EAST, NOON) == due_removal(state, WEST, NOON) == what
    [first] = decide_removed(state, EAST, what)
    [put] = first.writes
    assert isinstance(put, Put) and (put.record.region, put.record.regions) == (WEST, ())
    [last] = decide_removed(world([put.record, record(2)]), WEST, what)
    assert isinstance(last.writes[0], Delete)
    assert due_removal(world([replace(record(2), expires_ms=1)]), EAST, NOON) is None, "a head goes never"


def test_an_orphan_is_what_can_never_be_committed() -> None:
    """Protects: a manifest that was just written, and is about to be committed, is not deleted."""
    state = world([record(1)], number=3)
    assert not is_orphan(state, Stored(JOB, 2, "new"), Epoch(1, 3)), "it may be committed in a moment"
    assert is_orphan(state, Stored(JOB, 2, "new"), Epoch(1, 2)), "its epoch is over"
    assert not is_orphan(state, Stored(JOB, 1, "d1"), Epoch(1, 2)), "its record names it"
    assert not is_orphan(state, Stored(JobId("other"), 2, "new"), Epoch(1, 2)), "nothing is known of its job"
    unknown = replace(state, suspect_keys=frozenset({KEYS.checkpoint(JOB, 2)}))
    assert not is_orphan(unknown, Stored(JOB, 2, "new"), Epoch(1, 2))
