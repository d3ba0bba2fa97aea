"""What the executor on a batch system's hosts believes while guardians and the batch system do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from failover.executors import queued_state
from failover.executors.batch import BatchUnavailable, Placed, Standing, Ticket
from failover.executors.queued import TICKETS, QueuedExecutor
from failover.executors.queued_state import Entry, Queue
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId
from gridkeeper.ports.jobs import ExecutorWaiting, Launch
from tests.unit.failover_world import spec_of

JOB, FIRST = JobId("train"), Epoch(1, 1)


class Queueing:
    """``BatchSystem``: a ticket stands as ``standing`` says. The replies to the first ``lost`` submissions are lost,
    after they were obeyed. What is asked is counted once it is answered."""

    title = "the queue"

    def __init__(self, standing: Standing = Standing.WAITING, lost: int = 0) -> None:
        self.standing = standing
        self.lost = lost
        self.names: list[str] = []
        self.looks = 0

    async def find(self, names: Sequence[str]) -> dict[str, Placed]:
        self.looks += 1
        return {name: Placed(self.standing, "") for name in names if name in self.names}

    async def submit(self, ticket: Ticket) -> None:
        self.names.append(ticket.name)
        if self.lost:
            self.lost -= 1
            raise BatchUnavailable("no reply")

    async def cancel(self, name: str) -> None:
        raise AssertionError(f"nobody gives {name} up")


def executor_on(system: Queueing, state_dir: Path) -> QueuedExecutor:
    return QueuedExecutor(state_dir, NodeId("e1"), system, SystemClock(), poll_ms=0)


async def looked(system: Queueing, executor: QueuedExecutor) -> None:
    """Until the batch system has answered three more questions."""
    enough = system.looks + 3
    async with asyncio.timeout(30):
        while system.looks < enough:
            await executor.list()


@pytest.mark.parametrize("asked", [True, False])
async def test_who_was_told_to_start_may_be_alive_until_its_ticket_has_ended(asked: bool, tmp_path: Path) -> None:
    """Protects: rule 4.1. The guardian was told, the agent died before the reply, and the guardian says nothing."""
    system = Queueing(Standing.RUNNING)
    queued_state.save(tmp_path, Queue("tag", {JOB: FIRST}, (Entry(JOB, str(FIRST), submitted=True, asked=asked),)))
    executor = executor_on(system, tmp_path)
    system.names.append(f"{TICKETS}e1.tag.{JOB}.{FIRST}.0")
    await looked(system, executor)
    shown = [(run.job, run.epoch, run.alive, run.tree_gone) for run in await executor.list()]
    assert shown == ([(JOB, FIRST, True, False)] if asked else [])
    system.standing = Standing.ENDED
    await looked(system, executor)
    assert await executor.list() == ()
    executor.close()


async def test_a_ticket_that_is_found_is_not_handed_in_again(tmp_path: Path) -> None:
    """Protects: no second ticket for one start, neither after a lost reply nor later while it waits for room."""
    system = Queueing(lost=1)
    launch = Launch(JOB, FIRST, spec_of("train"), (DeviceId("e1/gpu0"),), "", -1)

    async def ask(executor: QueuedExecutor, looks: int) -> None:
        async with asyncio.timeout(30):
            while system.looks < looks or not system.names:
                with pytest.raises(ExecutorWaiting):
                    await executor.start(launch, SystemClock().mono_ms() + 60_000)
                await asyncio.sleep(0)

    first = executor_on(system, tmp_path)
    await ask(first, 1)
    first.close()
    second = executor_on(system, tmp_path)  # the agent died before it could write down that it was handed in
    await ask(second, 4)
    second.close()
    assert len(system.names) == 1
