"""Protects: what is deployed runs without root, without capabilities that it does not need, and starts what exists."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gridkeeper.cli.main import COMMANDS

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "UMask": "0077",
    "LimitCORE": "0",
}
CAPABILITIES = {"gridkeeper-agent": "CAP_SYSLOG", "gridkeeper-controlplane": ""}


def _settings(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_confined_and_starts_a_command_that_exists(unit: Path) -> None:
    settings = _settings(unit)
    assert HARDENED.items() <= settings.items()
    assert settings["User"] not in ("", "root", "0")
    assert settings["CapabilityBoundingSet"] == settings["AmbientCapabilities"] == CAPABILITIES[unit.stem]
    program, verb, *_ = shlex.split(settings["ExecStart"])
    assert program.endswith("/gridkeeper") and verb in COMMANDS


def test_an_agent_that_restarts_leaves_its_jobs_alone() -> None:
    assert _settings(DEPLOY / "systemd" / "gridkeeper-agent.service")["KillMode"] == "process"
    assert len(UNITS) == len(CAPABILITIES)


def test_the_container_is_not_root() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and all(user.split(":")[0] not in ("root", "0") for user in users)
    assert lines.index(f"USER {users[-1]}") < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
