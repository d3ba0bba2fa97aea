"""Snapshots for the pure cores, assembled from the mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from gridkeeper.decision import Versioned
from gridkeeper.ids import RegionId, Revision
from gridkeeper.memo import Memo
from gridkeeper.snapshot import Failsafe, GlobalState, RegionState


class Records(Protocol):
    """A store's records by kind; a ``Mirror`` is one, and says what the methods mean."""

    @property
    def revision(self) -> Revision: ...

    @property
    def fresh(self) -> bool: ...

    @property
    def suspect(self) -> frozenset[str]: ...

    @property
    def memo(self) -> Memo: ...

    def kind(self, kind: str) -> Mapping[str, Versioned[Any]]: ...

    def one(self, kind: str) -> Versioned[Any] | None: ...


def region_state(region: RegionId, mirror: Records) -> RegionState:
    """The region's store at the mirror's revision."""

    def kind(name: str) -> Any:
        return cast(Any, mirror.kind(name))

    return RegionState(
        region=region,
        revision=mirror.revision,
        nodes=kind("nodes"),
        devices=kind("devices"),
        sessions=kind("sessions"),
        liveness=kind("liveness"),
        health=kind("health"),
        cordons=kind("cordons"),
        events=kind("events"),
        findings=kind("findings"),
        incidents=kind("incidents"),
        drains=kind("drains"),
        drain_requests=kind("drain-requests"),
        budgets=kind("budgets"),
        reservations=kind("reservations"),
        replicas=kind("replicas"),
        accounts=kind("accounts"),
        detector=mirror.one("detector"),
        breakers=kind("breakers"),
        shares=kind("shares"),
        repeats=kind("repeats"),
        repairs=kind("repairs"),
        maintenance=kind("maintenance"),
        probes=kind("probes"),
        witnesses=kind("witnesses"),
        policy=mirror.one("policy"),
        closings=kind("closings"),
        ledger_heads=kind("ledger-heads"),
        slo_hours=kind("slo-hours"),
        slo_alerts=kind("slo-alerts"),
        suspect_keys=mirror.suspect,
        revocations=kind("revocations"),
        tokens=kind("tokens"),
        memo=mirror.memo,
    )


def global_state(mirror: Records, failsafe: Failsafe | None = None) -> GlobalState:
    """The global store at the mirror's revision; ``fresh`` as of now. ``failsafe``: for who decides on it."""

    def kind(name: str) -> Any:
        return cast(Any, mirror.kind(name))

    meta = mirror.one("meta")
    return GlobalState(
        revision=mirror.revision,
        fresh=mirror.fresh,
        generation=meta.record.generation if meta else 1,
        jobs=kind("jobs"),
        ownership=kind("ownership"),
        runs=kind("runs"),
        heads=kind("heads"),
        checkpoints=kind("checkpoints"),
        migrations=kind("migrations"),
        offers=kind("offers"),
        grants=kind("grants"),
        regions=kind("regions"),
        accounts=kind("accounts"),
        escrow=kind("escrow"),
        share_acks=kind("share-acks"),
        policy=mirror.one("policy"),
        policies=kind("policies"),
        documents=kind("documents"),
        losses=kind("losses"),
        exclusions=kind("exclusions"),
        closings=kind("closings"),
        ledger_heads=kind("ledger-heads"),
        slo_hours=kind("slo-hours"),
        slo_alerts=kind("slo-alerts"),
        suspect_keys=mirror.suspect,
        memo=mirror.memo,
        failsafe=failsafe,
    )
