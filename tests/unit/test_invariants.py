"""The checkers are tested harder than the system: each passes a good history and finds each way in which it can be
broken, so that no run is called safe by a checker that looks at nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos.simulate.history import (
    GLOBAL_STORE,
    Gone,
    Held,
    Renewed,
    Started,
    Stepped,
    Stored,
)
from gridkeeper.ids import (
    Epoch,
    JobId,
    MigrationId,
    NodeId,
    RegionId,
)
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.jobs import (
    CheckpointRecord,
    HeadRecord,
    OwnershipRecord,
    Revoke,
    RunPhase,
    RunRecord,
)
from gridkeeper.records.regions import FenceRecord
from tests.unit.handmade import (
    E1,
    E2,
    EAST,
    GPU0,
    GPU1,
    JOB,
    N1,
    N2,
    OWNER,
    Book,
    R,
    S,
    begun,
    only,
    owner,
)

# -- who may run a job


def ran(epoch: Epoch = E1, node: NodeId = N1, confirmed: bool = True, **changes: Any) -> RunRecord:
    record = RunRecord(JOB, epoch, EAST, node, RunPhase.EXITED, 0, 9, confirmed, True, -1, 0, 5, 10, 20, 5, 30, 0.5, "")
    return replace(record, **changes)


def started(
    at_ms: int, epoch: Epoch = E1, node: str = N1, job: str = JOB, devices: tuple[str, ...] = (GPU0,)
) -> Started:
    return Started(at_ms, node, JobId(job), epoch, devices, -1)


RUN1 = KEYS.run(JOB, 1, 1)


def running() -> Book:
    """Epoch 1.1 owned by east-1, and alive there since 100 ms."""
    book = begun()
    book.led(50, GLOBAL_STORE, {OWNER: owner()})
    book.add(started(100), Stepped(110, N1, JOB, E1, 0), Renewed(120, "cp1", N1, JOB, E1))
    return book


def test_a_confirmed_stop_hands_the_job_on_at_once() -> None:
    book = running()
    book.add(Gone(200, N1, JOB, E1, 0, 0))
    book.commit(210, GLOBAL_STORE, {RUN1: ran()})
    book.led(220, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    book.add(started(230, E2, N2), Stepped(240, N2, JOB, E2, 1), Renewed(250, "cp1", N2, JOB, E2))
    assert book.wrong() == []


def test_r_after_the_intent_hands_the_job_on_without_a_word_from_the_old_node() -> None:
    book = running()
    intent = book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    fenced(book, 1_000, intent)
    book.add(Gone(5_000, N1, JOB, E1, -1, 9))
    book.led(1_000 + R, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    book.add(started(1_100 + R, E2, N2))
    assert book.wrong() == []


@pytest.mark.parametrize("raised", ["late", "short", "never"])
def test_r_counts_for_nothing_before_a_region_has_raised_its_fence_to_the_intent(raised: str) -> None:
    """Protects: the old owner may live on promises until then."""
    book = running()
    intent = book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    if raised != "never":
        fenced(book, 1_001, intent if raised == "late" else intent - 1)
    book.add(Gone(5_000, N1, JOB, E1, -1, 9))
    book.led(1_000 + R, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    only(book, "takeover", "epoch 1.1 may still live")


def fenced(book: Book, at_ms: int, revision: int) -> None:
    """East promises itself nothing below that revision."""
    book.commit(at_ms, "east", {RegionKeys(EAST).fence(EAST): FenceRecord(EAST, 1, revision)})


def test_two_processes_of_one_job_at_once_are_found() -> None:
    book = running()
    book.commit(210, GLOBAL_STORE, {RUN1: ran()})  # a lie: its processes live on
    book.led(220, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    book.add(started(230, E2, N2))
    only(book, "one owner", "epoch 1.1 lives on east-1")


def test_a_step_of_an_old_epoch_after_a_newer_one_began_is_found() -> None:
    book = running()
    book.add(Gone(200, N1, JOB, E1, 0, 0))
    book.commit(210, GLOBAL_STORE, {RUN1: ran()})
    book.led(220, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    book.add(started(230, E2, N2), Stepped(300, N1, JOB, E1, 9))
    found = book.wrong()
    assert any("does step 9 after epoch 1.2 started" in text for text in found)
    assert any("does step 9 on east-1, where it does not live" in text for text in found)


def test_an_epoch_started_twice_or_out_of_order_is_found() -> None:
    book = running()
    book.add(Gone(200, N1, JOB, E1, 0, 0), started(300))
    only(book, "one owner", "starts at epoch 1.1 after 1.1")


def test_one_device_for_two_jobs_is_found() -> None:
    book = running()
    other = JobId("other")
    book.led(60, GLOBAL_STORE, {KEYS.ownership(other): owner(job=other)})
    book.add(started(130, job=other, devices=(GPU0, GPU1)))
    only(book, "one owner", "other starts on east-1/gpu0, which train still uses")


def test_a_new_epoch_before_r_has_passed_is_found_when_it_is_given_and_when_it_starts() -> None:
    book = running()
    book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    book.add(Gone(5_000, N1, JOB, E1, -1, 9))
    book.led(999 + R, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    only(book, "takeover", "is given epoch 1.2 while epoch 1.1 may still live")
    book.add(started(999 + R, E2, N2))
    assert "epoch 1.2 starts on east-2, and epoch 1.1 may still live" in book.wrong()[-1]


def test_a_stop_that_is_not_confirmed_hands_nothing_on() -> None:
    book = running()
    book.add(Gone(200, N1, JOB, E1, 0, 0))
    book.commit(210, GLOBAL_STORE, {RUN1: ran(confirmed=False)})
    book.led(220, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    only(book, "takeover", "may still live")


def test_an_intent_that_is_withdrawn_is_found() -> None:
    book = running()
    book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    book.led(2_000, GLOBAL_STORE, {OWNER: owner()})
    only(book, "takeover", "the intent to revoke epoch 1.1 of train is withdrawn")


def test_r_counts_from_the_last_intent_not_from_one_that_was_withdrawn() -> None:
    book = running()
    intent = Revoke(MigrationId("m"), "why", 0, withdrawable=True)
    book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoke=intent)})
    book.led(2_000, GLOBAL_STORE, {OWNER: owner()})
    book.add(Renewed(2_010, "cp1", N1, JOB, E1))
    book.led(1_000 + R - 100, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    book.add(Gone(1_000 + R, N1, JOB, E1, -1, 9))
    book.led(1_000 + R + 100, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    only(book, "takeover", "is given epoch 1.2 while epoch 1.1 may still live")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (owner(Epoch(1, 0), N2), "falls from 1.1 to 1.0"),
        (owner(E1, N2), "epoch 1.1 of train moves from east-1"),
        (None, "the ownership of train is deleted"),
    ],
)
def test_an_ownership_that_changes_without_a_new_epoch_is_found(record: OwnershipRecord | None, words: str) -> None:
    book = running()
    book.led(1_000, GLOBAL_STORE, {OWNER: record})
    only(book, "takeover", words)


def test_a_start_by_a_node_that_never_owned_the_epoch_is_found() -> None:
    book = begun()
    book.led(50, GLOBAL_STORE, {OWNER: owner()})
    book.add(started(100, E1, N2))
    only(book, "takeover", "east-2 starts train epoch 1.1, which it never owned")


def test_a_run_that_changes_after_its_end_is_found() -> None:
    book = running()
    book.add(Gone(200, N1, JOB, E1, 0, 0))
    book.commit(210, GLOBAL_STORE, {RUN1: ran()})
    book.commit(220, GLOBAL_STORE, {RUN1: ran(last_step=9)})
    only(book, "takeover", "changes after it has ended")


def test_a_renewal_acknowledged_from_a_view_younger_than_s_is_right_and_from_an_older_one_is_found() -> None:
    book = running()
    intent = book.led(1_000, GLOBAL_STORE, {OWNER: owner(revoked=True)})
    book.add(Renewed(2_000 + S, "cp1", N1, JOB, E1))  # on promises: no region has raised its fence
    fenced(book, 3_000 + S, intent)
    book.add(Renewed(2_999 + 2 * S, "cp1", N1, JOB, E1))
    assert book.wrong() == []
    book.add(Renewed(3_000 + 2 * S, "cp1", N1, JOB, E1))
    only(book, "takeover", "cp1 acknowledges train epoch 1.1 to east-1")


def test_a_renewal_of_what_a_node_never_owned_is_found() -> None:
    book = running()
    book.add(Renewed(130, "cp1", N2, JOB, E1))
    only(book, "takeover", "to east-2", "never was")


# -- checkpoints


DIGEST = "d" * 64


def head(step: int = 5, epoch: Epoch = E1, regions: tuple[RegionId, ...] = (EAST,), digest: str = DIGEST) -> HeadRecord:
    return HeadRecord(JOB, step, epoch, digest, 1, regions, 0)


def moved_to(book: Book, at_ms: int, record: HeadRecord, compared: bool = True) -> None:
    """As ``commit_head`` does it."""
    kept = CheckpointRecord(JOB, record.step, record.epoch, record.digest, 1, EAST, False, 0)
    guards = [Held(OWNER, book.mod[OWNER], False)] if compared else []
    book.commit(at_ms, GLOBAL_STORE, {KEYS.checkpoint(JOB, record.step): kept, KEYS.head(JOB): record}, guards)


def stored(step: int = 5, region: str = "east", digest: str = DIGEST) -> Stored:
    return Stored(150, region, JOB, step, digest)


def test_a_head_that_moves_on_and_reaches_another_region_is_right() -> None:
    book = running()
    book.add(stored(5), stored(9), stored(9, "west"))
    moved_to(book, 200, head(5))
    moved_to(book, 300, head(9))
    book.commit(400, GLOBAL_STORE, {KEYS.head(JOB): head(9, regions=(EAST, RegionId("west")))})
    assert book.wrong() == []


def test_a_head_that_names_what_is_not_stored_is_found() -> None:
    book = running()
    book.add(stored(5, digest="e" * 64), stored(5, "west"))
    moved_to(book, 200, head(5))
    only(book, "head", "in east, which has not stored it")


def test_a_copy_that_never_arrived_is_found() -> None:
    book = running()
    book.add(stored(5))
    moved_to(book, 200, head(5))
    book.commit(400, GLOBAL_STORE, {KEYS.head(JOB): head(5, regions=(EAST, RegionId("west")))})
    only(book, "head", "in west, which has not stored it")


def test_a_head_that_goes_back_is_found() -> None:
    book = running()
    book.add(stored(5), stored(9))
    moved_to(book, 200, head(9))
    moved_to(book, 300, head(5))
    only(book, "head", "goes from step 9 of 1.1 to 5 of 1.1")


def test_a_checkpoint_of_an_epoch_that_lost_the_job_is_found() -> None:
    book = running()
    book.add(stored(5), Gone(200, N1, JOB, E1, 0, 0))
    book.commit(210, GLOBAL_STORE, {RUN1: ran()})
    book.led(220, GLOBAL_STORE, {OWNER: owner(E2, N2)})
    moved_to(book, 300, head(5))
    only(book, "head", "epoch 1.1 moves the head", "while epoch 1.2 owns the job")


def test_a_head_moved_without_comparing_the_ownership_is_found() -> None:
    book = running()
    book.add(stored(5))
    moved_to(book, 200, head(5), compared=False)
    only(book, "head", "without comparing the ownership")


def test_a_head_without_a_checkpoint_record_is_found() -> None:
    book = running()
    book.add(stored(5))
    book.commit(200, GLOBAL_STORE, {KEYS.head(JOB): head(5)}, [Held(OWNER, book.mod[OWNER], False)])
    only(book, "head", "there is no checkpoint record")
