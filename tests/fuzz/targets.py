"""One target per parser of outside bytes: how it is called, which errors are its answer, and where it starts from.

A target returns, or raises one of ``answers``; anything else is a crash. Hangs and memory are watched by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from controlplane.rpc.jobspec import checked_spec
from controlplane.rpc.listing import from_token, to_token
from controlplane.rpc.refusal import Refusal
from controlplane.shell.hello import BadHello, check_hello
from failover.checkpoint import inertpickle, manifest
from gridkeeper import codec, keys
from gridkeeper.configfile import ConfigError
from gridkeeper.identity import spiffe
from gridkeeper.identity.issuing import BadCsr, public_key_of, request_for
from gridkeeper.identity.spiffe import BadIdentity
from gridkeeper.ids import JobId, RegionId
from gridkeeper.policy.document import default_policy, parse_policy, policy_text
from gridkeeper.ports.devices import BackendError
from gridkeeper.ports.jobs import CheckpointError
from gridkeeper.selector import BadSelector
from gridkeeper.selector import parse as parse_selector
from gridkeeper.sla.document import parse_contract
from gridkeeper.sla.objectives import parse_slos
from gridkeeper.v1 import agent_pb2, records_pb2
from nodeagent.backends import ascend_tables, cambricon, replay
from nodeagent.kernel.line import read_line
from nodeagent.kernel.parse import Parser
from tests.fixtures import records

DATA = Path(__file__).parents[1] / "data"
KINDS = sorted({*keys.REGION_KINDS.values(), *keys.GLOBAL_KINDS.values()}, key=lambda kind: kind.__name__)
JOB = JobId("train")


@dataclass(frozen=True, slots=True)
class Target:
    """``seeds`` are made when asked for."""

    run: Callable[[bytes], object]
    answers: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _files(*patterns: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes()[:20_000] for p in patterns for path in sorted(DATA.glob(p)) if path.is_file()]


def _lines(*patterns: str) -> Callable[[], list[bytes]]:
    return lambda: [line for data in _files(*patterns)() for line in data.splitlines()][:2_000]


def _kernel_log(data: bytes) -> None:
    parser = Parser()
    for line in data.splitlines() or [data]:
        parser.see(read_line(line), 1_000_000)


def _ascend(data: bytes) -> None:
    ascend_tables.read_processes(text(data))
    ascend_tables.read_info(text(data))


def _replay(data: bytes) -> None:
    devices: dict[str, replay.Device] = {}
    steps: list[replay.Step] = []
    for line in text(data).splitlines():
        replay._read_line(line, devices, steps)


def _record(data: bytes) -> None:
    if data:
        codec.decode(KINDS[data[0] % len(KINDS)], data[1:])


def _records() -> list[bytes]:
    made = (
        records.node(), records.device(), records.health(), records.event(), records.finding(), records.incident(),
        records.drain(), records.job(), records.ownership(), records.run(), records.head(), records.checkpoint(),
        records.migration(), records.region(), records.account(), records.repair(), records.maintenance(),
    )  # fmt: skip
    return [bytes([KINDS.index(type(record))]) + codec.encode(record) for record in made]


def _frame(data: bytes) -> None:
    frame = agent_pb2.AgentFrame.FromString(data)
    for part in (frame, *frame.more):
        if part.WhichOneof("frame") == "hello":
            check_hello(part.hello, "east-1", "east")


def _frames() -> list[bytes]:
    hello = agent_pb2.Hello(node="east-1", region="east", rack="r", spool="s", metric_schema=1, boot_id="b")
    hello.devices.add(slot="gpu0", uuid="GPU-1", vendor="nvidia", model="H100")
    hello.labels.add(key="a", value="b")
    return [
        agent_pb2.AgentFrame(hello=hello).SerializeToString(),
        agent_pb2.AgentFrame(renewal=agent_pb2.Renewal(id=1)).SerializeToString(),
    ]


def _job(data: bytes) -> None:
    checked_spec(records_pb2.JobSpec.FromString(data), [RegionId("east")])


def _manifest(data: bytes) -> None:
    manifest.decode(data, JOB, 40, manifest.digest_of(data))


def _manifests() -> list[bytes]:
    file = b'{"path": "a/b.bin", "size": 3, "mode": 420, "chunks": ["' + b"0" * 64 + b'"]}'
    return [b'{"format": 1, "job": "train", "step": 40, "epoch": [1, 1], "files": [' + file + b"]}", b"[]"]


TARGETS: dict[str, Target] = {
    "kernel-log": Target(_kernel_log, (), _lines("kernel/*.log")),
    "ascend": Target(_ascend, (BackendError,), _files("ascend/*.txt")),
    "cambricon": Target(lambda data: cambricon.read_table(text(data)), (BackendError,), _files("cambricon/*.txt")),
    "replay": Target(
        _replay,
        (ValueError, RecursionError),
        lambda: [
            b'{"slot": "gpu0", "vendor": "nvidia", "model": "H100"}\n{"at_ms": 5, "slot": "gpu0", "temperature": 70}',
            b'{"at_ms": 9, "slot": "gpu0", "event": "xid", "code": 79}',
        ],
    ),
    "records": Target(_record, (codec.CorruptRecord,), _records),
    "agent-frames": Target(_frame, (DecodeError, BadHello), _frames),
    "job-specs": Target(
        _job,
        (DecodeError, Refusal, codec.CorruptRecord),
        lambda: [
            records_pb2.JobSpec(
                name="a", command=["x"], devices=1, workdir="/tmp/../etc", env=[records_pb2.Label(key="A", value="b")]
            ).SerializeToString()
        ],
    ),
    "policy": Target(
        lambda data: parse_policy(text(data), "f"), (ConfigError,), lambda: [policy_text(default_policy()).encode()]
    ),
    "contracts": Target(lambda data: parse_contract(text(data), "f"), (ConfigError,), _files("sla/*.yaml")),
    "openslo": Target(lambda data: parse_slos(text(data), "f"), (ConfigError,), _files("openslo/*.yaml")),
    "manifests": Target(_manifest, (CheckpointError,), _manifests),
    "checkpoint-pickles": Target(
        inertpickle.read, (inertpickle.NotRead,), lambda: [b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", b"(dp0\n."]
    ),
    "selectors": Target(
        lambda data: parse_selector(text(data)), (BadSelector,), lambda: [b"a=b,c!=d", b"rack=r1, health!=healthy"]
    ),
    "identities": Target(
        lambda data: spiffe.parse_uri(text(data), "grid.test"),
        (BadIdentity,),
        lambda: [b"spiffe://grid.test/region/east/node/a", b"spiffe://grid.test/role/job-owner/namespace/n/user/a"],
    ),
    "csrs": Target(
        public_key_of,
        (BadCsr,),
        lambda: [request_for(ec.derive_private_key(7, ec.SECP256R1()), spiffe.node("east", "a"))],
    ),
    "page-tokens": Target(
        lambda data: from_token(text(data), (str, int, int, int)), (Refusal,), lambda: [to_token("a", 1, 2, 3).encode()]
    ),
}


def run_once(target: Target, data: bytes) -> None:
    """Raises whatever is none of the target's answers."""
    try:
        target.run(data)
    except target.answers:
        return
