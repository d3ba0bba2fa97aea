"""Protects: neither side of a contract can rewrite history unseen, and a closed month with its adjustments is the
ledger of all events."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.cli.main import run
from gridkeeper.records.books import EntryRecord, Totals, UptimeClass
from gridkeeper.sla.books import frame_of
from gridkeeper.sla.closing import adjustments, clipped, totals
from gridkeeper.sla.months import month_window
from gridkeeper.sla.receipts import BadReceipt, Receipt, chains_of, differences, parse_receipt
from gridkeeper.sla.spans import Window

HOUR = 3_600_000
MONTH = "2024-10"
WINDOW = month_window(MONTH, "UTC")


def entry(
    number: int, kind: UptimeClass = UptimeClass.UP, scope: str = "device/n1/gpu0", hours: int = 100
) -> EntryRecord:
    begin = WINDOW.from_ms + (number - 1) * hours * HOUR
    return EntryRecord(scope, number, MONTH, begin, begin + hours * HOUR, kind, f"entry {number}", (f"i{number}",))


ENTRIES = [entry(n) for n in range(1, 8)] + [entry(n, scope="job/train") for n in range(1, 4)]
RECEIPT = Receipt(1, WINDOW.from_ms, WINDOW.until_ms, "", chains_of(frame_of(ENTRIES)))


def test_what_was_signed_and_only_that_is_compared() -> None:
    later = [*ENTRIES, entry(8), entry(1, scope="region/east")]
    assert differences(RECEIPT, frame_of(reversed(later))) == ()
    for changed in (
        replace(ENTRIES[3], uptime=UptimeClass.DOWN),
        replace(ENTRIES[3], until_ms=ENTRIES[3].until_ms + 1),
        replace(ENTRIES[3], reason="another story"),
        replace(ENTRIES[3], refs=()),
    ):
        (told,) = differences(RECEIPT, frame_of([*ENTRIES[:3], changed, *ENTRIES[4:]]))
        assert told == "device/n1/gpu0: an entry between 1 and 7 was changed"
    (told,) = differences(RECEIPT, frame_of(ENTRIES[:7]))
    assert told == "job/train: its entries 1 to 3 are not in the books"
    (told,) = differences(RECEIPT, frame_of(ENTRIES[1:]))
    assert "the books hold entries 2 to 7, the receipt names 1 to 7" in told
    with pytest.raises(BadReceipt, match="entry 5 follows entry 3; one is missing"):
        differences(RECEIPT, frame_of([*ENTRIES[:3], *ENTRIES[4:]]))
    with pytest.raises(BadReceipt, match="entry 3 follows entry 3"):
        chains_of(frame_of([*ENTRIES, ENTRIES[2]]))


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two users' keys and certificates."""
    directory = tmp_path_factory.mktemp("ca")
    authority = ["--ca", str(directory / "ca")]
    assert run(["ca", "init", *authority]) == 0
    for name in ("ann", "bob"):
        assert run(["ca", "issue", "user", name, "--role", "admin", *authority, "--out", str(directory)]) == 0
    return directory


def test_the_commands_sign_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str], operator: Path) -> None:
    key, certificate, other = (operator / name for name in ("user-ann.key", "user-ann.crt", "user-bob.crt"))
    books, first, second = tmp_path / "books.parquet", tmp_path / "1.json", tmp_path / "2.json"
    frame_of(ENTRIES).write_parquet(books)
    sign = ["sla", "receipt", "--month", MONTH, "--ledger", str(books), "--key", str(key)]
    capsys.readouterr()
    assert run(sign) == 0
    first.write_text(capsys.readouterr().out)
    assert run([*sign, "--after", str(first), "--scope", "job/"]) == 0
    second.write_text(capsys.readouterr().out)
    assert [chain.scope for chain in parse_receipt(second.read_text()).chains] == ["job/train"]
    check = ["sla", "verify", "--ledger", str(books), "--certificate", str(certificate), "--receipt"]
    assert run([*check, str(first)]) == 0
    assert "10 entries of 2 scopes are as" in capsys.readouterr().out
    assert run([*check, str(second), "--after", str(first)]) == 0
    assert run([*check, str(first), "--after", str(second)]) == 2
    assert "does not name" in capsys.readouterr().err
    frame_of([*ENTRIES[:9], replace(ENTRIES[9], reason="rewritten")]).write_parquet(books)
    assert run([*check, str(first)]) == 1
    assert capsys.readouterr().out == "job/train: an entry between 1 and 3 was changed\n"
    forged = json.loads(first.read_text())
    forged["chains"] = forged["chains"][:1]
    second.write_text(json.dumps(forged))
    assert run([*check, str(second)]) == 2
    assert "is not by this certificate's key, or the receipt was changed" in capsys.readouterr().err
    assert run(["sla", "verify", "--ledger", str(books), "--certificate", str(other), "--receipt", str(first)]) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "x"}, "kind: is no SlaReceipt"), ({"chains": [[1]]}, "chains: "), ({"issued_ms": "1"}, "issued_ms: "),
        ({"signature": None}, "signature: is missing"), ({"version": 2}, "of version 1"),
    ],
)  # fmt: skip
def test_a_receipt_that_is_none_is_refused(change: dict[str, object], told: str) -> None:
    assert parse_receipt(RECEIPT.text()) == RECEIPT
    with pytest.raises(BadReceipt, match=told):
        parse_receipt(json.dumps({**json.loads(RECEIPT.text()), **change}))
    with pytest.raises(BadReceipt, match="is no JSON"):
        parse_receipt("{")


KINDS = st.sampled_from(UptimeClass)
cuts = st.lists(st.tuples(st.integers(1, 40), KINDS), min_size=1, max_size=8)
SHORT = Window(100, 200)


def ledger(scope: str, parts: list[tuple[int, UptimeClass]], begin: int) -> list[EntryRecord]:
    found, at = [], begin
    for number, (length, kind) in enumerate(parts, 1):
        found.append(EntryRecord(scope, number, MONTH, at, at + length, kind, "", ()))
        at += length
    return found


@given(cuts, cuts, st.integers(50, 150))
def test_a_closed_month_and_its_adjustments_are_the_ledger_now(
    before: list[tuple[int, UptimeClass]], after: list[tuple[int, UptimeClass]], begin: int
) -> None:
    closed = clipped(frame_of(ledger("job/a", before, begin)), SHORT)
    now = frame_of([*ledger("job/a", after, begin), *ledger("job/b", after, 90)])
    booked = totals(closed, SHORT)
    for adjustment in adjustments(MONTH, closed, now, SHORT):
        old, change = booked.get(adjustment.scope, Totals(0, 0, 0, 0, 0)), adjustment.change
        booked[adjustment.scope] = Totals(*(getattr(old, name) + getattr(change, name) for name in Totals.__slots__))
    wanted = totals(clipped(now, SHORT), SHORT)
    assert {scope: held for scope, held in booked.items() if held != Totals(0, 0, 0, 0, 0)} == wanted
    assert adjustments(MONTH, closed, closed, SHORT) == ()


def test_a_month_is_closed_once_and_what_came_later_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books, directory = tmp_path / "books.parquet", tmp_path / "closed"
    frame_of(ENTRIES).write_parquet(books)
    options = ["--month", MONTH, "--ledger", str(books), "--directory", str(directory)]
    assert run(["sla", "close", *options]) == 0
    segment = directory / f"{MONTH}.parquet"
    assert pl.read_parquet(segment).height == len(ENTRIES) and segment.stat().st_mode & 0o222 == 0
    assert [path.name for path in directory.iterdir()] == [segment.name]
    assert run(["sla", "close", *options]) == 2
    assert "this month is closed" in capsys.readouterr().err
    assert run(["sla", "adjustments", *options]) == 0
    assert capsys.readouterr().err == "nothing to adjust\n"
    frame_of([*ENTRIES[:2], replace(ENTRIES[2], uptime=UptimeClass.DOWN), *ENTRIES[3:]]).write_parquet(books)
    assert run(["sla", "adjustments", *options]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == [MONTH, "device/n1/gpu0", f"{-100 * HOUR}", "+0", f"+{100 * HOUR}", "+0", "+0"]
    assert run(["sla", "close", "--month", "2999-01", "--ledger", str(books), "--directory", str(directory)]) == 2
    assert "is not over in UTC" in capsys.readouterr().err
