"""Pure: what an answer may be missing, said in sentences."""

from __future__ import annotations

from controlplane.rpc.rows import Scene
from controlplane.rpc.sources import ReplicaInfo
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.v1 import api_pb2

STORED_AS: dict[int, tuple[str, ...]] = {
    api_pb2.KIND_REGION: ("regions", "budgets", "replicas", "leader"),
    api_pb2.KIND_NODE: ("nodes", "liveness", "cordons", "sessions"),
    api_pb2.KIND_DEVICE: ("devices", "health", "cordons"),
    api_pb2.KIND_INCIDENT: ("incidents",),
    api_pb2.KIND_DRAIN: ("drains",),
    api_pb2.KIND_JOB: ("jobs", "ownership", "runs", "heads"),
    api_pb2.KIND_MIGRATION: ("migrations",),
    api_pb2.KIND_CHECKPOINT: ("checkpoints",),
    api_pb2.KIND_SLA: ("accounts",),
    api_pb2.KIND_EVENT: ("events",),
    api_pb2.KIND_AUDIT: ("audit",),
    api_pb2.KIND_FINDING: ("findings",),
    api_pb2.KIND_REPAIR: ("repairs",),
    api_pb2.KIND_MAINTENANCE: ("maintenance",),
    api_pb2.KIND_BREAKER: ("breakers",),
    api_pb2.KIND_LOSS: ("losses",),
}
"""Kind -> first path elements of the keys that it is made of."""

GLOBAL_TOO = frozenset({api_pb2.KIND_REGION, api_pb2.KIND_SLA, api_pb2.KIND_AUDIT})
"""Region-owned kinds that also show what the global store holds."""

SHOWN_KEYS = 3


def current(kinds: tuple[int, ...], info: ReplicaInfo) -> bool:
    """False: a store that one of the kinds rests on is not heard, so that nothing can be said of now."""
    return not _unheard(kinds, info)


def sentences(kinds: tuple[int, ...], scene: Scene, info: ReplicaInfo) -> tuple[str, ...]:
    """Why something of ``kinds`` may be missing or out of date; empty: nothing is."""
    missing = _unheard(kinds, info)
    stored = {element for kind in kinds for element in STORED_AS[kind]}
    suspect = sorted(
        key
        for key in (*scene.region.suspect_keys, *scene.world.suspect_keys)
        if not stored.isdisjoint(key.strip("/").split("/"))
    )
    if suspect:
        shown = ", ".join(suspect[:SHOWN_KEYS]) + (" …" if len(suspect) > SHOWN_KEYS else "")
        missing.append(
            f"region {info.region}: {len(suspect)} records do not decode, and what they stood for is unknown: {shown}"
        )
    return tuple(missing)


def _unheard(kinds: tuple[int, ...], info: ReplicaInfo) -> list[str]:
    missing = []
    if not info.region_store_reachable and any(BY_NUMBER[kind].region_owned for kind in kinds):
        missing.append(f"region {info.region}: its store does not answer; its objects are as last seen")
    shows_global = any(not BY_NUMBER[kind].region_owned or kind in GLOBAL_TOO for kind in kinds)
    if not info.global_store_reachable and shows_global:
        missing.append(f"region {info.region}: the global store does not answer; jobs and moves are as last seen")
    return missing
