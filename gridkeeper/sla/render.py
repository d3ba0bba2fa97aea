"""A report as text, JSON, CSV. Pure. Percentages have six decimals and amounts the currency's, rounded half up."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from fractions import Fraction
from typing import Any

from gridkeeper.sla.contract import Contract
from gridkeeper.sla.credit import decimal_text, exact_text, money
from gridkeeper.sla.months import zone_of
from gridkeeper.sla.report import Line, Report, Section

PLACES = 6


def percent(value: Fraction | None) -> str:
    """``99.652778``; ``-`` where nothing was measured."""
    return "-" if value is None else decimal_text(value * 100, PLACES)


def moment(at_ms: int, zone: str) -> str:
    """With its offset, since an hour comes twice where the clocks go back."""
    return datetime.fromtimestamp(at_ms / 1000, zone_of(zone)).isoformat(" ", "milliseconds")


def span(ms: int) -> str:
    """``1d02h03m04.005s``, exact."""
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days}d" if days else "", f"{hours:02d}h" if days or hours else "", f"{minutes:02d}m"]
    return "".join(parts) + f"{seconds:02d}" + (f".{rest:03d}" if rest else "") + "s"


def amount(value: Fraction, contract: Contract) -> str:
    return f"{money(value, contract.decimals)} {contract.currency}"


def verdict(line: Line) -> str:
    return "no data" if line.met is None else "met" if line.met else "MISSED"


def heading(report: Report) -> list[tuple[str, str]]:
    """What a report rests on: stated by each form of it."""
    contract, rule = report.contract, report.contract.rule
    begin, end = (moment(at, contract.zone) for at in (report.window.from_ms, report.window.until_ms))
    causes = ", ".join(cause.value for cause in rule.causes) or "nothing"
    shortest = f", outages shorter than {span(rule.minimum_ms)} do not count" if rule.minimum_ms else ""
    lines = [
        ("contract", f"{contract.name}: {contract.provider} for {contract.customer}"),
        ("month", f"{report.month}, {contract.zone}: {begin} to {end}"),
        ("downtime", f"{rule.counting.value}{shortest}"),
        ("counts as", f"degraded as {rule.degraded.value}, unknown as {rule.unknown.value}"),
        ("exclusions", f"{rule.exclude.value}: {causes}, in this order where they overlap"),
        ("raw", "the same with nothing excluded: booked maintenance and unknown time are down"),
        ("terms", f"{contract.source.text} ({contract.source.date}, {contract.source.certainty.value})"),
    ]
    if contract.source.unsure:
        lines.append(("not sure", contract.source.unsure))
    if report.open:
        lines.append(("so far", f"the month is open: measured up to {moment(report.until_ms, contract.zone)}"))
    if contract.minimum_payout:
        lines.append(("minimum", f"{amount(contract.minimum_payout, contract)} or nothing"))
    if report.claim_by_ms:
        lines.append(("claim by", moment(report.claim_by_ms, contract.zone)))
    lines.append(("owed", f"{amount(report.owed, contract)}; payable {report.payable} {contract.currency}"))
    return lines


def title(section: Section) -> str:
    promise = section.commitment
    tiers = ", ".join(f"below {exact_text(tier.below)} %: {exact_text(tier.credit)} %" for tier in promise.tiers)
    return f"{promise.name}: {exact_text(promise.target)} % per {promise.per.value}; credits {tiers or 'none'}"


def note(section: Section) -> str:
    if section.exempt:
        return f"nothing is promised: {section.exempt}"
    if not section.lines:
        return "the ledger has no such scope in this month"
    missed = sum(1 for line in section.lines if line.met is False)
    return f"{len(section.lines)} measured, {missed} missed the target"


TITLES = (
    "SUBJECT",
    "AVAILABILITY %",
    "RAW %",
    "VERDICT",
    "DOWN",
    "DEGRADED",
    "UNKNOWN",
    "EXCLUDED",
    "CREDIT %",
    "OWED",
)


def cells(line: Line, report: Report) -> tuple[str, ...]:
    totals = line.totals
    return (
        line.subject,
        percent(line.measured.availability),
        percent(line.measured.raw),
        verdict(line),
        span(line.measured.down_ms),
        span(totals.degraded_ms),
        span(totals.unknown_ms),
        span(totals.excluded_ms),
        exact_text(line.credit),
        amount(line.owed, report.contract),
    )


SHOWN = 50
"""Lines per commitment in the text; what missed its target comes first."""


def ordered(section: Section) -> list[Line]:
    return sorted(section.lines, key=lambda line: (line.met is not False, -line.measured.down_ms, line.subject))


def left_out(report: Report) -> list[str]:
    """One line per exclusion that was recorded."""
    zone, found = report.contract.zone, []
    for one in report.exclusions:
        more = f" and {one.scopes - 1} more" if one.scopes > 1 else ""
        counts = "" if one.counts else "; this contract does not leave that out"
        found.append(
            f"{one.cause.value}: {one.scope}{more}, {moment(one.from_ms, zone)} to {moment(one.until_ms, zone)}: "
            f"{one.reason} [{', '.join(one.refs)}]{counts}"
        )
    return found


def text(report: Report) -> str:
    out = [f"{name + ':':<12}{value}" for name, value in heading(report)]
    out += [f"{'left out:' if not number else '':<12}{line}" for number, line in enumerate(left_out(report))]
    for section in report.sections:
        out += ["", title(section), note(section)]
        lines = ordered(section)
        rows = [TITLES, *(cells(line, report) for line in lines[:SHOWN])] if lines else []
        widths = [max(len(row[index]) for row in rows) for index in range(len(TITLES))] if rows else []
        out += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if len(lines) > SHOWN:
            out.append(f"… and {len(lines) - SHOWN} more; -o csv has all")
        for line in lines[:SHOWN]:
            for outage in line.outages:
                evidence = f" [{', '.join(outage.refs)}]" if outage.refs else ""
                since = moment(outage.from_ms, report.contract.zone)
                lasted = span(outage.until_ms - outage.from_ms)
                out.append(f"  {outage.scope} {outage.uptime} from {since} for {lasted}: {outage.reason}{evidence}")
            if line.more_outages:
                out.append(f"  {line.subject}: {line.more_outages} shorter ones are not listed")
    return "\n".join(out) + "\n"


CSV_COLUMNS = (
    "contract", "month", "commitment", "per", "subject", "target_percent", "availability_percent", "raw_percent",
    "verdict", "elapsed_ms", "down_ms", "raw_down_ms", "left_out_ms", "up_ms", "degraded_ms", "booked_down_ms",
    "excluded_ms", "unknown_ms", "credit_percent", "owed", "currency",
)  # fmt: skip


def csv_text(report: Report) -> str:
    """One row per subject; times in ms."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for section in report.sections:
        promise = section.commitment
        for line in section.lines:
            m, t = line.measured, line.totals
            writer.writerow(
                (
                    report.contract.name, report.month, promise.name, promise.per.value, line.subject,
                    exact_text(promise.target), percent(m.availability), percent(m.raw), verdict(line), m.elapsed_ms,
                    m.down_ms, m.raw_down_ms, m.excluded_ms, t.up_ms, t.degraded_ms, t.down_ms, t.excluded_ms,
                    t.unknown_ms, exact_text(line.credit), money(line.owed, report.contract.decimals),
                    report.contract.currency,
                )
            )  # fmt: skip
    return out.getvalue()


def json_text(report: Report) -> str:
    """Ratios exact, as text ("42539/43200"), beside the rounded percentage; amounts as text; times in ms."""
    contract = report.contract
    value: dict[str, Any] = {
        "kind": "SlaReport",
        "contract": contract.name,
        "month": report.month,
        "zone": contract.zone,
        "from_ms": report.window.from_ms,
        "until_ms": report.window.until_ms,
        "measured_until_ms": report.until_ms,
        "open": report.open,
        "rule": {
            "counting": contract.rule.counting.value,
            "minimum_ms": contract.rule.minimum_ms,
            "degraded": contract.rule.degraded.value,
            "unknown": contract.rule.unknown.value,
            "exclude": contract.rule.exclude.value,
            "causes": [cause.value for cause in contract.rule.causes],
        },
        "currency": contract.currency,
        "owed": str(money(report.owed, contract.decimals)),
        "payable": report.payable,
        "claim_by_ms": report.claim_by_ms,
        "exclusions": [
            {
                "cause": one.cause.value,
                "from_ms": one.from_ms,
                "until_ms": one.until_ms,
                "scope": one.scope,
                "scopes": one.scopes,
                "reason": one.reason,
                "evidence": list(one.refs),
                "counts": one.counts,
            }
            for one in report.exclusions
        ],
        "commitments": [_section(section, report) for section in report.sections],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _section(section: Section, report: Report) -> dict[str, Any]:
    promise = section.commitment
    return {
        "name": promise.name,
        "per": promise.per.value,
        "target_percent": exact_text(promise.target),
        "exempt": section.exempt,
        "subjects": [_line(line, report) for line in section.lines],
    }


def _line(line: Line, report: Report) -> dict[str, Any]:
    m, t = line.measured, line.totals
    return {
        "subject": line.subject,
        "availability": None if m.availability is None else str(m.availability),
        "availability_percent": percent(m.availability),
        "raw_percent": percent(m.raw),
        "met": line.met,
        "elapsed_ms": m.elapsed_ms,
        "down_ms": m.down_ms,
        "raw_down_ms": m.raw_down_ms,
        "excluded_ms": m.excluded_ms,
        "totals": {
            "up_ms": t.up_ms,
            "degraded_ms": t.degraded_ms,
            "down_ms": t.down_ms,
            "excluded_ms": t.excluded_ms,
            "unknown_ms": t.unknown_ms,
        },
        "credit_percent": exact_text(line.credit),
        "owed": str(money(line.owed, report.contract.decimals)),
        "outages": [
            {
                "scope": outage.scope,
                "from_ms": outage.from_ms,
                "until_ms": outage.until_ms,
                "class": outage.uptime,
                "reason": outage.reason,
                "evidence": list(outage.refs),
            }
            for outage in line.outages
        ],
        "more_outages": line.more_outages,
    }
