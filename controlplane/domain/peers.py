"""Gray failures: a device that does worse than its peers *in the same job*. Pure but for its memory of since when.

Per group (the devices of one run of a job) and metric: the median, and the median absolute deviation (MAD). 1.4826 ×
MAD estimates the standard deviation of normal noise whatever a minority of the group does. A device is an outlier if it
is worse than the median by more than ``sigmas`` of these *and* by more than ``least`` of the median, on values smoothed
over an eighth of ``for_ms``; it is told after it has been one for all of ``for_ms``.

Nobody is convicted where a comparison says nothing: fewer than ``peers`` known members, less than half of the group
known, a group that hardly works (each metric's ``floor``), or several outliers that agree with each other: those are
a mode (a stage of a pipeline, ranks with another load), not faults. Unknown (NaN, stale) is never counted: it ends a
timer, and leaves what was concluded before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.fleet import NEVER_MS, FleetTable
from controlplane.domain.rules import STALE_MS
from gridkeeper.ids import DeviceId
from gridkeeper.policy.model import PeerPolicy
from gridkeeper.records.common import Scope

MAD_TO_SIGMA = 1.4826
"""MAD of a normal distribution × this = its standard deviation (1 / Φ⁻¹(3/4))."""
RESOLUTION = 0.005
"""Of the median: differences below it are rounding of the sensor, and no scale is smaller."""
SMOOTH = 8
"""Values are smoothed with a time constant of ``for_ms`` / this."""
CROWD = 8
"""More outliers than one in so many (but one may always be) are a property of the group."""
AGREE = 0.25
"""Outliers that lie within this share of their distance from the median agree with each other."""
FORGET_MS = 3_600_000
"""A device that could not be compared for so long (its job is gone) is no longer held to be slow."""
GAP_MS = 30_000
"""Between two looks further apart than this nothing is known: timers begin anew."""

UNKNOWN, CLEAR, RAISED = -1, 0, 1

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Groups = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PeerMetric:
    """``worse``: -1 if less is worse, 1 if more is. ``floor``: a group whose median is below it hardly works."""

    rule: str
    columns: tuple[str, ...]  # added up
    words: str
    unit: str
    worse: int
    floor: float
    scope: Scope = Scope.DEVICE


METRICS: tuple[PeerMetric, ...] = (
    PeerMetric("peers-sm-clock", ("clock_sm",), "SM clock", "MHz", -1, 300),
    PeerMetric("peers-memory-clock", ("clock_memory",), "memory clock", "MHz", -1, 300),
    PeerMetric("peers-utilisation", ("utilisation",), "utilisation", "%", -1, 30),
    PeerMetric("peers-power", ("power",), "power", "W", -1, 100),
    PeerMetric("peers-nvlink", ("nvlink_tx", "nvlink_rx"), "NVLink throughput", "MB/s", -1, 100, Scope.LINK),
    PeerMetric("peers-pcie", ("pcie_tx", "pcie_rx"), "PCIe throughput", "MB/s", -1, 100, Scope.LINK),
)


_NUMBERS = {metric.rule: number for number, metric in enumerate(METRICS)}


@dataclass(frozen=True, slots=True)
class Member:
    """One device's place: which run of which job. Devices of one ``(job, epoch)`` are peers."""

    job: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What convicts: the value, and the *others* of the job (without the device itself)."""

    value: float
    median: float
    mad: float
    others: int
    sigmas: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A device has become, or is no longer, worse than its peers. ``comparison``: what convicts it; None: it is not."""

    device: DeviceId
    job: str
    metric: PeerMetric
    raised: bool
    held_ms: int
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Block:
    """Groups of about the same size. ``rows[i]``: the rows of group ``groups[i]``, filled up with -1."""

    groups: Groups
    rows: Groups


@dataclass(frozen=True, slots=True)
class Layout:
    """Which row belongs to which group (-1: none), and the groups' rows in blocks: a few sorts of small matrices take a
    tenth of the time of sorting all rows by group."""

    group: Groups
    sizes: Groups
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, group: Groups) -> Layout:
        """From the group of each row, numbered from 0 without gaps."""
        order = np.argsort(group, kind="stable")
        order = order[group[order] >= 0]
        sizes = np.bincount(group[order]).astype(np.int64) if len(order) else np.zeros(0, np.int64)
        ends = np.cumsum(sizes)
        widths = 1 << np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
        blocks = []
        for width in np.unique(widths).tolist():
            groups = np.flatnonzero(widths == width)
            place = (ends - sizes)[groups, None] + np.arange(width)
            inside = np.arange(width) < sizes[groups, None]
            blocks.append(Block(groups, np.where(inside, order[np.where(inside, place, 0)], -1)))
        return cls(group, sizes, tuple(blocks))


@dataclass(frozen=True, slots=True)
class Spread:
    """Per group: median, MAD and number of known members."""

    median: Floats
    mad: Floats
    count: Groups


def spread(values: Floats, layout: Layout) -> Spread:
    """``values``: one per row, NaN where it is not known. NaN for a group of which nothing is known."""
    total = len(layout.sizes)
    found = Spread(np.full(total, np.nan), np.full(total, np.nan), np.zeros(total, np.int64))
    for block in layout.blocks:
        taken = values[block.rows]
        taken[(block.rows < 0) | np.isnan(taken)] = np.inf  # sorted behind all that is known
        count = np.isfinite(taken).sum(axis=1)
        median = _medians(taken, count)
        found.count[block.groups] = count
        found.median[block.groups] = median
        found.mad[block.groups] = _medians(np.abs(taken - median[:, None]), count)
    return found


def _medians(values: Floats, count: Groups) -> Floats:
    """Of the ``count`` smallest values of each line. Sorts ``values``."""
    with np.errstate(invalid="ignore"):
        values[np.isnan(values)] = np.inf
        values.sort(axis=1)
    line = np.arange(len(values))
    middle = (
        values[line, np.maximum(count - 1, 0) // 2] + values[line, np.minimum(count // 2, values.shape[1] - 1)]
    ) / 2
    result: Floats = np.where(count > 0, middle, np.nan)
    return result


def outliers(values: Floats, layout: Layout, metric: PeerMetric, policy: PeerPolicy) -> tuple[Flags, Flags]:
    """(judged, worse) per row. ``values``: NaN where it is not known."""
    found = spread(values, layout)
    with np.errstate(invalid="ignore"):
        enough = (found.count >= policy.peers) & (2 * found.count >= layout.sizes) & (found.median >= metric.floor)
        scale = np.maximum(MAD_TO_SIGMA * found.mad, RESOLUTION * np.abs(found.median))
        limit = np.maximum(policy.sigmas * scale, policy.least * np.abs(found.median))
        rows = np.flatnonzero((layout.group >= 0) & ~np.isnan(values))
        groups = layout.group[rows]
        behind = metric.worse * (values[rows] - found.median[groups])
        known = enough[groups]
        bad = known & (behind > limit[groups])
    modes = _modes(behind[bad], groups[bad], found.count)[groups]
    judged, worse = np.zeros(len(values), np.bool_), np.zeros(len(values), np.bool_)
    judged[rows] = known & ~(bad & modes)
    worse[rows] = bad & ~modes
    return judged, worse


def _modes(behind: Floats, groups: Groups, counts: Groups) -> Flags:
    """Groups whose outliers are a property of the group: too many, or of one mind. ``behind``: of the outliers."""
    total = len(counts)
    many = np.bincount(groups, minlength=total)
    nearest, furthest = np.full(total, np.inf), np.full(total, -np.inf)
    np.minimum.at(nearest, groups, behind)
    np.maximum.at(furthest, groups, behind)
    several = many > 1
    agree = np.zeros(total, np.bool_)
    agree[several] = furthest[several] - nearest[several] <= AGREE * furthest[several]
    result: Flags = agree | (many > np.maximum(1, counts // CROWD))
    return result


def compared(value: float, others: Floats) -> Comparison:
    """A value with those of its peers (known ones, at least one)."""
    median = float(np.median(others))
    mad = float(np.median(np.abs(others - median)))
    scale = max(MAD_TO_SIGMA * mad, RESOLUTION * abs(median))
    return Comparison(value, median, mad, len(others), abs(value - median) / scale if scale else 0.0)


class PeerWatch:
    """``evaluate`` every few seconds; a verdict is told once. Its memory is by device, so that others coming and going
    (``FleetTable.layout``) end no timer. What was convicted before it began is told to it."""

    def __init__(self) -> None:
        self._ids: list[DeviceId] = []
        self._members: dict[DeviceId, Member] = {}
        self._layout = Layout.of(np.zeros(0, np.int64))
        self._jobs: list[str] = []
        self._seen_layout = -1
        self._source: Mapping[DeviceId, Member] | None = None
        self._at_ms: int | None = None
        self._smooth: Floats = np.zeros((len(METRICS), 0))
        self._since = np.zeros((len(METRICS), 0), np.int64)
        self._verdict = np.zeros((len(METRICS), 0), np.int8)
        self._judged_ms = np.zeros((len(METRICS), 0), np.int64)

    def evaluate(
        self,
        table: FleetTable,
        members: Mapping[DeviceId, Member],
        standing: Iterable[tuple[DeviceId, str]],
        policy: PeerPolicy,
        now_ms: int,
    ) -> Iterator[tuple[Verdict, ...]]:
        """One metric after the other (of 100,000 devices each takes 5 ms: the caller may do something else in between;
        if the table's rows change hands meanwhile, the rest is left for the next look). ``members`` is taken for
        unchanged while it is the same object. ``standing``: (device, rule) of convictions that have not been cleared.
        """
        if self._seen_layout != table.layout or self._source is not members:
            self._arrange(table, members, now_ms)
        elapsed = None if self._at_ms is None else now_ms - self._at_ms
        if elapsed is not None and elapsed > GAP_MS:
            self._smooth[:] = np.nan
            self._since[:] = -1
        self._at_ms = now_ms
        for device, rule in standing:
            row, number = table.row(device), _NUMBERS.get(rule)
            if row is not None and number is not None and self._verdict[number, row] == UNKNOWN:
                self._verdict[number, row] = RAISED
        present = (self._layout.group >= 0) & table.used & (table.seen_ms != NEVER_MS)
        present &= now_ms - table.seen_ms <= STALE_MS
        keep = np.exp(-(elapsed or 0) * SMOOTH / max(1, policy.for_ms))
        for index, metric in enumerate(METRICS):
            if self._seen_layout != table.layout:
                return
            self._take(index, metric, table, present, keep)
            yield tuple(self._settle(index, metric, table, policy, now_ms))

    def _take(self, index: int, metric: PeerMetric, table: FleetTable, present: Flags, keep: float) -> None:
        fresh = np.where(present, sum(table.column(column).astype(np.float64) for column in metric.columns), np.nan)
        old = self._smooth[index]
        self._smooth[index] = np.where(np.isnan(old), fresh, keep * old + (1 - keep) * fresh)

    def _settle(
        self, index: int, metric: PeerMetric, table: FleetTable, policy: PeerPolicy, now_ms: int
    ) -> list[Verdict]:
        smooth, since, verdict = self._smooth[index], self._since[index], self._verdict[index]
        group = self._layout.group
        judged, worse = outliers(smooth, self._layout, metric, policy)
        since[~worse] = -1
        since[worse & (since < 0)] = now_ms
        self._judged_ms[index][judged] = now_ms
        held = table.seen_ms - since  # up to the newest sample: what came after it is not known
        raised = worse & (held >= policy.for_ms)
        forgotten = (now_ms - self._judged_ms[index] >= FORGET_MS) & table.used
        cleared = (judged & ~worse) | forgotten
        changed = (raised & (verdict != RAISED)) | (cleared & (verdict == RAISED))
        verdict[cleared] = CLEAR
        told: list[Verdict] = []
        for row in np.flatnonzero(changed).tolist():
            comparison = None
            if raised[row]:
                peers = np.flatnonzero((group == group[row]) & ~np.isnan(smooth))
                comparison = compared(float(smooth[row]), smooth[peers[peers != row]])
                if comparison.sigmas <= policy.sigmas:
                    continue  # without itself among them the others differ too much to say
                verdict[row] = RAISED
            job = self._jobs[int(group[row])] if group[row] >= 0 else ""
            lasted = int(held[row]) if comparison else 0
            told.append(Verdict(self._ids[row], job, metric, comparison is not None, lasted, comparison))
        return told

    def _arrange(self, table: FleetTable, members: Mapping[DeviceId, Member], now_ms: int) -> None:
        """Rows or jobs have changed: what is known of a device stays with it while its run of its job is the same."""
        old_row = {device: row for row, device in enumerate(self._ids) if device}
        ids = [table.device_at(row) if used else DeviceId("") for row, used in enumerate(table.used.tolist())]
        numbers: dict[Member, int] = {}
        group = np.full(len(ids), -1, np.int64)
        here: list[int] = []
        there: list[int] = []
        moved: list[int] = []
        placed: dict[DeviceId, Member] = {}
        for row, device in enumerate(ids):
            if not device:
                continue
            member = members.get(device)
            if member is not None:
                group[row] = numbers.setdefault(member, len(numbers))
                placed[device] = member
            before = old_row.get(device)
            if before is not None:
                here.append(row)
                there.append(before)
                if self._members.get(device) != member:
                    moved.append(row)
        shape = (len(METRICS), len(ids))
        smooth, since = np.full(shape, np.nan), np.full(shape, -1, np.int64)
        verdict, judged = np.full(shape, UNKNOWN, np.int8), np.full(shape, now_ms, np.int64)
        smooth[:, here], since[:, here] = self._smooth[:, there], self._since[:, there]
        verdict[:, here], judged[:, here] = self._verdict[:, there], self._judged_ms[:, there]
        smooth[:, moved], since[:, moved] = np.nan, -1
        self._smooth, self._since, self._verdict, self._judged_ms = smooth, since, verdict, judged
        self._ids, self._members = ids, placed
        self._layout, self._jobs = Layout.of(group), [member.job for member in numbers]
        self._seen_layout, self._source = table.layout, members


def sentence(verdict: Verdict) -> str:
    """``n/gpu3: SM clock 1,155 MHz, the 7 others of job train have median 1,980, MAD 12.0; 46.4 robust σ for 2 min``"""
    comparison, metric = verdict.comparison, verdict.metric
    assert comparison is not None, "a verdict that is raised rests on a comparison"
    seconds = verdict.held_ms / 1000
    held = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return (
        f"{verdict.device}: {metric.words} {comparison.value:,.0f} {metric.unit}, the {comparison.others} others of "
        f"job {verdict.job} have median {comparison.median:,.0f}, MAD {comparison.mad:,.1f}; "
        f"{comparison.sigmas:.1f} robust σ for {held}"
    )


def evidence(verdict: Verdict) -> tuple[str, ...]:
    """``metric=value`` of what convicted."""
    comparison = verdict.comparison
    if comparison is None:
        return ()
    name = "+".join(verdict.metric.columns)
    return (
        f"{name}={comparison.value:g}",
        f"median={comparison.median:g}",
        f"mad={comparison.mad:g}",
        f"others={comparison.others}",
    )
