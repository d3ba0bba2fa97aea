"""Protects: every field of every configuration file is documented, with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gridkeeper import config
from gridkeeper.snapshot import BudgetPolicy, Policy
from gridkeeper.timings import Timings

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
TABLES = (config.AgentConfig, config.ControlPlaneConfig, config.ClientConfig, config.TlsFiles, config.StoreConfig,
          Timings, Policy)  # fmt: skip
SENTENCES = (config.RegionPath, config.RegionEndpoints, BudgetPolicy)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_each_field_has_a_row_with_its_default(kind: type) -> None:
    after = TEXT.split(f"`{kind.__name__}`)" if f"`{kind.__name__}`)" in TEXT else f"\n`{kind.__name__}`:", 1)[1]
    table = after[: after.index("\n\n", after.index("|---|"))]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table.replace("|  |", "| |"), re.MULTILINE))
    rows |= dict.fromkeys(re.findall(r"^\| `(\w+)` \| \|", table, re.MULTILINE), "")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (rows[name] == "") == required, name
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert rows[name] == f"`{field.default}`", name


@pytest.mark.parametrize("kind", SENTENCES, ids=lambda kind: kind.__name__)
def test_small_parts_are_described(kind: type) -> None:
    after = TEXT[TEXT.rindex(f"`{kind.__name__}`:") :]
    assert {f.name for f in dataclasses.fields(kind)} <= set(re.findall(r"`(\w+)`", after[:300]))
