"""Who gives this agent's jobs their room: nobody (processes of the host), Slurm or Kubernetes. By configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from failover.executors.commands import HostCommandLine
from failover.executors.process import ProcessExecutor
from failover.executors.queued import QueuedExecutor
from failover.executors.slurm import Slurm
from failover.executors.slurm_gate import SlurmGate
from gridkeeper.clock import SystemClock
from gridkeeper.config import AgentConfig, KubernetesHost, SlurmHost
from gridkeeper.ports.gate import HostGate
from gridkeeper.ports.jobs import ExecutorError

if TYPE_CHECKING:
    from failover.executors.kubernetes_api import KubernetesApi


def scheduler_of(config: AgentConfig) -> str:
    """The batch system whose gate this agent keeps, as the control plane is told; "": none."""
    if config.slurm is not None and config.slurm.drain:
        return "slurm"
    return "kubernetes" if config.kubernetes is not None and config.kubernetes.drain else ""


def executor_of(config: AgentConfig, state: Path) -> tuple[ProcessExecutor | QueuedExecutor, HostGate | None]:
    """With the gate of the batch system that owns the host, if it is to be kept. Raises ``ExecutorError``."""
    if config.slurm is not None and config.kubernetes is not None:
        raise ExecutorError("slurm, kubernetes: a host has one owner; leave one of them out")
    if config.slurm is not None:
        return _slurm(config, config.slurm, state)
    if config.kubernetes is not None:
        return _kubernetes(config, config.kubernetes, state)
    return ProcessExecutor(state, SystemClock()), None


def _slurm(config: AgentConfig, host: SlurmHost, state: Path) -> tuple[QueuedExecutor, HostGate | None]:
    environment = {"SLURM_CONF": host.conf} if host.conf else {}
    commands = HostCommandLine()
    slurm = Slurm(commands, host.node, host.options, environment)
    gate = SlurmGate(commands, host.node, host.requeue, environment) if host.drain else None
    return QueuedExecutor(state, config.node, slurm, SystemClock(), wait_ms=host.wait_ms), gate


def _kubernetes(config: AgentConfig, host: KubernetesHost, state: Path) -> tuple[QueuedExecutor, HostGate | None]:
    """Imported here: the client takes 60 MiB and most of a second, on hosts that need it."""
    try:
        from failover.executors.kubernetes import Kubernetes, PodPlan
        from failover.executors.kubernetes_api import KubernetesApi, client_of
        from failover.executors.kubernetes_gate import KubernetesGate
    except ImportError as error:
        raise ExecutorError(f"kubernetes: {error}; install gridkeeper[kubernetes]") from error
    api: KubernetesApi = KubernetesApi(lambda: client_of(host.kubeconfig), SystemClock())
    mounts = tuple(Path(path) for path in host.mounts)
    plan = PodPlan(host.node, host.namespace, host.image, host.resource, (state, *mounts))
    command = (host.python, "-P", "-m", "nodeagent.guardian")
    executor = QueuedExecutor(
        state, config.node, Kubernetes(api, plan), SystemClock(), wait_ms=host.wait_ms, command=command
    )
    return executor, KubernetesGate(api, host.node, host.evict) if host.drain else None
