"""Protects: tricks with paths, links, YAML tags and sizes are refused where they come in, and nothing of them is
done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.rpc.jobspec import checked_spec
from controlplane.rpc.refusal import Refusal
from controlplane.shell.hello import MAX_LABELS, MAX_TEXT, BadHello, check_hello
from failover.checkpoint import manifest
from gridkeeper.config import AgentConfig
from gridkeeper.configfile import ConfigError, parse
from gridkeeper.ids import JobId, RegionId
from gridkeeper.policy.document import parse_policy
from gridkeeper.ports.jobs import CheckpointError
from gridkeeper.sla.document import parse_contract
from gridkeeper.sla.objectives import parse_slos
from gridkeeper.telemetry import SCHEMA_VERSION
from gridkeeper.v1 import agent_pb2, records_pb2

TAGS = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/name:os.system",
    "!!python/object/apply:subprocess.check_output [['touch', '{mark}']]",
)


@pytest.mark.parametrize("tag", TAGS)
def test_a_yaml_tag_does_nothing_and_is_refused(tag: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    written = tag.format(mark=mark)
    texts = (written, f"node: {written}", f"name: {written}\nkind: SLO\n", f"- {written}", f"a: &x {written}\nb: *x")
    for text in texts:
        for read in (
            lambda text: parse(AgentConfig, text, "f"),
            lambda text: parse_policy(text, "f"),
            lambda text: parse_contract(text, "f"),
            lambda text: parse_slos(text, "f"),
        ):
            with pytest.raises(ConfigError):
                read(text)
    assert not mark.exists()


@pytest.mark.parametrize("depth", [2, 12])
def test_a_yaml_of_aliases_of_aliases_is_refused_before_it_is_expanded(depth: int) -> None:
    """Protects against "a billion laughs": in parts that are kept verbatim, and in lists of lists of ours."""
    width = 2_000 if depth == 2 else 9
    lines = [f"x0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    bomb = "\n".join(lines)
    for read in (parse_policy, parse_contract, parse_slos):
        with pytest.raises(ConfigError, match="aliases"):
            read(bomb, "f")
    with pytest.raises(ConfigError, match="itself"):
        parse_policy("a: &a [*a]", "f")


PATHS = ("../../etc/shadow", "/etc/shadow", "a/../../b", "a//b", "", ".", "..", "a/./b", "a\0b", "x" * 5_000)


@pytest.mark.parametrize("path", PATHS)
def test_a_manifest_that_leads_out_of_its_directory_is_refused(path: str) -> None:
    import json

    file = {"path": path, "size": 0, "mode": 0o644, "chunks": []}
    document = {"format": manifest.FORMAT, "job": "train", "step": 1, "epoch": [1, 1], "files": [file]}
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(CheckpointError):
        manifest.decode(data, JobId("train"), 1, manifest.digest_of(data))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../../leader"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"namespace": ".."},
        {"workdir": "relative"},
        {"workdir": "/a/../../etc"},
        {"workdir": "/a\0b"},
        {"regions": ["../east"]},
        {"env": [records_pb2.Label(key="LD_PRELOAD=x", value="")]},
        {"env": [records_pb2.Label(key="GRIDKEEPER_EPOCH", value="9")]},
    ],
)
def test_a_job_that_names_paths_where_names_belong_is_refused(fields: dict[str, object]) -> None:
    base: dict[str, object] = {"name": "train", "command": ["true"], "devices": 1}
    with pytest.raises(Refusal):
        checked_spec(records_pb2.JobSpec(**{**base, **fields}), [RegionId("east")])  # type: ignore[arg-type]


def _hello() -> agent_pb2.Hello:
    hello = agent_pb2.Hello(node="east-1", region="east", rack="r1", spool="s1", metric_schema=SCHEMA_VERSION)
    hello.devices.add(slot="gpu0")
    return hello


def test_what_a_node_says_of_itself_is_bounded_and_of_itself() -> None:
    check_hello(_hello(), "east-1", "east")
    tricks = {
        "another node": lambda h: setattr(h, "node", "east-2"),
        "another region": lambda h: setattr(h, "region", "west"),
        "a rack that is a path": lambda h: setattr(h, "rack", "../r"),
        "a slot that is a path": lambda h: h.devices.add(slot="../../leader"),
        "a slot of another node": lambda h: h.devices.add(slot="x/east-2"),
        "too many devices": lambda h: h.devices.extend([agent_pb2.DeviceInfo(slot=f"g{n}") for n in range(100)]),
        "too many labels": lambda h: h.labels.extend([records_pb2.Label(key=f"k{n}") for n in range(MAX_LABELS + 1)]),
        "a long label": lambda h: h.labels.add(key="k", value="v" * (MAX_TEXT + 1)),
        "a label that steers terminals": lambda h: h.labels.add(key="k", value="\x1b[2J"),
        "too many backends": lambda h: h.backends.extend(["nvml"] * 100),
        "a long serial number": lambda h: h.devices.add(slot="g1", serial="9" * 10_000),
    }
    for what, trick in tricks.items():
        hello = _hello()
        trick(hello)  # type: ignore[no-untyped-call]
        with pytest.raises(BadHello):
            check_hello(hello, "east-1", "east")
            pytest.fail(f"accepted: {what}")


def test_a_key_behind_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    from gridkeeper.identity.files import InsecureKey, TlsError, read_file

    wide = tmp_path / "wide"
    wide.write_text("secret")
    wide.chmod(0o644)
    link = tmp_path / "link"
    link.symlink_to(wide)
    with pytest.raises(InsecureKey):
        read_file("tls.key", link, secret=True)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(TlsError, match="no regular file"):
        read_file("tls.key", tmp_path / "fifo", secret=True)
