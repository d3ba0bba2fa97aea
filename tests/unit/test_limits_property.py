"""Health machine, breaker and planner together: whatever is found, cordoned, decided late, restarted or reconfigured,
never too much, never faster than the damping allows, and nothing forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlplane.domain.breaker import reset
from controlplane.domain.cordon import cordon, uncordon
from controlplane.domain.region import STAGES, decide_region
from gridkeeper.decision import Decision, Put, Versioned
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, DrainPolicy
from gridkeeper.records.faults import DrainRecord, DrainState, HoldKind
from gridkeeper.records.fleet import EventKind, HealthRecord, HealthState
from gridkeeper.records.limits import BreakerRecord, BreakerState
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import EAST, RegionStore, quick
from tests.unit.test_drains import request

MINUTE = 60_000
SIZE = 8  # devices: two nodes in two racks
KEYS = RegionKeys(EAST)
devices = st.integers(0, SIZE - 1)

POLICIES: tuple[dict[str, Any], ...] = (
    {
        "budgets": (BudgetPolicy("region", 0.5, 1), BudgetPolicy("rack", 0.5, 1)),
        "breakers": (BreakerPolicy("region", 3, 0.0, 5 * MINUTE, 5 * MINUTE, 1, MINUTE, 10 * MINUTE),),
        "drain": DrainPolicy(flaps=2, flap_ms=60 * MINUTE, evidence_ms=30 * MINUTE),
    },
    {
        "budgets": (BudgetPolicy("region", 0.25, 1), BudgetPolicy("vendor", 0.0, 2, window_ms=20 * MINUTE)),
        "breakers": (BreakerPolicy("rack", 2, 0.0, 5 * MINUTE, 5 * MINUTE, 1, MINUTE, 10 * MINUTE),),
        "drain": DrainPolicy(flaps=2, flap_ms=60 * MINUTE, evidence_ms=30 * MINUTE),
    },
)


LIMITS: tuple[dict[str, int], ...] = ({"region": 4, "rack-rack-0": 2, "rack-rack-1": 2}, {"region": 2})


OUT = frozenset(("draining", "drained", "repairing", "probation", "retired"))


def covers(name: str, node: str) -> bool:
    """Whether a region's or rack's budget or breaker is about the node."""
    return name in ("region", f"rack-rack-{(int(node[1:]) - 1) % 2}")


def name_of(number: int) -> str:
    return f"n{number // 4 + 1}/gpu{number % 4}"


class Limits(RuleBasedStateMachine):
    """One store; its leader decides and applies, and so does another one on older snapshots, in any order."""

    @initialize(chosen=st.integers(0, 1))
    def begin(self, chosen: int) -> None:
        self.chosen = chosen
        self.store = RegionStore(quick(**POLICIES[chosen]))
        self.store.fleet(nodes=2, gpus=4, racks=2)
        self.store.settle()
        self.late: list[Decision] = []
        self.begun: dict[str, list[int]] = {}  # machine drains of each device since a human returned it
        self.times: list[int] = []  # when any drain began
        self.passed: list[tuple[str, int]] = []  # node and time of each machine drain

    # -- what happens

    @rule(number=devices, code=st.sampled_from((48, 79, 94, 63)))
    def fault(self, number: int, code: int) -> None:
        self.store.xid(name_of(number), code)
        self.act()

    @rule(first=devices, count=st.integers(2, 6))
    def burst(self, first: int, count: int) -> None:
        hit = (name_of((first + i) % SIZE) for i in range(count))
        self.store.commit(*(self.store.event(device, 79) for device in hit))
        self.act()

    @rule(first=devices, restarted=st.booleans())
    def after_a_burst(self, first: int, restarted: bool) -> None:
        """A breaker opens and half-opens; then more fail within a minute, with another leader between them."""
        self.burst(first, 6)
        self.wait(6)
        self.fault(first, 48)
        if restarted:
            self.restart()
        self.fault((first + 2) % SIZE, 48)

    @rule(number=devices, name=st.sampled_from(("region", "rack-rack-0")))
    def record_lost(self, number: int, name: str) -> None:
        """A budget's record is gone when the next device fails."""
        self.store.write((KEYS.budget(name), None))
        self.fault(number, 79)

    @rule(number=devices, times=st.integers(1, 3))
    def relapse(self, number: int, times: int) -> None:
        """It fails, a boot cures it, it comes back, and it fails again."""
        for _ in range(times):
            self.fault(number, 79)
            self.boot(number // 4 + 1)
            self.wait(2)

    @rule(number=devices)
    def asked(self, number: int) -> None:
        request(self.store, name_of(number))
        self.act()

    @rule(number=devices, back=st.booleans())
    def cordons(self, number: int, back: bool) -> None:
        store, device = self.store, name_of(number)
        if back:
            returned = store.health(device).state in (HealthState.DRAINED, HealthState.REPAIRING)
            decision = uncordon(store.state(), store.settings, device, "ada", "back", store.now)
            if decision is not None and self.apply(decision) and returned:
                self.begun[device] = []
        else:
            self.apply(cordon(store.state(), store.settings, device, "ada", "look", store.now, 10 * MINUTE))
        self.act()

    @rule(node=st.integers(1, 2))
    def boot(self, node: int) -> None:
        self.store.commit(self.store.event(f"n{node}", kind=EventKind.BOOT))
        self.act()

    @rule(minutes=st.sampled_from((1, 2, 6, 30)))
    def wait(self, minutes: int) -> None:
        for _ in range(minutes if minutes < 6 else 6):
            self.store.wait(minutes * MINUTE // min(minutes, 6))
            self.act()

    @rule()
    def restart(self) -> None:
        """Another leader, on a host with another boot-time clock; all it has is the store."""
        self.store = self.store.copy()
        self.store.mono = 1_000
        self.act()

    @rule(pick=st.integers(0, 40))
    def stale(self, pick: int) -> None:
        """A transaction of an earlier snapshot arrives now."""
        if self.late:
            self.apply(self.late.pop(pick % len(self.late)))

    @rule()
    def decided_late(self) -> None:
        decided = decide_region(self.store.state(), GlobalState(), self.store.settings, self.store.now)
        self.late = [*self.late, *decided][-40:]

    @rule(other=st.integers(0, 1))
    def policy(self, other: int) -> None:
        self.chosen = other
        self.store.settings = quick(**POLICIES[other])
        self.late = []  # what was decided under the other policy was right then
        self.times = []  # a window begins when policy begins to ask for it
        self.act()

    @rule()
    def human_resets(self) -> None:
        store = self.store
        for name in sorted(store.state().breakers):
            decision = reset(store.state(), name, "ada", "checked", store.now)
            if decision is not None:
                self.apply(decision)
        self.act()

    # -- how it is carried out

    def act(self) -> None:
        """A leader's rounds, stage by stage, until nothing is left to decide."""
        for _ in range(40):
            wrote = False
            for stage in STAGES:
                decided = stage.decide(self.store.state(), GlobalState(), self.store.settings, self.store.now)
                for decision in decided:
                    wrote |= self.apply(decision)
            if not wrote:
                return
        raise AssertionError("still deciding after 40 rounds")

    def apply(self, decision: Decision) -> bool:
        before = self.store.state()
        if not self.store.apply(decision):
            return False
        for write in decision.writes:
            if isinstance(write, Put) and isinstance(write.record, BreakerRecord):
                self.check_breaker(write.record, before)
        for drain in self.admitted(decision):
            self.check_admission(drain, before)
        return True

    def check_breaker(self, after: BreakerRecord, before: Any) -> None:
        """It does not change before its time, nor closes on the burst that opened it."""
        old = before.breakers[after.name].record if after.name in before.breakers else None
        policy, age = self.store.settings.policy.breakers[0], self.store.ledger - (old.since_ms if old else 0)
        if old is None or after.state is old.state or after.reason.startswith(("closed by ada", "the policy has no")):
            return
        if after.state is BreakerState.HALF_OPEN:
            assert old.state is BreakerState.OPEN and age >= policy.cool_ms, "half-open too early"
        if after.state is BreakerState.CLOSED:
            assert old.state is BreakerState.HALF_OPEN and age >= policy.close_ms, "closed too early"
            drains = [d.record for d in before.drains.values() if d.record.state is DrainState.REFUSED]
            waiting = sum(f"breaker-{after.name}" in d.budgets and d.requested_by == "machine" for d in drains)
            assert waiting <= policy.drains, "closed on the burst that opened it"

    @staticmethod
    def admitted(decision: Decision) -> Iterator[DrainRecord]:
        for write in decision.writes:
            record = write.record if isinstance(write, Put) else None
            if isinstance(record, DrainRecord) and record.state is DrainState.ADMITTED:
                yield record

    def check_admission(self, drain: DrainRecord, before: Any) -> None:
        now_ms, policy = self.store.ledger, self.store.settings.policy
        self.times.append(now_ms)
        cordoned = {c.target for c in self.store.records("cordons")}
        for name in drain.budgets:
            record = self.store.items[KEYS.budget(name)].record
            if record.begun_ms:
                assert sum(1 for at in self.times if at > now_ms - 20 * MINUTE) <= 2, "too many within the window"
                continue
            assert record.limit == LIMITS[self.chosen][name]
            assert len({h.device for h in record.holds if h.kind is HoldKind.DRAIN}) <= record.limit, f"{name} exceeded"
            held_before = before.budgets[name].record.holds if name in before.budgets else ()
            if drain.device in cordoned or any(h.device == drain.device for h in held_before):
                continue  # it was out before, and takes no further place
            assert len({h.device for h in record.holds}) <= record.limit, f"{name} is full of cordons"
            gone = {h.device for h in self.store.records("health") if h.state.value in OUT} | cordoned
            gone = {device for device in gone if covers(name, device.partition("/")[0])}
            assert len(gone) <= record.limit, f"{name} exceeded by what its record forgot"
        held: HealthRecord = before.health[drain.device].record
        assert held.state is not HealthState.DRAINED, "drained twice"
        if drain.requested_by != "machine":
            return
        self.passed.append((drain.node, now_ms))
        for breaker in policy.breakers:
            name = "region" if breaker.kind == "region" else f"rack-rack-{(int(drain.node[1:]) - 1) % 2}"
            self.check_passing(breaker, name, before.breakers.get(name))
        self.begun.setdefault(drain.device, []).append(now_ms)
        recent = [at for at in self.begun[drain.device] if at > now_ms - policy.drain.flap_ms]
        assert len(recent) <= policy.drain.flaps, "it comes back faster than the damping allows"

    def check_passing(self, policy: BreakerPolicy, name: str, old: Versioned[BreakerRecord] | None) -> None:
        """A machine drain was admitted with this breaker as it was before."""
        now_ms, since = self.store.ledger, old.record.since_ms if old else 0
        state = old.record.state if old else BreakerState.CLOSED
        assert state is not BreakerState.OPEN, "drained through an open breaker"
        machine = [d for d in self.store.records("drains") if d.requested_by == "machine" and covers(name, d.node)]
        wanted = sum(1 for d in machine if d.planned_ms > max(now_ms - policy.within_ms, since))
        assert wanted <= policy.drains, f"{wanted} are wanted in {name}, and it is not open"
        if state is BreakerState.HALF_OPEN:
            passed = [at for node, at in self.passed if covers(name, node) and at >= since]
            assert sum(at > now_ms - policy.trickle_ms for at in passed) <= policy.trickle, f"{name} is half-open"

    # -- what holds at every revision

    @invariant()
    def whoever_is_out_is_counted(self) -> None:
        out = {h.device for h in self.store.records("health") if h.state.value in ("draining", "drained")}
        holds = [h for b in self.store.records("budgets") if b.name == "region" for h in b.holds]
        assert out <= {h.device for h in holds if h.kind is HoldKind.DRAIN}, "out without a place"

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        for budget in self.store.records("budgets"):
            assert len(set(budget.holds)) == len(budget.holds)
        open_states = ("admitted", "evacuating", "refused")
        active = [d.device for d in self.store.records("drains") if d.state.value in open_states]
        assert len(set(active)) == len(active), "two drains of one device"


TestLimits = Limits.TestCase
TestLimits.settings = hypothesis_settings(max_examples=30, stateful_step_count=25, deadline=None)
