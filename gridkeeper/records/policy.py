"""The policy in force. Global store (``policy``, and each version under ``policies/``). Each region's leader keeps a
copy in its own store (``policy``), which is what the region decides by, also while it is cut off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """``text``: the YAML document as it was applied. ``digest``: BLAKE3 of it, hexadecimal."""

    version: int
    text: str
    digest: str
    applied_by: str
    applied_ms: int
    reason: str
