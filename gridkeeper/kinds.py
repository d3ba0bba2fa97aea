"""The kinds of objects that the API shows: names, aliases and whose they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Kind, Object


class UnknownKind(ValueError):
    """A word that names no kind; the message lists those that exist."""


@dataclass(frozen=True, slots=True)
class KindInfo:
    """``view``: the field of ``Object.view`` that is set. ``region_owned``: each region answers for its own objects;
    else every region answers alike from the global store."""

    kind: Kind.ValueType
    singular: str
    plural: str
    aliases: tuple[str, ...]
    view: str
    region_owned: bool
    summary: str


KINDS: tuple[KindInfo, ...] = (
    KindInfo(
        api_pb2.KIND_REGION, "region", "regions", ("re",), "region_view", True, "a site with its own control plane"
    ),
    KindInfo(api_pb2.KIND_NODE, "node", "nodes", ("no",), "node", True, "a host with an agent"),
    KindInfo(api_pb2.KIND_DEVICE, "device", "devices", ("de", "dev"), "device", True, "an accelerator, by its place"),
    KindInfo(
        api_pb2.KIND_INCIDENT, "incident", "incidents", ("inc",), "incident", True, "what a human is told about a fault"
    ),
    KindInfo(api_pb2.KIND_DRAIN, "drain", "drains", ("dr",), "drain", True, "the decision to take a device out"),
    KindInfo(api_pb2.KIND_JOB, "job", "jobs", ("jo",), "job", False, "a command that runs on devices"),
    KindInfo(
        api_pb2.KIND_MIGRATION, "migration", "migrations", ("mig",), "migration", False, "one start of a job elsewhere"
    ),
    KindInfo(
        api_pb2.KIND_CHECKPOINT, "checkpoint", "checkpoints", ("ck",), "checkpoint", False, "a verified step of a job"
    ),
    KindInfo(api_pb2.KIND_SLA, "sla", "slas", (), "sla", True, "the uptime account of a device, region or job"),
    KindInfo(api_pb2.KIND_EVENT, "event", "events", ("ev",), "event", True, "one thing that an agent saw"),
    KindInfo(api_pb2.KIND_AUDIT, "audit", "audit", ("audits", "au"), "audit", True, "who did what, and why"),
    KindInfo(
        api_pb2.KIND_FINDING, "finding", "findings", ("fi",), "finding", True, "what detection concluded from evidence"
    ),
    KindInfo(
        api_pb2.KIND_REPAIR,
        "repair",
        "repairs",
        ("rep",),
        "repair",
        True,
        "one attempt to put a device right, or to test",
    ),
    KindInfo(
        api_pb2.KIND_MAINTENANCE,
        "maintenance",
        "maintenances",
        ("mt",),
        "maintenance",
        True,
        "an announced window of work on a node or device",
    ),
    KindInfo(
        api_pb2.KIND_BREAKER,
        "breaker",
        "breakers",
        ("br",),
        "breaker",
        True,
        "stops automatic drains when too many are wanted",
    ),
    KindInfo(
        api_pb2.KIND_LOSS, "loss", "losses", (), "loss", False, "the question whether a region is lost, and its answer"
    ),
)

BY_NUMBER: dict[int, KindInfo] = {info.kind: info for info in KINDS}
_BY_WORD = {word: info for info in KINDS for word in (info.singular, info.plural, *info.aliases)}


def kind_named(word: str) -> KindInfo:
    """The kind that a user means by ``word``: singular, plural or short form. Raises ``UnknownKind``."""
    try:
        return _BY_WORD[word.lower()]
    except KeyError:
        names = ", ".join(info.plural for info in KINDS)
        raise UnknownKind(f"kind: {word[:40]!r} is none; use one of {names}") from None


def object_named(text: str) -> tuple[KindInfo, str]:
    """``incident/<id>`` (also ``device/east-1/gpu3``) taken apart. Raises ``UnknownKind``."""
    word, slash, name = text.partition("/")
    if not slash or not name:
        raise UnknownKind(f"object: {text[:80]!r} is not <kind>/<name>; for example device/east-1/gpu3")
    return kind_named(word), name


def reference(kind: Kind.ValueType, name: str) -> str:
    """``<kind>/<name>`` as written in explanations and answers."""
    return f"{BY_NUMBER[kind].singular}/{name}"


_STEP = re.compile(r"/0*(\d+)$")


def checkpoint_name(key: str) -> str:
    """``<job>/<step>`` of a stored key's ``<job>/<step, 20 digits>``."""
    return _STEP.sub(r"/\1", key)


def is_global(item: Object) -> bool:
    """True: every region knows this object from the global store, so that answers are one and the same."""
    info = BY_NUMBER.get(item.kind)
    if info is None or not info.region_owned:
        return True
    return info.kind in (api_pb2.KIND_SLA, api_pb2.KIND_AUDIT) and not item.region
