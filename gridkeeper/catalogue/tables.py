"""The catalogue's data files, read once. Each raises ``ValueError`` or ``KeyError`` if a file is damaged.

==========================  =======================================================================================
file                        one row per
==========================  =======================================================================================
``nvidia_xid.csv``          XID: NVIDIA's mnemonic, meaning and actions, and what they come to here
``nvidia_nvlink5.csv``      sub-code of XID 144 to 150 (read by ``nvlink5``)
``nvidia_sxid.csv``         SXID of an NVSwitch
``amd.csv``                 ECC counter and driver message of AMD
``ascend.csv``              fault code of Huawei Ascend and its level (read by ``ascend``)
``cambricon.csv``           event of Cambricon; public facts are thin
``thead.csv``               event of a T-Head PPU; there is no public list
``host.csv``                fault of a host
``sources.csv``             source: name, version, date, address
``verdicts.csv``            verdict of another source on some codes of one kind
==========================  =======================================================================================
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Iterator, Mapping

from gridkeeper.catalogue.model import Entry, Evidence, JobEffect, Opinion, Source, Taint, contradict
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.fleet import EventKind

FILES: dict[EventKind, str] = {
    EventKind.XID: "nvidia_xid.csv",
    EventKind.SXID: "nvidia_sxid.csv",
    EventKind.AMD: "amd.csv",
    EventKind.ASCEND: "ascend.csv",
    EventKind.CAMBRICON: "cambricon.csv",
    EventKind.PPU: "thead.csv",
    EventKind.HOST: "host.csv",
}

VENDOR: dict[EventKind, str] = {
    EventKind.XID: "nvidia",
    EventKind.SXID: "nvidia",
    EventKind.AMD: "amd",
    EventKind.ASCEND: "ascend",
    EventKind.CAMBRICON: "cambricon",
    EventKind.PPU: "thead",
    EventKind.HOST: "host",
}
"""By whose key a policy chooses the source of a kind's verdicts."""


def rows(name: str) -> Iterator[dict[str, str]]:
    text = importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


@functools.cache
def sources() -> Mapping[str, Source]:
    return {row["id"]: Source(**row) for row in rows("sources.csv")}


@functools.cache
def table(kind: EventKind) -> Mapping[int, Entry]:
    """All entries of a kind by code; a kind without data has none."""
    if kind not in FILES:
        return {}
    if kind is EventKind.ASCEND:
        from gridkeeper.catalogue.ascend import entries

        return {entry.code: entry for entry in entries(rows(FILES[kind]), sources())}
    return {entry.code: entry for entry in (_entry(kind, row) for row in rows(FILES[kind]))}


def _entry(kind: EventKind, row: dict[str, str]) -> Entry:
    return Entry(
        kind=kind,
        code=int(row["code"]),
        mnemonic=row["mnemonic"],
        meaning=row["meaning"],
        says=row["says"],
        then=row["then"],
        severity=Severity(row["severity"]),
        scope=Scope(row["scope"]),
        job=JobEffect(row["job"]),
        action=Action(row["action"]),
        fault_class=row["fault_class"],
        taint=Taint(row["taint"]),
        evidence=Evidence(row["evidence"]),
        ends=tuple(int(code) for code in row["ends"].split()),
        source=sources()[row["source"]],
    )


@functools.cache
def _others() -> Mapping[tuple[EventKind, int], tuple[Opinion, ...]]:
    found: dict[tuple[EventKind, int], tuple[Opinion, ...]] = {}
    for row in rows("verdicts.csv"):
        kind = EventKind(row["kind"])
        opinion = Opinion(sources()[row["source"]], row["says"], Severity(row["severity"]), Action(row["action"]))
        for code in _codes(row["codes"], 16 if kind is EventKind.ASCEND else 10):
            found[kind, code] = (*found.get((kind, code), ()), opinion)
    return found


def _codes(text: str, base: int) -> Iterator[int]:
    """``"1-3 7"`` -> 1, 2, 3, 7."""
    for part in text.split():
        first, _, last = part.partition("-")
        yield from range(int(first, base), int(last or first, base) + 1)


@functools.lru_cache(maxsize=4096)
def opinions(kind: EventKind, code: int) -> tuple[Opinion, ...]:
    """Every source's verdict: first the one of the entry itself, if its source gives any (some of NVIDIA's rows name
    no action)."""
    entry = table(kind).get(code)
    own = (Opinion(entry.source, entry.says, entry.severity, entry.action),) if entry and entry.says else ()
    known = {opinion.source.id for opinion in own}
    return (*own, *(o for o in _others().get((kind, code), ()) if o.source.id not in known))


@functools.lru_cache(maxsize=4096)
def disputed(kind: EventKind, code: int) -> bool:
    """Whether the sources contradict each other about this code."""
    return contradict(opinions(kind, code))


def conflicts(kind: EventKind) -> dict[int, tuple[Opinion, ...]]:
    """Codes on which the sources contradict each other."""
    codes = sorted({*table(kind), *(code for held, code in _others() if held is kind)})
    return {code: opinions(kind, code) for code in codes if disputed(kind, code)}


@functools.cache
def by_finding() -> Mapping[str, Entry]:
    """Entries by the code of the findings that they lead to (``xid-48``)."""
    return {entry.name: entry for kind in FILES for entry in table(kind).values()}
