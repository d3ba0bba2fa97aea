"""Protects: a contract is read strictly; its month is reported exactly, with what was left out, the evidence and the
credits owed, alike in every form; and the documents that are shipped name their date and source."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from gridkeeper.cli.main import run
from gridkeeper.configfile import ConfigError
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.sla import page, render
from gridkeeper.sla.books import frame_of, read_frame
from gridkeeper.sla.contract import Contract
from gridkeeper.sla.contracts import SHIPPED
from gridkeeper.sla.document import parse_contract, shipped_text
from gridkeeper.sla.months import month_window
from gridkeeper.sla.report import Report, make_report

TEXT = """\
name: acme
provider: Grid Ltd
customer: Acme & Sons
source: {text: signed on paper, date: "2026-01-01", certainty: agreed}
currency: EUR
zone: Europe/Berlin
minimum_payout: 10
claim_days: 30
rule: {exclude: from-both}
commitments:
  - name: per-device
    per: device
    select: vendor=nvidia
    target: 99.9
    charge: 1234.56
    tiers: [{below: 99.9, credit: 10}, {below: 99.0, credit: 30}]
  - name: per-node
    per: node
    target: 99.0
    tiers: []
"""
MONTH = "2024-10"
WINDOW = month_window(MONTH, "Europe/Berlin")
MINUTE, HOUR = 60_000, 3_600_000
LATER = WINDOW.until_ms + HOUR


def parsed(text: str = TEXT) -> Contract:
    return parse_contract(text, "c.yaml")


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        parsed(text)
    return str(wrong.value).splitlines()


def entries(scope: str, *changes: tuple[int, UptimeClass], first: int = 7) -> list[EntryRecord]:
    """A scope's ledger of the month: the class that begins after so many ms; it was there before."""
    ends = [at for at, _ in changes[1:]] + [WINDOW.elapsed_ms]
    return [
        EntryRecord(
            scope, first + n, MONTH, WINDOW.from_ms + at, WINDOW.from_ms + end, kind, f"because <{n}>", (f"i{n}",)
        )
        for n, ((at, kind), end) in enumerate(zip(changes, ends, strict=True))
    ]


UP, DOWN, AWAY = UptimeClass.UP, UptimeClass.DOWN, UptimeClass.EXCLUDED
LEDGER = frame_of(
    [
        *entries("device/n1/gpu0", (0, UP), (HOUR, DOWN), (HOUR + 60 * MINUTE, UP)),
        *entries("device/n1/gpu1", (0, AWAY), (2 * HOUR, UP)),
        *entries("device/n2/gpu0", (10 * HOUR, UP), first=1),
        *entries("region/east", (0, UP)),
    ]
)
LABELS = {f"device/{name}": {"vendor": "nvidia"} for name in ("n1/gpu0", "n1/gpu1", "n2/gpu0")}


def made(contract: Contract | None = None, now_ms: int = LATER, frame: pl.DataFrame = LEDGER) -> Report:
    return make_report(contract or parsed(), MONTH, frame, now_ms, LABELS)


def test_decimals_are_read_exactly_and_every_fault_is_told_with_its_line() -> None:
    contract = parsed()
    assert contract.commitments[0].target == Fraction("99.9")
    assert contract.commitments[0].charge == Fraction("1234.56")
    assert faults(TEXT.replace("99.9\n", "101\n")) == [
        "c.yaml:14: commitments[0].target: 101.0 is no percentage with at most seven decimals, between 0 and 100"
    ]
    assert faults(TEXT.replace("target: 99.9", "target: 9.99e1"))[0].endswith("is not a decimal number, like 99.95")
    told = faults(TEXT.replace("Europe/Berlin", "Berlin").replace("EUR", "Euro").replace("exclude:", "excludes:"))
    assert [line.split(": ")[:2] for line in told] == [
        ["c.yaml:5", "currency"], ["c.yaml:6", "zone"], ["c.yaml:9", "rule.excludes"],
    ]  # fmt: skip
    assert "did you mean 'exclude'" in told[2]
    assert "credits cannot begin above the target" in faults(TEXT.replace("target: 99.9", "target: 99.8"))[0]
    assert "is the name of the one in line 11 too" in faults(TEXT.replace("per-node", "per-device"))[0]


def test_a_month_is_reported_to_the_millisecond() -> None:
    report = made()
    devices, nodes = report.sections
    assert [line.subject for line in devices.lines] == ["device/n1/gpu0", "device/n1/gpu1", "device/n2/gpu0"]
    down, away, new = devices.lines
    hours = WINDOW.elapsed_ms // HOUR
    assert hours == 745
    assert down.measured.availability == Fraction(hours - 1, hours) and down.met is False
    assert (down.credit, down.owed) == (10, Fraction("123.456"))
    assert [(outage.uptime, outage.refs) for outage in down.outages] == [("down", ("i1",))]
    assert (away.measured.whole_ms, away.met) == ((hours - 2) * HOUR, True)
    assert away.measured.raw == Fraction(hours - 2, hours), "booked maintenance is down in the raw figure"
    assert (new.measured.elapsed_ms, new.met) == ((hours - 10) * HOUR, True), "measured from its first entry on"
    assert [line.subject for line in nodes.lines] == ["node/n1", "node/n2"]
    booked = nodes.lines[0].totals
    assert (booked.down_ms, booked.excluded_ms) == (HOUR, HOUR), "maintenance of one device excuses no other"
    assert (report.owed, report.payable) == (Fraction("123.456"), "123.46")
    for section in report.sections:
        for line in section.lines:
            t = line.totals
            total = t.up_ms + t.degraded_ms + t.down_ms + t.excluded_ms + t.unknown_ms
            assert total == line.measured.elapsed_ms


def test_a_node_is_down_while_any_of_its_devices_is() -> None:
    frame = frame_of(
        [
            *entries("device/n1/gpu0", (0, UP), (5 * HOUR, DOWN), (6 * HOUR, UP)),
            *entries("device/n1/gpu1", (0, UP), (330 * MINUTE, DOWN), (390 * MINUTE, UP)),
        ]
    )
    node = made(frame=frame).sections[1].lines[0]
    assert node.totals.down_ms == 90 * MINUTE


def test_what_is_owed_below_the_minimum_is_not_paid_and_exempt_devices_promise_nothing() -> None:
    report = made(replace(parsed(), minimum_payout=Fraction(124)))
    assert (report.owed, report.payable) == (Fraction("123.456"), "0.00")
    exempt = made(replace(parsed(), covers_accelerators=False))
    assert [section.lines for section in exempt.sections] == [(), ()] and exempt.owed == 0
    assert all("does not cover accelerators" in section.exempt for section in exempt.sections)


def test_an_open_month_is_measured_so_far_and_a_hole_in_the_ledger_is_unknown() -> None:
    now = WINDOW.from_ms + 2 * HOUR
    report = made(now_ms=now)
    assert report.open and report.sections[0].lines[0].measured.elapsed_ms == 2 * HOUR
    assert "the month is open" in render.text(report)
    with pytest.raises(ValueError, match="has not begun"):
        made(now_ms=WINDOW.from_ms)
    hole = frame_of(entries("device/n1/gpu0", (10 * HOUR, UP), first=7))
    line = made(frame=hole).sections[0].lines[0]
    assert line.totals.unknown_ms == 10 * HOUR == line.measured.down_ms, (
        "unknown counts as down unless agreed otherwise"
    )


def test_every_form_says_the_same() -> None:
    report = made()
    told = json.loads(render.json_text(report))
    rows = list(csv.DictReader(io.StringIO(render.csv_text(report))))
    text, web = render.text(report), page.html(report)
    subjects = [subject for section in told["commitments"] for subject in section["subjects"]]
    assert len(rows) == len(subjects) == 5
    for row, subject in zip(rows, subjects, strict=True):
        assert row["subject"] == subject["subject"] and row["owed"] == subject["owed"]
        assert row["availability_percent"] == subject["availability_percent"]
        assert Fraction(subject["availability"]) == 1 - Fraction(
            subject["down_ms"], subject["elapsed_ms"] - subject["excluded_ms"]
        )
        for form in (text, web):
            assert subject["subject"] in form and subject["availability_percent"] in form
    assert "owed:       123.46 EUR; payable 123.46 EUR" in text and "from-both" in text and "because <1> [i1]" in text
    assert "2024-10-31 23:59" not in text and "+02:00" in text and "+01:00" in text, "the clocks went back"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_what_people_wrote() -> None:
    web = page.html(made())
    reader = _Page()
    reader.feed(web)
    assert not reader.open, "every element is closed"
    assert not reader.loads and "script" not in reader.tags and not re.search(r"url\(|@import", web)
    assert "svg" in reader.tags and "Acme &amp; Sons" in web and "because &lt;1&gt;" in web and "<1>" not in web


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_valid_and_names_date_source_and_doubts(name: str) -> None:
    contract = parse_contract(shipped_text(name), f"{name}.yaml")
    assert contract.source.text.startswith("https://") and contract.source.date and contract.source.seen
    assert contract.source.unsure, "none of these was confirmed to the last figure"
    assert all(promise.tiers[0].below == promise.target for promise in contract.commitments)


def test_the_command_reports_from_a_file_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract, ledger = tmp_path / "c.yaml", tmp_path / "ledger.parquet"
    contract.write_text(TEXT.replace("    select: vendor=nvidia\n", "    select: node=n1\n"))
    LEDGER.write_parquet(ledger)
    assert read_frame(ledger).equals(LEDGER)
    arguments = ["sla", "report", "--contract", str(contract), "--month", MONTH, "--ledger", str(ledger)]
    assert run([*arguments, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [subject["subject"] for subject in told["commitments"][0]["subjects"]] == [
        "device/n1/gpu0",
        "device/n1/gpu1",
    ]
    pl.DataFrame({"scope": ["a"]}).write_parquet(ledger)
    assert run(arguments) == 2
    assert "sequence: this column is missing" in capsys.readouterr().err
    assert run([*arguments[:-2], "--ledger", str(contract)]) == 2
    assert "cannot be read as Parquet" in capsys.readouterr().err
    assert run(["sla", "contract", "example", "aws"]) == 0
    assert parse_contract(capsys.readouterr().out, "aws").name == "aws-compute"
