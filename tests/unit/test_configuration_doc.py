"""Protects: every field of every configuration file does something, and is documented with its default."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path

import pytest

from gridkeeper import config
from gridkeeper.timings import Timings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text()
TABLES = (config.AgentConfig, config.ControlPlaneConfig, config.ClientConfig, config.TlsFiles, config.StoreConfig,
          config.LimitsConfig, config.BearerConfig, Timings)  # fmt: skip
SENTENCES = (config.RegionPath, config.RegionEndpoints, config.RepairCommands, config.SlurmHost,
             config.KubernetesHost)  # fmt: skip


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_each_field_has_a_row_with_its_default(kind: type) -> None:
    after = TEXT.split(f"`{kind.__name__}`)" if f"`{kind.__name__}`)" in TEXT else f"\n`{kind.__name__}`:", 1)[1]
    table = after[after.index("|---|") :].split("\n\n", 1)[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table.replace("|  |", "| |"), re.MULTILINE))
    rows |= dict.fromkeys(re.findall(r"^\| `(\w+)` \| \|", table, re.MULTILINE), "")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (rows[name] == "") == required, name
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert rows[name] == f"`{field.default}`", name


@functools.cache
def attributes_read() -> set[str]:
    """Names of all attributes that the product reads."""
    parts = ("gridkeeper", "controlplane", "failover", "nodeagent", "tui")
    files = [path for part in parts for path in (ROOT / part).rglob("*.py") if "v1" not in path.parts]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("kind", (*TABLES, *SENTENCES), ids=lambda kind: kind.__name__)
def test_no_setting_is_without_effect(kind: type) -> None:
    assert {f.name for f in dataclasses.fields(kind)} <= attributes_read()


@pytest.mark.parametrize("kind", SENTENCES, ids=lambda kind: kind.__name__)
def test_small_parts_are_described(kind: type) -> None:
    after = TEXT[TEXT.rindex(f"`{kind.__name__}`:") :]
    assert {f.name for f in dataclasses.fields(kind)} <= set(re.findall(r"`(\w+)`", after[:300]))
