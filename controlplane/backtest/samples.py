"""Telemetry of a recording, moment by moment, and the policy's rules over it: fleet table and engine of a replica."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from controlplane.backtest.trace import BadTrace
from controlplane.domain.fleet import FleetTable
from controlplane.domain.rowlabels import Inventory
from controlplane.domain.rulefindings import Transition
from controlplane.domain.rules import SILENT, RuleEngine
from gridkeeper import recording
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.policy.model import Policy
from gridkeeper.records.faults import FindingRecord
from gridkeeper.telemetry import METRICS

STEP_MS = 1_000
"""Samples of one second are judged together, at its end: never before they were taken."""

Block = tuple[NodeId, NDArray[np.float32], int]
_METRICS = [metric.name for metric in METRICS]


def moments(directory: Path, nodes: Mapping[NodeId, Sequence[DeviceId]]) -> Iterator[tuple[int, list[Block]]]:
    """(when, blocks of whole nodes with the time of their newest sample), in order of time; a file at a time is in
    memory. Devices without a sample in a moment are NaN in it. Raises ``BadTrace``."""
    place = {device: (node, row) for node, devices in nodes.items() for row, device in enumerate(devices)}
    last = -1
    for path in recording.files_of(directory, recording.TELEMETRY):
        try:
            frame = pl.read_parquet(path, schema=dict(recording.TELEMETRY.schema), missing_columns="insert")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise BadTrace(f"{path}: {error}; remove the file that does not read") from error
        frame = frame.with_columns((pl.col("at_ms") // STEP_MS + 1).alias("moment")).sort("moment", "at_ms")
        for group in frame.partition_by("moment", maintain_order=True):
            moment = max(last, int(group["moment"][0]) * STEP_MS)
            last = moment
            blocks = _blocks(group, nodes, place)
            if blocks:
                yield moment, blocks


def _blocks(
    group: pl.DataFrame, nodes: Mapping[NodeId, Sequence[DeviceId]], place: Mapping[DeviceId, tuple[NodeId, int]]
) -> list[Block]:
    values = group.select(_METRICS).to_numpy()
    found: dict[NodeId, tuple[NDArray[np.float32], int]] = {}
    for index, (device, at_ms) in enumerate(group.select("device", "at_ms").iter_rows()):
        where = place.get(DeviceId(device))
        if where is None:
            continue  # of another region
        node, row = where
        if node not in found:
            found[node] = (np.full((len(nodes[node]), len(_METRICS)), np.nan, np.float32), at_ms)
        block, seen_ms = found[node]
        block[row] = values[index]
        found[node] = (block, max(seen_ms, at_ms))
    return [(node, block, seen_ms) for node, (block, seen_ms) in found.items()]


class Samples:
    """``next_ms``: when the next samples are judged; None: there are no more."""

    def __init__(self, directory: Path, nodes: Mapping[NodeId, Sequence[DeviceId]], policy: Policy) -> None:
        self._moments = moments(directory, nodes)
        self._table = FleetTable()
        for node, devices in nodes.items():
            self._table.register(node, devices)
        self._engine = RuleEngine(policy)
        self._coming = next(self._moments, None)

    @property
    def next_ms(self) -> int | None:
        return self._coming[0] if self._coming else None

    def take(
        self, now_ms: int, findings: Mapping[str, Versioned[FindingRecord]], inventory: Inventory
    ) -> tuple[Transition, ...]:
        """What the rules say of the samples up to ``now_ms``. A gap is the recorder's, so it convicts nobody.
        ``findings`` must be another mapping when it says something else."""
        while self._coming is not None and self._coming[0] <= now_ms:
            for node, block, seen_ms in self._coming[1]:
                rows, columns = block.shape
                self._table.ingest(node, block.tobytes(), rows, columns, seen_ms)
            self._coming = next(self._moments, None)
        found = self._engine.evaluate(self._table, findings, inventory, now_ms)
        return tuple(transition for transition in found if transition.rule != SILENT.name)
