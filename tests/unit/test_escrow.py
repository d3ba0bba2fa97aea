"""A budget over all regions: whoever is cut off, stale, replaced or delayed, no more is spent than there is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.budget import limit_of
from controlplane.domain.cordon import uncordon
from controlplane.domain.escrow import GIVEN_UP_MS, REBALANCE_MS, decide_escrow, decide_promise, decide_share
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import RegionId, ReplicaId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.jobs import GrantRecord
from gridkeeper.records.limits import EscrowRecord, ShareRecord
from gridkeeper.snapshot import GlobalState, Settings
from tests.unit.applier import NOON, RegionStore, quick

REGIONS = ("east", "north", "west")


@dataclass
class World:
    """The global store, and a leader of each region with a view of it that may be old."""

    settings: Settings
    items: dict[str, Versioned[Any]] = field(default_factory=dict)
    revision: int = 10
    ledger: int = NOON
    cut: set[str] = field(default_factory=set)
    delayed: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.regions = {name: RegionStore(self.settings, RegionId(name)) for name in REGIONS}
        for name, store in self.regions.items():
            store.fleet(nodes=1, gpus=4)
            store.settle()
            self.grant(name)
        self.views = {name: self.state() for name in REGIONS}

    def grant(self, name: str) -> None:
        """A new leader of a region."""
        self._set(KEYS.grant(RegionId(name)), GrantRecord(RegionId(name), self.revision + 1, ReplicaId("a"), 0))

    def _set(self, key: str, record: Any) -> None:
        self.revision += 1
        held = self.items.get(key)
        created = held.created if held else Revision(self.revision)
        self.items[key] = Versioned(record, Revision(self.revision), created, 0)

    def apply(self, decision: Decision) -> bool:
        for compare in (*decision.guards, *decision.writes):
            held = self.items.get(compare.key)
            if (held.revision if held else ABSENT) != compare.expected:
                return False
        for write in decision.writes:
            assert isinstance(write, Put)
            self._set(write.key, write.record)
        return True

    def state(self) -> GlobalState:
        def kind(name: str) -> dict[Any, Versioned[Any]]:
            prefix = KEYS.prefix(name)
            return {key[len(prefix) :]: v for key, v in self.items.items() if key.startswith(prefix)}

        return GlobalState(
            Revision(self.revision), escrow=kind("escrow"), share_acks=kind("share-acks"), grants=kind("grants")
        )

    @property
    def now(self) -> Now:
        return Now(self.ledger, self.ledger)

    def look(self, name: str) -> None:
        if name not in self.cut:
            self.views[name] = self.state()

    def share(self, name: str) -> None:
        store = self.regions[name]
        for decision in decide_share(store.state(), self.views[name], self.settings, self.now):
            assert store.apply(decision)

    def promise(self, name: str, late: bool = False) -> None:
        found = decide_promise(self.regions[name].state(), self.views[name], self.settings, self.now)
        if late:
            self.delayed.extend(found)
        elif name not in self.cut:
            for decision in found:
                self.apply(decision)

    def divide(self, late: bool = False) -> None:
        found = decide_escrow(self.state(), self.settings, self.now)
        if late:
            self.delayed.extend(found)
            return
        for decision in found:
            before = self.bound()
            assert self.apply(decision)
            record = self.escrow()
            allowed = limit_of(self.settings.policy.budgets[0], record.total)
            assert record.limit <= max(allowed, before), "more is given away than policy says"

    def budget(self, fraction: float) -> None:
        policy = replace(self.settings.policy, budgets=(BudgetPolicy("fleet", fraction, 1),))
        self.settings = replace(self.settings, policy=policy)

    def round(self, times: int = 4) -> None:
        """Everybody acts on what it sees, ``times`` over."""
        for _ in range(times):
            for name in REGIONS:
                self.look(name)
                self.share(name)
                self.promise(name)
            self.divide()

    def wait(self, ms: int) -> None:
        self.ledger += ms
        for store in self.regions.values():
            store.wait(ms)

    # -- looking

    def escrow(self) -> EscrowRecord:
        record: EscrowRecord = self.items[KEYS.escrow("fleet")].record
        return record

    def given(self) -> dict[str, int]:
        held = self.items.get(KEYS.escrow("fleet"))
        return {str(s.region): s.amount for s in held.record.shares} if held else {}

    def promised(self, name: str) -> int:
        held = self.items.get(KEYS.share_ack("fleet", RegionId(name)))
        return held.record.amount if held else 0

    def held(self, name: str) -> int:
        store = self.regions[name]
        record: ShareRecord | None = store.items[k].record if (k := store.keys.share("fleet")) in store.items else None
        return record.amount if record else 0

    def out(self) -> int:
        return sum(len(store.out()) for store in self.regions.values())

    def check(self) -> None:
        given = self.given()
        limit = self.escrow().limit if given else 0
        for name in REGIONS:
            assert self.held(name) <= self.promised(name), f"{name} holds more than it promised"
            assert len(self.regions[name].out()) <= self.held(name), f"{name} spends more than it holds"
        assert self.bound() <= limit, f"{self.bound()} of {limit} may be held"

    def bound(self) -> int:
        """What may be held at most."""
        given = self.given()
        return sum(max(given.get(name, 0), self.promised(name)) for name in REGIONS)


def world(fraction: float = 0.5) -> World:
    settings = quick(budgets=(BudgetPolicy("fleet", fraction, 1),), breakers=())
    return World(settings)


def fail(grid: World, region: str, *slots: int) -> None:
    for slot in slots:
        grid.regions[region].xid(f"n1/gpu{slot}", 48)
    grid.regions[region].settle()


def test_shares_are_fair_at_first_and_taken_only_after_the_promise() -> None:
    """Protects: the order promise, then share; the division by inventory with its remainder."""
    grid = world(fraction=0.6)  # 7 of 12
    grid.promise("east")
    grid.divide()
    assert grid.given() == {"east": 2}, "only of what has been counted"
    grid.look("east")
    grid.share("east")
    assert grid.held("east") == 0, "not before the promise"
    grid.round()
    assert sorted(grid.given().values()) == [2, 2, 3] and grid.escrow().limit == 7
    assert {name: grid.held(name) for name in REGIONS} == grid.given()
    grid.round()
    assert not decide_escrow(grid.state(), grid.settings, grid.now), "nothing moves without need"


def test_a_region_in_need_gets_what_others_do_not_use_and_no_faster_than_the_damping_allows() -> None:
    """Protects: rebalancing by need, damped; a share shrinks in one region before it grows in another."""
    grid = world()  # 6 of 12: 2 each
    grid.round()
    fail(grid, "east", 0, 1, 2, 3)
    assert len(grid.regions["east"].out()) == 2
    grid.round(1)
    before = grid.given()
    grid.round(1)
    assert grid.given() == before, "it moved just now"
    for _ in range(4):
        grid.wait(REBALANCE_MS)
        for _ in range(4):
            grid.round(1)
            grid.check()
            grid.regions["east"].settle()
    assert len(grid.regions["east"].out()) == 4 and sum(grid.given().values()) == 6


def test_a_cut_off_region_spends_what_it_holds_and_nobody_else_spends_it() -> None:
    """Protects: a cut-off region neither grows nor is taken from; others share what is left."""
    grid = world()
    grid.round()
    grid.cut.add("west")
    fail(grid, "east", 0, 1, 2, 3)
    for _ in range(8):
        grid.wait(GIVEN_UP_MS)
        grid.round()
        grid.regions["east"].settle()
        grid.check()
    assert len(grid.regions["east"].out()) == 4, "north's places are lent, west's are not"
    fail(grid, "west", 0, 1, 2, 3)
    assert len(grid.regions["west"].out()) == 2 and grid.out() == 6
    grid.check()


def test_a_smaller_fleet_or_policy_shrinks_shares_as_places_come_back() -> None:
    """Protects: the limit follows what is really out, and never sinks below it on paper."""
    grid = world()
    grid.round()
    fail(grid, "east", 0, 1)
    grid.settings = replace(
        grid.settings, policy=replace(grid.settings.policy, budgets=(BudgetPolicy("fleet", 0.0, 1),))
    )
    grid.round()
    grid.check()
    assert grid.escrow().limit == 2 and grid.held("east") == 2, "two are out"
    store = grid.regions["east"]
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "back", store.now)
    assert decision is not None and store.apply(decision)
    store.run(70_000, step=10_000)
    grid.round()
    assert grid.escrow().limit == 1 and grid.held("east") == 1


def test_a_promise_of_an_earlier_leader_does_not_land() -> None:
    """Protects: lowering a promise late, after another leader has raised the share."""
    grid = world()
    grid.round()
    grid.settings = replace(
        grid.settings, policy=replace(grid.settings.policy, budgets=(BudgetPolicy("fleet", 0.0, 1),))
    )
    grid.divide()
    grid.look("east")
    grid.share("east")
    grid.promise("east", late=True)
    grid.grant("east")
    assert [grid.apply(decision) for decision in grid.delayed] == [False]


def test_a_promise_on_a_division_that_is_no_more_does_not_land() -> None:
    """Protects: growing on an old view of the escrow, after the places were given to others."""
    grid = world(0.0)
    grid.round()
    grid.budget(1.0)
    grid.divide()
    grid.look("east")
    grid.promise("east", late=True)
    grid.budget(0.0)
    grid.divide()
    assert [grid.apply(decision) for decision in grid.delayed] == [False]
    grid.check()


def test_a_division_decided_before_a_promise_does_not_land_after_it() -> None:
    """Protects: giving away what a region has just promised to hold."""
    grid = world(0.0)
    grid.round()
    grid.budget(1.0)
    grid.divide()
    grid.budget(0.0)
    grid.divide(late=True)
    grid.look("east")
    grid.promise("east")
    assert grid.promised("east") == 4
    assert [grid.apply(decision) for decision in grid.delayed] == [False]
    grid.check()


WORDS = "look share promise late land divide late-divide cut heal leader fail return wait policy"
acts = st.tuples(st.sampled_from(REGIONS), st.sampled_from(WORDS.split()), st.integers(0, 3))


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.lists(acts, min_size=20, max_size=60))
def test_no_history_lets_more_be_spent_than_the_budget(history: list[tuple[str, str, int]]) -> None:
    """Protects: architecture §4.7 at every revision, whatever is stale, cut off, delayed or replaced."""
    grid = world()
    grid.round(2)
    for name, act, extra in history:
        store = grid.regions[name]
        if act == "look":
            grid.look(name)
        elif act == "share":
            grid.share(name)
        elif act in ("promise", "late"):
            grid.promise(name, late=act == "late")
        elif act == "land" and grid.delayed:
            grid.apply(grid.delayed.pop(extra % len(grid.delayed)))
        elif act in ("divide", "late-divide"):
            grid.divide(late=act == "late-divide")
        elif act == "cut":
            grid.cut.add(name)
        elif act == "heal":
            grid.cut.discard(name)
        elif act == "leader" and name not in grid.cut:
            grid.grant(name)
            grid.look(name)
        elif act == "fail":
            fail(grid, name, extra)
        elif act == "return":
            decision = uncordon(store.state(), store.settings, f"n1/gpu{extra}", "ada", "back", store.now)
            assert decision is None or store.apply(decision)
            store.run(70_000, step=35_000)
        elif act == "wait":
            grid.wait(extra * REBALANCE_MS)
        elif act == "policy":
            grid.budget((0.0, 0.25, 0.5, 1.0)[extra])
        grid.check()
