"""What the supervisor may do, for every combination of orders, processes and renewals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import Process, Progress
from gridkeeper.records.jobs import JobSpec
from gridkeeper.v1 import records_pb2
from nodeagent import orders
from nodeagent.orders import BadBook, BadOrder, Book, Order, take
from nodeagent.reports import report
from nodeagent.workloads import AskCheckpoint, Extend, Fetch, Forget, Start, Stop, View, plan, renewable

TERM_BEFORE = 100
JOBS = [JobId("a"), JobId("b")]


def spec(job: JobId) -> JobSpec:
    return JobSpec(job, "default", ("train",), (), "", 1, "", (), False, True, 500, 0)


def an_order(job: JobId, number: int, run: bool = True, term: int = 5, **changes: object) -> Order:
    order = Order(term, job, Epoch(1, number), run, spec(job), ("gpu0",), -1, "", 0, False)
    return replace(order, **changes)  # type: ignore[arg-type]


def a_process(job: JobId, number: int, alive: bool = True, tree_gone: bool = False, **changes: object) -> Process:
    progress = Progress(0, 3, 10, 20, 0.5)
    process = Process(
        job,
        Epoch(1, number),
        alive,
        -1 if alive else 0,
        0,
        tree_gone,
        False,
        False,
        10,
        0 if alive else 50,
        progress,
        (),
    )
    return replace(process, **changes)  # type: ignore[arg-type]


jobs = st.sampled_from(JOBS)
numbers = st.integers(0, 4)
orders_taken = st.lists(
    st.builds(
        an_order,
        jobs,
        numbers,
        st.booleans(),
        st.integers(1, 6),
        resume_step=st.sampled_from([-1, 7]),
        checkpoint_request=st.integers(0, 2),
        forget=st.booleans(),
    ),
    max_size=12,
)
process_states = st.sampled_from([(True, False), (False, False), (False, True)])
processes_seen = st.dictionaries(st.tuples(jobs, numbers), process_states, max_size=5).map(
    lambda found: tuple(a_process(job, n, alive, gone) for (job, n), (alive, gone) in found.items())
)
keys = st.tuples(jobs, numbers.map(lambda n: Epoch(1, n)))
deadlines = st.dictionaries(keys, st.integers(0, 3_000), max_size=6)


def book_of(taken: list[Order]) -> Book:
    book = Book()
    for order in taken:
        book, _ = take(book, order)
        if order.forget:
            book = orders.forget(book, order.key) if order.key in book.orders else book
    return book


@settings(max_examples=600)
@given(orders_taken, processes_seen, deadlines, st.sets(keys), st.integers(0, 3_000))
def test_a_start_needs_a_renewal_the_highest_epoch_and_an_empty_host(
    taken: list[Order],
    processes: tuple[Process, ...],
    renewed: dict[tuple[JobId, Epoch], int],
    fetched: set[tuple[JobId, Epoch]],
    now: int,
) -> None:
    """Rule 1: never a start without an acknowledged renewal that still holds, never two epochs of a job alive, never a
    lower epoch, never one that was stopped."""
    book = book_of(taken)
    view = View(processes=processes, deadlines=renewed, fetched=frozenset(fetched))
    starts = [action for action in plan(book, view, now, TERM_BEFORE) if isinstance(action, Start)]
    assert len({start.order.job for start in starts}) == len(starts)
    for start in starts:
        job, epoch = start.order.key
        assert renewed[job, epoch] == start.deadline_ms
        assert start.deadline_ms - TERM_BEFORE > now
        assert all(process.tree_gone for process in processes if process.job == job)
        assert all(process.epoch < epoch for process in processes if process.job == job)
        accepted = [o for o in taken if o.job == job]
        assert not any(o.epoch == epoch and not o.run and o.key in book.closed for o in accepted)
        assert epoch == book.highest[job]
        assert start.order.resume_step < 0 or start.order.key in fetched


@settings(max_examples=400)
@given(orders_taken, processes_seen, deadlines)
def test_only_an_order_or_a_higher_epoch_stops_and_each_of_them_does(
    taken: list[Order], processes: tuple[Process, ...], renewed: dict[tuple[JobId, Epoch], int]
) -> None:
    book = book_of(taken)
    actions = plan(book, View(processes=processes, deadlines=renewed), 0, TERM_BEFORE)
    stopped = {(action.job, action.epoch) for action in actions if isinstance(action, Stop)}
    for process in processes:
        key = (process.job, process.epoch)
        rivals = [p.epoch for p in processes if p.job == process.job]
        highest = max([*rivals, *([book.highest[process.job]] if process.job in book.highest else [])])
        should = process.alive and (process.epoch < highest or key in book.closed)
        assert (key in stopped) == should
    extended = {key for action in actions if isinstance(action, Extend) for key in action.deadlines}
    assert extended <= {(p.job, p.epoch) for p in processes if p.alive}


@settings(max_examples=300)
@given(orders_taken, processes_seen)
def test_all_that_lives_is_renewed_and_reported(taken: list[Order], processes: tuple[Process, ...]) -> None:
    """A process that nobody ordered (its order was lost) is renewed and reported like any other: the control plane
    decides about it, not a restart of the agent."""
    book = book_of(taken)
    asked = set(renewable(book, processes))
    assert {(p.job, p.epoch) for p in processes if p.alive} <= asked
    told = report(book, View(processes=processes), {}, {}, 100)
    names = {(w.job, w.epoch.number) for w in told.workloads}
    assert names == {(p.job, p.epoch.number) for p in processes} | {
        (o.job, o.epoch.number) for o in book.orders.values()
    }
    for workload in told.workloads:
        if workload.phase == records_pb2.RUN_PHASE_EXITED and workload.stop_confirmed:
            here = [p for p in processes if (p.job, p.epoch.number) == (workload.job, workload.epoch.number)]
            assert all(not p.alive and p.tree_gone for p in here)
            key = (JobId(workload.job), Epoch(1, workload.epoch.number))
            assert here or key not in asked, "what may still start is not over"


@settings(max_examples=300)
@given(orders_taken)
def test_the_book_survives_its_file(taken: list[Order]) -> None:
    book = book_of(taken)
    assert orders.from_bytes(orders.to_bytes(book)) == book


@settings(max_examples=300)
@given(orders_taken, st.builds(an_order, jobs, numbers, st.just(True), st.integers(1, 6)))
def test_terms_and_epochs_only_grow(taken: list[Order], late: Order) -> None:
    book = book_of(taken)
    after, refusal = take(book, late)
    assert after.term >= book.term
    for job, epoch in book.highest.items():
        assert after.highest[job] >= epoch
    if late.term < book.term or late.epoch < book.highest.get(late.job, late.epoch):
        assert refusal
        assert after is book
    if late.key in book.closed or late.epoch <= book.ended.get(late.job, Epoch(0, 0)):
        assert after.wanted(late.key) is None


def test_a_restored_store_counts_terms_anew() -> None:
    """After a restore from backup the leader's term may be small again; its new generation outranks the old one."""
    book, _ = take(Book(), an_order(JOBS[0], 3, term=900))
    book, refusal = take(book, replace(an_order(JOBS[0], 0, term=4), epoch=Epoch(2, 0)))
    assert (refusal, book.term, book.highest[JOBS[0]]) == ("", 4, Epoch(2, 0))


def test_a_resume_is_fetched_before_it_starts_and_only_then() -> None:
    book, _ = take(Book(), an_order(JOBS[0], 1, resume_step=7, resume_digest="ab"))
    key = (JOBS[0], Epoch(1, 1))
    (fetch,) = plan(book, View(deadlines={key: 1_000}), 0, TERM_BEFORE)
    assert isinstance(fetch, Fetch)
    (start,) = plan(book, View(deadlines={key: 1_000}, fetched=frozenset({key})), 0, TERM_BEFORE)
    assert isinstance(start, Start)


def test_a_checkpoint_is_asked_once_and_only_of_jobs_that_understand_it() -> None:
    book, _ = take(Book(), an_order(JOBS[0], 1, checkpoint_request=2))
    key = (JOBS[0], Epoch(1, 1))
    silent = a_process(JOBS[0], 1, progress=Progress(-1, -1, 0, 0, 0.0))
    assert plan(book, View(processes=(silent,)), 0, TERM_BEFORE) == ()
    running = a_process(JOBS[0], 1)
    assert plan(book, View(processes=(running,)), 0, TERM_BEFORE) == (AskCheckpoint(*key, 2),)
    assert plan(book, View(processes=(running,), asked={key: 2}), 0, TERM_BEFORE) == ()
    deaf, _ = take(
        Book(), an_order(JOBS[0], 1, checkpoint_request=2, spec=replace(spec(JOBS[0]), handles_sigusr1=False))
    )
    assert plan(deaf, View(processes=(running,)), 0, TERM_BEFORE) == ()


def test_an_epoch_is_forgotten_only_when_gone_and_stored() -> None:
    book, _ = take(Book(), an_order(JOBS[0], 1, run=False, forget=True))
    key = (JOBS[0], Epoch(1, 1))
    lingering = a_process(JOBS[0], 1, alive=False, tree_gone=False)
    gone = a_process(JOBS[0], 1, alive=False, tree_gone=True)
    assert plan(book, View(processes=(lingering,)), 0, TERM_BEFORE) == ()
    assert plan(book, View(processes=(gone,), storing=frozenset({key})), 0, TERM_BEFORE) == ()
    assert plan(book, View(processes=(gone,)), 0, TERM_BEFORE) == (Forget(*key),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job": "../etc"}, "command.job"),
        ({"job": ""}, "command.job"),
        ({"slots": ["gpu0", "GPU 1"]}, "command.slots"),
        ({"desired": 0}, "command.desired"),
        ({"desired": 17}, "command.desired"),
        ({"spec": records_pb2.JobSpec()}, "command.spec.command"),
    ],
)
def test_a_malformed_command_is_refused_by_name(change: dict[str, object], words: str) -> None:
    command = orders.command_of(an_order(JOBS[0], 1))
    for name, value in change.items():
        command.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(command, name).extend(value)
        elif isinstance(value, records_pb2.JobSpec):
            command.spec.CopyFrom(value)
        else:
            setattr(command, name, value)
    with pytest.raises(BadOrder, match=words):
        orders.order_of(command)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version": 1}', b'{"version": 2}', b"\xff"])
def test_a_damaged_book_is_an_error_not_an_empty_book(data: bytes) -> None:
    """An empty book would start epochs that were stopped."""
    with pytest.raises(BadBook):
        orders.from_bytes(data)
