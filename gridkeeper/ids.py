"""Identifiers. Each kind is its own type, so that a device id is never passed where a node id belongs.

A device id is ``<node>/<slot>`` (``east-1/gpu3``): it names a *place*, and stays when the card in it is swapped; the
card itself is known by its uuid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

NodeId = NewType("NodeId", str)
DeviceId = NewType("DeviceId", str)
JobId = NewType("JobId", str)
RegionId = NewType("RegionId", str)
ReplicaId = NewType("ReplicaId", str)
EventId = NewType("EventId", str)
FindingId = NewType("FindingId", str)
IncidentId = NewType("IncidentId", str)
DrainId = NewType("DrainId", str)
MigrationId = NewType("MigrationId", str)
SpoolId = NewType("SpoolId", str)

Revision = NewType("Revision", int)
"""A store revision (etcd's ``mod_revision`` or header revision); 0 means "the key does not exist"."""

Term = NewType("Term", int)
"""The create revision of a leader key; grows with every election in that store."""

_NAME = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")


class BadName(ValueError):
    """A name that cannot be part of a key. The message names the field, the value and the remedy."""


def checked_name(field: str, value: str) -> str:
    """``value`` if it is 1 to 63 characters of ``a-z 0-9 . _ -``, beginning and ending with a letter or digit.

    Raises ``BadName`` otherwise.
    """
    if not _NAME.match(value):
        raise BadName(
            f"{field}: {value[:80]!r} is not a name; use 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "beginning and ending with a letter or digit"
        )
    return value


def device_id(node: NodeId, slot: str) -> DeviceId:
    """The device in ``slot`` of ``node``. Raises ``BadName``."""
    return DeviceId(f"{checked_name('node', node)}/{checked_name('slot', slot)}")


def node_of(device: DeviceId) -> NodeId:
    """The node part of a device id."""
    return NodeId(device.partition("/")[0])


def slot_of(device: DeviceId) -> str:
    """The slot part of a device id."""
    return device.partition("/")[2]


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The number of one start of a job: (generation of the store, n). Only grows; a restore from a backup starts a
    new generation, so that nothing rolled back can pass for new."""

    generation: int = 1
    number: int = 0

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"

    def next(self) -> Epoch:
        """The epoch of the job's next start."""
        return Epoch(self.generation, self.number + 1)

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """From ``"1.7"``. Raises ``ValueError`` with the text in it."""
        generation, dot, number = text.partition(".")
        if not dot or not generation.isdigit() or not number.isdigit():
            raise ValueError(f"epoch {text!r} is not <generation>.<number>")
        return cls(int(generation), int(number))


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """How much of a store somebody has seen: everything up to a revision of a generation."""

    generation: int = 0
    revision: int = 0
