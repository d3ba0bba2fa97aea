"""Protects: ``gridkeeper policy`` and ``gridkeeper query`` as people use them: real processes, exit codes, one fault a
line; and who may apply a policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gridkeeper.identity import spiffe
from tests.fixtures.filled import fleet
from tests.fixtures.gridserver import GridServers
from tests.integration.test_cli import Cli


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    held = GridServers(tmp_path)
    grid = fleet(2)
    grid.temperatures = {"east-1/gpu0": (91.0, ()), "east-1/gpu1": (60.0, ())}
    await held.start(grid)
    yield held
    await held.stop()


async def test_a_policy_is_applied_compared_and_taken_back(servers: GridServers, tmp_path: Path) -> None:
    cli = Cli(servers.config_file(spiffe.user("ann", "admin")), tmp_path)
    file = tmp_path / "policy.yaml"
    file.write_text("mode: acting\nrules:\n  - {name: a, when: temprature_c > 1}\n")
    bad = await cli("policy", "validate", str(file))
    assert bad.code == 2 and bad.out == ""
    assert [line.split(":")[2] for line in bad.err.splitlines()] == ["1", "3", "3", "3", "3", "3"]
    assert (await cli("policy", "apply", str(file))).code == 2

    file.write_text("probation_ms: 1000\n")
    tried = await cli("policy", "apply", str(file), "--dry-run")
    assert tried.code == 0 and "probation_ms: 600000 -> 1000" in tried.out and "nothing was applied" in tried.out
    first = await cli("policy", "apply", str(file), "--reason", "quick", "--expect-version", "0")
    assert first.code == 0 and first.out.startswith("policy version 1 applied by user/ann: quick")
    file.write_text("probation_ms: 2000\n")
    lost = await cli("policy", "apply", str(file), "--expect-version", "0")
    assert lost.code == 5 and "the newest policy is version 1, not 0" in lost.err
    assert (await cli("policy", "apply", str(file))).code == 0

    assert (await cli("policy", "get", "--version", "1")).out == "probation_ms: 1000\n"
    told = await cli("policy", "diff", "1", "2")
    assert told.out.splitlines()[-2:] == ["-probation_ms: 1000", "+probation_ms: 2000"]
    back = await cli("policy", "rollback", "1")
    assert back.code == 0 and back.out.startswith("policy version 3 applied by user/ann: back to version 1")
    versions = json.loads((await cli("policy", "history", "-o", "json")).out)
    assert [record["version"] for record in versions["records"]] == [1, 2, 3]
    assert (await cli("policy", "get", "--version", "9")).code == 4


async def test_only_an_admin_applies_and_a_viewer_asks(servers: GridServers, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("probation_ms: 1000\n")
    operator = Cli(servers.config_file(spiffe.user("bob", "operator")), tmp_path)
    refused = await operator("policy", "apply", str(file))
    assert refused.code == 5 and "ApplyPolicy needs admin" in refused.err
    viewer = Cli(servers.config_file(spiffe.user("eve", "viewer")), tmp_path)
    assert (await viewer("policy", "get")).code == 0
    hot = "select region, count(*) as n from devices where temperature_c > 85 group by region"
    asked = await viewer("query", hot, "-o", "json")
    assert (asked.code, json.loads(asked.out), asked.err) == (0, [{"region": "east", "n": 1}], "")
    hostile = await viewer("query", "select * from read_csv('/etc/passwd')")
    assert hostile.code == 2 and "'read_csv'" in hostile.err and len(hostile.err.splitlines()) == 1
