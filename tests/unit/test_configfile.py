"""Protects: a configuration is what its file says, or the operator is told file, line, field, value and remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.config import (
    AgentConfig,
    ClientConfig,
    ControlPlaneConfig,
    RegionEndpoints,
    RegionPath,
    StoreConfig,
    TlsFiles,
)
from gridkeeper.configfile import ConfigError, dump, load, parse
from gridkeeper.configrules import RULES
from gridkeeper.ids import NodeId, RegionId, ReplicaId
from gridkeeper.policy.model import Policy
from gridkeeper.records.common import Label
from gridkeeper.timings import SHORT, Timings

TLS = TlsFiles("/e/node.crt", "/e/node.key", "/e/ca.crt")
AGENT = AgentConfig(
    node=NodeId("east-1"),
    region=RegionId("east"),
    servers=("127.0.0.1:7443", "[::1]:7444"),
    state_dir="/var/lib/gridkeeper",
    tls=TLS,
    checkpoints="/mnt/ck",
    labels=(Label("zone", "a"), Label("row", "12")),
    backends=("nvml", "host", "replay:/tmp/x"),
)
CONTROL = ControlPlaneConfig(
    replica=ReplicaId("east-r1"),
    region=RegionId("east"),
    listen="0.0.0.0:7443",
    tls=TLS,
    region_store=StoreConfig(("https://10.0.0.1:2379",), TLS, "root", "/e/pw"),
    global_store=StoreConfig(("10.0.0.1:2379", "http://10.0.0.2:2379"), allow_unsafe_version=True),
    checkpoints=(RegionPath(RegionId("east"), "/ck/east"), RegionPath(RegionId("west"), "/ck/west")),
    timings=SHORT,
    policy_file="/etc/gridkeeper/policy.yaml",
)
CLIENT = ClientConfig((RegionEndpoints(RegionId("east"), ("127.0.0.1:7443",)),), TLS)

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(lambda t: t.strip())


@pytest.mark.parametrize("config", [AGENT, CONTROL, CLIENT], ids=lambda c: type(c).__name__)
def test_what_is_written_is_read_back(config: AgentConfig | ControlPlaneConfig | ClientConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(type(config), path) == config


@given(texts, texts, st.booleans(), st.integers(65_536, 1 << 40), st.lists(st.tuples(texts, texts), max_size=4))
def test_any_text_survives(path: str, label: str, kernel: bool, size: int, labels: list[tuple[str, str]]) -> None:
    config = dataclasses.replace(
        AGENT,
        state_dir=path,
        kernel_log=label if kernel else "",
        spool_max_bytes=size,
        labels=tuple(Label(*pair) for pair in labels),
    )
    assert parse(AgentConfig, dump(config), "x") == config


@given(st.text(max_size=300))
def test_no_text_gets_past_with_anything_but_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(AgentConfig, text, "x")


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_as_something_valid_or_refused(data: st.DataObject) -> None:
    text = dump(CONTROL)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        config = parse(ControlPlaneConfig, damaged, "x")
    except ConfigError as error:
        assert all(line.startswith("x:") for line in str(error).splitlines() if line.strip())
    else:
        assert parse(ControlPlaneConfig, dump(config), "x") == config


def test_defaults_apply_and_a_whole_number_may_stand_for_a_fraction() -> None:
    config = parse(ControlPlaneConfig, _without(dump(CONTROL), "timings") + "timings: {clock_ratio: 1}", "x")
    assert config.timings == Timings(clock_ratio=1.0)
    assert isinstance(config.timings.clock_ratio, float)
    assert parse(Policy, "freeze_fraction: 1", "x") == Policy(freeze_fraction=1.0)


def _without(text: str, *fields: str) -> str:
    kept, skipping = [], False
    for line in text.splitlines(keepends=True):
        if not line.startswith((" ", "-")):
            skipping = line.partition(":")[0] in fields
        if not skipping:
            kept.append(line)
    return "".join(kept)


BASE = """\
node: east-1
region: east
servers: ["127.0.0.1:7443"]
state_dir: /var/lib/gridkeeper
tls: {certificate: a, key: b, authority: c}
checkpoints: /ck
"""


def _agent(**changed: str) -> str:
    lines = dict(line.split(": ", 1) for line in BASE.splitlines())
    lines.update(changed)
    return "\n".join(f"{key}: {value}" for key, value in lines.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "agent.yaml: the file is empty; it needs node, region, servers, state_dir, tls, checkpoints"),
        ("# nothing", "agent.yaml: the file is empty"),
        ("just text", "agent.yaml:1: 'just text' is not a group of fields"),
        ("- a", "agent.yaml:1: a list is not a group of fields"),
        ("a: [", "agent.yaml:1: not YAML: "),
        ("\t", "agent.yaml:1: not YAML: "),
        ("a: !!python/object:os.system x", "agent.yaml:1: a: there is no such field"),
        ("a: *nobody", "agent.yaml:1: not YAML: found undefined alias"),
        ("[" * 5000, "agent.yaml: not YAML: "),
        ("a: b\x00", "agent.yaml: not YAML: unacceptable character"),
        (BASE + "srevers: []", "agent.yaml:7: srevers: there is no such field; did you mean 'servers'?"),
        (BASE + "zzz: 1", "agent.yaml:7: zzz: there is no such field; there are: node, region, servers"),
        (BASE + "node: b", "agent.yaml:7: node: is there twice; leave one out"),
        (BASE + "[a]: b", "agent.yaml:7: a list cannot be a field's name"),
        (BASE.replace("node: east-1\n", ""), "agent.yaml:1: node: is missing; add it"),
        (_agent(node="East 1"), "agent.yaml:1: node: 'East 1' is not a name; use 1 to 63 of"),
        (_agent(node="1"), "agent.yaml:1: node: '1' is not a text to YAML; put it in quotes: \"1\""),
        (_agent(node="yes"), "agent.yaml:1: node: 'yes' is not a text to YAML"),
        (_agent(node=""), "agent.yaml:1: node: nothing is not a text"),
        (_agent(node="[a]"), "agent.yaml:1: node: a list is not a text"),
        (_agent(region="../etc"), "agent.yaml:2: region: '../etc' is not a name"),
        (_agent(rack="a/b"), "agent.yaml:7: rack: 'a/b' is not a name"),
        (_agent(servers="127.0.0.1:7443"), "servers: '127.0.0.1:7443' is not a list; write [127.0.0.1:7443]"),
        (_agent(servers="[]"), "agent.yaml:3: servers: is an empty list"),
        (_agent(servers="[localhost]"), "agent.yaml:3: servers[0]: 'localhost' is not host:port"),
        (_agent(servers="['a:1', 'a:0']"), "agent.yaml:3: servers[1]: 'a:0' has the port '0'; use 1 to 65535"),
        (_agent(servers="['a:70000']"), "servers[0]: 'a:70000' has the port '70000'; use 1 to 65535"),
        (_agent(servers="['a:http']"), "servers[0]: 'a:http' has the port 'http'"),
        (_agent(servers="['https://a:1']"), "servers[0]: 'https://a:1' is not host:port"),
        (_agent(servers="['::1:7443']"), "servers[0]: '::1:7443' is not host:port; write it like"),
        (_agent(servers="[10:20]"), "servers[0]: '10:20' is not a text to YAML; put it in quotes: \"10:20\""),
        (_agent(servers="[{a: b}]"), "servers[0]: a group of fields is not a text"),
        (_agent(tls="a.pem"), "tls: 'a.pem' is not a group of fields; it needs certificate, key, authority"),
        (_agent(tls="{certificate: a, key: b}"), "agent.yaml:5: tls.authority: is missing; add it"),
        (_agent(tls="{certificate: a, key: b, authority: ' '}"), "tls.authority: is empty; give a path"),
        (_agent(tls="{certificate: a, key: b, autority: c}"), "tls.autority: there is no such field; did you mean"),
        (_agent(state_dir="''"), "agent.yaml:4: state_dir: is empty; give a path"),
        (_agent(backends="[cuda]"), "backends[0]: 'cuda' is no backend; use nvml, amd, ascend"),
        (_agent(backends="['replay:']"), "backends[0]: 'replay:' is no backend"),
        (_agent(backends="['amd:']"), "backends[0]: 'amd:' is no backend"),
        (_agent(driver_timeout_ms="10s"), "driver_timeout_ms: '10s' is not a whole number, like 20000"),
        (_agent(driver_timeout_ms="1.5"), "driver_timeout_ms: '1.5' is not a whole number"),
        (_agent(driver_timeout_ms="0x10"), "driver_timeout_ms: '0x10' is not a whole number"),
        (_agent(driver_timeout_ms="010"), "driver_timeout_ms: '010' is not a whole number"),
        (_agent(driver_timeout_ms="true"), "driver_timeout_ms: 'true' is not a whole number"),
        (_agent(driver_timeout_ms="'500'"), "driver_timeout_ms: '500' is not a whole number"),
        (_agent(driver_timeout_ms="-1"), "driver_timeout_ms: -1 is not between 100 and 600000"),
        (_agent(driver_timeout_ms="9" * 30), "is not a whole number"),
        (_agent(metrics_listen="9100"), "metrics_listen: '9100' is not a text to YAML"),
        (_agent(metrics_listen="':9100'"), "metrics_listen: ':9100' is not host:port"),
        (_agent(labels="[a]"), "labels[0]: 'a' is not a group of fields; it needs key, value"),
        (_agent(labels="{a: 1}"), "labels.a: '1' is not a text to YAML"),
        (_agent(labels="{a: b, a: c}"), "labels.a: is there twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_agents_file_is_told(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AgentConfig, text, "agent.yaml")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("timings: {takeover_ms: 10}", "timings.takeover_ms: 10 is less than (stale_ms + fence_ms) × clock_ratio = 24"),
        ("timings: {fence_ms: 40000}", "x:1: timings.takeover_ms: 35000 is less than"),
        ("timings: {renewal_ms: 9000}", "timings.renewal_ms: 9000 leaves fewer than three renewals"),
        ("timings: {fence_ms: soon}", "timings.fence_ms: 'soon' is not a whole number, like 20000"),
        ("timings: {clock_ratio: 0.5}", "timings.clock_ratio: 0.5 is not between 1.0 and 2.0"),
        ("timings: {clock_ratio: .inf}", "timings.clock_ratio: '.inf' is not a number"),
        ("timings: {clock_ratio: .nan}", "timings.clock_ratio: '.nan' is not a number"),
        ("timings: {fence: 1}", "timings.fence: there is no such field; did you mean 'fence_ms'?"),
        ("timings: {heartbeat_ms: 0}", "timings.heartbeat_ms: 0 is not between"),
        ("timings:", "timings: nothing is not a group of fields; it needs some of its fields, or leave it out"),
        ("trust_domain: Grid Example", "trust_domain: 'Grid Example' is none; use 1 to 255"),
        ("listen: 0.0.0.0", "listen: '0.0.0.0' is not host:port"),
        ("region_store: {endpoints: []}", "region_store.endpoints: is an empty list"),
        ("region_store: {endpoints: [ftp://a:1]}", "region_store.endpoints[0]: 'ftp://a:1' is not host:port"),
        ("region_store: {endpoints: ['a:1'], allow_unsafe_version: yes}", "version: 'yes' is not true or false"),
        ("checkpoints: [{region: EAST, path: /a}]", "checkpoints[0].region: 'EAST' is not a name"),
        ("checkpoints: []", "checkpoints: is an empty list"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_control_planes_file_is_told(changed: str, expected: str) -> None:
    text = changed + "\n" + _without(dump(CONTROL), changed.partition(":")[0])
    with pytest.raises(ConfigError) as caught:
        parse(ControlPlaneConfig, text, "x")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("x:1: ")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AgentConfig, _agent(node="A", servers="[b]", nonsense="1"), "x")
    assert len(str(caught.value).splitlines()) == 3


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load(AgentConfig, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(AgentConfig, tmp_path)
    (tmp_path / "latin").write_bytes(b"node: \xe9")
    with pytest.raises(ConfigError, match="byte 6 is not UTF-8"):
        load(AgentConfig, tmp_path / "latin")
    (tmp_path / "huge").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        load(AgentConfig, tmp_path / "huge")


def test_each_rule_is_for_a_field_that_exists() -> None:
    for kind, name in RULES:
        assert name in {f.name for f in dataclasses.fields(kind)}, (kind, name)
