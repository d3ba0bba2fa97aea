"""What to do now, from what was ordered, what runs and what was renewed. Pure.

The invariants: an epoch starts only while a renewal that was acknowledged for it still holds, only if it is the highest
one seen for its job, and only when no process of any other epoch of that job remains; nothing but an order or a higher
epoch stops a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import Process
from nodeagent.orders import Book, Key, Order


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the checkpoint to resume from onto this host."""

    order: Order


@dataclass(frozen=True, slots=True)
class Start:
    order: Order
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Stop:
    job: JobId
    epoch: Epoch
    grace_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class AskCheckpoint:
    job: JobId
    epoch: Epoch
    request: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Deadlines (boot-time ms) that the executor does not know yet."""

    deadlines: Mapping[Key, int]


@dataclass(frozen=True, slots=True)
class Forget:
    job: JobId
    epoch: Epoch


Action = Fetch | Start | Stop | AskCheckpoint | Extend | Forget


@dataclass(frozen=True, slots=True)
class View:
    """The host as it is. ``deadlines``: send time of the last acknowledged renewal + F, per epoch. ``told``: deadlines
    that the executor has taken. ``fetched``: epochs whose resume checkpoint is here. ``asked``: highest checkpoint
    request passed on. ``storing``: epochs with a finished checkpoint that is not stored and acknowledged yet."""

    processes: tuple[Process, ...] = ()
    deadlines: Mapping[Key, int] = field(default_factory=dict)
    told: Mapping[Key, int] = field(default_factory=dict)
    fetched: frozenset[Key] = frozenset()
    asked: Mapping[Key, int] = field(default_factory=dict)
    storing: frozenset[Key] = frozenset()


def key_of(process: Process) -> Key:
    return (process.job, process.epoch)


def highest_epochs(book: Book, processes: tuple[Process, ...]) -> dict[JobId, Epoch]:
    """Also of processes that the book knows nothing of (its file was lost)."""
    highest = dict(book.highest)
    for process in processes:
        highest[process.job] = max(process.epoch, highest.get(process.job, process.epoch))
    return highest


def renewable(book: Book, processes: tuple[Process, ...]) -> tuple[Key, ...]:
    """Epochs to ask a renewal for: what lives, and what is to be started."""
    known = {key_of(process) for process in processes}
    keys = {key_of(process) for process in processes if process.alive}
    highest = highest_epochs(book, processes)
    for key in book.orders:
        if key not in known and book.wanted(key) and highest[key[0]] == key[1]:
            keys.add(key)
    return tuple(sorted(keys))


def plan(book: Book, view: View, now_ms: int, term_before_ms: int) -> tuple[Action, ...]:
    """The actions that are due, stops first. Asking again before they are done gives them again: all are idempotent."""
    highest = highest_epochs(book, view.processes)
    by_key = {key_of(process): process for process in view.processes}
    actions: list[Action] = []
    for key, process in by_key.items():
        reason = _why_stop(book, key, highest)
        if reason and process.alive and not process.stop_asked:
            order = book.orders.get(key)
            actions.append(Stop(*key, order.grace_ms if order else 0, reason))
    extended = {
        key: deadline
        for key, deadline in view.deadlines.items()
        if key in by_key and by_key[key].alive and deadline > view.told.get(key, 0)
    }
    if extended:
        actions.append(Extend(extended))
    for key in sorted(book.orders):
        order = book.orders[key]
        process_or_none = by_key.get(key)
        if order.forget:
            if (process_or_none is None or process_or_none.tree_gone) and key not in view.storing:
                actions.append(Forget(*key))
        elif process_or_none is not None:
            actions.extend(_checkpoint(order, process_or_none, view))
        elif book.wanted(key) and highest[key[0]] == key[1]:
            actions.extend(_begin(order, view, now_ms, term_before_ms))
    return tuple(actions)


def _why_stop(book: Book, key: Key, highest: Mapping[JobId, Epoch]) -> str:
    if highest[key[0]] > key[1]:
        return f"replaced by epoch {highest[key[0]]}"
    return book.closed.get(key, "")


def _checkpoint(order: Order, process: Process, view: View) -> list[Action]:
    wanted = order.checkpoint_request
    able = order.spec is not None and order.spec.handles_sigusr1 and process.progress.last_step >= 0
    if not able or not process.alive or process.stop_asked or wanted <= view.asked.get(order.key, 0):
        return []
    return [AskCheckpoint(order.job, order.epoch, wanted)]


def _begin(order: Order, view: View, now_ms: int, term_before_ms: int) -> list[Action]:
    if order.resume_step >= 0 and order.key not in view.fetched:
        return [Fetch(order)]
    if any(process.job == order.job and not process.tree_gone for process in view.processes):
        return []
    deadline = view.deadlines.get(order.key)
    if deadline is None or deadline - term_before_ms <= now_ms:
        return []
    return [Start(order, deadline)]
