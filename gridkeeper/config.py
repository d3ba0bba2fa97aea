"""What each daemon is told: plain records. ``gridkeeper.configfile`` reads them from YAML and names what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridkeeper.ids import NodeId, RegionId, ReplicaId
from gridkeeper.records.common import Label
from gridkeeper.timings import Timings


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. The key must be 0600."""

    certificate: str
    key: str
    authority: str


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """An etcd cluster. ``password_file`` holds the password, so that it is in no argv and no config."""

    endpoints: tuple[str, ...]
    tls: TlsFiles | None = None
    user: str = ""
    password_file: str = ""
    allow_unsafe_version: bool = False  # 3.5.0 to 3.5.5


@dataclass(frozen=True, slots=True)
class RegionPath:
    """A region's checkpoint store: an absolute path, or a URL: s3://bucket/prefix, gs://bucket/prefix,
    az://account/container/prefix (docs/checkpoints.md)."""

    region: RegionId
    path: str


@dataclass(frozen=True, slots=True)
class RepairCommands:
    """Command lines of repairs, run as the agent's user; none: such a repair is refused. In ``reset_device``,
    ``{slot}``, ``{uuid}`` and ``{pci}`` stand for the device's; for example nvidia-smi, --gpu-reset, -i, "{uuid}"."""

    reset_device: tuple[str, ...] = ()
    reboot_node: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlurmHost:
    """This host is a node of Slurm: jobs run inside of what ``sbatch`` gives them (docs/executors.md)."""

    node: str  # its name in Slurm
    options: tuple[str, ...] = ()  # more of sbatch, like --partition=gpu or --gres=gpu:{devices}
    conf: str = ""  # SLURM_CONF; "": where Slurm's commands look by themselves
    drain: bool = True  # the node is drained in Slurm while one of its devices is out of service, or it is cordoned
    wait_ms: int = 600_000  # a start that has got no room for so long is given up, and the job placed anew
    requeue: bool = False  # then batch jobs of others on it are requeued


@dataclass(frozen=True, slots=True)
class KubernetesHost:
    """This host is a node of Kubernetes: jobs run in pods pinned to it (docs/executors.md)."""

    node: str  # its name in Kubernetes
    image: str  # of jobs' pods; with a Python >= 3.11
    namespace: str = "default"
    python: str = "python3"  # in the image
    resource: str = "nvidia.com/gpu"  # what devices are called there; "" = they are not counted
    mounts: tuple[str, ...] = ()  # host paths that jobs see, at the same paths
    kubeconfig: str = ""  # "" = a pod's service account
    drain: bool = True  # cordon and taint the node while a device of it is out of service, or it is cordoned
    wait_ms: int = 600_000  # a start that has got no room for so long is given up, and the job placed anew
    evict: bool = False  # others' pods are evicted then, as their disruption budgets allow


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """``gridkeeper agent --config FILE``."""

    node: NodeId
    region: RegionId
    servers: tuple[str, ...]  # replicas of this region, host:port
    state_dir: str
    tls: TlsFiles
    checkpoints: str  # this region's checkpoint store: a directory, or a URL as in docs/checkpoints.md
    rack: str = "default"
    labels: tuple[Label, ...] = ()
    backends: tuple[str, ...] = ("nvml",)  # "nvml", "amd", "ascend", "cambricon", "thead", "host", …
    kernel_log: str = "/dev/kmsg"  # or a file that is followed; "" = none
    metrics_listen: str = ""  # host:port; "" = off
    driver_timeout_ms: int = 10_000
    spool_max_bytes: int = 64 * 1024 * 1024
    otlp_endpoint: str = ""
    repair_commands: RepairCommands = field(default_factory=RepairCommands)
    zone: str = ""  # failure domain above the rack; "" = none
    probe_listen: str = ""  # host:port where peers' probes are answered; "" = nowhere
    probe_advertise: str = ""  # how peers reach it; "" = the same
    slurm: SlurmHost | None = None  # None: jobs are processes of this host
    kubernetes: KubernetesHost | None = None  # alike


@dataclass(frozen=True, slots=True)
class BearerConfig:
    """Whose JWTs speak for users. ``jwks``: a file, or an https URL. A token's role is that of its role claim
    (``viewer``, ``operator``, ``admin``, ``job-owner``); a job owner's namespaces are a list."""

    issuer: str
    audience: str
    jwks: str
    user_claim: str = "sub"
    role_claim: str = "gridkeeper_role"
    namespaces_claim: str = "gridkeeper_namespaces"


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What one identity may ask of one replica. Bursts are eight times a second's worth, at once."""

    reads_per_s: int = 100
    acts_per_s: int = 50
    streams: int = 64  # watches and sample streams of one user
    agent_messages_per_s: int = 500  # of one node; more is read slower
    agent_bytes_per_s: int = 8 * 1024 * 1024
    agent_connects_per_s: int = 1
    joins_per_s: int = 20  # of one address


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """``gridkeeper controlplane --config FILE``. One server carries AgentLink, Grid, health and reflection."""

    replica: ReplicaId
    region: RegionId
    listen: str
    tls: TlsFiles
    region_store: StoreConfig
    global_store: StoreConfig
    checkpoints: tuple[RegionPath, ...]
    advertise: str = ""  # how others reach `listen`; "" = the same
    metrics_listen: str = ""
    trust_domain: str = "gridkeeper.local"
    timings: Timings = field(default_factory=Timings)
    policy_file: str = ""  # in force until a policy is applied; "": the built-in one
    ticket_token_file: str = ""  # bearer token for the desk that policy.repair.ticket_url names
    otlp_endpoint: str = ""
    ledger_archive: str = ""  # where closed months and signed heads are kept: an absolute path or a URL; "": nowhere
    ledger_key: str = ""  # private key that signs daily heads; "": none are signed
    alert_token_file: str = ""  # bearer token for whom policy.alerts names
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    entry_listen: str = ""  # host:port for those without a certificate: hosts that join, users with bearer tokens
    bearer: BearerConfig | None = None  # whose tokens are taken there
    issuer_dir: str = ""  # ca.crt and ca.key that sign nodes' certificates; "": this replica signs none
    node_certificate_hours: int = 168


@dataclass(frozen=True, slots=True)
class RegionEndpoints:
    name: RegionId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """``~/.config/gridkeeper/client.yaml``, ``$GRIDKEEPER_CONFIG`` or ``--config``: CLI and TUI. With ``token_file``
    the regions' addresses are those of ``entry_listen``, and of ``tls`` only the authority is used."""

    regions: tuple[RegionEndpoints, ...]
    tls: TlsFiles
    token_file: str = ""
