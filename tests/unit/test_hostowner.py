"""Protects: an agent's configuration alone decides whose processes jobs are, and no host pays for another's client."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from failover.executors.process import ProcessExecutor
from failover.executors.queued import QueuedExecutor
from gridkeeper.config import AgentConfig, KubernetesHost, SlurmHost, TlsFiles
from gridkeeper.configfile import ConfigError, dump, parse
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.ports.jobs import ExecutorError
from nodeagent.hostowner import executor_of, scheduler_of

BARE = AgentConfig(NodeId("n1"), RegionId("east"), ("cp:1",), "/s", TlsFiles("c", "k", "a"), "/c")
SLURM = SlurmHost("n1", ("--partition=gpu",))
KUBERNETES = KubernetesHost("n1", "train:1")


@pytest.mark.parametrize(
    ("config", "kind", "name", "gate"),
    [
        (BARE, ProcessExecutor, "", ""),
        (replace(BARE, slurm=SLURM), QueuedExecutor, "slurm", "Slurm"),
        (replace(BARE, slurm=replace(SLURM, drain=False)), QueuedExecutor, "", ""),
        (replace(BARE, kubernetes=KUBERNETES), QueuedExecutor, "kubernetes", "Kubernetes"),
        (replace(BARE, kubernetes=replace(KUBERNETES, drain=False)), QueuedExecutor, "", ""),
    ],
)
def test_the_owner_of_a_host_is_the_one_configured(
    config: AgentConfig, kind: type, name: str, gate: str, tmp_path: Path
) -> None:
    assert parse(AgentConfig, dump(config), "agent.yaml") == config
    executor, found = executor_of(config, tmp_path)
    executor.close()
    assert isinstance(executor, kind)
    assert (scheduler_of(config), found.title if found else "") == (name, gate)


def test_a_host_has_one_owner(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"slurm, kubernetes: .*leave one of them out"):
        executor_of(replace(BARE, slurm=SLURM, kubernetes=KUBERNETES), tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slurm: {node: 'n[1-4]'}", r"slurm.node: 'n\[1-4\]' is no name of one node"),
        ("slurm: {node: n1, options: [-p gpu]}", "is no long option of sbatch"),
        ("slurm: {node: n1, options: [--nodelist=n2]}", "the agent itself gives --nodelist"),
        ("kubernetes: {node: N1, image: i}", "kubernetes.node: 'N1' is no name of Kubernetes"),
        ("kubernetes: {node: n1, image: i, mounts: [data]}", "'data' is no absolute path"),
    ],
)
def test_what_would_lose_jobs_is_refused_with_a_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(AgentConfig, f"{dump(BARE).replace('slurm: null', '').replace('kubernetes: null', '')}\n{text}\n", "a")


def test_the_client_of_kubernetes_is_loaded_where_it_is_needed_only() -> None:
    script = "import sys, nodeagent.main; sys.exit('kubernetes_asyncio' in sys.modules)"
    assert subprocess.run((sys.executable, "-P", "-c", script), check=False).returncode == 0
