"""What the control plane ordered, as the agent remembers it across restarts. Pure.

Orders are levels, not edges: the newest of each (job, epoch) stands until the epoch is forgotten. An order is refused
if its term or, to run, its epoch is lower than the highest seen. A stop is final for its epoch: an order to run it that
arrives later, or again, changes nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from google.protobuf.message import DecodeError

from gridkeeper import codec
from gridkeeper.ids import BadName, Epoch, JobId, checked_name
from gridkeeper.records.jobs import JobSpec
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import Command

Key = tuple[JobId, Epoch]
_VERSION = 1


class BadOrder(ValueError):
    """A command that no honest control plane sends; names field, value and remedy."""


class BadBook(ValueError):
    """The file with the orders does not decode."""


@dataclass(frozen=True, slots=True)
class Order:
    """One command. ``spec`` is None for a stop of a job that ownership knows nothing of any more."""

    term: int
    job: JobId
    epoch: Epoch
    run: bool
    spec: JobSpec | None
    slots: tuple[str, ...]
    resume_step: int
    resume_digest: str
    checkpoint_request: int
    forget: bool
    rank: int = 0  # in the job's gang
    rendezvous: str = ""  # host:port of rank 0; "": a job on one node

    @property
    def key(self) -> Key:
        return (self.job, self.epoch)

    @property
    def grace_ms(self) -> int:
        return self.spec.grace_ms if self.spec else 0


def epoch_of(message: records_pb2.Epoch) -> Epoch:
    return Epoch(int(message.generation), int(message.number))


def epoch_message(epoch: Epoch) -> records_pb2.Epoch:
    return records_pb2.Epoch(generation=epoch.generation, number=epoch.number)


def order_of(command: Command) -> Order:
    """Raises ``BadOrder``."""
    try:
        job = JobId(checked_name("command.job", command.job))
        for slot in command.slots:
            checked_name("command.slots", slot)
    except BadName as error:
        raise BadOrder(str(error)) from error
    if command.desired not in (records_pb2.DESIRED_RUN, records_pb2.DESIRED_STOP):
        raise BadOrder(f"command.desired: {command.desired} is neither run nor stop; upgrade the agent first")
    run = command.desired == records_pb2.DESIRED_RUN
    if run and command.spec.nodes > 1 and not (command.rendezvous and 0 <= command.rank < command.spec.nodes):
        place = f"rank {command.rank} of {command.spec.nodes}, rendezvous {command.rendezvous[:80]!r}"
        raise BadOrder(f"command.rank, command.rendezvous: {place}; an order to run a gang's member needs both")
    if run and not command.spec.command:
        raise BadOrder(f"command.spec.command: empty for job {job}; an order to run needs one")
    spec = codec.from_message(JobSpec, command.spec) if command.HasField("spec") else None
    return Order(
        term=command.term,
        job=job,
        epoch=epoch_of(command.epoch),
        run=run,
        spec=spec,
        slots=tuple(command.slots),
        resume_step=command.resume_step,
        resume_digest=command.resume_digest,
        checkpoint_request=command.checkpoint_request,
        forget=command.forget,
        rank=command.rank,
        rendezvous=command.rendezvous,
    )


def command_of(order: Order) -> Command:
    command = Command(
        term=order.term,
        job=order.job,
        epoch=epoch_message(order.epoch),
        desired=records_pb2.DESIRED_RUN if order.run else records_pb2.DESIRED_STOP,
        slots=order.slots,
        resume_step=order.resume_step,
        resume_digest=order.resume_digest,
        checkpoint_request=order.checkpoint_request,
        forget=order.forget,
        rank=order.rank,
        rendezvous=order.rendezvous,
    )
    if order.spec:
        command.spec.CopyFrom(cast(records_pb2.JobSpec, codec.to_message(order.spec)))
    return command


@dataclass(frozen=True, slots=True)
class Book:
    """``closed``: epochs that must not start (any more), and why. ``ended``: highest epoch forgotten per job; it and
    lower ones never run again. ``highest``: highest epoch seen per job. ``generation``: of the newest epoch seen; a
    restored store counts terms anew under a higher one."""

    term: int = 0
    generation: int = 0
    orders: Mapping[Key, Order] = field(default_factory=dict)
    closed: Mapping[Key, str] = field(default_factory=dict)
    highest: Mapping[JobId, Epoch] = field(default_factory=dict)
    ended: Mapping[JobId, Epoch] = field(default_factory=dict)

    def wanted(self, key: Key) -> Order | None:
        """The order to run ``key`` if it still stands."""
        order = self.orders.get(key)
        if order is None or not order.run or key in self.closed or key[1] != self.highest.get(key[0]):
            return None
        return order


def take(book: Book, order: Order) -> tuple[Book, str]:
    """The book with ``order`` in it, and why it was refused ("" = it was not). An order that changes nothing returns
    the same book."""
    what = f"job {order.job} epoch {order.epoch}"
    if order.term < book.term and order.epoch.generation <= book.generation:
        return book, f"{what}: term {order.term} is over, {book.term} leads"
    highest = book.highest.get(order.job)
    ended = book.ended.get(order.job)
    if order.run:
        if highest is not None and order.epoch < highest:
            return book, f"{what}: epoch {highest} was seen"
        if ended is not None and order.epoch <= ended:
            return book, f"{what}: epoch {ended} has ended and is forgotten"
    elif ended is not None and order.epoch <= ended:
        return book, ""
    old = book.orders.get(order.key)
    if order.spec is None and old is not None:
        order = replace(order, spec=old.spec)
    if not order.rendezvous and old is not None:
        order = replace(order, rank=old.rank, rendezvous=old.rendezvous)
    if old is not None and replace(old, term=order.term) == order:
        return (book if order.term == book.term else replace(book, term=order.term)), ""
    closed = dict(book.closed)
    if order.run:
        for key in book.orders:
            if key[0] == order.job and key[1] < order.epoch:
                closed.setdefault(key, f"replaced by epoch {order.epoch}")
    else:
        closed.setdefault(order.key, f"stopped by the control plane, term {order.term}")
    return (
        replace(
            book,
            term=order.term,
            generation=max(book.generation, order.epoch.generation),
            orders={**book.orders, order.key: order},
            closed=closed,
            highest={**book.highest, order.job: max(order.epoch, highest or order.epoch)},
        ),
        "",
    )


def close(book: Book, key: Key, reason: str) -> Book:
    """``key`` must not start (any more)."""
    return book if key in book.closed else replace(book, closed={**book.closed, key: reason})


def forget(book: Book, key: Key) -> Book:
    """Drop an epoch for good: it is never run again."""
    job, epoch = key
    return replace(
        book,
        orders={k: v for k, v in book.orders.items() if k != key},
        closed={k: v for k, v in book.closed.items() if k != key},
        ended={**book.ended, job: max(epoch, book.ended.get(job, epoch))},
        highest={**book.highest, job: max(epoch, book.highest.get(job, epoch))},
    )


def to_bytes(book: Book) -> bytes:
    return json.dumps(
        {
            "version": _VERSION,
            "term": book.term,
            "generation": book.generation,
            "orders": [
                base64.b64encode(command_of(o).SerializeToString(deterministic=True)).decode()
                for o in book.orders.values()
            ],
            "closed": [[job, str(epoch), reason] for (job, epoch), reason in book.closed.items()],
            "highest": {job: str(epoch) for job, epoch in book.highest.items()},
            "ended": {job: str(epoch) for job, epoch in book.ended.items()},
        }
    ).encode()


def from_bytes(data: bytes) -> Book:
    """Raises ``BadBook``: guessing could start an epoch twice."""
    try:
        values: dict[str, Any] = json.loads(data)
        if values["version"] != _VERSION:
            raise BadBook(f"version: {values['version']!r} is not {_VERSION}; use the agent that wrote it")
        orders = [order_of(Command.FromString(base64.b64decode(text))) for text in values["orders"]]
        return Book(
            term=int(values["term"]),
            generation=int(values["generation"]),
            orders={order.key: order for order in orders},
            closed={(JobId(job), Epoch.parse(epoch)): str(why) for job, epoch, why in values["closed"]},
            highest={JobId(job): Epoch.parse(epoch) for job, epoch in values["highest"].items()},
            ended={JobId(job): Epoch.parse(epoch) for job, epoch in values["ended"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
        raise BadBook(f"{error!r}") from error
