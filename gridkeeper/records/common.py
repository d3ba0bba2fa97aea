"""Small values that several records share."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Desired(enum.StrEnum):
    """What a human wants of a job, or the control plane of a process."""

    RUN = "run"
    STOP = "stop"


class Severity(enum.StrEnum):
    """How bad a finding is. ``FATAL`` takes the device out; ``WARNING`` is watched."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"


class Scope(enum.StrEnum):
    """How far a fault reaches (architecture §7)."""

    PROCESS = "process"
    PARTITION = "partition"
    DEVICE = "device"
    LINK = "link"
    NODE = "node"
    RACK = "rack"
    REGION = "region"


class Action(enum.StrEnum):
    """What the catalogue says to do about a fault."""

    IGNORE = "ignore"
    WATCH = "watch"
    RESTART_JOB = "restart_job"
    RESET_DEVICE = "reset_device"
    REBOOT_NODE = "reboot_node"
    DRAIN = "drain"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Label:
    """One ``key=value``."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """A named moment in the life of an object, ledger time in ms since the Unix epoch."""

    name: str
    at_ms: int
