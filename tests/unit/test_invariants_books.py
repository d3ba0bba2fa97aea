"""The checkers of what is written (acknowledgements, leaders, budgets, drains), on good and bad histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.simulate.history import (
    GLOBAL_STORE,
    Acked,
    Held,
    Injected,
)
from gridkeeper.ids import (
    DeviceId,
    DrainId,
    FindingId,
    IncidentId,
    MigrationId,
    ReplicaId,
    SpoolId,
)
from gridkeeper.keys import KEYS, event_id
from gridkeeper.records.books import AuditRecord
from gridkeeper.records.common import Action, Desired, Scope, Severity
from gridkeeper.records.faults import (
    BudgetHold,
    BudgetRecord,
    DrainRecord,
    DrainState,
    FindingRecord,
    HoldKind,
    LeaderRecord,
)
from gridkeeper.records.fleet import (
    DeviceRecord,
    EventKind,
    EventRecord,
    HealthRecord,
    HealthState,
    LivenessRecord,
    NodeState,
)
from gridkeeper.records.jobs import (
    GrantRecord,
    OfferRecord,
    Revoke,
)
from tests.unit.handmade import (
    EAST,
    GPU0,
    GPU1,
    LOCAL,
    N1,
    OWNER,
    Book,
    begun,
    only,
    owner,
)

# -- acknowledged means durable


def event(sequence: int, **changes: Any) -> EventRecord:
    name = event_id(N1, SpoolId("sp"), sequence)
    record = EventRecord(
        name, N1, SpoolId("sp"), sequence, GPU0, EventKind.XID, 48, "XID 48", ("nvml",), 1, 0, "", 5, 100, ""
    )
    return replace(record, **changes)


def event_key(sequence: int) -> str:
    return LOCAL.event(event_id(N1, SpoolId("sp"), sequence))


def test_events_that_are_stored_may_be_acknowledged_and_later_archived() -> None:
    book = begun()
    book.commit(100, "east", {event_key(1): event(1), event_key(2): event(2)})
    book.add(Acked(110, "cp1", "east", N1, "sp", 2))
    book.commit(900, "east", {event_key(1): None})
    book.add(Acked(910, "cp1", "east", N1, "sp", 2))
    assert book.wrong() == []


def test_an_acknowledgement_ahead_of_the_store_is_found() -> None:
    book = begun()
    book.commit(100, "east", {event_key(1): event(1)})
    book.add(Acked(110, "cp1", "east", N1, "sp", 2))
    only(book, "acknowledged once", "cp1 acknowledges east-1/sp/00000000000000000002, which is not stored")


def test_an_event_written_twice_is_found() -> None:
    book = begun()
    book.commit(100, "east", {event_key(1): event(1)})
    book.commit(200, "east", {event_key(1): event(1, count=2)})
    only(book, "acknowledged once", "is written twice")


# -- leaders


ALIVE = LivenessRecord(N1, NodeState.ALIVE, 0, "heard")


def test_a_leaders_write_under_its_term_is_right() -> None:
    book = begun()
    book.led(100, "east", {LOCAL.liveness(N1): ALIVE})
    assert book.wrong() == []


def test_a_leaders_write_without_a_term_is_found() -> None:
    book = begun()
    book.commit(100, "east", {LOCAL.liveness(N1): ALIVE})
    only(book, "leaders guarded", "liveness of east written without the current term")


def test_a_write_under_the_term_of_a_leader_that_is_gone_is_found() -> None:
    book = begun()
    old = Held(LOCAL.leader, book.created[LOCAL.leader], True)
    book.commit(50, "east", {LOCAL.leader: None})
    book.commit(60, "east", {LOCAL.leader: LeaderRecord(ReplicaId("cp2"), "cp2", 60)})
    book.commit(100, "east", {LOCAL.liveness(N1): ALIVE}, [old])
    only(book, "leaders guarded", "without the current term")


def test_a_write_while_nobody_leads_is_found() -> None:
    book = begun()
    old = Held(LOCAL.leader, book.created[LOCAL.leader], True)
    book.commit(50, "east", {LOCAL.leader: None})
    book.commit(100, "east", {LOCAL.liveness(N1): ALIVE}, [old])
    only(book, "leaders guarded", "without the current term")


def test_what_a_human_asked_for_needs_no_term() -> None:
    book = begun()
    budget = BudgetRecord("region", (BudgetHold(GPU0, HoldKind.CORDON, "ann"),), 1, 1)
    audit = AuditRecord("a", 100, "user/ann", "cordon", "device/x", "why", "applied", 3, (), "")
    book.commit(100, "east", {LOCAL.budget("region"): budget, LOCAL.audit("a"): audit})
    assert book.wrong() == []
    machine = replace(audit, actor="machine/cp1")
    book.commit(200, "east", {LOCAL.budget("region"): budget, LOCAL.audit("b"): machine})
    only(book, "leaders guarded", "budgets of east")


def test_a_regions_leader_writes_to_the_global_store_under_its_grant() -> None:
    offer = OfferRecord(MigrationId("m"), 1, EAST, N1, (GPU0,), "", 3)
    book = begun()
    first = book.commit(50, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 3, ReplicaId("cp1"), 0)})
    book.commit(60, GLOBAL_STORE, {KEYS.offer(MigrationId("m")): offer}, [Held(KEYS.grant(EAST), first, False)])
    assert book.wrong() == []
    book.commit(70, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 4, ReplicaId("cp2"), 0)})
    book.commit(80, GLOBAL_STORE, {KEYS.offer(MigrationId("m")): offer}, [Held(KEYS.grant(EAST), first, False)])
    only(book, "leaders guarded", "offers of global")


def test_an_ownership_moved_under_a_mere_grant_is_found() -> None:
    book = begun()
    grant = book.commit(50, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 3, ReplicaId("cp1"), 0)})
    book.commit(60, GLOBAL_STORE, {OWNER: owner()}, [Held(KEYS.grant(EAST), grant, False)])
    only(book, "leaders guarded", "ownership of global")


def test_under_a_grant_an_intent_may_be_withdrawn_and_nothing_else_of_an_ownership_changed() -> None:
    silent = owner(revoke=Revoke(MigrationId("m"), "n1 is unreachable", 0, withdrawable=True))
    for changed, right in ((owner(), True), (owner(checkpoint_request=1), False), (owner(desired=Desired.STOP), False)):
        book = begun()
        grant = book.commit(50, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 3, ReplicaId("cp1"), 0)})
        book.led(60, GLOBAL_STORE, {OWNER: silent})
        book.commit(70, GLOBAL_STORE, {OWNER: changed}, [Held(KEYS.grant(EAST), grant, False)])
        assert (book.wrong() == []) is right, changed


def test_a_grant_that_goes_back_is_found() -> None:
    book = begun()
    book.commit(50, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 3, ReplicaId("cp1"), 0)})
    book.commit(60, GLOBAL_STORE, {KEYS.grant(EAST): GrantRecord(EAST, 3, ReplicaId("cp2"), 0)})
    only(book, "leaders guarded", "the grant east goes back")


# -- budgets and drains


def device(name: DeviceId) -> DeviceRecord:
    slot = name.partition("/")[2]
    return DeviceRecord(name, N1, slot, "u", "nvidia", "H100", "hopper", "", "", 1, "", "r1", EAST, True)


def health(name: DeviceId, state: HealthState) -> HealthRecord:
    return HealthRecord(name, N1, "u", state, 0, "", (), IncidentId(""), DrainId(""), "", 1, 0, HealthState.HEALTHY, "")


def finding(name: DeviceId = GPU0, **changes: Any) -> FindingRecord:
    record = FindingRecord(
        FindingId(f"f-{name}"), EAST, N1, name, Scope.DEVICE, "memory", "xid-48", Severity.ERROR, Action.DRAIN, "",
        (event_id(N1, SpoolId("sp"), 1),), 0, "nvidia-xid", 1, True, "",
    )  # fmt: skip
    return replace(record, **changes)


def drain(name: DeviceId = GPU0, **changes: Any) -> DrainRecord:
    record = DrainRecord(
        DrainId(f"d-{name}"), EAST, N1, name, "u", IncidentId(""), DrainState.ADMITTED, "", (f"f-{name}",), 0, 1,
        "nvidia-xid", 1, ("region",), (), "machine", 0, 0, (), "",
    )  # fmt: skip
    return replace(record, **changes)


BUDGETS = ("region", "rack-r1", "vendor-nvidia")


def held_by(*holds: BudgetHold) -> dict[str, Any]:
    return {LOCAL.budget(name): BudgetRecord(name, holds, 1, 8) for name in BUDGETS}


def hold(name: DeviceId, kind: HoldKind = HoldKind.DRAIN) -> BudgetHold:
    return BudgetHold(name, kind, "x")


def fleet(size: int = 4) -> Book:
    """``size`` devices of one rack in one node (one may be out for each four), two of them with a fault and a finding
    on a stored event."""
    book = begun()
    names = [DeviceId(f"east-1/gpu{i}") for i in range(size)]
    book.commit(10, "east", {LOCAL.device(name): device(name) for name in names})
    book.led(20, "east", {LOCAL.health(name): health(name, HealthState.DEGRADED) for name in names})
    book.add(Injected(30, "XID 48", GPU0), Injected(31, "XID 48", GPU1))
    book.commit(40, "east", {event_key(1): event(1)})
    book.commit(50, "east", {LOCAL.finding(f"f-{name}"): finding(name) for name in (GPU0, GPU1)})
    return book


def admit(book: Book, at_ms: int, name: DeviceId, *others: BudgetHold, compared: bool = True, **changes: Any) -> None:
    """Drain, health and budgets in one transaction, as the planner does."""
    record = drain(name, **changes)
    records = {
        LOCAL.drain(record.id): record,
        LOCAL.health(name): health(name, HealthState.DRAINING),
        **held_by(hold(name), *others),
    }
    if not compared:
        book.mod[LOCAL.health(name)] = 0
    book.led(at_ms, "east", records)


def test_a_drain_with_evidence_and_room_is_right() -> None:
    book = fleet()
    admit(book, 100, GPU0)
    book.led(200, "east", {LOCAL.health(GPU0): health(GPU0, HealthState.DRAINED)})
    assert book.wrong() == []


def test_one_drain_too_many_is_found_in_each_budget() -> None:
    book = fleet()
    admit(book, 100, GPU0)
    admit(book, 200, GPU1, hold(GPU0))
    found = book.wrong()
    # A rack may lose half of its devices, region and vendor a quarter.
    assert [text.partition("budget ")[2] for text in found] == [
        "region, which allows 1",
        "vendor-nvidia, which allows 1",
    ]


def test_a_larger_fleet_has_room_for_both() -> None:
    book = fleet(8)
    admit(book, 100, GPU0)
    admit(book, 200, GPU1, hold(GPU0))
    assert book.wrong() == []


def test_a_drain_beside_a_humans_cordon_counts_it() -> None:
    book = fleet()
    cordon = hold(GPU1, HoldKind.CORDON)
    audit = AuditRecord("a", 90, "user/ann", "cordon", "device/x", "why", "applied", 3, (), "")
    book.commit(90, "east", {**held_by(cordon), LOCAL.audit("a"): audit})
    admit(book, 100, GPU0, cordon)
    assert len(book.wrong()) == 2


def test_a_cordoned_device_takes_no_second_place() -> None:
    book = fleet()
    cordon = hold(GPU0, HoldKind.CORDON)
    audit = AuditRecord("a", 90, "user/ann", "cordon", "device/x", "why", "applied", 3, (), "")
    book.commit(90, "east", {**held_by(cordon), LOCAL.audit("a"): audit})
    admit(book, 100, GPU0, cordon)
    assert book.wrong() == []


def test_a_device_that_drains_without_a_place_is_found() -> None:
    book = fleet()
    book.led(100, "east", {LOCAL.health(GPU0): health(GPU0, HealthState.DRAINING)})
    assert book.wrong() == [
        f"never too much: east-1/gpu0 is draining without a place in budget {name}" for name in BUDGETS
    ]


def test_a_device_that_is_out_counts_even_if_its_hold_was_lost() -> None:
    book = fleet()
    admit(book, 100, GPU0)
    book.led(150, "east", held_by())
    admit(book, 200, GPU1)
    assert len(book.wrong()) == 2


def test_a_drain_without_evidence_is_found() -> None:
    book = fleet()
    admit(book, 100, GPU0, evidence=())
    assert any("cites no active finding" in text for text in book.wrong())


def test_a_drain_on_evidence_that_has_cleared_is_found() -> None:
    book = fleet()
    book.commit(60, "east", {LOCAL.finding(f"f-{GPU0}"): finding(GPU0, active=False)})
    admit(book, 100, GPU0)
    only(book, "evidence", "cites no active finding")


def test_a_drain_that_cites_what_is_not_there_is_found() -> None:
    book = fleet()
    admit(book, 100, GPU0, evidence=(f"f-{GPU0}", "east-1/sp/99"))
    only(book, "evidence", "cites east-1/sp/99, which is not in the store")


def test_a_drain_for_silence_alone_is_found() -> None:
    book = fleet()
    silent = DeviceId("east-1/gpu3")
    book.commit(60, "east", {LOCAL.finding(f"f-{silent}"): finding(silent, evidence=(), rule="silent")})
    admit(book, 100, silent)
    found = book.wrong()
    assert any("rests on no event and no metric" in text for text in found)
    assert any("takes out east-1/gpu3, whose hardware has no fault" in text for text in found)


def test_a_drain_of_the_wrong_device_is_found() -> None:
    book = fleet()
    well = DeviceId("east-1/gpu3")
    book.commit(60, "east", {LOCAL.finding(f"f-{well}"): finding(well)})
    admit(book, 100, well)
    only(book, "evidence", "whose hardware has no fault")


def test_a_drain_decided_on_a_health_record_that_it_does_not_compare_is_found() -> None:
    book = fleet()
    admit(book, 100, GPU0, compared=False)
    only(book, "evidence", "does not compare the health record")


def test_a_human_may_drain_without_a_finding() -> None:
    book = fleet()
    admit(book, 100, DeviceId("east-1/gpu3"), requested_by="user/ann", evidence=("user/ann",))
    assert book.wrong() == []
