"""The jobs of this host: takes orders, keeps renewals, starts and stops through the executor, stores checkpoints.

Level-triggered: every tick looks at what is (the executor's list) and at what was ordered, asks ``workloads.plan`` and
does what it says. Nothing depends on having seen a change, so a restart of the agent, of the guardian or of the control
plane needs no case of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, assert_never

from gridkeeper.ids import DeviceId, JobId, NodeId, device_id
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.disk import DiskError
from gridkeeper.ports.jobs import (
    CheckpointError,
    CheckpointStore,
    Executor,
    ExecutorError,
    ExecutorUnavailable,
    ExecutorWaiting,
    Launch,
    Process,
)
from gridkeeper.timings import Timings
from gridkeeper.v1.agent_pb2 import CheckpointAck, CheckpointReady, Command, RenewalItem, WorkloadReport
from nodeagent import orders
from nodeagent.checkpointing import CheckpointDirs, Checkpoints
from nodeagent.orders import Book, Key, Order, epoch_message, epoch_of
from nodeagent.reports import report
from nodeagent.statefile import StateFile
from nodeagent.workloads import AskCheckpoint, Extend, Fetch, Forget, Start, Stop, View, key_of, plan, renewable

log = logging.getLogger("gridkeeper.agent.supervisor")

TICK_MS = 200
"""How soon an exit or a step is seen."""
SAVE_LIMIT_MS = 1_000
"""A disk that has not taken the orders by then is not waited for: deadlines must move meanwhile."""
FETCH_RETRY_MS = 1_000
FETCH_LIMIT_MS = 60_000
"""A resume checkpoint that cannot be had for this long ends the epoch: the control plane places the job anew."""
MAX_LOG_TAIL = 65_536


class Supervisor:
    """One per agent. ``take``, ``renewed`` and the like are called by the uplink from the same loop."""

    def __init__(
        self,
        node: NodeId,
        executor: Executor,
        store: CheckpointStore,
        dirs: CheckpointDirs,
        memory: StateFile,
        resume_dir: Path,
        clock: Clock,
        timings: Timings,
    ) -> None:
        """Raises ``BadBook`` and ``DiskError`` for a memory that cannot be read: a guess could start an epoch twice."""
        self._node = node
        self._executor = executor
        self._store = store
        self._dirs = dirs
        self._memory = memory
        self._resume_dir = resume_dir
        self._clock = clock
        self._checkpoints = Checkpoints(store, dirs, executor.checkpoint_dir, clock, self._spawn, self.poke)
        data = memory.load()
        self._book = orders.from_bytes(data) if data is not None else Book()
        for order in self._book.orders.values():
            if order.rendezvous:
                self._checkpoints.member(order.key, order.rank, -1)
        self._saved = self._book
        self._saving: tuple[Book, asyncio.Task[None]] | None = None
        self._processes: tuple[Process, ...] = ()
        self._listed = False
        self._heard_ms = 0  # when the executor last said what runs
        self._deadlines: dict[Key, int] = {}
        self._told: dict[Key, int] = {}
        self._asked: dict[Key, int] = {}
        self._fetched: set[Key] = set()
        self._fetching: dict[Key, int] = {}  # since when
        self._trouble: dict[Key, str] = {}
        self._in_doubt: set[Key] = set()  # asked to start, and the executor has not been heard since
        self._background: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()
        self._last_report = b""
        self.kept_free: Callable[[], frozenset[str]] = frozenset  # slots that nothing may be started on; "" = none may
        self.changed = asyncio.Event()  # the report differs from the last one taken
        self.set_timings(timings)

    def set_timings(self, timings: Timings) -> None:
        """As the control plane says in its welcome."""
        self._timings = timings
        self._executor.margins(timings.term_before_ms, timings.kill_before_ms)

    @property
    def timings(self) -> Timings:
        return self._timings

    # What the uplink brings

    def take(self, command: Command) -> None:
        """A command. One that is malformed or refused is logged and changes nothing."""
        try:
            order = orders.order_of(command)
        except orders.BadOrder as error:
            log.warning("Command ignored: %s", error)
            return
        book, refusal = orders.take(self._book, order)
        if refusal:
            log.warning("Command refused: %s", refusal)
        if order.rendezvous and not refusal:
            self._checkpoints.member(order.key, order.rank, command.gang_step)
        if book is not self._book:
            self._book = book
            self.poke()

    def renewal(self) -> tuple[RenewalItem, ...]:
        """What to ask a renewal for. Empty until the executor was looked at once, and when it has been silent for F."""
        if not self._listed or self._executor_lost:
            return ()
        return tuple(
            RenewalItem(job=job, epoch=epoch_message(epoch)) for job, epoch in renewable(self._book, self._processes)
        )

    def renewed(self, granted: Iterable[RenewalItem], sent_ms: int) -> None:
        """A renewal sent at ``sent_ms`` was acknowledged for ``granted``."""
        for item in granted:
            key = (JobId(item.job), epoch_of(item.epoch))
            self._deadlines[key] = max(self._deadlines.get(key, 0), sent_ms + self._timings.fence_ms)
        self.poke()

    def checkpoint_ack(self, ack: CheckpointAck) -> None:
        self._checkpoints.acknowledge(ack)

    # What the uplink takes

    def report(self) -> WorkloadReport | None:
        """None until the executor was looked at once: an empty report would mean that nothing runs here."""
        if not self._listed:
            return None
        self.changed.clear()
        current = self._report()
        self._last_report = self._fingerprint(current)
        return current

    def announcements(self) -> tuple[CheckpointReady, ...]:
        return self._checkpoints.announcements()

    async def log_tail(self, job: str, tail_bytes: int) -> bytes:
        """Raises ``ExecutorError``."""
        return await self._executor.log_tail(JobId(job), min(max(0, tail_bytes), MAX_LOG_TAIL))

    def job_on(self, slot: str, pid: int) -> str:
        """The job that has ``pid`` in its tree, else the one that runs on ``slot``; "" if none."""
        for process in self._processes:
            if pid and pid in process.pids:
                return process.job
        for process in self._processes:
            order = self._book.orders.get(key_of(process))
            if slot and process.alive and order and slot in order.slots:
                return process.job
        return ""

    def user_of(self, slot: str) -> str:
        """The job that runs on ``slot`` or is about to; "" as the slot: on any. "" if none."""
        alive = {key_of(process) for process in self._processes if not process.tree_gone}
        for key, order in self._book.orders.items():
            if (not slot or slot in order.slots) and (key in alive or self._book.wanted(key)):
                return order.job
        return next((job for job, _ in alive), "") if not slot else ""

    @property
    def renewal_age_ms(self) -> int:
        """Since the oldest of the renewals that live jobs rest on was sent; 0 without jobs."""
        return self._renewal_age([process for process in self._processes if process.alive])

    @property
    def unrenewed_ms(self) -> int:
        """The same for jobs that are to go on: not for those that are being ended."""
        return self._renewal_age([p for p in self._processes if p.alive and not p.stop_asked and not p.fenced])

    @property
    def unrecorded_ms(self) -> int:
        """Since the oldest end of an epoch that the control plane has not let us forget: it does so once the end is on
        record; 0 without one."""
        ends = [process.ended_ms for process in self._processes if process.tree_gone and process.ended_ms]
        return self._clock.mono_ms() - min(ends) if ends else 0

    def _renewal_age(self, processes: Iterable[Process]) -> int:
        now = self._clock.mono_ms()
        alive = [key_of(process) for process in processes]
        sent = [self._deadlines[key] - self._timings.fence_ms for key in alive if key in self._deadlines]
        return now - min(sent) if sent else 0

    @property
    def running(self) -> int:
        return sum(process.alive for process in self._processes)

    # The loop

    def poke(self) -> None:
        """Something changed: look at once."""
        self._poked.set()

    async def run(self) -> None:
        """For ever. Cancelling it leaves all jobs running."""
        try:
            while True:
                await self.tick()
                try:
                    async with asyncio.timeout(TICK_MS / 1000):
                        await self._poked.wait()
                except TimeoutError:
                    pass
                self._poked.clear()
        finally:
            left = [*self._background, *([self._saving[1]] if self._saving else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def tick(self) -> None:
        """Look, plan, do."""
        try:
            self._processes = await self._executor.list()
        except ExecutorError as error:
            log.warning("The executor does not say what runs: %s", error)
            return
        self._listed = True
        self._heard_ms = self._clock.mono_ms()
        self._in_doubt.clear()
        for process in self._processes:
            self._checkpoints.look(key_of(process), process.tree_gone)
        await self._save()
        now = self._clock.mono_ms()
        for action in plan(self._book, self._view(), now, self._timings.term_before_ms):
            if isinstance(action, (Start, Fetch)) and self._saved is not self._book:
                continue  # an order that is not on disk is not acted on, unless it stops something
            if isinstance(action, Start) and not self.kept_free().isdisjoint(("", *action.order.slots)):
                continue  # a device of it is being repaired or tested
            key = _key(action)
            try:
                await self._do(action)
                if key:
                    self._trouble.pop(key, None)
            except ExecutorUnavailable as error:
                log.warning("%s: %s", type(action).__name__, error)
                return
            except ExecutorWaiting as waiting:
                self._wait(key, str(waiting))
            except ExecutorError as error:
                await self._refused(action, str(error))
        if self._fingerprint(self._report()) != self._last_report:
            self.changed.set()

    def _view(self) -> View:
        known = {key_of(process) for process in self._processes}
        return View(
            processes=self._processes,
            deadlines=self._deadlines,
            told=self._told,
            fetched=frozenset(self._fetched),
            asked=self._asked,
            storing=frozenset(key for key in known if self._checkpoints.busy(key)),
        )

    def _report(self) -> WorkloadReport:
        view = self._view()
        keys = {*self._book.orders, *map(key_of, self._processes)}
        trouble = {key: words for key in keys if (words := self._trouble.get(key) or self._checkpoints.trouble(key))}
        stored, in_doubt = self._checkpoints.stored(), frozenset(self._in_doubt)
        now, lost = self._clock.mono_ms(), self._executor_lost
        return report(self._book, view, stored, trouble, now, in_doubt, lost)

    @property
    def _executor_lost(self) -> bool:
        """No deadline has been moved for F: what ran then is ended, or its end cannot be seen."""
        return self._listed and self._clock.mono_ms() - self._heard_ms > self._timings.fence_ms

    @staticmethod
    def _fingerprint(current: WorkloadReport) -> bytes:
        """Without what only grows with time."""
        copy = WorkloadReport()
        copy.CopyFrom(current)
        for workload in copy.workloads:
            for name in ("first_step_age_ms", "last_step_age_ms", "started_age_ms", "ended_age_ms", "last_step"):
                workload.ClearField(name)
            workload.ClearField("last_loss")
        return copy.SerializeToString(deterministic=True)

    async def _save(self) -> None:
        """One write at a time, so that none is overtaken by an older one."""
        while self._saved is not self._book:
            if self._saving is None:
                work = self._memory.save(orders.to_bytes(self._book))
                self._saving = (self._book, asyncio.get_running_loop().create_task(work))
            book, task = self._saving
            done, _ = await asyncio.wait({task}, timeout=SAVE_LIMIT_MS / 1000)
            if not done:
                log.error("Orders are not on disk, which does not answer, so nothing new is started.")
                return
            self._saving = None
            try:
                task.result()
                self._saved = book
            except DiskError as error:
                log.error("Orders are not on disk, so nothing new is started: %s", error)
                return

    async def _do(self, action: Start | Stop | Fetch | AskCheckpoint | Extend | Forget) -> None:
        match action:
            case Start(order, deadline):
                await self._start(order, deadline)
            case Stop(job, epoch, grace_ms, reason):
                log.info("Stopping %s epoch %s: %s.", job, epoch, reason)
                await self._executor.stop(job, epoch, grace_ms)
                self.poke()
            case Extend(deadlines):
                await self._executor.extend(dict(deadlines))
                self._told.update(deadlines)
            case AskCheckpoint(job, epoch, request):
                await self._executor.request_checkpoint(job, epoch)
                self._asked[job, epoch] = request
            case Fetch(order):
                self._fetch(order)
            case Forget(job, epoch):
                await self._forget((job, epoch))
            case _:
                assert_never(action)

    def _resume_path(self, order: Order) -> Path:
        return self._resume_dir / order.job / f"step-{order.resume_step}-{order.resume_digest[:16]}"

    async def _start(self, order: Order, deadline_ms: int) -> None:
        assert order.spec is not None  # an order to run has one, see order_of
        launch = Launch(
            job=order.job,
            epoch=order.epoch,
            spec=order.spec,
            devices=self._devices(order.slots),
            resume_from=str(self._resume_path(order)) if order.resume_step >= 0 else "",
            resume_step=order.resume_step,
            rank=order.rank,
            rendezvous=order.rendezvous,
        )
        self._in_doubt.add(order.key)
        await self._executor.start(launch, deadline_ms)
        self._told[order.key] = deadline_ms
        log.info("Started %s epoch %s from step %d.", order.job, order.epoch, order.resume_step)
        self.poke()

    def _devices(self, slots: Sequence[str]) -> tuple[DeviceId, ...]:
        return tuple(device_id(self._node, slot) for slot in slots)

    def _wait(self, key: Key | None, why: str) -> None:
        """The executor has no room for a start yet, and has begun nothing: the next tick asks again."""
        if key:
            if self._trouble.get(key) != why:
                log.info("%s epoch %s waits: %s", *key, why)
            self._in_doubt.discard(key)
            self._trouble[key] = why

    async def _refused(self, action: Start | Stop | Fetch | AskCheckpoint | Extend | Forget, why: str) -> None:
        """The executor will not. A refused start ends its epoch; anything else is looked at again next tick."""
        log.warning("%s refused: %s", type(action).__name__, why)
        key = _key(action)
        if isinstance(action, Start):
            self._in_doubt.discard(action.order.key)  # it has answered: nothing was started
            self._book = orders.close(self._book, action.order.key, why)
            await self._save()
        elif key:
            self._trouble[key] = why

    def _fetch(self, order: Order) -> None:
        if self._dirs.has(self._resume_path(order)):
            self._fetched.add(order.key)
            self.poke()
        elif order.key not in self._fetching:
            self._fetching[order.key] = self._clock.mono_ms()
            self._spawn(self._fetch_until(order))

    async def _fetch_until(self, order: Order) -> None:
        """Until it is here, or nobody wants it, or it takes too long."""
        try:
            while self._book.wanted(order.key):
                try:
                    path = self._resume_path(order)
                    await self._store.fetch(order.job, order.resume_step, order.resume_digest, path)
                    self._trouble.pop(order.key, None)
                    self._fetched.add(order.key)
                    return
                except (CheckpointError, OSError) as error:
                    why = f"checkpoint {order.resume_step} to resume from: {error}"
                    log.warning("%s epoch %s waits: %s", order.job, order.epoch, why)
                    self._trouble[order.key] = why
                    if self._clock.mono_ms() - self._fetching[order.key] > FETCH_LIMIT_MS:
                        self._book = orders.close(self._book, order.key, why)
                        return
                await self._clock.sleep(FETCH_RETRY_MS)
        finally:
            del self._fetching[order.key]
            self.poke()

    async def _forget(self, key: Key) -> None:
        await self._executor.forget(*key)
        order = self._book.orders.get(key)
        self._book = orders.forget(self._book, key)
        await self._save()
        self._checkpoints.forget(key)
        for table in (self._deadlines, self._told, self._asked, self._trouble):
            table.pop(key, None)
        self._fetched.discard(key)
        if order and order.resume_step >= 0:
            path = self._resume_path(order)
            still = [o for o in self._book.orders.values() if o.resume_step >= 0 and self._resume_path(o) == path]
            if not still:
                await self._dirs.remove(path)
        self.poke()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _key(action: Start | Stop | Fetch | AskCheckpoint | Extend | Forget) -> Key | None:
    match action:
        case Start(order) | Fetch(order):
            return order.key
        case Stop(job, epoch) | AskCheckpoint(job, epoch) | Forget(job, epoch):
            return (job, epoch)
        case Extend():
            return None
        case _:
            assert_never(action)
