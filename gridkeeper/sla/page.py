"""A report as one self-contained HTML page: no script, no font, no picture from elsewhere. Pure."""

from __future__ import annotations

from html import escape

from gridkeeper.sla.render import TITLES, cells, heading, left_out, moment, note, ordered, span, title
from gridkeeper.sla.report import Line, Report, Section

SHOWN = 200
"""Lines per commitment; what missed its target comes first."""

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{padding:.25rem .6rem;border-bottom:1px solid #d8dee4;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.MISSED{color:#b42318;font-weight:600}
.met{color:#1a7f37}dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem}dt{color:#57606a}dd{margin:0}
svg{display:block;
margin:.3rem 0}.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.8em;
height:.8em;margin-right:.3em;vertical-align:-.1em}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}td,th{border-color:#30363d}.MISSED{
color:#ff7b72}.met{color:#56d364}dt{color:#9198a1}}
"""

COLOURS = {
    "up": "#2da44e",
    "degraded": "#d4a72c",
    "down": "#cf222e",
    "unknown": "#8250df",
    "excluded": "#8c959f",
}
BAR = 240
MONTH = 1_000


def html(report: Report) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in heading(report))
    excluded = "".join(f"<dt>left out</dt><dd>{escape(line)}</dd>" for line in left_out(report))
    sections = "".join(_section(section, report) for section in report.sections)
    key = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in COLOURS.items())
    name = escape(f"{report.contract.name}, {report.month}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Service levels: {name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>Service levels: {name}</h1><dl>{facts}{excluded}</dl><p class="key">{key}</p>{sections}</body></html>\n'
    )


def _section(section: Section, report: Report) -> str:
    lines = ordered(section)
    head = "".join(f'<th class="{_align(index)}">{escape(word)}</th>' for index, word in enumerate((*TITLES, "TIME")))
    rows = "".join(_row(line, report) for line in lines[:SHOWN])
    more = f"<p>… and {len(lines) - SHOWN} more: see the CSV.</p>" if len(lines) > SHOWN else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}" if lines else ""
    outages = "".join(_outages(line, report) for line in lines[:SHOWN] if line.outages)
    return f"<h2>{escape(title(section))}</h2><p>{escape(note(section))}</p>{table}{outages}"


def _align(index: int) -> str:
    return "" if index in (0, 3, len(TITLES)) else "n"


def _row(line: Line, report: Report) -> str:
    values = cells(line, report)
    out = []
    for index, value in enumerate(values):
        kind = value.split()[0] if index == 3 else _align(index)
        out.append(f'<td class="{kind}">{escape(value)}</td>')
    return f"<tr>{''.join(out)}<td>{_composition(line)}</td></tr>"


def _composition(line: Line) -> str:
    """A bar of the elapsed time by class. A class that has any time gets at least one pixel."""
    t = line.totals
    parts = {
        "up": t.up_ms,
        "degraded": t.degraded_ms,
        "down": t.down_ms,
        "unknown": t.unknown_ms,
        "excluded": t.excluded_ms,
    }
    whole = sum(parts.values()) or 1
    widths = {name: max(1, BAR * ms // whole) if ms else 0 for name, ms in parts.items()}
    widest = max(widths, key=lambda name: widths[name])
    widths[widest] += BAR - sum(widths.values())
    at, rects = 0, []
    for name, width in widths.items():
        if width:
            rects.append(
                f'<rect x="{at}" width="{width}" height="12" fill="{COLOURS[name]}">'
                f"<title>{name} {span(parts[name])}</title></rect>"
            )
        at += width
    said = ", ".join(f"{name} {span(ms)}" for name, ms in parts.items() if ms)
    return f'<svg width="{BAR}" height="12" role="img" aria-label="{escape(said)}">{"".join(rects)}</svg>'


def _outages(line: Line, report: Report) -> str:
    """Where in the month they were, and each with its evidence."""
    window, zone = report.window, report.contract.zone
    marks = []
    for outage in line.outages:
        begin, end = max(outage.from_ms, window.from_ms), min(outage.until_ms, window.until_ms)
        at = (begin - window.from_ms) * MONTH // window.elapsed_ms
        width = max(2, (end - begin) * MONTH // window.elapsed_ms)
        told = escape(f"{outage.uptime} {moment(begin, zone)}, {span(end - begin)}: {outage.reason}")
        colour = COLOURS[outage.uptime]
        marks.append(f'<rect x="{at}" y="2" width="{width}" height="16" fill="{colour}"><title>{told}</title></rect>')
    strip = (
        f'<svg viewBox="0 0 {MONTH} 20" width="100%" height="20" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(line.subject)} over the month"><rect y="8" width="{MONTH}" height="4" fill="#d8dee4"/>'
        f"{''.join(marks)}</svg>"
    )
    rows = "".join(
        f"<tr><td>{escape(outage.scope)}</td><td>{outage.uptime}</td><td>{moment(outage.from_ms, zone)}</td>"
        f'<td class="n">{span(outage.until_ms - outage.from_ms)}</td><td>{escape(outage.reason)}</td>'
        f"<td>{escape(', '.join(outage.refs))}</td></tr>"
        for outage in line.outages
    )
    head = "<tr><th>SCOPE</th><th>CLASS</th><th>FROM</th><th>FOR</th><th>REASON</th><th>EVIDENCE</th></tr>"
    more = f"<p>{line.more_outages} shorter ones are not listed.</p>" if line.more_outages else ""
    return (
        f"<details><summary>{escape(line.subject)}: {len(line.outages)} times that were not up</summary>"
        f"{strip}<table>{head}{rows}</table>{more}</details>"
    )
