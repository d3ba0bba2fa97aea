"""Protects: every field of a policy document does something, and is documented with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gridkeeper.cli import doccolumns
from gridkeeper.policy import model
from gridkeeper.policy.columns import COLUMNS
from gridkeeper.policy.terms import FUNCTIONS
from tests.unit.test_configuration_doc import attributes_read

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "policy.md").read_text()
TABLES = (
    model.Policy, model.RulePolicy, model.EventPolicy, model.RepeatPolicy, model.CataloguePolicy, model.BudgetPolicy,
    model.BreakerPolicy, model.DrainPolicy, model.RepairPolicy, model.LivenessPolicy, model.PeerPolicy,
    model.RegionLossPolicy, model.PlacementPolicy, model.PlacementWeights, model.RegionTerms,
    model.MovePolicy, model.LinkPolicy, model.SettlementPolicy, model.AlertsPolicy,
)  # fmt: skip


def section(kind: type) -> dict[str, str]:
    """Field -> default, as the table says."""
    after = TEXT.split(f"\n## `{kind.__name__}`\n", 1)[1].split("\n## ", 1)[0]
    table = after.split("| field |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| ?(.*?) ?\| .*\|$", table, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
def test_each_field_has_a_row_with_its_default(kind: type) -> None:
    rows, fields = section(kind), {f.name: f for f in dataclasses.fields(kind)}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (rows[name] == "") == required, name
        if isinstance(field.default, (int, float, str)) and field.default != "":
            assert rows[name] == f"`{getattr(field.default, 'value', field.default)}`", name


def test_no_setting_is_without_effect() -> None:
    read = attributes_read()
    assert {
        f"{kind.__name__}.{f.name}" for kind in TABLES for f in dataclasses.fields(kind) if f.name not in read
    } == set()


def test_every_column_and_function_is_documented() -> None:
    assert doccolumns.document() == TEXT, "run python -m gridkeeper.cli.docgen"
    for name in (*COLUMNS, *FUNCTIONS):
        assert f"`{name}`" in TEXT or f"`{name}(" in TEXT, name
