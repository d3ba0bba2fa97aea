"""What happens in the grid, told as it happens: changes of a watch in, sentences out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gridkeeper import codec
from gridkeeper.cli.text import span
from gridkeeper.client import Change, Gone, Partial, Put
from gridkeeper.records.faults import DrainRecord, DrainState, IncidentRecord, IncidentState
from gridkeeper.records.fleet import HealthRecord, HealthState, LivenessRecord, NodeState
from gridkeeper.records.jobs import JobRecord, JobState, MigrationKind, MigrationRecord, MigrationState, OwnershipRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object

KINDS = (
    api_pb2.KIND_NODE,
    api_pb2.KIND_DEVICE,
    api_pb2.KIND_INCIDENT,
    api_pb2.KIND_DRAIN,
    api_pb2.KIND_JOB,
    api_pb2.KIND_MIGRATION,
)
"""What a ``Narrator`` wants to watch."""

_KIND = {
    MigrationKind.START: "start",
    MigrationKind.PLANNED: "planned move",
    MigrationKind.RECOVERY: "recovery",
}
_DRAIN_REASONS = (DrainState.PLANNED, DrainState.ADMITTED, DrainState.REFUSED, DrainState.FAILED, DrainState.EXPIRED)
MAX_REASON = 120
"""Characters of a reason within a sentence; objects have it in full."""

_QUIET = frozenset({"", HealthState.UNKNOWN, HealthState.HEALTHY})


class Narrator:
    """Remembers the last state of each object, and tells when it has become another one."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], str] = {}

    def tell(self, change: Change) -> tuple[str, ...]:
        """Sentences about this change; mostly none."""
        match change:
            case Put(item):
                return self._put(item)
            case Gone(kind, name):
                self._last.pop((int(kind), name), None)
                return ()
            case Partial(sentences):
                return tuple(f"incomplete: {sentence}" for sentence in sentences) or ("complete again",)
        return ()

    def _put(self, item: Object) -> tuple[str, ...]:
        describe = _DESCRIBE.get(item.kind)
        found = describe(item) if describe else None
        if found is None:
            return ()
        state, sentence = found
        key = (int(item.kind), item.name)
        before = self._last.get(key, "")
        self._last[key] = state
        if state == before:
            return ()
        if item.kind == api_pb2.KIND_DEVICE:
            if before in _QUIET and state in _QUIET:
                return ()
            sentence = sentence.replace(": ", f": {before} → " if before else ": ", 1)
        return (sentence,)


def _record(kind: Any, view: Any, field: str) -> Any:
    """The record in ``view.field``; None when it is absent or of a newer version than this program."""
    if not view.HasField(field):
        return None
    try:
        return codec.from_message(kind, getattr(view, field))
    except codec.CorruptRecord:
        return None


def _whole(kind: Any, message: Any) -> Any:
    try:
        return codec.from_message(kind, message)
    except codec.CorruptRecord:
        return None


def _node(item: Object) -> tuple[str, str] | None:
    live: LivenessRecord | None = _record(LivenessRecord, item.node, "liveness")
    if live is None:
        return None
    why = f": {_short(live.reason)}" if live.state is not NodeState.ALIVE else ""
    return live.state, f"node {item.name} is {live.state}{why}"


def _device(item: Object) -> tuple[str, str] | None:
    health: HealthRecord | None = _record(HealthRecord, item.device, "health")
    return (health.state, f"device {item.name}: {health.state}: {_short(health.reason)}") if health else None


def _incident(item: Object) -> tuple[str, str] | None:
    incident: IncidentRecord | None = _whole(IncidentRecord, item.incident)
    if incident is None:
        return None
    if incident.state is IncidentState.RESOLVED:
        return incident.state, f"incident {item.name} resolved: {_short(incident.resolution)}"
    if incident.state is IncidentState.ACKNOWLEDGED:
        return incident.state, f"incident {item.name} acknowledged by {incident.acknowledged_by}"
    return incident.state, f"incident {item.name} on {incident.subject} ({incident.severity}): {_short(incident.title)}"


def _drain(item: Object) -> tuple[str, str] | None:
    drain: DrainRecord | None = _whole(DrainRecord, item.drain)
    if drain is None:
        return None
    why = f": {_short(drain.reason)}" if drain.state in _DRAIN_REASONS else ""
    return drain.state, f"drain of {drain.device} is {drain.state}{why}"


def _job(item: Object) -> tuple[str, str] | None:
    job: JobRecord | None = _record(JobRecord, item.job, "record")
    if job is None:
        return None
    owner: OwnershipRecord | None = _record(OwnershipRecord, item.job, "ownership")
    state = f"{job.state}"
    where = ""
    if owner is not None and job.state in (JobState.STARTING, JobState.RUNNING):
        state = f"{job.state} {owner.epoch}"
        where = f" on {owner.node} in {owner.region}, epoch {owner.epoch}"
    why = f": {_short(job.reason)}" if job.reason and not where else ""
    return state, f"job {item.name} is {job.state}{where}{why}"


def _migration(item: Object) -> tuple[str, str] | None:
    move: MigrationRecord | None = _whole(MigrationRecord, item.migration)
    if move is None:
        return None
    words = str(move.state).replace("_", " ")
    way = f"{move.source_node or 'nowhere'} to {move.target_node or move.target_region or 'a target'}"
    text = f"{_KIND[move.kind]} of {move.job} from {way}: {words}"
    if move.kind is MigrationKind.START:
        text = f"start of {move.job} on {move.target_node or move.target_region or 'some node'}: {words}"
    if move.state is MigrationState.PLANNED:
        text += f" ({_short(move.reason)})"
    elif move.state is MigrationState.DONE and move.source_node:
        text += f", {outcome(move)}"
    elif move.state in (MigrationState.FAILED, MigrationState.CANCELLED):
        text += f": {_short(move.reason)}"
    return f"{move.state} {move.attempt}", text


def _short(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"


def outcome(move: MigrationRecord) -> str:
    """``RTO 2.1s, RPO 0 steps (0ms)``."""
    least = "at least " if move.rpo_at_least else ""
    steps = "unknown" if move.rpo_steps < 0 else f"{least}{move.rpo_steps} steps ({span(move.rpo_ms)})"
    return f"RTO {'unknown' if move.rto_ms < 0 else span(move.rto_ms)}, RPO {steps}"


_DESCRIBE: dict[int, Callable[[Object], tuple[str, str] | None]] = {
    api_pb2.KIND_NODE: _node,
    api_pb2.KIND_DEVICE: _device,
    api_pb2.KIND_INCIDENT: _incident,
    api_pb2.KIND_DRAIN: _drain,
    api_pb2.KIND_JOB: _job,
    api_pb2.KIND_MIGRATION: _migration,
}
