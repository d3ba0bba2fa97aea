"""Protects: whoever is about to take something down is told which commitment that breaks, before it happens."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from gridkeeper.cli.main import run
from gridkeeper.clock import SystemClock
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.sla.books import frame_of
from gridkeeper.sla.contract import Contract
from gridkeeper.sla.document import parse_contract
from gridkeeper.sla.months import month_of, month_window
from gridkeeper.sla.outlook import outlooks
from gridkeeper.sla.whatif import Effect, effects

TEXT = """\
name: acme
provider: Grid Ltd
customer: Acme
source: {text: made up, date: "2026-01-01", certainty: example}
commitments:
  - {name: devices, per: device, target: 99.0, charge: 100, tiers: [{below: 99.0, credit: 10}]}
  - {name: nodes, per: node, target: 98.0, charge: 100, tiers: [{below: 98.0, credit: 10}]}
  - {name: regions, per: region, target: 99.9, tiers: []}
"""
MONTH, HOUR = "2024-10", 3_600_000
WINDOW = month_window(MONTH, "UTC")
NOW = WINDOW.from_ms + 500 * HOUR
SCOPES = ("device/n1/gpu0", "device/n1/gpu1", "device/n2/gpu0", "region/east")


def contract() -> Contract:
    return parse_contract(TEXT, "c.yaml")


def asked(hours: int, *down: str, lost_hours: int = 4) -> dict[tuple[str, str], Effect]:
    """744 hours allow a device 7.44 of them; n1/gpu0 has lost some."""
    entries = []
    for scope in SCOPES:
        lost = lost_hours * HOUR if scope == "device/n1/gpu0" else 0
        begin = WINDOW.from_ms + lost
        entries += [EntryRecord(scope, 5, MONTH, WINDOW.from_ms, begin, UptimeClass.DOWN, "", ())] if lost else []
        entries.append(EntryRecord(scope, 6, MONTH, begin, NOW, UptimeClass.UP, "", ()))
    found = effects(contract(), MONTH, frame_of(entries), {}, down, NOW, hours * HOUR)
    return {(one.commitment, one.subject): one for one in found}


def test_what_is_left_is_exact_and_what_breaks_is_said() -> None:
    found = asked(3, "device/n1/gpu0")
    assert set(found) == {("devices", "device/n1/gpu0"), ("nodes", "node/n1")}
    device = found["devices", "device/n1/gpu0"]
    assert (device.left_ms, device.left_after_ms) == (Fraction("3.44") * HOUR, Fraction("0.44") * HOUR)
    assert (device.breaks, device.owed) == (False, 0)
    broken = asked(4, "device/n1/gpu0")["devices", "device/n1/gpu0"]
    assert (broken.breaks, broken.left_after_ms, broken.owed) == (True, Fraction("-0.56") * HOUR, 10)
    already = asked(4, "device/n1/gpu0", lost_hours=8)["devices", "device/n1/gpu0"]
    assert (already.breaks, already.owed) == (False, 0), "it is owed already"


def test_a_time_beyond_the_month_counts_up_to_its_end_and_others_are_not_touched() -> None:
    found = asked(10_000, "device/n2/gpu0", "region/east")
    assert set(found) == {("devices", "device/n2/gpu0"), ("nodes", "node/n2"), ("regions", "region/east")}
    assert all(one.breaks for one in found.values())
    assert found["regions", "region/east"].after.measured.down_ms == WINDOW.until_ms - NOW


def test_what_the_ledger_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="no scope 'device/n9/gpu0'"):
        asked(1, "device/n9/gpu0")
    with pytest.raises(ValueError, match="is not the month that it is now"):
        effects(contract(), MONTH, frame_of(()), {}, (), WINDOW.until_ms, HOUR)


def test_a_forecast_says_what_is_left_and_when_it_ends() -> None:
    """A device that was down for 3 of the last 6 hours, of the 7.44 that its target allows."""
    down_from = NOW - 3 * HOUR
    entries = [
        EntryRecord("device/n1/gpu0", 2, MONTH, WINDOW.from_ms, down_from, UptimeClass.UP, "", ()),
        EntryRecord("device/n1/gpu0", 3, MONTH, down_from, NOW, UptimeClass.DOWN, "", ()),
        EntryRecord("region/east", 2, MONTH, WINDOW.from_ms, NOW, UptimeClass.UP, "", ()),
    ]
    first, second, region = outlooks(contract(), MONTH, frame_of(entries), {}, NOW, 6 * HOUR)
    assert (first.commitment, first.budget_ms, first.left_ms) == (
        "devices", Fraction("7.44") * HOUR, Fraction("4.44") * HOUR,
    )  # fmt: skip
    assert (first.rate, first.burn) == (Fraction(1, 2), 50)
    assert first.exhausted_in_ms == Fraction("8.88") * HOUR
    assert second.commitment == "nodes" and second.exhausted_in_ms == Fraction("23.76") * HOUR
    assert (region.burn, region.exhausted_in_ms) == (0, None)
    (gone, *_) = outlooks(contract(), MONTH, frame_of(entries[1:]), {}, NOW, 6 * HOUR)
    assert gone.exhausted_in_ms == 0 and gone.left_ms < 0
    with pytest.raises(ValueError, match="is not the month that it is now"):
        outlooks(contract(), MONTH, frame_of(()), {}, WINDOW.until_ms, HOUR)


def test_the_command_ends_with_5_when_a_commitment_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now_ms = SystemClock().wall_ms()
    month = month_window(month_of(now_ms, "UTC"), "UTC")
    path, books = tmp_path / "c.yaml", tmp_path / "books.parquet"
    path.write_text(TEXT)
    entries = [EntryRecord(scope, 2, MONTH, month.from_ms, month.until_ms, UptimeClass.UP, "", ()) for scope in SCOPES]
    frame_of(entries).write_parquet(books)
    arguments = ["sla", "what-if", "--contract", str(path), "--ledger", str(books), "--for", "1m"]
    assert run([*arguments, "--down", "device/n2/gpu0"]) == 0
    assert "holds" in capsys.readouterr().out
    path.write_text(TEXT.replace("target: 98.0", "target: 100"))
    assert run([*arguments, "--down", "node/n2"]) == 5
    assert "BREAKS" in capsys.readouterr().out
    assert run([*arguments, "--down", "node/n9"]) == 2
    assert "the ledger has nothing of 'node/n9'" in capsys.readouterr().err
