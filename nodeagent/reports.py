"""What the agent says of its workloads, from the same things that ``workloads.plan`` looks at. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

from gridkeeper.ports.jobs import Process
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import Workload, WorkloadReport
from nodeagent.orders import Book, Key, epoch_message
from nodeagent.workloads import View, key_of

MAX_WORKLOADS = 512


def report(
    book: Book,
    view: View,
    stored: Mapping[Key, int],
    trouble: Mapping[Key, str],
    now_ms: int,
    in_doubt: Set[Key] = frozenset(),
    lost: bool = False,
) -> WorkloadReport:
    """``stored``: newest step stored per epoch. ``trouble``: what is wrong just now, in words. ``in_doubt``: epochs
    that the executor was asked to start and that may run without our knowing; they are not said to have ended.
    ``lost``: the executor has not said for F what runs, so what ran then is not said to run."""
    found = {key_of(process): _of_process(process, book, view, trouble, now_ms) for process in view.processes}
    for key in book.orders:
        if key not in found:
            found[key] = _without_process(key, book, trouble, key in in_doubt)
    for key, workload in found.items():
        if lost and workload.phase == records_pb2.RUN_PHASE_RUNNING:
            workload.phase = records_pb2.RUN_PHASE_STOPPING
            workload.reason = "the executor has not said for longer than F what runs"
        workload.checkpoint_step = stored.get(key, -1)
        workload.checkpoint_request = view.asked.get(key, 0)
        workload.storing_checkpoint = key in view.storing
        order = book.orders.get(key)
        workload.resumed_step = order.resume_step if order else -1
    ended = records_pb2.RUN_PHASE_EXITED
    # What lives comes first: the control plane takes an epoch that has begun and is not in the report for lost.
    newest = sorted(sorted(found, reverse=True), key=lambda key: found[key].phase == ended)[:MAX_WORKLOADS]
    return WorkloadReport(workloads=[found[key] for key in sorted(newest)])


def _without_process(key: Key, book: Book, trouble: Mapping[Key, str], in_doubt: bool) -> Workload:
    """Ordered, and not there: still to be started, or never to be, or perhaps there after all."""
    workload = Workload(job=key[0], epoch=epoch_message(key[1]), first_step=-1, last_step=-1)
    if book.wanted(key) or in_doubt:
        workload.phase = records_pb2.RUN_PHASE_STARTING
        workload.reason = trouble.get(key, "") or ("the executor has not said whether it started" if in_doubt else "")
        return workload
    workload.phase = records_pb2.RUN_PHASE_EXITED
    workload.exit_code = -1
    workload.stop_confirmed = True
    order = book.orders[key]
    workload.stopped_by_us = not order.run or key[1] != book.highest.get(key[0])
    workload.reason = f"never started here: {book.closed.get(key, 'a higher epoch was seen')}"
    return workload


def _of_process(process: Process, book: Book, view: View, trouble: Mapping[Key, str], now_ms: int) -> Workload:
    key = key_of(process)
    progress = process.progress
    stopping = process.stop_asked or process.fenced
    if not process.alive:
        phase = records_pb2.RUN_PHASE_EXITED
    elif stopping:
        phase = records_pb2.RUN_PHASE_STOPPING
    else:
        phase = records_pb2.RUN_PHASE_RUNNING
    started = progress.first_step >= 0
    return Workload(
        job=process.job,
        epoch=epoch_message(process.epoch),
        phase=phase,
        exit_code=process.exit_code,
        exit_signal=process.exit_signal,
        stop_confirmed=not process.alive and process.tree_gone,
        stopped_by_us=stopping,
        first_step=progress.first_step,
        last_step=progress.last_step,
        first_step_age_ms=max(0, now_ms - progress.first_step_at_ms) if started else 0,
        last_step_age_ms=max(0, now_ms - progress.last_step_at_ms) if started else 0,
        started_age_ms=max(0, now_ms - process.started_ms),
        ended_age_ms=max(0, now_ms - process.ended_ms) if process.ended_ms else 0,
        last_loss=progress.last_loss if math.isfinite(progress.last_loss) else 0.0,
        reason=_reason(process, book, trouble.get(key, "")),
    )


def _reason(process: Process, book: Book, trouble: str) -> str:
    parts: list[str] = []
    if process.fenced:
        parts.append("fenced: no renewal was acknowledged in time")
    elif process.stop_asked:
        parts.append(book.closed.get(key_of(process), "stop asked"))
    elif not process.alive:
        how = f"signal {process.exit_signal}" if process.exit_signal else f"code {process.exit_code}"
        parts.append(f"could not be run: {process.reason}" if process.reason else f"ended by itself with {how}")
    if not process.alive and not process.tree_gone:
        parts.append(f"stop unconfirmed: {len(process.pids) or 'some'} processes of its tree remain")
    if trouble:
        parts.append(trouble)
    return "; ".join(parts)[:512]
