"""A job as a YAML file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from gridkeeper.records.common import Label
from gridkeeper.v1 import records_pb2


@dataclass(frozen=True, slots=True)
class JobFile:
    """``gridkeeper job submit -f``. ``command``: the program and its arguments, one element each. ``grace_ms`` 0: the
    control plane's default (30 s). ``nodes``: members of a gang, each with so many ``devices``."""

    name: str
    command: tuple[str, ...]
    devices: int = 1
    namespace: str = "default"
    env: tuple[Label, ...] = ()
    workdir: str = ""
    model: str = ""
    regions: tuple[str, ...] = ()
    prefer_other_region: bool = False
    handles_sigusr1: bool = False
    grace_ms: int = 0
    max_restarts: int = 3
    priority: int = 0
    residency: str = ""
    nodes: int = 1


def to_spec(job: JobFile) -> records_pb2.JobSpec:
    return records_pb2.JobSpec(
        name=job.name,
        namespace=job.namespace,
        command=job.command,
        env=[records_pb2.Label(key=variable.key, value=variable.value) for variable in job.env],
        workdir=job.workdir,
        devices=job.devices,
        model=job.model,
        regions=job.regions,
        prefer_other_region=job.prefer_other_region,
        handles_sigusr1=job.handles_sigusr1,
        grace_ms=job.grace_ms,
        max_restarts=job.max_restarts,
        priority=job.priority,
        residency=job.residency,
        nodes=job.nodes,
    )


def parse_env(pairs: tuple[str, ...]) -> tuple[Label, ...]:
    """From ``KEY=VALUE`` words. Raises ``ValueError``."""
    labels = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--env: {pair!r} is not KEY=VALUE")
        labels.append(Label(key, value))
    return tuple(labels)


def shown(command: tuple[str, ...]) -> str:
    """As one would type it."""
    return shlex.join(command)
