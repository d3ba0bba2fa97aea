"""``LocalGrid``: starts, disturbs and stops a whole grid of processes on this machine.

    async with LocalGrid(Path("var/grid")) as grid, GridClient(grid.client_config()) as client:
        grid.xid("east-1", 3, 48)

Everything is as in production, except that the devices are simulated (below NVML), etcd has one member per store, and
the timings are short.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import psutil

from chaos.nvml.build import BuildError, build, default_directory
from chaos.nvml.kernel_log import KernelLogFile
from chaos.nvml.steer import SimNvml
from controlplane.store.embedded import EmbeddedEtcd, EtcdOptions, Ports
from gridkeeper.cli.local.children import POLL_MS, Child, GridError, free_ports
from gridkeeper.cli.local.plan import (
    GLOBAL,
    TRUST_DOMAIN,
    GridOptions,
    Places,
    Ways,
    agent_config,
    client_config,
    nodes_of,
    replica_config,
    replicas_of,
)
from gridkeeper.cli.local.ready import wait_ready
from gridkeeper.cli.local.runs import StepLine, steps_of
from gridkeeper.clock import SystemClock
from gridkeeper.config import ClientConfig, TlsFiles
from gridkeeper.configfile import dump
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import LEAF_DAYS, CertificateAuthority
from gridkeeper.identity.issuing import new_key
from gridkeeper.identity.wallet import Wallet
from gridkeeper.policy.document import policy_text
from gridkeeper.ports.clock import Clock

ETCD = EtcdOptions(
    heartbeat_ms=50,
    election_ms=500,
    arguments=("--auto-compaction-mode=revision", "--auto-compaction-retention=20000"),
)
AGENT_GRACE_MS = 5_000
GUARDIAN_GRACE_MS = 12_000
"""The guardian gives its jobs 10 s to checkpoint."""
REPLICA_GRACE_MS = 5_000


class LocalGrid:
    """``root``: the grid's directory; what an earlier grid left there is removed at the start. ``say`` hears of the
    progress of starting and stopping, a sentence at a time. ``ways``: how its processes reach each other, if not
    directly."""

    def __init__(
        self,
        root: Path,
        options: GridOptions | None = None,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda sentence: None,
        ways: Ways | None = None,
    ) -> None:
        self.options = options or GridOptions()
        self.places = Places(root.resolve())
        self.clock = clock or SystemClock()
        self._ways = ways
        self._say = say
        self._lock = -1
        stores = 2 * self.options.members * (1 + len(self.options.regions))
        ports = free_ports(
            stores
            + 3 * self.options.replicas * len(self.options.regions)
            + 2 * self.options.nodes * len(self.options.regions)
        )
        self._etcd_ports = ports[:stores]
        self.nodes = nodes_of(self.options)
        self.replicas = replicas_of(self.options, ports[stores:])
        count = len(self.nodes)
        self._probe_ports = ports[-count:]
        self._agent_ports = ports[-2 * count : -count] if self.options.metrics else ()
        self._etcds: dict[str, EmbeddedEtcd] = {}
        self._nvml: dict[str, SimNvml] = {}
        self._kernel_logs: dict[str, KernelLogFile] = {}
        self._agents: dict[str, Child] = {}
        self._controls: dict[str, Child] = {}
        self._admin: TlsFiles | None = None

    async def __aenter__(self) -> LocalGrid:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- starting and stopping ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until every replica answers, each region has a leader, and every node is alive with its devices. Raises
        ``GridError`` with the end of the log of what failed; then everything is stopped again."""
        try:
            self._claim()
            self._say("building the simulated NVML, a certificate authority and the configuration")
            library = await asyncio.to_thread(self._build)
            authority = CertificateAuthority.create(self.places.ca, TRUST_DOMAIN, self.clock)
            self._make_hosts()
            self._say(f"starting {1 + len(self.options.regions)} etcds: global, {', '.join(self.options.regions)}")
            await self._start_etcds(authority)
            self._make_configurations(authority, library)
            self._say(f"starting {len(self._controls)} control-plane replicas and {len(self._agents)} agents")
            for child in (*self._controls.values(), *self._agents.values()):
                child.start()
            await wait_ready(self.client_config(), len(self.nodes), self.options.devices, self.check, self.clock)
            total = len(self.nodes) * self.options.devices
            self._say(f"the grid is up: {len(self.options.regions)} regions, {len(self.nodes)} nodes, {total} devices")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Agents first (they would restart their guardians), then guardians with their jobs (which checkpoint), then
        the control planes, then the stores. Idempotent."""
        await asyncio.gather(*(child.stop(self.clock, AGENT_GRACE_MS) for child in self._agents.values()))
        await self._end_guardians()
        await asyncio.gather(*(child.stop(self.clock, REPLICA_GRACE_MS) for child in self._controls.values()))
        await asyncio.gather(*(etcd.stop() for etcd in self._etcds.values()))
        for sim in self._nvml.values():
            sim.close()
        self._nvml.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check(self) -> None:
        """Raises ``GridError`` if a process that should run has ended."""
        for child in (*self._controls.values(), *self._agents.values()):
            if child.ended is not None:
                raise GridError(
                    f"{child.name} ended with status {child.ended}; the end of {child.log}:\n{child.tail()}"
                )

    def _claim(self) -> None:
        """The directory is ours and nobody else uses it."""
        root = self.places.root
        root.mkdir(parents=True, exist_ok=True)
        if not self.places.marker.exists() and any(root.iterdir()):
            raise GridError(f"{root} holds something else than a local grid; choose an empty directory")
        self.places.marker.touch()
        self._lock = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise GridError(f"another grid runs in {root}; stop it, or choose another directory") from None
        for entry in root.iterdir():
            if entry in (self.places.marker, self.places.lock):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @staticmethod
    def _build() -> Path:
        try:
            return build(default_directory())
        except BuildError as error:
            raise GridError(str(error)) from error

    def _make_hosts(self) -> None:
        for region in self.options.regions:
            self.places.checkpoints(region).mkdir(parents=True)
        for node in self.nodes:
            self.places.state(node.name).mkdir(parents=True, mode=0o700)
            seed = self.options.seed * 1_000 + node.index
            self._nvml[node.name] = SimNvml.create(
                self.places.nvml(node.name), self.options.devices, seed, self.options.model
            )
            self.places.kernel_log(node.name).touch()
            self._kernel_logs[node.name] = KernelLogFile(
                self.places.kernel_log(node.name), host=node.name, clock=self.clock
            )

    async def _start_etcds(self, authority: CertificateAuthority) -> None:
        for index, name in enumerate((GLOBAL, *self.options.regions)):
            data = self.places.etcd(name)
            tls = authority.issue(spiffe.store(f"etcd-{name}"), data / "tls", stem="etcd")
            first = 2 * self.options.members * index
            numbers = self._etcd_ports[first : first + 2 * self.options.members]
            ports = tuple(Ports(client, peer) for client, peer in zip(numbers[::2], numbers[1::2], strict=True))
            self._etcds[name] = EmbeddedEtcd(
                data, ports, self.clock, binary=self.options.binary, tls=tls, options=ETCD, name=f"gridkeeper-{name}"
            )
        await asyncio.gather(*(etcd.start() for etcd in self._etcds.values()))

    def _make_configurations(self, authority: CertificateAuthority, library: Path) -> None:
        for replica in self.replicas:
            home = self.places.replica(replica.name)
            tls = authority.issue(spiffe.replica(replica.region, replica.name), home / "tls", stem="replica")
            region_store = replace(self._etcds[replica.region].config, tls=tls)
            global_store = replace(self._etcds[GLOBAL].config, tls=tls)
            advertise = ""
            if self._ways:
                ways = (self._ways.to_global_store(replica.region, end) for end in global_store.endpoints)
                global_store = replace(global_store, endpoints=tuple(ways))
                advertise = self._ways.to_replica(replica.region, replica.name, replica.address)
            config = replica_config(replica, self.options, self.places, tls, region_store, global_store)
            config = replace(config, advertise=advertise)
            (home / "config.yaml").write_text(dump(config))
            self._controls[replica.name] = self._child(replica.name, "controlplane", home, {})
        for node in self.nodes:
            home = self.places.node(node.name)
            wallet, key = Wallet(home / "tls"), new_key()  # as after 'gridkeeper join': the agent renews it
            certificate = authority.sign(
                spiffe.node(node.region, node.name), key.public_key(), timedelta(days=LEAF_DAYS)
            )
            wallet.put(key, certificate, authority.authority.read_bytes())
            tls = wallet.files
            port = self._agent_ports[node.index] if self._agent_ports else 0
            agent = agent_config(
                node, self.options, self.places, tls, self.replicas, port, self._probe_ports[node.index]
            )
            (home / "config.yaml").write_text(dump(agent))
            environment = self._nvml[node.name].environment(library)
            self._agents[node.name] = self._child(f"agent {node.name}", "agent", home, environment)
        self._admin = authority.issue(spiffe.user(_login(), "admin"), self.places.root / "tls", stem="admin")
        self.places.client.write_text(dump(self.client_config()))
        if self.options.policy:
            self.places.policy.write_text(policy_text(self.options.policy))

    def _child(self, name: str, verb: str, home: Path, environment: dict[str, str]) -> Child:
        command = (sys.executable, "-P", "-m", "gridkeeper.cli.main", verb, "--config", str(home / "config.yaml"))
        return Child(name, command, home / "log", {**os.environ, **environment})

    # -- using it -------------------------------------------------------------------------------------------------

    def client_config(self) -> ClientConfig:
        """An administrator's. Raises ``GridError`` before the start."""
        if self._admin is None:
            raise GridError("the grid is not started; start it first")
        return client_config(self.options, self._admin, self.replicas)

    def nvml(self, node: str) -> SimNvml:
        """The node's simulated devices."""
        return self._nvml[node]

    def kernel_log(self, node: str) -> KernelLogFile:
        return self._kernel_logs[node]

    def etcd(self, name: str) -> EmbeddedEtcd:
        """``name``: a region, or "global"."""
        return self._etcds[name]

    def xid(
        self, node: str, index: int, code: int, *, pid: int | None = None, nvml: bool = True, kernel: bool = True
    ) -> None:
        """The driver reports an XID: as an event through NVML and as a line in the kernel log."""
        sim = self._nvml[node]
        if kernel:
            self._kernel_logs[node].xid(sim.device(index).bus_id, code, pid)
        if nvml:
            sim.xid(index, code)

    def steps(self, job: str) -> tuple[StepLine, ...]:
        """Every step that any epoch of the job logged, by epoch."""
        return steps_of(job, {node.name: self.places.state(node.name) for node in self.nodes})

    def job_pids(self, node: str, job: str) -> tuple[int, ...]:
        """The leading processes of the job on the node."""
        found = []
        for keeper in self._guardian_tree(node):
            with contextlib.suppress(psutil.Error):
                if keeper.environ().get("GRIDKEEPER_JOB") == job:
                    found.append(keeper.pid)
        return tuple(found)

    # -- disturbing it --------------------------------------------------------------------------------------------

    def agent(self, node: str) -> Child:
        return self._agents[node]

    def replica(self, name: str) -> Child:
        return self._controls[name]

    def kill_replica(self, name: str) -> None:
        self._controls[name].kill()

    def start_replica(self, name: str) -> None:
        self._controls[name].start()

    def kill_agent(self, node: str) -> None:
        """SIGKILL to the agent alone: guardian and jobs go on."""
        self._agents[node].kill()

    def start_agent(self, node: str) -> None:
        self._agents[node].start()

    def pause_agent(self, node: str) -> None:
        self._agents[node].signal(signal.SIGSTOP)

    def resume_agent(self, node: str) -> None:
        self._agents[node].signal(signal.SIGCONT)

    def kill_job(self, node: str, job: str) -> None:
        """SIGKILL to the job's leading process, as the driver does after an error that it cannot contain elsewhere."""
        for pid in self.job_pids(node, job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """As a power cut: agent, guardian and jobs. They are stopped first, so that none sees another one die."""
        doomed = [process.pid for process in self._guardian_tree(node)]
        guardian = self._guardian_pid(node)
        doomed += [guardian] if guardian else []
        if self._agents[node].running:
            self.pause_agent(node)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if self._agents[node].running:
            self._agents[node].kill()

    def _guardian_pid(self, node: str) -> int:
        """0: none runs. The file alone proves nothing: its number may have been used anew."""
        state = self.places.state(node)
        try:
            pid = int((state / "guardian.lock").read_text())
            command = psutil.Process(pid).cmdline()
        except (OSError, ValueError, psutil.Error):
            return 0
        return pid if "nodeagent.guardian" in command and str(state) in command else 0

    def _guardian_tree(self, node: str) -> list[psutil.Process]:
        """Everything below the node's guardian."""
        pid = self._guardian_pid(node)
        try:
            return psutil.Process(pid).children(recursive=True) if pid else []
        except psutil.Error:
            return []

    async def _end_guardians(self) -> None:
        pids = {pid for node in self.nodes if (pid := self._guardian_pid(node.name))}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)
        until_ms = self.clock.mono_ms() + GUARDIAN_GRACE_MS
        while any(self._guardian_pid(node.name) for node in self.nodes):
            if self.clock.mono_ms() > until_ms:
                for node in self.nodes:
                    self.kill_node(node.name)
            await self.clock.sleep(POLL_MS)


def _login() -> str:
    """The user's own name if it can be one of ours."""
    import getpass

    try:
        return spiffe.user(getpass.getuser().lower(), "admin").name
    except (OSError, KeyError, spiffe.BadIdentity):
        return "operator"
