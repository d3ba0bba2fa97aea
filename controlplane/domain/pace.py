"""A node on which a job makes its steps slower than it made them on other nodes. Pure.

Compared are the runs of a job on one node: each move gives one on another node. A run's step time is its mean from its
first step to its newest. The members of a gang step together: their step time convicts none of their nodes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.domain.peers import MAD_TO_SIGMA, RESOLUTION, Comparison, compared
from gridkeeper.decision import Versioned
from gridkeeper.ids import Epoch, JobId, NodeId
from gridkeeper.policy.model import PeerPolicy
from gridkeeper.records.jobs import RunPhase, RunRecord

MIN_STEPS = 10
"""Fewer say little of a step time."""
RULE = "peers-step-time"


@dataclass(frozen=True, slots=True)
class Pace:
    """One run: ``step_ms`` on average over ``steps`` steps that took ``lasted_ms``. ``over``: it has ended."""

    job: JobId
    epoch: Epoch
    node: NodeId
    step_ms: float
    steps: int
    lasted_ms: int
    over: bool = False


def pace_of(run: RunRecord) -> Pace | None:
    """None: it has not made enough steps, or is of a gang."""
    steps = run.last_step - run.first_step
    lasted_ms = run.last_step_ms - run.first_step_ms
    if run.members or run.first_step < 0 or steps < MIN_STEPS or lasted_ms <= 0:
        return None
    return Pace(run.job, run.epoch, run.node, lasted_ms / steps, steps, lasted_ms, run.phase is RunPhase.EXITED)


def by_job(runs: Mapping[str, Versioned[RunRecord]], jobs: Iterable[JobId]) -> dict[JobId, list[Pace]]:
    """Of these jobs, all runs that have a pace."""
    wanted = set(jobs)
    found: dict[JobId, list[Pace]] = {}
    for held in runs.values():
        if held.record.job in wanted and (pace := pace_of(held.record)) is not None:
            found.setdefault(pace.job, []).append(pace)
    return found


def compare_pace(mine: Pace, every: Sequence[Pace], policy: PeerPolicy) -> tuple[bool, Comparison] | None:
    """(slower, the comparison) of a run with the job's runs on other nodes, each node counted once. None: it has not
    run for ``for_ms``, or fewer than ``peers`` nodes can be compared."""
    if mine.lasted_ms < policy.for_ms:
        return None
    nodes: dict[NodeId, list[float]] = {}
    for pace in every:
        if pace.node != mine.node:
            nodes.setdefault(pace.node, []).append(pace.step_ms)
    if len(nodes) + 1 < policy.peers:
        return None
    found = compared(mine.step_ms, np.array([statistics.median(nodes[node]) for node in sorted(nodes)]))
    behind = mine.step_ms - found.median
    scale = max(MAD_TO_SIGMA * found.mad, RESOLUTION * found.median)
    return behind > policy.sigmas * scale and behind > policy.least * found.median, found


def sentence(mine: Pace, found: Comparison) -> str:
    """``east-1: job train makes a step in 1.42 s, on the 3 other nodes that it ran on in 0.98 s (median, MAD …``"""
    here, there = f"{mine.step_ms / 1000:.3g} s", f"{found.median / 1000:.3g} s (median, MAD {found.mad / 1000:.2g} s)"
    return (
        f"{mine.node}: job {mine.job} makes a step in {here}, on the {found.others} other nodes that it ran on in "
        f"{there}; {found.sigmas:.1f} robust σ over {mine.steps} steps"
    )
