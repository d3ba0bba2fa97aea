"""The agent: everything on a host wired together, with its ports passed in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gridkeeper import tracing
from gridkeeper.config import AgentConfig
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.devices import DeviceBackend, Sighting
from gridkeeper.ports.disk import DiskError
from gridkeeper.ports.gate import HostGate
from gridkeeper.ports.hostwork import HostRunner
from gridkeeper.ports.jobs import CheckpointStore, Executor
from gridkeeper.ports.link import Transport
from gridkeeper.ports.probe import ProbeAnswerer, Prober
from gridkeeper.records.fleet import EventKind
from gridkeeper.timings import Timings
from nodeagent.checkpointing import CheckpointDirs
from nodeagent.dedupe import Admitted, Dedupe, resolve
from nodeagent.devices import Devices
from nodeagent.disklog import LogSource
from nodeagent.gatekeeper import Gatekeeper
from nodeagent.hostcommands import HostCommands, NoRunner
from nodeagent.kernel.parse import Parser
from nodeagent.kernel_log import Entry, Gap, KernelLog
from nodeagent.probing import Probing
from nodeagent.renewal import Renewal
from nodeagent.runner import Runner
from nodeagent.sampler import DeviceWatch
from nodeagent.spool import Spool, open_spool
from nodeagent.statefile import MemoryState, StateFile
from nodeagent.supervisor import Supervisor
from nodeagent.uplink import Uplink

log = logging.getLogger("gridkeeper.agent")

FLUSH_MS = 500
"""How often merged counts are told, the inventory is remembered and the sampling rate is set."""
OVERFLOW_KERNEL_LOG = 4
"""Code of the ``OVERFLOW`` event "lines of the kernel log are missing"."""
POLL_READY_MS = 20


@dataclass(frozen=True, slots=True)
class AgentPorts:
    """What the agent touches the world with. The state files hold orders, the inventory, the boot id of the last run,
    and the repairs that have begun; without a ``host_runner`` none can."""

    clock: Clock
    rng: Rng
    transport: Transport
    logs: LogSource
    executor: Executor
    checkpoints: CheckpointStore
    checkpoint_dirs: CheckpointDirs
    orders: StateFile
    inventory: StateFile
    last_boot: StateFile
    backends: Sequence[DeviceBackend]
    boot_id: str
    resume_dir: Path
    kernel_log: KernelLog | None = None
    runner: Runner | None = None
    repairs: StateFile = field(default_factory=MemoryState)
    host_runner: HostRunner = field(default_factory=NoRunner)
    prober: Prober | None = None
    answerer: ProbeAnswerer | None = None
    gate: HostGate | None = None
    renewal: Renewal | None = None
    credentials: Callable[[], int] | None = None  # the number of the certificate in force; None: it never changes


class Agent:
    """``run()`` it; cancel that to stop. Jobs go on without it until their deadlines."""

    def __init__(self, config: AgentConfig, ports: AgentPorts, timings: Timings | None = None) -> None:
        """``timings``: until the control plane has told its own. Raises ``BadBook``, ``BadMemory``, ``DiskError``."""
        self._config = config
        self._ports = ports
        self._timings = timings or Timings()
        self._dedupe = Dedupe()
        self._parser = Parser()
        self._admitted: asyncio.Queue[Admitted] = asyncio.Queue()
        watches = [
            DeviceWatch(
                backend,
                ports.clock,
                config.driver_timeout_ms,
                self._sighted,
                runner=ports.runner,
                sample_ms=self._timings.telemetry_ms,
            )
            for backend in ports.backends
        ]
        self.devices = Devices(config, watches, ports.inventory, ports.boot_id, ports.clock)
        self.supervisor = Supervisor(
            config.node,
            ports.executor,
            ports.checkpoints,
            ports.checkpoint_dirs,
            ports.orders,
            ports.resume_dir,
            ports.clock,
            self._timings,
        )
        self.repairs = HostCommands(
            config.repair_commands,
            ports.repairs,
            ports.host_runner,
            ports.boot_id,
            self.devices.all,
            self.supervisor.user_of,
            ports.clock,
        )
        self.supervisor.kept_free = lambda: self.repairs.busy
        self.gatekeeper = Gatekeeper(ports.gate, ports.clock) if ports.gate else None
        self.spool: Spool | None = None
        self.uplink: Uplink | None = None

    async def run(self) -> None:
        """For ever."""
        ports = self._ports
        self.spool = spool = await open_spool(
            ports.logs, ports.clock, ports.rng, ports.boot_id, self._config.spool_max_bytes
        )
        self.uplink = Uplink(
            ports.transport,
            self._config.servers,
            spool,
            self.supervisor,
            self.devices,
            self.repairs,
            ports.clock,
            ports.rng,
            self._timings,
            Probing(ports.prober, ports.clock) if ports.prober else None,
            self.gatekeeper,
            ports.credentials,
        )
        try:
            await self._tell_boot(spool)
            async with asyncio.TaskGroup() as group:
                for watch in self.devices.watches:
                    group.create_task(watch.run())
                group.create_task(self.supervisor.run())
                group.create_task(self.repairs.run())
                group.create_task(self._spool_admitted(spool))
                group.create_task(spool.run())
                group.create_task(self._flush())
                group.create_task(self._link(self.uplink))
                if self.gatekeeper:
                    group.create_task(self.gatekeeper.run())
                if ports.answerer:
                    group.create_task(ports.answerer.run())
                if ports.renewal:
                    group.create_task(ports.renewal.run())
                if ports.kernel_log:
                    group.create_task(ports.kernel_log.run(self._kernel_lines))
        finally:
            await spool.close()

    async def _link(self, uplink: Uplink) -> None:
        """Connect once the inventory is known, but never so late that jobs of an earlier run lose their renewal."""
        give_up = self._ports.clock.mono_ms() + self._timings.fence_ms // 4
        while not self.devices.ready and self._ports.clock.mono_ms() < give_up:
            await self._ports.clock.sleep(POLL_READY_MS)
        await uplink.run()

    # Events: sighting -> dedupe -> spool

    def _sighted(self, sighting: Sighting) -> None:
        """Called by the watches, on the loop."""
        admitted = self._admit(sighting)
        if admitted:
            self._admitted.put_nowait(admitted)

    def _admit(self, sighting: Sighting) -> Admitted | None:
        return self._dedupe.see(resolve(sighting, self.devices.all()), self._ports.clock.mono_ms())

    async def _spool_admitted(self, spool: Spool) -> None:
        while True:
            await self._keep(spool, await self._admitted.get())

    async def _keep(self, spool: Spool, admitted: Admitted) -> None:
        trace = f"00-{self._ports.rng.token(16)}-{self._ports.rng.token(8)}-01"
        facts = {"node": self._config.node, "slot": admitted.slot, "kind": admitted.kind.value, "code": admitted.code}
        with tracing.root("backend.events", trace, {**facts, "sources": ",".join(admitted.sources)}):
            job = self.supervisor.job_on(admitted.slot, admitted.pid)
        with tracing.span("dedupe.admit", trace, {**facts, "count": admitted.count}):
            pass
        with tracing.span("spool.append", trace, facts):
            sequence = await spool.append(admitted, job, trace)
        where = admitted.slot or "the node"
        log.info("Event %d: %s %d on %s: %s", sequence, admitted.kind.value, admitted.code, where, admitted.message)

    async def _flush(self) -> None:
        while True:
            for admitted in self._dedupe.flush(self._ports.clock.mono_ms()):
                self._admitted.put_nowait(admitted)
            await self.devices.remember()
            for watch in self.devices.watches:
                watch.sample_ms = self.supervisor.timings.telemetry_ms
            await self._ports.clock.sleep(FLUSH_MS)

    async def _kernel_lines(self, entries: tuple[Entry, ...]) -> None:
        """Durable on return: the kernel log's position is saved behind them then."""
        assert self.spool is not None  # open before the kernel log is read
        for entry in entries:
            now = self._ports.clock.mono_ms()
            sighting = self._gap(entry, now) if isinstance(entry, Gap) else self._parser.see(entry, now)
            admitted = self._admit(sighting) if sighting else None
            if admitted:
                await self._keep(self.spool, admitted)

    def _gap(self, gap: Gap, now_ms: int) -> Sighting | None:
        if not gap.certain:
            log.warning("The kernel log may have a gap: %s", gap.reason)
            return None
        message = f"lines of the kernel log are missing: {gap.reason}"
        return Sighting("", EventKind.OVERFLOW, OVERFLOW_KERNEL_LOG, message, "kmsg", now_ms)

    async def _tell_boot(self, spool: Spool) -> None:
        """One ``BOOT`` event per boot of the host after the first one seen; dated at the boot itself."""
        ports = self._ports
        try:
            before = (ports.last_boot.load() or b"").decode(errors="replace")
            if before == ports.boot_id:
                return
            if before:
                message = f"the host booted (boot id {ports.boot_id}, before: {before}); the time between is unknown"
                admitted = Admitted("", EventKind.BOOT, 0, message, ("agent",), 1, 0, 0, 0, "", False)
                await self._keep(spool, admitted)
            await ports.last_boot.save(ports.boot_id.encode())
        except DiskError as error:
            log.warning("The boot id is not remembered: %s", error)
