"""A simulated host with one replica of a region's control plane on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.freeze import Gate, GatedClock, GatedControlSession, GatedRegions, GatedStore
from chaos.simulate.network import SimControlSession, SimNetwork
from chaos.simulate.store import FaultRates, SimCluster, SimStore
from controlplane.shell.replica import Ports, Replica
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.ports.archive import Archive
from gridkeeper.ports.jobs import CheckpointStore
from gridkeeper.ports.peers import Ask
from gridkeeper.snapshot import Settings


class SimServer:
    """``address`` of the replica is its name. ``weather``: what its calls to the stores suffer all the time."""

    def __init__(
        self,
        region: RegionId,
        name: ReplicaId,
        clock: SimClock,
        rng: SimRng,
        network: SimNetwork,
        region_cluster: SimCluster,
        global_cluster: SimCluster,
        checkpoints: Mapping[RegionId, CheckpointStore],
        settings: Settings,
        weather: FaultRates,
        archive: Archive,
    ) -> None:
        self.region = region
        self.name = name
        self.clock = clock
        self.rng = rng
        self._network = network
        self._region_cluster = region_cluster
        self._global_cluster = global_cluster
        self._checkpoints = checkpoints
        self._settings = settings
        self._weather = weather
        self._archive = archive
        self._starts = 0
        self.task: asyncio.Task[None] | None = None
        self._build()

    def _build(self) -> None:
        self._starts += 1
        self._gate = Gate()
        self.region_store: SimStore = self._region_cluster.client(self.name)
        self.global_store: SimStore = self._global_cluster.client(self.name)
        self.region_store.rates = self.global_store.rates = self._weather
        ports = Ports(
            clock=GatedClock(self.clock, self._gate),
            rng=self.rng.child(f"start-{self._starts}"),
            region_store=GatedStore(self.region_store, self._gate),
            global_store=GatedStore(self.global_store, self._gate),
            checkpoints=self._checkpoints,
            archive=self._archive,
            others=GatedRegions(self._network.regions(self.name), self._gate),
        )
        self.replica = Replica(self.region, self.name, self.name, ports, self._settings)

    def start(self) -> None:
        """A new process."""
        if self.region_store.closed:
            self._build()
        self._network.listen(self.name, self._serve)
        self._network.answer_regions(self.name, self.region, self._promise)
        name = f"replica-{self.name}-{self._starts}"
        self.task = asyncio.get_running_loop().create_task(self.replica.run(), name=name)

    async def _serve(self, session: SimControlSession) -> None:
        await self.replica.ingest.serve(GatedControlSession(session, self._gate))

    async def _promise(self, ask: Ask) -> str:
        await self._gate.passing()
        refusal = await self.replica.promiser.answer(ask)
        await self._gate.passing()
        return refusal

    def freeze(self) -> None:
        """``SIGSTOP``."""
        self._gate.freeze()

    def thaw(self) -> None:
        """``SIGCONT``."""
        self._gate.thaw()

    async def kill(self) -> None:
        """``SIGKILL``: its leases are left to expire, its sessions stay marked open, its streams break."""
        await self.region_store.close()
        await self.global_store.close()
        await self.stop()

    async def stop(self) -> None:
        """``SIGTERM`` (after ``kill``: whatever is left)."""
        self._network.silence(self.name)
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
