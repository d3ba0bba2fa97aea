"""A whole grid in one thread on virtual time: the real control plane, failover and agents on simulated everything.

Everything that a run depends on comes from its seed and its ``Shape``, so equal seeds give equal histories.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from chaos.simulate.archive import SimArchive
from chaos.simulate.checkpoints import MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.ensemble import Ensemble
from chaos.simulate.executor import SimJob
from chaos.simulate.history import GLOBAL_STORE, History, Injected
from chaos.simulate.host import SimHost
from chaos.simulate.network import BOTH, SimNetwork
from chaos.simulate.recorder import Recorder
from chaos.simulate.server import SimServer
from chaos.simulate.store import FaultRates, SimCluster, SimStore
from controlplane.rpc.grid import GridService
from controlplane.rpc.refusal import Refusal
from gridkeeper import codec
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, ReplicaId, node_of, slot_of
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import Policy
from gridkeeper.ports.jobs import Launch
from gridkeeper.ports.store import StoreError
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.snapshot import Settings
from gridkeeper.timings import SHORT, Timings
from gridkeeper.v1 import api_pb2, records_pb2

R = TypeVar("R")
T = TypeVar("T")
Told = api_pb2.ActResponse | api_pb2.ApplyDocumentResponse

OPERATOR = "user/operator"
POLL_MS = 20
SUBMIT_MS = 10_000
SKEW_MS = 2_000
"""Wall clocks of hosts differ by up to this much."""


class NotSeen(Exception):
    """A condition that a scenario waited for did not come true in time."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is built. ``weather``: what each replica's store calls suffer all the time. ``racks``: per region, nodes in
    turn; 0: each node in its own. ``early_ms``: wall clocks begin so long before 2026."""

    regions: tuple[str, ...] = ("east", "west")
    nodes: int = 2
    devices: int = 8
    replicas: int = 2
    racks: int = 0
    timings: Timings = SHORT
    policy: Policy = field(default_factory=default_policy)
    weather: FaultRates = field(default_factory=FaultRates)
    jobs: Mapping[str, SimJob] = field(default_factory=dict)
    early_ms: int = 0


class SimGrid:
    """Use as ``async with``. Methods that inject a fault also write it into the history."""

    def __init__(self, seed: int | str, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self.rng = SimRng(seed)
        self._loop = asyncio.get_running_loop()
        self.clock = SimClock(self._loop, boot_ms=0)
        self.history = History()
        recorder = Recorder(self.history, self.clock)
        self.network = SimNetwork(self.clock, self.rng.child("network"), recorder.sent)
        self.stores: dict[str, SimCluster] = {}
        for name in (GLOBAL_STORE, *self.shape.regions):
            self.stores[name] = SimCluster(self.clock, self.rng.child(f"store-{name}"))
            self.stores[name].mvcc.witness = recorder.commits(name)
        tree, ensemble = MemoryTree(), Ensemble()
        self.archive = SimArchive()
        self.checkpoints: dict[RegionId, SimCheckpointStore] = {
            RegionId(name): SimCheckpointStore(tree, self.clock, 5, recorder.stores(name))
            for name in self.shape.regions
        }
        self.servers: dict[str, SimServer] = {}
        self.hosts: dict[NodeId, SimHost] = {}
        for region in map(RegionId, self.shape.regions):
            addresses = [f"{region}-cp{number}" for number in range(1, self.shape.replicas + 1)]
            for address in addresses:
                self.servers[address] = self._server(region, ReplicaId(address))
            for number in range(1, self.shape.nodes + 1):
                node = NodeId(f"{region}-{number}")
                self.hosts[node] = SimHost(
                    node,
                    region,
                    self._host_clock(node),
                    self.rng.child(node),
                    self.network,
                    tree,
                    self.checkpoints[region],
                    addresses,
                    self.shape.devices,
                    self.shape.timings,
                    self._rack(region, node, number),
                    self._script,
                    recorder,
                    ensemble,
                )

    def _rack(self, region: RegionId, node: NodeId, number: int) -> str:
        return f"{region}-rack-{number % self.shape.racks}" if self.shape.racks else f"rack-{node}"

    def _host_clock(self, name: str) -> SimClock:
        dice = self.rng.child(f"clock-{name}")
        skew_ms = round(dice.uniform(-SKEW_MS, SKEW_MS)) - self.shape.early_ms
        return SimClock(self._loop, skew_ms, boot_ms=round(dice.uniform(1_000_000, 9_000_000)))

    def _server(self, region: RegionId, replica: ReplicaId) -> SimServer:
        settings = Settings(self.shape.timings, self.shape.policy)
        return SimServer(
            region,
            replica,
            self._host_clock(replica),
            self.rng.child(replica),
            self.network,
            self.stores[region],
            self.stores[GLOBAL_STORE],
            self.checkpoints,
            settings,
            self.shape.weather,
            self.archive,
        )

    def _script(self, launch: Launch) -> SimJob:
        return self.shape.jobs.get(launch.job, SimJob())

    async def __aenter__(self) -> SimGrid:
        for server in self.servers.values():
            server.start()
        for host in self.hosts.values():
            host.start_agent()
        return self

    async def __aexit__(self, *_: object) -> None:
        for host in self.hosts.values():
            await host.kill_agent()
            host.executor.lose_power()
        for server in self.servers.values():
            await server.stop()
        for store in self.stores.values():
            await store.close()

    # -- looking

    @property
    def now_ms(self) -> int:
        return self.clock.mono_ms()

    def check_alive(self) -> None:
        """Raises what ended a daemon that nobody ended."""
        for task in (*(s.task for s in self.servers.values()), *(h.agent_task for h in self.hosts.values())):
            if task is not None and task.done():
                task.result()
                raise RuntimeError(f"{task.get_name()} has ended by itself")

    def one(self, store: str, key: str, kind: type[R]) -> R | None:
        """The record at a key, as it is in the store now."""
        kv = self.stores[store].mvcc.current(key)
        return codec.decode(kind, kv.value) if kv else None

    def all(self, store: str, prefix: str, kind: type[R]) -> tuple[R, ...]:
        """Records under a prefix, in key order."""
        return tuple(codec.decode(kind, kv.value) for kv in self.stores[store].mvcc.range(prefix).items)

    def owner(self, job: str) -> OwnershipRecord | None:
        return self.one(GLOBAL_STORE, KEYS.ownership(JobId(job)), OwnershipRecord)

    def region_of(self, device: DeviceId) -> tuple[str, RegionKeys]:
        """Store and keys of a device's region."""
        region = self.hosts[node_of(device)].region
        return region, RegionKeys(region)

    async def until(self, true: Callable[[], T | None], what: str, limit_ms: int) -> T:
        """Wait until ``true()`` is neither None nor False; its value. Raises ``NotSeen``."""
        give_up = self.now_ms + limit_ms
        while True:
            found = true()
            if found is not None and found is not False:
                return found
            self.check_alive()
            if self.now_ms >= give_up:
                raise NotSeen(f"{what}: not within {limit_ms} ms")
            await self.clock.sleep(POLL_MS)

    # -- people

    async def submit(self, spec: records_pb2.JobSpec) -> str:
        """As a user would, over the API of any replica that answers. Raises ``NotSeen``."""
        request = api_pb2.SubmitJobRequest(spec=spec)
        return await self._asked(f"job {spec.name}", lambda service: service.submit_job(request, OPERATOR))

    async def migrate(self, job: str, reason: str) -> str:
        """The same: a job is to leave its region. Raises ``NotSeen``."""
        request = api_pb2.MigrateJobRequest(job=job, reason=reason)
        return await self._asked(f"the move of {job}", lambda service: service.migrate_job(request, OPERATOR))

    async def apply_document(self, kind: str, name: str, text: str) -> str:
        request = api_pb2.ApplyDocumentRequest(kind=kind, name=name, text=text, source=kind, expect_version=-1)
        return await self._asked(f"{kind} {name}", lambda service: service.apply_document(request, OPERATOR))

    async def exclude(self, scope: str, cause: records_pb2.Cause.ValueType, from_ms: int, until_ms: int) -> str:
        request = api_pb2.ExclusionRequest(
            scope=scope, cause=cause, from_ms=from_ms, until_ms=until_ms, reason="by the story"
        )
        return await self._asked(f"exclusion of {scope}", lambda service: service.settlement.record(request, OPERATOR))

    async def _asked(self, what: str, ask: Callable[[GridService], Awaitable[Told]]) -> str:
        give_up, refusals = self.now_ms + SUBMIT_MS, ""
        while self.now_ms < give_up:
            for server in self._up():
                service = GridService(server.replica.front, server.replica.front, server.clock, server.rng)
                try:
                    act = await ask(service)
                    return act.sentence
                except (Refusal, StoreError) as error:
                    refusals = str(error)
            await self.clock.sleep(POLL_MS)
        raise NotSeen(f"{what} was not taken within {SUBMIT_MS} ms: {refusals}")

    def _up(self) -> Iterator[SimServer]:
        return (server for server in self.servers.values() if server.task is not None)

    # -- faults

    def _injected(self, what: str, device: str = "") -> None:
        self.history.add(Injected(self.now_ms, what, device))

    def set_metrics(self, device: DeviceId, **values: float) -> None:
        """Below the agent: what the driver reads from now on."""
        host = self.hosts[node_of(device)]
        shown = ", ".join(f"{name}={value:g}" for name, value in sorted(values.items()))
        self._injected(f"{device} reads {shown}", device)
        host.backend.set(slot_of(device), **values)

    def metric(self, device: DeviceId, name: str) -> float:
        return self.hosts[node_of(device)].backend.values[slot_of(device)][name]

    def xid(self, device: DeviceId, code: int, pid: int = 0, nvml: bool = True, kernel: bool = True) -> None:
        """The driver reports an XID through NVML, in the kernel log, or in both."""
        host = self.hosts[node_of(device)]
        self._injected(f"XID {code} on {device}", device)
        if nvml:
            host.backend.xid(slot_of(device), code)
        if kernel:
            found = next(d for d in host.backend.open() if d.slot == slot_of(device))
            host.kernel.xid(found.pci_bus_id, code, pid, f"simulated fault {code}")

    def crash_member(self, job: str, node: NodeId, number: int = 9) -> None:
        """The job's processes on one node die of a signal."""
        self._injected(f"signal {number} to {job} on {node}")
        self.hosts[node].executor.crash(JobId(job), number)

    def crash_job(self, job: str, number: int = 9) -> None:
        """Its processes die of a signal, wherever they run."""
        self._injected(f"signal {number} to {job}")
        for host in self.hosts.values():
            host.executor.crash(JobId(job), number)

    async def pid(self, node: NodeId, job: str) -> int:
        """Of the job's leading process on a node; 0: none."""
        alive = [p for p in await self.hosts[node].executor.list() if p.job == job and p.alive]
        return alive[0].pids[0] if alive and alive[0].pids else 0

    def hang_driver(self, node: NodeId, hung: bool = True) -> None:
        """Calls to the driver do not come back, until it lets go."""
        self._injected(f"the driver of {node} {'hangs' if hung else 'lets go'}")
        self.hosts[node].driver_hung = hung

    def replica_of(self, node: NodeId) -> str:
        """The replica that holds a node's stream; "": none."""
        holders = (name for name, server in self.servers.items() if node in server.replica.ingest.streams)
        return next(holders, "")

    async def kill_node(self, node: NodeId) -> None:
        self._injected(f"{node} loses power")
        await self.hosts[node].lose_power()

    def boot_node(self, node: NodeId) -> None:
        self._injected(f"{node} boots")
        self.hosts[node].boot()

    async def kill_agent(self, node: NodeId) -> None:
        self._injected(f"the agent of {node} is killed")
        await self.hosts[node].kill_agent()

    def start_agent(self, node: NodeId) -> None:
        self._injected(f"the agent of {node} starts")
        self.hosts[node].start_agent()

    def freeze_agent(self, node: NodeId) -> None:
        self._injected(f"the agent of {node} is frozen")
        self.hosts[node].freeze_agent()

    def thaw_agent(self, node: NodeId) -> None:
        self._injected(f"the agent of {node} goes on")
        self.hosts[node].thaw_agent()

    async def kill_replica(self, replica: str) -> None:
        self._injected(f"{replica} is killed")
        await self.servers[replica].kill()

    def step_clock(self, replica: str, by_ms: int) -> None:
        """Of the replica's host: its wall clock jumps."""
        self._injected(f"the clock of {replica} is stepped by {by_ms} ms")
        self.servers[replica].clock.step(by_ms)

    def start_replica(self, replica: str) -> None:
        self._injected(f"{replica} starts")
        self.servers[replica].start()

    def freeze_replica(self, replica: str) -> None:
        self._injected(f"{replica} is frozen")
        self.servers[replica].freeze()

    def thaw_replica(self, replica: str) -> None:
        self._injected(f"{replica} goes on")
        self.servers[replica].thaw()

    def store_of(self, replica: str, store: str) -> SimStore:
        """A replica's handle on ``"region"`` or ``"global"``: for ``lose_replies`` and the like."""
        server = self.servers[replica]
        return server.region_store if store == "region" else server.global_store

    def partition_store(self, replica: str, store: str) -> None:
        self._injected(f"{replica} is cut off from its {store} store")
        self.store_of(replica, store).partition()

    def heal_store(self, replica: str, store: str) -> None:
        self._injected(f"{replica} reaches its {store} store again")
        self.store_of(replica, store).heal()

    def cut(self, node: NodeId, replica: str, direction: str = BOTH) -> None:
        way = "" if direction == BOTH else f" ({direction} only)"
        self._injected(f"the network between {node} and {replica} is cut{way}")
        self.network.cut(node, replica, direction)

    def cut_regions(self, asking: str, asked: str, direction: str = BOTH) -> None:
        """What replicas of one region ask those of another does not arrive (``UP``), or its answer does not."""
        way = "" if direction == BOTH else f" ({direction} only)"
        self._injected(f"{asking} is cut off from {asked}{way}")
        for name in self._replicas_of(asking):
            for other in self._replicas_of(asked):
                self.network.cut(name, other, direction)

    def cut_off_globally(self, region: str) -> None:
        """No replica of the region reaches the global store."""
        for name in self._replicas_of(region):
            self.partition_store(name, "global")

    def heal_region(self, region: str) -> None:
        """It reaches the global store and the other regions again."""
        for name in self._replicas_of(region):
            self.heal_store(name, "global")
            self.network.heal(name)

    def _replicas_of(self, region: str) -> list[str]:
        return [name for name, server in self.servers.items() if server.region == region]

    def heal_cut(self, node: NodeId) -> None:
        self._injected(f"the network of {node} is whole again")
        self.network.heal(node)

    def heal_network(self) -> None:
        """All cuts but those of hosts without power."""
        self._injected("the network is whole again")
        for node, host in self.hosts.items():
            if host.powered:
                self.network.heal(node)
