"""The agent's composition root: real clock, real disk, real processes, gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from failover.checkpoint.store import open_store
from failover.executors.process import ProcessExecutor
from failover.executors.queued import QueuedExecutor
from gridkeeper import tracing
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.config import AgentConfig
from gridkeeper.identity import spiffe
from gridkeeper.identity.renewed import RenewedCredentials
from gridkeeper.identity.wallet import Wallet
from gridkeeper.ports.devices import BackendError
from gridkeeper.ports.disk import DiskError
from gridkeeper.ports.gate import HostGate
from gridkeeper.ports.jobs import ExecutorError
from gridkeeper.v1.agent_pb2 import ProbeAnswer
from nodeagent import metrics
from nodeagent.agent import Agent, AgentPorts
from nodeagent.backends.registry import make_backend
from nodeagent.checkpointing import FileCheckpointDirs
from nodeagent.disklog import FileLogs
from nodeagent.hostowner import executor_of
from nodeagent.hostrunner import ProcessRunner
from nodeagent.kernel_log import open_kernel_log
from nodeagent.orders import BadBook
from nodeagent.probelink import TlsProbeAnswerer, TlsProber
from nodeagent.renewal import AskServers, Renewal
from nodeagent.statefile import FileState, StateDirInUse, StateDirLock
from nodeagent.transport import GrpcTransport

log = logging.getLogger("gridkeeper.agent")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _build(
    config: AgentConfig, state: Path, executor: ProcessExecutor | QueuedExecutor, gate: HostGate | None
) -> Agent:
    """Raises ``BackendError``, ``BadBook``, ``DiskError``, ``OSError`` and ``ValueError`` (TLS files)."""
    clock = SystemClock()
    boot_id = BOOT_ID.read_text(encoding="ascii").strip()
    rng = SystemRng()
    credentials = RenewedCredentials(config.tls)
    wallet = Wallet.of(config.tls)
    renewal = None
    if wallet is not None:
        ask = AskServers(config.servers, credentials)
        renewal = Renewal(config.tls, wallet, spiffe.node(config.region, config.node), ask, clock, rng)
    answer = ProbeAnswer(node=config.node, boot_id=boot_id)
    ports = AgentPorts(
        clock=clock,
        rng=rng,
        transport=GrpcTransport(credentials),
        logs=FileLogs(state / "spool", config.spool_max_bytes, rng),
        executor=executor,
        checkpoints=open_store(config.checkpoints),
        checkpoint_dirs=FileCheckpointDirs(),
        orders=FileState(state / "orders.json"),
        inventory=FileState(state / "devices.json"),
        last_boot=FileState(state / "boot-id"),
        backends=[make_backend(spec, clock, state) for spec in config.backends],
        boot_id=boot_id,
        resume_dir=state / "resume",
        prober=TlsProber(config.tls, config.region, clock),
        answerer=TlsProbeAnswerer(config.probe_listen, config.tls, answer, clock) if config.probe_listen else None,
        kernel_log=open_kernel_log(config.kernel_log, clock, boot_id, state),
        repairs=FileState(state / "repairs.json"),
        host_runner=ProcessRunner(),
        gate=gate,
        renewal=renewal,
        credentials=credentials.version,
    )
    return Agent(config, ports)


async def run_agent(config: AgentConfig) -> int:
    """Until SIGTERM or SIGINT: 0. Jobs and guardian go on. 1: it cannot start, and the log says why."""
    state = Path(config.state_dir).resolve()
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = StateDirLock(state)
    except (OSError, StateDirInUse) as error:
        log.error("%s", error)
        return 1
    try:
        executor, gate = executor_of(config, state)
    except ExecutorError as error:
        log.error("The agent of %s cannot start: %s", config.node, error)
        lock.release()
        return 1
    try:
        agent = _build(config, state, executor, gate)
        if config.metrics_listen:
            metrics.serve(config.metrics_listen, agent, SystemClock())
    except (BackendError, BadBook, DiskError, OSError, ValueError) as error:
        log.error("The agent of %s cannot start: %s", config.node, error)
        lock.release()
        return 1
    if os.geteuid() == 0:
        log.warning("The agent runs as root, and so will its jobs: give it a user of its own (deploy/systemd).")
    tracing.setup("gridkeeper-agent", config.otlp_endpoint)
    log.info("Agent of %s in region %s, state in %s.", config.node, config.region, state)
    running = asyncio.ensure_future(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        executor.close()
        tracing.shutdown()
        lock.release()
    log.info("Agent of %s stopped; its jobs run on until their deadlines.", config.node)
    return 0
