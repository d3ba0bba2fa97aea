"""Documents that people apply beside the policy: contracts and objectives. Global store, the newest version of each."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DocumentKind(enum.StrEnum):
    CONTRACT = "contract"
    OBJECTIVES = "objectives"


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """documents/<kind>/<name>: ``text``: the YAML as it was applied. ``digest``: BLAKE3 of it, hexadecimal. A contract
    says its own name; a file of objectives is given one."""

    kind: DocumentKind
    name: str
    version: int
    text: str
    digest: str
    applied_by: str
    applied_ms: int
    reason: str
