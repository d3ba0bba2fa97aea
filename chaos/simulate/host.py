"""One simulated host: what outlives the agents on it (disk, files, jobs, devices, kernel log), and its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos.simulate.checkpoints import MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.devices import SimBackend
from chaos.simulate.disk import SimDisk
from chaos.simulate.ensemble import Ensemble
from chaos.simulate.executor import SimExecutor, SimJob, Witness
from chaos.simulate.files import SimFiles, SimState
from chaos.simulate.freeze import Gate, GatedClock, GatedExecutor, GatedTransport
from chaos.simulate.kernel import SimKernel
from chaos.simulate.network import SimNetwork
from gridkeeper.config import AgentConfig, TlsFiles
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.ports.jobs import Launch
from gridkeeper.timings import Timings
from nodeagent.agent import Agent, AgentPorts
from nodeagent.runner import InlineRunner

ROOT = Path("/sim")
DRIVER_TIMEOUT_MS = 2_000


class SimHost:
    """``servers``: addresses of its region's replicas. ``tree``: the files of all hosts; each has its own paths."""

    def __init__(
        self,
        node: NodeId,
        region: RegionId,
        clock: SimClock,
        rng: SimRng,
        network: SimNetwork,
        tree: MemoryTree,
        checkpoints: SimCheckpointStore,
        servers: Sequence[str],
        devices: int,
        timings: Timings,
        rack: str,
        script: Callable[[Launch], SimJob],
        witness: Witness,
        ensemble: Ensemble,
    ) -> None:
        self.node = node
        self.region = region
        self.clock = clock
        self.files = SimFiles(tree)
        self.executor = SimExecutor(node, clock, self.files, script, ROOT, witness=witness, ensemble=ensemble)
        self.backend = SimBackend(node, clock, devices)
        self.kernel = SimKernel(clock)
        self.disk = SimDisk(clock, rng.child("disk"))
        self.powered = True
        self.driver_hung = False
        """Calls to the driver do not come back while it is set."""
        self._rng = rng
        self._network = network
        self._checkpoints = checkpoints
        self._servers = tuple(servers)
        self._timings = timings
        self.rack = rack
        network.answer_probes(node, self._answer_probe)
        self._states = {name: SimState() for name in ("orders", "inventory", "boot")}
        self._boots = 1
        self._starts = 0
        self._gate = Gate()
        self._task: asyncio.Task[None] | None = None

    @property
    def boot_id(self) -> str:
        return f"boot-{self.node}-{self._boots}"

    async def _answer_probe(self) -> str | None:
        if not self.powered:
            await asyncio.Event().wait()
        if self._task is None:
            return None
        await self._gate.passing()
        return self.boot_id

    @property
    def agent_task(self) -> asyncio.Task[None] | None:
        """Ends only by ``kill_agent``; anything else is a failure of the agent."""
        return self._task

    def start_agent(self) -> None:
        """A new agent process, with a small offset in time so that hosts do not step in time."""
        self._starts += 1
        self._gate = gate = Gate()
        clock = GatedClock(self.clock, gate)
        config = AgentConfig(
            node=self.node,
            region=self.region,
            servers=self._servers,
            state_dir=str(ROOT / self.node),
            tls=TlsFiles("", "", ""),
            checkpoints="",
            rack=self.rack,
            driver_timeout_ms=DRIVER_TIMEOUT_MS,
            probe_listen=self.node,
        )
        ports = AgentPorts(
            clock=clock,
            rng=self._rng.child(f"agent-{self._starts}"),
            transport=GatedTransport(self._network.transport(self.node, self.region), gate),
            logs=self.disk,
            executor=GatedExecutor(self.executor, gate),
            checkpoints=self._checkpoints,
            checkpoint_dirs=self.files,
            orders=self._states["orders"],
            inventory=self._states["inventory"],
            last_boot=self._states["boot"],
            backends=[self.backend],
            boot_id=self.boot_id,
            resume_dir=ROOT / self.node / "resume",
            kernel_log=self.kernel.reader(clock),
            runner=InlineRunner(clock, lambda lane: self.driver_hung),
            prober=self._network.prober(self.node),
        )
        agent = Agent(config, ports, self._timings)
        delay_ms = round(self._rng.uniform(0, 100))

        async def run() -> None:
            await clock.sleep(delay_ms)
            await agent.run()

        self._task = asyncio.get_running_loop().create_task(run(), name=f"agent-{self.node}-{self._starts}")

    async def kill_agent(self) -> None:
        """``SIGKILL`` of the agent; guardian and jobs go on."""
        self._gate.kill()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def freeze_agent(self) -> None:
        """``SIGSTOP``."""
        self._gate.freeze()

    def thaw_agent(self) -> None:
        self._gate.thaw()

    async def lose_power(self) -> None:
        """Everything at once, and the network does not say so."""
        self.powered = False
        for address in self._servers:
            self._network.cut(self.node, address)
        self.disk.crash()
        self.executor.lose_power()
        await self.kill_agent()

    def boot(self) -> None:
        """Power is back: same disk, same files, another boot."""
        self.powered = True
        self.driver_hung = False
        self._boots += 1
        self._network.heal(self.node)
        self.backend.pending = []
        self.start_agent()
