"""Which findings are about each node, kept current by the mirror.

A checkpoint is judged by those of its own node alone: when hundreds of nodes fail together, each of theirs must not
be held against all findings of the region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.shell.mirror import Changed, Mirror
from gridkeeper.decision import Versioned
from gridkeeper.ids import NodeId
from gridkeeper.records.faults import FindingRecord


class NodeFindings:
    """One per replica. ``local``: the mirror of the region's store."""

    def __init__(self, local: Mirror) -> None:
        self._local = local
        self._node_of: dict[str, NodeId] = {}
        self._names: dict[NodeId, set[str]] = {}
        local.listen(("findings",), self._heard)

    def of(self, node: NodeId) -> Mapping[str, Versioned[FindingRecord]]:
        """Sorted by name."""
        found: dict[str, Versioned[Any]] = {}
        for name in sorted(self._names.get(node, ())):
            held = self._local.newest("findings", name)
            if held is not None:
                found[name] = held
        return found

    def _heard(self, changed: Changed) -> None:
        for name in changed.get("findings", ()):
            before, held = self._node_of.pop(name, None), self._local.newest("findings", name)
            if before is not None:
                self._names[before].discard(name)
                if not self._names[before]:
                    del self._names[before]
            if held is not None:
                self._node_of[name] = held.record.node
                self._names.setdefault(held.record.node, set()).add(name)
