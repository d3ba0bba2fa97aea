"""A region's store on virtual time that holds only what is on somebody's mind.

Of 30,000 devices a handful are sick at any time, and no decision has anything to say about the rest. Their records wait
in bundles, one per device or node, and are laid out again when something happens to them; what decisions ask of the
whole inventory (how many devices a budget covers) is counted once. A test holds this equal to deciding on everything.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping
from typing import Any

from controlplane.domain import rowlabels
from controlplane.domain.health import RULE, RULE_VERSION
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId, NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.records.faults import DetectorRecord, DrainState, IncidentState
from gridkeeper.records.fleet import (
    DeviceRecord,
    HealthRecord,
    HealthState,
    LivenessRecord,
    NodeRecord,
    NodeState,
)
from gridkeeper.snapshot import Inventory, RegionState

FIELDS = {"drain-requests": "drain_requests"}
SINGLE = ("detector", "policy")
SHARED = frozenset({"budgets", "breakers", "shares", "detector", "policy", "replicas"})
"""Kinds that belong to no device: always laid out."""
_OVER = frozenset({DrainState.DRAINED, DrainState.CANCELLED, DrainState.FAILED, DrainState.EXPIRED, DrainState.SHADOW})


class Conflicted(AssertionError):
    """A decision rests on a revision that is not there: with one decider that is a bug in the decisions."""


class VirtualRegion:
    """One decider, one clock: ``now_ms`` is ledger time and boot-time clock alike."""

    def __init__(self, region: RegionId, devices: Mapping[DeviceId, DeviceRecord], from_ms: int) -> None:
        self.region = region
        self.keys = RegionKeys(region)
        self.now_ms = from_ms
        self.devices = devices
        self.nodes: dict[NodeId, list[DeviceId]] = {}
        for device in devices.values():
            self.nodes.setdefault(device.node, []).append(device.id)
        self._revision = 1
        self._whole = self._inventory()
        self._labels: rowlabels.Inventory | None = None
        self._born = Revision(1)
        self._kinds: dict[str, dict[str, Versioned[Any]]] = {"detector": {"": self._versioned(DetectorRecord(1))}}
        self._laid_out = 0
        self._fields: dict[str, dict[str, Versioned[Any]]] = {}  # the kinds by the names of RegionState's fields
        self._bundles: dict[str, dict[tuple[str, str], Versioned[Any]]] = {}
        self._of: dict[str, dict[tuple[str, str], None]] = {}  # subject -> its names in the laid out kinds
        self._root = len(self.keys.root)
        self.written: list[tuple[str, str, Any]] = []
        """(kind, name, record) of what the last ``apply`` wrote."""
        self.touched: set[str] = set()
        """Devices and nodes that something was written about since this was last emptied."""

    def _inventory(self) -> Inventory:
        devices = {name: Versioned(device, Revision(1), Revision(1), 0) for name, device in self.devices.items()}
        nodes = {node: Versioned(self._node(node), Revision(1), Revision(1), 0) for node in self.nodes}
        return Inventory(nodes, devices)

    def _node(self, node: NodeId) -> NodeRecord:
        devices = tuple(self.nodes.get(node, ()))
        rack = self.devices[devices[0]].rack if devices else ""
        return NodeRecord(node, self.region, rack, (), "boot", "trace", ("trace",), devices, 0)

    def _versioned(self, record: Any, created: Revision | None = None) -> Versioned[Any]:
        revision = Revision(self._revision)
        return Versioned(record, revision, created or revision, self.now_ms)

    @property
    def now(self) -> Now:
        return Now(self.now_ms, self.now_ms)

    @property
    def hot(self) -> KeysView[str]:
        """Devices and nodes that are laid out."""
        return self._of.keys()

    def kind(self, kind: str) -> Mapping[str, Versioned[Any]]:
        return self._kinds.get(kind, {})

    def state(self, subjects: Iterable[str] | None = None) -> RegionState:
        """What decisions look at; valid until the next write. ``subjects``: devices and nodes that are to be judged;
        None: all that are laid out."""
        if len(self._kinds) != self._laid_out:
            self._laid_out = len(self._kinds)
            self._fields = {FIELDS.get(kind, kind): held for kind, held in self._kinds.items() if kind not in SINGLE}
        kinds: dict[str, Any] = dict(self._fields)
        if subjects is not None:
            devices, nodes = self.kind("devices"), self.kind("nodes")
            kinds["devices"] = {name: devices[DeviceId(name)] for name in subjects if name in devices}
            kinds["nodes"] = {name: nodes[name] for name in subjects if name in nodes}
        single: dict[str, Any] = {kind: self.kind(kind).get("") for kind in SINGLE}
        return RegionState(self.region, Revision(self._revision), whole=self._whole, **single, **kinds)

    def health(self, device: DeviceId) -> HealthRecord:
        """As it is now, laid out or not."""
        laid_out = self.kind("health").get(device)
        held = laid_out or self._bundles.get(device, {}).get(("health", device))
        record: HealthRecord = (held or self._fresh(device)["health", device]).record
        return record

    def inventory(self) -> rowlabels.Inventory:
        """Where rules have labels from. A device that is not laid out is healthy."""
        if self._labels is None:
            health = {device: Versioned(self.health(device), self._born, self._born, 0) for device in self.devices}
            self._labels = rowlabels.Inventory(self._whole.nodes, self._whole.devices, health)
        return self._labels

    # -- what is laid out --

    def heat(self, subject: str) -> None:
        """Lay out a device with its node, or a node with all its devices."""
        if "/" in subject:
            self._heat_one(NodeId(subject.partition("/")[0]))
            self._heat_one(subject)
            return
        self._heat_one(subject)
        for device in self.nodes.get(NodeId(subject), ()):
            self._heat_one(device)

    def _heat_one(self, subject: str) -> None:
        if subject in self._of:
            return
        self._of[subject] = {}
        bundle = self._bundles.pop(subject, None)
        if bundle is None:
            bundle = self._fresh(subject)
        for (kind, name), held in bundle.items():
            self._kinds.setdefault(kind, {})[name] = held
            self._of[subject][kind, name] = None

    def _fresh(self, subject: str) -> dict[tuple[str, str], Versioned[Any]]:
        """A subject nothing has ever happened to, as it has been since the beginning."""
        if "/" in subject:
            device = self.devices[DeviceId(subject)]
            health = HealthRecord(
                device=device.id,
                node=device.node,
                uuid=device.uuid,
                state=HealthState.HEALTHY,
                since_ms=0,
                reason="nothing was known against it when the trace begins",
                evidence=(),
                incident=IncidentId(""),
                drain=DrainId(""),
                rule=RULE,
                rule_version=RULE_VERSION,
                flaps=0,
                before_unknown=HealthState.HEALTHY,
                trace="",
            )
            return {
                ("devices", subject): Versioned(device, self._born, self._born, 0),
                ("health", subject): Versioned(health, self._born, self._born, 0),
            }
        node = self._node(NodeId(subject))
        alive = LivenessRecord(NodeId(subject), NodeState.ALIVE, 0, "heard throughout the trace")
        return {
            ("nodes", subject): Versioned(node, self._born, self._born, 0),
            ("liveness", subject): Versioned(alive, self._born, self._born, 0),
        }

    def cool(self) -> None:
        """Put away devices about which there is nothing left to decide, and nodes without laid out devices."""
        for subject in [s for s in self._of if "/" in s and self._is_quiet(s)]:
            self._put_away(subject)
        busy = {subject.partition("/")[0] for subject in self._of if "/" in subject}
        for subject in [s for s in self._of if "/" not in s and s not in busy and self._is_quiet(s)]:
            self._put_away(subject)

    def _is_quiet(self, subject: str) -> bool:
        for kind, name in self._of[subject]:
            record = self._kinds[kind][name].record
            match kind:
                case "health" if record.state is not HealthState.HEALTHY:
                    return False
                case "findings" if record.active:
                    return False
                case "incidents" if record.state is not IncidentState.RESOLVED:
                    return False
                case "drains" if record.state not in _OVER:
                    return False
                case "drain-requests" | "cordons" | "repairs":
                    return False
                case "events" if self._kinds[kind][name].created > self._digested():
                    return False
                case _:
                    pass
        return True

    def _digested(self) -> int:
        revision: int = self._kinds["detector"][""].record.revision
        return revision

    def _put_away(self, subject: str) -> None:
        self._bundles[subject] = {(kind, name): self._kinds[kind].pop(name) for kind, name in self._of.pop(subject)}

    # -- writing --

    def write(self, key: str, record: Any) -> None:
        """Somebody else's write: an agent's event, a human's wish."""
        self._revision += 1
        self.written = []
        self._set(key, record)

    def apply(self, decision: Decision) -> None:
        """One transaction. Raises ``Conflicted``."""
        for compare in (*decision.guards, *decision.writes):
            kind, name = self._split(compare.key)
            held = self._kinds.get(kind, {}).get(name)
            if (held.revision if held else ABSENT) != compare.expected:
                raise Conflicted(f"{decision.step}: {compare.key} is not at {compare.expected}: {decision.sentence}")
        self._revision += 1
        self.written = []
        for write in decision.writes:
            self._set(write.key, write.record if isinstance(write, Put) else None)

    def _split(self, key: str) -> tuple[str, str]:
        kind, _, name = key[self._root :].partition("/")
        return kind, name

    def _set(self, key: str, record: Any) -> None:
        kind, name = self._split(key)
        held = self._kinds.setdefault(kind, {})
        old = held.get(name)
        subject = "" if kind in SHARED else self._subject(kind, name, old.record if old else record)
        if record is None:
            held.pop(name, None)
            self._of.get(subject, {}).pop((kind, name), None)
        else:
            held[name] = self._versioned(record, old.created if old else None)
            if subject:
                self._of.setdefault(subject, {})[kind, name] = None
        if kind == "health":
            self._labels = None
        self.written.append((kind, name, record))
        if subject:
            self.touched.add(subject)
            if "/" not in subject and kind in ("findings", "liveness", "cordons"):
                self.touched.update(self.nodes.get(NodeId(subject), ()))

    def _subject(self, kind: str, name: str, record: Any) -> str:
        if kind in ("findings", "events", "drains", "repairs"):
            return str(record.device or record.node)
        if kind == "incidents" or kind == "repeats":
            subject = str(record.subject)
            return subject if subject in self._of else ""
        return name
