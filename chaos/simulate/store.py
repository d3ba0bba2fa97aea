"""The simulated store: etcd's semantics, faults on order, one thread, no wall clock.

``SimCluster`` is the cluster; each process under simulation speaks to it through a handle of its own,
``cluster.client(name)``, which can be cut off alone. Equal seeds and an equal order of calls give equal histories.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from chaos.simulate.mvcc import Mvcc
from chaos.simulate.storewatch import SimWatch
from controlplane.store.limits import check_txn
from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import (
    ANY,
    Compare,
    KeyValue,
    LeaseGone,
    NoSpace,
    Op,
    OutcomeUnknown,
    Page,
    PutOp,
    StoreError,
    StoreUnavailable,
    TxnResult,
)

T = TypeVar("T")

LESSOR_MS = 500
"""etcd looks for expired leases this often, so a lease ends up to this much after its time."""


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Probability of each fault per call. ``refused``: certainly not done. ``request_lost``: not done, outcome unknown.
    ``reply_lost``: done, outcome unknown. ``late``: outcome unknown, and done up to ``late_ms`` after that was said.
    A read (or lease call) that meets any of them is ``StoreUnavailable``."""

    refused: float = 0.0
    request_lost: float = 0.0
    reply_lost: float = 0.0
    late: float = 0.0
    late_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class SimSettings:
    """Times in ms; pairs are (least, most), drawn per message."""

    latency_ms: tuple[int, int] = (0, 2)  # one way
    watch_delay_ms: tuple[int, int] = (0, 10)
    progress_ms: int = 1_000
    deadline_ms: int = 2_000  # of a call


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    ends_ms: int


class SimCluster:
    """One store shared by many clients."""

    def __init__(self, clock: Clock, rng: Rng, settings: SimSettings | None = None) -> None:
        self.clock = clock
        self.rng = rng
        self.settings = settings or SimSettings()
        self.mvcc = Mvcc()
        self.nospace = False
        """The NOSPACE alarm: puts and new leases are refused, deletes and reads are not."""
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 0x1000
        self._clients: dict[str, SimStore] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._lessor: asyncio.Task[None] | None = None

    def client(self, name: str) -> SimStore:
        """The handle of that name, made anew if it was closed."""
        known = self._clients.get(name)
        if known is None or known.closed:
            known = self._clients[name] = SimStore(self, name)
        return known

    @property
    def revision(self) -> Revision:
        return Revision(self.mvcc.revision)

    def compact(self, revision: int = 0) -> None:
        """Compact to ``revision`` (0: all that can be)."""
        self.mvcc.compact(revision or self.mvcc.revision)
        self.notify()

    def new_leader(self) -> None:
        """Another member of the cluster leads: as etcd's does, it gives every lease its full TTL again."""
        for lease in self._leases.values():
            lease.ends_ms = self.clock.mono_ms() + lease.ttl_s * 1_000

    async def close(self) -> None:
        """End all tasks and all handles."""
        for client in list(self._clients.values()):
            await client.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- for the handles

    def spawn(self, work: Callable[[], None], after_ms: int) -> None:
        """Do ``work`` later, whoever asked for it may be gone by then."""

        async def later() -> None:
            await self.clock.sleep(after_ms)
            with contextlib.suppress(StoreError):  # its receiver gave up long ago
                work()
            self.notify()

        self._keep(asyncio.get_running_loop().create_task(later()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def notify(self) -> None:
        """Wake every watch."""
        for client in self._clients.values():
            client.wake()

    def grant(self, ttl_s: int) -> int:
        if self.nospace:
            raise NoSpace("lease grant: the database has no space left; compact, defragment, disarm the alarm")
        if ttl_s < 1:
            raise ValueError(f"ttl_s: {ttl_s} is not a lease's life; at least 1 s")
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = _Lease(ttl_s, self.clock.mono_ms() + ttl_s * 1_000)
        self.mvcc.add_lease(lease)
        if self._lessor is None or self._lessor.done():
            self._lessor = asyncio.get_running_loop().create_task(self._expire_leases())
            self._keep(self._lessor)
        return lease

    def keepalive(self, lease: int) -> int:
        known = self._leases.get(lease)
        if known is None or known.ends_ms <= self.clock.mono_ms():
            raise LeaseGone(f"lease {lease:x}: not found")
        known.ends_ms = self.clock.mono_ms() + known.ttl_s * 1_000
        return known.ttl_s

    def revoke(self, lease: int) -> None:
        self.mvcc.revoke(lease)
        del self._leases[lease]
        self.notify()

    async def _expire_leases(self) -> None:
        while self._leases:
            await self.clock.sleep(LESSOR_MS)
            now = self.clock.mono_ms()
            for lease in [number for number, lease in self._leases.items() if lease.ends_ms <= now]:
                self.revoke(lease)

    def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> TxnResult:
        if self.nospace and any(isinstance(op, PutOp) for op in (*success, *failure)):
            raise NoSpace("txn: the database has no space left; compact, defragment, disarm the alarm")
        before = self.mvcc.revision
        result = self.mvcc.txn(compares, success, failure)
        if self.mvcc.revision != before:
            self.notify()
        return result


class SimStore:
    """``Store`` on a ``SimCluster``."""

    def __init__(self, cluster: SimCluster, name: str) -> None:
        self.name = name
        self.rates = FaultRates()
        self.closed = False
        self._cluster = cluster
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._orders: list[FaultRates] = []  # faults of the next calls, one each
        self._watches: dict[SimWatch, None] = {}

    # -- faults on order

    @property
    def partitioned(self) -> bool:
        return not self._reachable.is_set()

    def partition(self) -> None:
        """Cut this handle off: calls wait for ``heal`` until their deadline, watches fall silent."""
        self._reachable.clear()

    def heal(self) -> None:
        self._reachable.set()
        self.wake()

    def refuse(self, calls: int = 1) -> None:
        """The next writes are refused, certainly not done."""
        self._orders += [FaultRates(refused=1)] * calls

    def lose_requests(self, calls: int = 1) -> None:
        """The next writes never arrive; the caller learns nothing."""
        self._orders += [FaultRates(request_lost=1)] * calls

    def lose_replies(self, calls: int = 1) -> None:
        """The next writes are done; the caller learns nothing."""
        self._orders += [FaultRates(reply_lost=1)] * calls

    def delay_writes(self, calls: int = 1, most_ms: int = 5_000) -> None:
        """The next writes are done up to ``most_ms`` after the caller has been told that their outcome is unknown."""
        self._orders += [FaultRates(late=1, late_ms=most_ms)] * calls

    # -- Store

    async def get(self, key: str) -> tuple[KeyValue | None, Revision]:
        return await self._safe(lambda: (self._cluster.mvcc.current(key), self._cluster.revision))

    async def range(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int = 0,
        revision: Revision = ANY,
        min_mod_revision: Revision = ANY,
    ) -> Page:
        return await self._safe(
            lambda: self._cluster.mvcc.range(
                prefix, after=after, limit=limit, revision=revision, min_mod_revision=min_mod_revision
            )
        )

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        check_txn(compares, success, failure)
        return await self._call("txn", lambda: self._cluster.txn(tuple(compares), tuple(success), tuple(failure)))

    async def lease_grant(self, ttl_s: int) -> int:
        return await self._safe(lambda: self._cluster.grant(ttl_s))

    async def lease_keepalive(self, lease: int) -> int:
        return await self._safe(lambda: self._cluster.keepalive(lease))

    async def lease_revoke(self, lease: int) -> None:
        await self._safe(lambda: self._cluster.revoke(lease))

    def watch(self, prefix: str, start: Revision) -> SimWatch:
        self._check_open()
        watch = SimWatch(self._cluster, self, prefix, start)
        self._watches[watch] = None
        return watch

    async def close(self) -> None:
        self.closed = True
        for watch in list(self._watches):
            await watch.aclose()

    # -- inside

    def wake(self) -> None:
        for watch in self._watches:
            watch.wake()

    def forget(self, watch: SimWatch) -> None:
        self._watches.pop(watch, None)

    def _check_open(self) -> None:
        if self.closed:
            raise StoreUnavailable(f"store handle {self.name!r} is closed; open another")

    async def _safe(self, do: Callable[[], T]) -> T:
        """A read, or a lease call, which may be repeated safely: an unknown outcome is as good as none."""
        try:
            return await self._call("read", do)
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from error

    async def _travel(self) -> None:
        least, most = self._cluster.settings.latency_ms
        await self._cluster.clock.sleep(round(self._cluster.rng.uniform(least, most)))

    async def _arrive(self, what: str) -> None:
        """Wait out a partition, up to the deadline; then the message is lost. Raises ``OutcomeUnknown``."""
        try:
            async with asyncio.timeout(self._cluster.settings.deadline_ms / 1_000):
                await self._reachable.wait()
        except TimeoutError:
            raise OutcomeUnknown(f"{what}: {self.name!r} is cut off from the store") from None

    async def _call(self, what: str, do: Callable[[], T]) -> T:
        self._check_open()
        rates = self._orders.pop(0) if self._orders and what != "read" else self.rates
        dice = self._cluster.rng.uniform(0.0, 1.0)
        settings = self._cluster.settings
        await self._travel()
        if dice < rates.refused:
            raise StoreUnavailable(f"{what}: refused by the network before it was sent")
        dice -= rates.refused
        if self.partitioned:
            await self._arrive(what)
        if dice < rates.request_lost:
            await self._cluster.clock.sleep(settings.deadline_ms)
            raise OutcomeUnknown(f"{what}: no reply within {settings.deadline_ms} ms")
        dice -= rates.request_lost
        if 0 <= dice - rates.reply_lost < rates.late:
            self._cluster.spawn(
                lambda: void(do()), settings.deadline_ms + round(self._cluster.rng.uniform(0, rates.late_ms))
            )
            await self._cluster.clock.sleep(settings.deadline_ms)
            raise OutcomeUnknown(f"{what}: no reply within {settings.deadline_ms} ms")
        result = do()
        if dice < rates.reply_lost:
            await self._cluster.clock.sleep(settings.deadline_ms)
            raise OutcomeUnknown(f"{what}: no reply within {settings.deadline_ms} ms")
        await self._travel()
        if self.partitioned:
            await self._arrive(what)
        return result


def void(_: object) -> None:
    """Drop a result."""
