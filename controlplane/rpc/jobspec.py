"""Pure: a submitted job spec, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from controlplane.rpc.refusal import invalid
from gridkeeper import codec
from gridkeeper.ids import BadName, JobId, RegionId, checked_name
from gridkeeper.records.common import Label
from gridkeeper.records.jobs import JobSpec
from gridkeeper.v1 import records_pb2

DEFAULT_NAMESPACE = "default"
DEFAULT_GRACE_MS = 30_000
MAX_GRACE_MS = 3_600_000
MAX_RESTARTS = 1_000
MAX_DEVICES = 64
MAX_NODES = 64
"""Of a gang: its members are sub-records of one run record, which each of their agents' reports rewrites."""
MAX_PRIORITY = 1_000_000
MAX_ARGUMENTS = 256
MAX_COMMAND_BYTES = 64 * 1024
MAX_ENV = 128
MAX_ENV_VALUE = 32 * 1024
MAX_PATH = 4_096
RESERVED_ENV = "GRIDKEEPER_"

_ENV_KEY = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
_MODEL = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._/+-]{0,63}$")


def checked_spec(message: records_pb2.JobSpec, regions: Collection[RegionId]) -> JobSpec:
    """The spec with defaults filled in (so that two submissions can be compared). ``regions``: those that exist.

    Raises ``Refusal`` naming field, value and remedy.
    """
    spec = codec.from_message(JobSpec, message)
    return JobSpec(
        name=JobId(name("spec.name", spec.name)),
        namespace=name("spec.namespace", spec.namespace or DEFAULT_NAMESPACE),
        command=_command(spec.command),
        env=_env(spec.env),
        workdir=_workdir(spec.workdir),
        devices=_between("spec.devices", spec.devices, 1, MAX_DEVICES),
        model=_model(spec.model),
        regions=_regions(spec.regions, regions),
        prefer_other_region=spec.prefer_other_region,
        handles_sigusr1=spec.handles_sigusr1,
        grace_ms=_between("spec.grace_ms", spec.grace_ms or DEFAULT_GRACE_MS, 0, MAX_GRACE_MS),
        max_restarts=_between("spec.max_restarts", spec.max_restarts, 0, MAX_RESTARTS),
        priority=_between("spec.priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY),
        residency=name("spec.residency", spec.residency) if spec.residency else "",
        nodes=_between("spec.nodes", spec.nodes or 1, 1, MAX_NODES),
    )


def name(field: str, value: str) -> str:
    """``checked_name``, as a refusal."""
    try:
        return checked_name(field, value)
    except BadName as error:
        raise invalid(str(error)) from error


def _between(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise invalid(f"{field}: {value} is not between {least} and {most}")
    return value


def _command(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command or not command[0]:
        raise invalid("spec.command: it is empty; give the program and its arguments, one element each")
    if len(command) > MAX_ARGUMENTS:
        raise invalid(f"spec.command: {len(command)} arguments; use at most {MAX_ARGUMENTS}, or a script")
    size = sum(len(argument.encode()) for argument in command)
    if size > MAX_COMMAND_BYTES:
        raise invalid(f"spec.command: {size} bytes; use at most {MAX_COMMAND_BYTES}, or a script")
    _no_nul("spec.command", command)
    return command


def _env(env: tuple[Label, ...]) -> tuple[Label, ...]:
    if len(env) > MAX_ENV:
        raise invalid(f"spec.env: {len(env)} variables; use at most {MAX_ENV}")
    seen = set()
    for variable in env:
        if not _ENV_KEY.match(variable.key):
            raise invalid(f"spec.env: {variable.key[:80]!r} is no name of a variable; use letters, digits and '_'")
        if variable.key.startswith(RESERVED_ENV):
            raise invalid(f"spec.env: {variable.key[:80]} is set by Gridkeeper itself; leave it out")
        if variable.key in seen:
            raise invalid(f"spec.env: {variable.key[:80]} is there twice; leave one out")
        if len(variable.value.encode()) > MAX_ENV_VALUE:
            raise invalid(f"spec.env: the value of {variable.key[:80]} is over {MAX_ENV_VALUE} bytes; use a file")
        seen.add(variable.key)
    _no_nul("spec.env", (variable.value for variable in env))
    return tuple(sorted(env, key=lambda variable: variable.key))


def _workdir(path: str) -> str:
    if not path:
        return path
    _no_nul("spec.workdir", (path,))
    if not path.startswith("/") or ".." in path.split("/") or len(path) > MAX_PATH:
        raise invalid(f"spec.workdir: {path[:80]!r} is no absolute path without '..'; leave it empty for a fresh one")
    return path


def _model(model: str) -> str:
    if model and not _MODEL.match(model):
        raise invalid(f"spec.model: {model[:80]!r} is no model name; copy it from 'gridkeeper get devices -o wide'")
    return model


def _regions(wanted: tuple[RegionId, ...], existing: Collection[RegionId]) -> tuple[RegionId, ...]:
    for region in wanted:
        name("spec.regions", region)
        if region not in existing:
            known = ", ".join(sorted(existing)) or "none yet"
            raise invalid(f"spec.regions: there is no region {region!r}; those that exist: {known}")
    return tuple(dict.fromkeys(wanted))


def _no_nul(field: str, values: Iterable[str]) -> None:
    if any("\0" in value for value in values):
        raise invalid(f"{field}: it holds a NUL character; remove it")
