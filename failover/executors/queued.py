"""Jobs on a host that a batch system owns: the ``Executor`` port, through one guardian per epoch inside of the batch
system's own allocation.

The batch system is only asked for room. What it starts is a guardian (``nodeagent.guardian --once``), which runs
nothing by itself: a job begins when ``start`` finds its guardian up and tells it to, with a deadline that still holds.
So a ticket that is started late, twice, or after its agent has died starts no job; its guardian goes after a minute.
From there on everything is as without a batch system: the guardian keeps the deadline, owns the tree and knows when it
is gone, and neither needs the batch system to answer.

What was begun is read from the guardian, or, when that has ended, from the file that it left. A guardian that was
killed left no last word: then the batch system must say that the ticket has ended, and a second guardian, started here,
looks for what the first one left and ends it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from failover.executors import guardian_state, queued_state
from failover.executors.batch import BatchError, BatchSystem, BatchUnavailable, Placed, Standing, Ticket
from failover.executors.guardian_client import GuardianClient
from failover.executors.guardian_state import BadState, boot_id
from failover.executors.protocol import SOCKET, Checkpoint, Extend, ListRuns, Request, RunState, Stop
from failover.executors.queued_state import Entry, Queue
from failover.executors.workspace import Workspace
from gridkeeper.ids import Epoch, JobId, NodeId, slot_of
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorError, ExecutorUnavailable, ExecutorWaiting, Launch, Process
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.executor")

Key = tuple[JobId, Epoch]
TICKETS = "gridkeeper."
"""Begins the name of every ticket."""
POLL_MS = 2_000
"""Between two questions to the batch system, and only while something waits for its answer."""
WAIT_MS = 600_000
"""So long a start waits for room before its epoch is given up, so that the job can be placed anew."""
WITHDRAWN_MS = 5_000
"""A place in the queue that nobody has asked for during this time is given up."""
LATER_MS = 10_000
"""After a question that the batch system did not answer."""
INHERITED = ("SLURM_", "CUDA_VISIBLE_", "NVIDIA_VISIBLE_", "ROCR_VISIBLE_", "HIP_VISIBLE_", "ASCEND_", "ZE_AFFINITY_")
"""What the batch system says of the room that it has given: jobs get it too."""


@dataclass(slots=True)
class _Ticket:
    """``wanted_ms``: when ``start`` was last asked, ``since_ms``: first. ``wish``: what to ask room for; None: not yet.
    ``last``: the newest that its guardian said. ``over``: the last word on it."""

    entry: Entry
    directory: Path
    client: GuardianClient
    wanted_ms: int
    since_ms: int
    wish: Ticket | None = None
    placed: Placed | None = None
    last: RunState | None = None
    over: RunState | None = None
    answered: bool = False
    lost: bool = False  # its guardian was killed or hangs: somebody must look for what it left


class QueuedExecutor:
    """``state_dir`` is the agent's. ``command``: how the batch system starts a guardian, without its arguments."""

    def __init__(
        self,
        state_dir: Path,
        node: NodeId,
        system: BatchSystem,
        clock: Clock,
        poll_ms: int = POLL_MS,
        withdrawn_ms: int = WITHDRAWN_MS,
        wait_ms: int = WAIT_MS,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "nodeagent.guardian"),
    ) -> None:
        """Raises ``ExecutorError`` for books that cannot be read."""
        self._state_dir = state_dir.resolve()
        self._node = node
        self._system = system
        self._clock = clock
        self._poll_ms = poll_ms
        self._withdrawn_ms = withdrawn_ms
        self._wait_ms = wait_ms
        self._command = command
        self._workspace = Workspace(self._state_dir)
        queue = queued_state.load(self._state_dir)
        self._tag, self._highest = queue.tag, queue.highest
        self._tickets = {entry.key: self._ticket(entry) for entry in queue.entries}
        self._saving = asyncio.Lock()
        self._given_up: dict[str, None] = {}  # names of tickets to cancel
        self._tending: asyncio.Task[None] | None = None
        self._due_ms = 0
        self._silent = ""  # why the batch system tells nothing
        self.margins(Timings().term_before_ms, Timings().kill_before_ms)

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        self._term_before_ms = term_before_ms
        self._kill_before_ms = kill_before_ms

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self._workspace.checkpoint_dir(job, epoch)

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        return await self._workspace.log_tail(job, tail_bytes)

    def close(self) -> None:
        if self._tending:
            self._tending.cancel()
        for ticket in self._tickets.values():
            ticket.client.close()

    # Starting

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        what = f"job {launch.job} epoch {launch.epoch}"
        now = self._clock.mono_ms()
        ticket = self._tickets.get((launch.job, launch.epoch)) or await self._admitted(launch, deadline_ms, what)
        ticket.wanted_ms = now
        if await self._look(ticket) is not None:
            return
        self._may_begin(launch, deadline_ms, what)
        if not ticket.answered:
            self._ask_for_room(ticket, launch, what)
        request = self._workspace.start_request(launch, deadline_ms, self._term_before_ms, self._kill_before_ms)
        await self._remember(ticket, replace(ticket.entry, asked=True))
        await self._ask(ticket, request)

    def _may_begin(self, launch: Launch, deadline_ms: int, what: str) -> None:
        highest = self._highest.get(launch.job, launch.epoch)
        if launch.epoch < highest:
            raise ExecutorError(f"{what} is not higher than {highest}, which was started before; use a higher epoch")
        if deadline_ms - self._term_before_ms <= self._clock.mono_ms():
            raise ExecutorError(f"{what}: its deadline has come already; renew first")
        if not launch.spec.command:
            raise ExecutorError(f"{what}: command is empty")

    async def _admitted(self, launch: Launch, deadline_ms: int, what: str) -> _Ticket:
        """A new ticket. The epoch is used up from here on, whatever becomes of it."""
        highest = self._highest.get(launch.job)
        if highest is not None and launch.epoch <= highest:
            raise ExecutorError(f"{what} is not higher than {highest}, which was started before; use a higher epoch")
        for other in await self.list():
            if other.job == launch.job and not other.tree_gone:
                raise ExecutorError(f"{what}: epoch {other.epoch} still has processes; stop it first")
        self._may_begin(launch, deadline_ms, what)
        ticket = self._ticket(Entry(launch.job, str(launch.epoch)))
        self._highest[launch.job] = launch.epoch
        self._tickets[ticket.entry.key] = ticket
        await self._save()
        return ticket

    def _ask_for_room(self, ticket: _Ticket, launch: Launch, what: str) -> None:
        """Raises ``ExecutorWaiting``; ``ExecutorError`` once the batch system has refused, or given up by itself."""
        title, placed = self._system.title, ticket.placed
        if placed and placed.standing is Standing.ENDED and not ticket.lost:
            raise ExecutorError(f"{what}: {title} ended it before it began: {placed.detail}")
        if self._clock.mono_ms() - ticket.since_ms > self._wait_ms:
            why = placed.detail if placed else self._silent or "it has not answered"
            raise ExecutorError(f"{what}: {title} has had no room for {self._wait_ms // 1000} s: {why}")
        try:
            ticket.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ExecutorError(f"{what}: {error}; check the state directory") from error
        ticket.wish = Ticket(
            name=self._name(ticket.entry),
            command=(*self._command, "--state-dir", str(ticket.directory), "--once", "--inherit", *INHERITED),
            log=ticket.directory / "guardian.log",
            spec=launch.spec,
            slots=tuple(slot_of(device) for device in launch.devices),
        )
        self._tend_if_due(at_once=not ticket.entry.submitted)
        if self._silent:
            raise ExecutorWaiting(f"{title} cannot be asked: {self._silent}")
        raise ExecutorWaiting(f"{title}: {placed.detail}" if placed else f"{title} is being asked for room")

    def _name(self, entry: Entry) -> str:
        return f"{TICKETS}{self._node}.{self._tag}.{entry.job}.{entry.epoch}.{entry.attempt}"

    def _ticket(self, entry: Entry) -> _Ticket:
        directory = self._workspace.directory(*entry.key) / f"guardian-{entry.attempt}"
        now = self._clock.mono_ms()
        return _Ticket(entry, directory, GuardianClient(directory, (), self._clock), now, now)

    # What runs

    async def list(self) -> tuple[Process, ...]:
        found = await asyncio.gather(*(self._look(ticket) for ticket in tuple(self._tickets.values())))
        self._tend_if_due()
        now = self._clock.mono_ms()
        return tuple(self._workspace.process(run, now) for run in found if run is not None)

    async def _look(self, ticket: _Ticket) -> RunState | None:
        """The ticket's run; None: it has not begun."""
        if ticket.over is not None:
            return ticket.over
        ticket.answered = False
        if (ticket.directory / SOCKET).exists():
            try:
                runs = (await ticket.client.ask(ListRuns())).runs
                ticket.answered, ticket.lost = True, False
                ticket.last = next((run for run in runs if run.job == ticket.entry.job), None)
                return self._settled(ticket, ticket.last)
            except ExecutorUnavailable as error:
                log.debug("Job %s epoch %s: %s", ticket.entry.job, ticket.entry.epoch, error)
        return self._unheard(ticket)

    def _unheard(self, ticket: _Ticket) -> RunState | None:
        """By what its guardian wrote down before it told anybody."""
        entry = ticket.entry
        ended = ticket.placed is not None and ticket.placed.standing is Standing.ENDED
        try:
            state = guardian_state.load(str(ticket.directory))
        except BadState as error:
            return replace(self._unknown(entry, alive=not ended), reason=str(error))
        run = next((run for run in state.runs if run.job == entry.job), None) if state else None
        if run is None:
            return self._unknown(entry, alive=True) if entry.asked and not ended else None
        assert state is not None
        if not run.tree_gone and state.boot_id != boot_id():
            now = self._clock.mono_ms()
            ended_by = run.exit_signal if run.ended_ms else signal.SIGKILL
            run = replace(run, alive=False, tree_gone=True, exit_signal=ended_by, ended_ms=run.ended_ms or now)
        if not run.tree_gone:
            ticket.lost = True
            deadline_ms = max(run.deadline_ms, ticket.last.deadline_ms if ticket.last else 0)
            if not ended and self._clock.mono_ms() >= deadline_ms - self._kill_before_ms:
                ticket.client.end_frozen()
                self._given_up[self._name(entry)] = None  # its guardian may be in another pid namespace
        return self._settled(ticket, replace(run, pids=()))

    @staticmethod
    def _unknown(entry: Entry, alive: bool) -> RunState:
        """It may have been begun, and nobody can tell just now."""
        return RunState(entry.job, entry.epoch, alive, -1, 0, False, False, False, 0, 0, 0)

    def _settled(self, ticket: _Ticket, run: RunState | None) -> RunState | None:
        if run is not None and run.tree_gone:
            ticket.over, ticket.lost = replace(run, pids=()), False
            ticket.client.close()
        return run

    # Requests about what runs

    async def extend(self, deadlines: dict[Key, int]) -> None:
        troubles: list[ExecutorError] = []
        for (job, epoch), deadline_ms in deadlines.items():
            try:
                ticket = self._known(job, epoch)
                await self._ask(
                    ticket, Extend(job, str(epoch), deadline_ms, self._term_before_ms, self._kill_before_ms)
                )
            except ExecutorError as error:  # the others must not wait for it
                troubles.append(error)
        if troubles:
            away = any(isinstance(error, ExecutorUnavailable) for error in troubles)
            raise (ExecutorUnavailable if away else ExecutorError)("; ".join(map(str, troubles)))

    async def request_checkpoint(self, job: JobId, epoch: Epoch) -> None:
        await self._ask(self._known(job, epoch), Checkpoint(job, str(epoch)))

    async def stop(self, job: JobId, epoch: Epoch, grace_ms: int) -> None:
        ticket = self._known(job, epoch)
        if await self._look(ticket) is None or ticket.over is not None:
            return
        try:
            await self._ask(ticket, Stop(job, str(epoch), grace_ms))
        except ExecutorUnavailable:
            self._given_up[self._name(ticket.entry)] = None
            self._tend_if_due(at_once=True)
            raise

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        ticket = self._tickets.get((job, epoch))
        if ticket is None:
            return
        run = await self._look(ticket)
        if run is not None and not run.tree_gone:
            raise ExecutorError(f"job {job} epoch {epoch} still has processes; stop it first")
        if run is None and ticket.entry.submitted:
            self._given_up[self._name(ticket.entry)] = None
        del self._tickets[job, epoch]
        await self._save()
        ticket.client.close()
        await asyncio.to_thread(shutil.rmtree, ticket.directory, True)
        await self._workspace.forget(job, epoch)

    def _known(self, job: JobId, epoch: Epoch) -> _Ticket:
        ticket = self._tickets.get((job, epoch))
        if ticket is None:
            raise ExecutorError(f"job {job} epoch {epoch} is not known on {self._node}; list tells what is")
        return ticket

    @staticmethod
    async def _ask(ticket: _Ticket, request: Request) -> None:
        reply = await ticket.client.ask(request)
        if reply.error:
            raise ExecutorError(reply.error)

    # The books

    async def _remember(self, ticket: _Ticket, entry: Entry) -> None:
        if ticket.entry != entry:
            ticket.entry = entry
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            queue = Queue(self._tag, dict(self._highest), tuple(ticket.entry for ticket in self._tickets.values()))
            await asyncio.to_thread(queued_state.save, self._state_dir, queue)

    # The batch system, asked in the background: deadlines must move meanwhile

    def _tend_if_due(self, at_once: bool = False) -> None:
        now = self._clock.mono_ms()
        if self._tending is not None:
            if not self._tending.done():
                return
            self._tending.result()  # a fault of ours is not to be passed over
            self._tending = None
        if now < self._due_ms and (not at_once or self._silent):
            return
        self._due_ms = now + self._poll_ms
        waiting = tuple(t for t in self._tickets.values() if not t.answered and t.over is None)
        if waiting or self._given_up:
            self._tending = asyncio.get_running_loop().create_task(self._tend(waiting))

    async def _tend(self, waiting: Sequence[_Ticket]) -> None:
        try:
            await self._give_up(waiting)
            await self._place(waiting)
            self._silent = ""
        except BatchError as error:
            if self._silent != str(error):
                log.warning("%s cannot be asked: %s", self._system.title, error)
            self._silent = str(error)
            self._due_ms = self._clock.mono_ms() + max(self._poll_ms, LATER_MS)
        except ExecutorError as error:
            log.error("%s", error)  # the disk: the next look tries again

    async def _give_up(self, waiting: Sequence[_Ticket]) -> None:
        now = self._clock.mono_ms()
        for ticket in waiting:
            entry = ticket.entry
            if entry.submitted and not entry.asked and now - ticket.wanted_ms > self._withdrawn_ms:
                log.info("Job %s epoch %s is not wanted any more: its place is given up.", entry.job, entry.epoch)
                self._given_up[self._name(entry)] = None
                fresh = self._ticket(replace(entry, attempt=entry.attempt + 1, submitted=False))
                ticket.client.close()
                ticket.entry, ticket.directory, ticket.client = fresh.entry, fresh.directory, fresh.client
                ticket.wish = ticket.placed = None
                await self._save()
        for name in tuple(self._given_up):
            try:
                await self._system.cancel(name)
            except BatchUnavailable:
                raise
            except BatchError as error:
                log.warning("%s does not give up %s: %s", self._system.title, name, error)
            self._given_up.pop(name, None)

    async def _place(self, waiting: Sequence[_Ticket]) -> None:
        """Where the tickets stand; hand in those that the batch system has not."""
        if not waiting:
            return
        found = await self._system.find([self._name(ticket.entry) for ticket in waiting])
        for ticket in waiting:
            name = self._name(ticket.entry)
            placed = found.get(name)
            if placed is None and ticket.entry.submitted:
                placed = Placed(Standing.ENDED, "it is not known there any more")
            ticket.placed = placed
            if placed is not None:
                await self._remember(ticket, replace(ticket.entry, submitted=True))
                if placed.standing is Standing.ENDED and ticket.lost:
                    await self._look_for_lost(ticket)
            elif ticket.wish is not None and ticket.wish.name == name and ticket in self._tickets.values():
                await self._submit(ticket, ticket.wish)

    async def _submit(self, ticket: _Ticket, wish: Ticket) -> None:
        try:
            await self._system.submit(wish)
        except BatchUnavailable:
            raise
        except BatchError as error:
            ticket.placed = Placed(Standing.ENDED, str(error))
            return
        ticket.placed = Placed(Standing.WAITING, "it has just been handed in")
        await self._remember(ticket, replace(ticket.entry, submitted=True))

    async def _look_for_lost(self, ticket: _Ticket) -> None:
        """A second guardian, outside of the batch system, ends what the first one left; then it says so and goes."""
        ticket.client.end_frozen()
        local = (sys.executable, "-P", "-m", "nodeagent.guardian")
        command = (*local, "--state-dir", str(ticket.directory), "--once", "--detach")
        helper = GuardianClient(ticket.directory, command, self._clock)
        try:
            await helper.ask(ListRuns())
        except ExecutorUnavailable as error:
            log.warning("Job %s epoch %s: %s", ticket.entry.job, ticket.entry.epoch, error)
        finally:
            helper.close()
