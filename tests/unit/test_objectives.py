"""Protects: objectives are measured minute by minute and alerted on as written; nothing that nobody measured is good or
bad; a change of the leader neither pages again nor loses a page."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from chaos.simulate.clock import EPOCH_MS, SimClock
from chaos.simulate.loop import run_virtual
from controlplane.domain.objectives import Measured, decide_objectives, measured_here
from controlplane.shell.apply import Fence
from controlplane.shell.pager import HttpPager
from controlplane.shell.paging import Paging
from gridkeeper.decision import Now
from gridkeeper.ids import DeviceId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import AlertsPolicy, Policy
from gridkeeper.ports.notify import PagerUnavailable
from gridkeeper.records.books import AccountRecord, Totals, UptimeClass
from gridkeeper.records.faults import DrainState
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.jobs import MigrationState
from gridkeeper.records.objectives import SloAlertRecord, SloHourRecord
from gridkeeper.sla.alerts import conditions
from gridkeeper.sla.builtin import INDICATORS, MISSING, NotMeasured, Where, asked
from gridkeeper.sla.objectives import Goal, parse_slos
from gridkeeper.sla.promrules import rules_text
from gridkeeper.snapshot import Settings
from tests.fixtures import records
from tests.fixtures.grid import Kept, MemoryStore

MINUTE, HOUR = 60_000, 3_600_000
EAST = RegionId("east")
HERE = RegionKeys(EAST)
START = EPOCH_MS // HOUR * HOUR
PLACES = ("http://am", "http://hook")

SLO = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: devices}
spec:
  service: grid
  indicator: {spec: {METRIC}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: METHOD
  objectives: [OBJECTIVE]
"""


def goal(
    sli: str = "device-availability", metric: str = "", method: str = "Occurrences",
    objective: str = "{displayName: most, targetPercent: 99}", more: str = "",
) -> Goal:  # fmt: skip
    source = f"metricSource: {{type: gridkeeper, spec: {{sli: {sli}{more}}}}}"
    metric = metric or f"ratioMetric: {{rawType: success, raw: {{{source}}}}}"
    text = SLO.replace("METRIC", metric.replace("SOURCE", source)).replace("METHOD", method)
    (found,) = parse_slos(text.replace("OBJECTIVE", objective), "s.yaml").goals
    return found


THRESHOLD = "thresholdMetric: {SOURCE}"
QUICK = "{displayName: quick, op: lte, value: 30, targetPercent: 90}"


class Leader:
    """A region of ten devices whose leader looks each minute; ``store`` is etcd."""

    def __init__(self, *goals: Goal, places: tuple[str, ...] = PLACES) -> None:
        self.goals, self.places = list(goals), places
        self.store = MemoryStore()
        self.at_ms = START
        self.said: list[str] = []
        self.fleet(10)

    def fleet(self, good: int) -> None:
        for number in range(10):
            state = HealthState.HEALTHY if number < good else HealthState.DRAINED
            name = f"n{number}/gpu0"
            self.store.put(HERE.health(DeviceId(name)), replace(records.health(name), state=state))

    def here(self) -> tuple[Measured, ...]:
        return measured_here(self.goals, Where.REGION, "east")

    def look(self, complete: bool = True) -> None:
        from controlplane.shell.states import region_state

        state = region_state(EAST, Kept(self.store, HERE.root))
        now = Now(0, self.at_ms + 400)
        for decision in decide_objectives(self.here(), HERE, state, self.places, now, complete):
            self.store.apply(decision)
            self.said += [decision.sentence] if decision.step == "slo.alert" else []

    def run(self, minutes: int) -> None:
        for _ in range(minutes):
            self.at_ms += MINUTE
            self.look()

    def hours(self) -> list[SloHourRecord]:
        return [held.record for held in self.store.under(HERE.prefix("slo-hours")).values()]

    def alerts(self) -> dict[str, SloAlertRecord]:
        return {name: held.record for name, held in self.store.under(HERE.prefix("slo-alerts")).items()}

    def tell(self) -> None:
        """Everybody was told."""
        for key, held in list(self.store.data.items()):
            if isinstance(held.record, SloAlertRecord):
                self.store.put(key, replace(held.record, told=self.places))


def test_each_minute_is_measured_once() -> None:
    leader = Leader(goal())
    leader.run(3)
    for _ in range(3):
        leader.look()
    leader.fleet(7)
    leader.run(60)
    first, second = leader.hours()
    assert first.minutes == tuple(range(1, 60)) and second.minutes == (0, 1, 2, 3)
    assert first.good == (10,) * 3 + (7,) * 56 and set(first.total) == {10}


def test_an_alert_fires_goes_on_with_the_next_leader_and_ends() -> None:
    leader = Leader(goal())
    leader.run(60)
    leader.fleet(0)
    leader.run(10)
    fired = leader.alerts()["devices/1/burn-1h"]
    labels = {label.key: label.value for label in fired.labels}
    assert fired.firing and labels == {
        "slo": "devices", "service": "grid", "objective": "most", "severity": "page", "window": "1h", "region": "east",
    }  # fmt: skip
    leader.tell()
    leader.run(1)  # another leader: all that there is is in the store
    assert leader.alerts()["devices/1/burn-1h"] == replace(fired, told=PLACES), "it is told once"
    leader.fleet(10)
    leader.run(10)
    ended = leader.alerts()["devices/1/burn-1h"]
    assert not ended.firing and ended.told == () and ended.since_ms == fired.since_ms and ended.ended_ms > 0
    leader.run(1)
    assert "devices/1/burn-1h" in leader.alerts(), "kept until everybody was told"
    leader.tell()
    leader.run(1)
    assert "devices/1/burn-1h" not in leader.alerts()
    assert [s.split(":")[0] for s in leader.said if "burn-1h" in s] == [
        "alert burn-1h of objective 1 of devices fires", "alert burn-1h of objective 1 of devices has ended",
        "burn-1h of devices is over",
    ]  # fmt: skip


def test_time_without_a_leader_is_no_data() -> None:
    leader = Leader(goal())
    leader.run(60)
    leader.at_ms += 30 * MINUTE
    leader.run(1)
    assert leader.alerts() == {} and sum(len(hour.minutes) for hour in leader.hours()) == 61


def test_an_objective_that_is_no_more_ends_its_alerts_unless_documents_are_missing() -> None:
    leader = Leader(goal())
    leader.fleet(0)
    leader.run(10)
    leader.goals = []
    leader.look(complete=False)
    assert leader.alerts()["devices/1/burn-1h"].firing and leader.hours()
    leader.run(1)
    assert not leader.alerts()["devices/1/burn-1h"].firing and not leader.hours()
    leader.tell()
    leader.run(1)
    assert leader.alerts() == {}


def test_a_condition_that_must_hold_for_a_while() -> None:
    text = """
alertPolicies:
    - kind: AlertPolicy
      metadata: {name: slow}
      spec:
        alertWhenBreaching: true
        conditions:
          - kind: AlertCondition
            metadata: {name: c}
            spec:
              severity: page
              condition: {kind: burnrate, op: gt, threshold: 2, lookbackWindow: 1h, alertAfter: 5m}
        notificationTargets: []
"""
    base = SLO.replace("METRIC", "ratioMetric: {rawType: success, raw: {metricSource: {type: gridkeeper, spec: {sli: "
                       "device-availability}}}}").replace("METHOD", "Occurrences")  # fmt: skip
    base = base.replace("OBJECTIVE", "{displayName: most, targetPercent: 99}") + "  " + text.lstrip()
    (found,) = parse_slos(base, "s.yaml").goals
    leader = Leader(found)
    leader.fleet(9)
    leader.run(5)
    assert not leader.alerts()["devices/1/policy-slow"].firing
    leader.run(1)
    assert leader.alerts()["devices/1/policy-slow"].firing
    leader.fleet(10)
    leader.run(60 * 2)
    assert not leader.alerts()["devices/1/policy-slow"].firing


def test_old_hours_are_forgotten() -> None:
    leader = Leader(replace(goal(), window=replace(goal().window, ms=2 * HOUR)))
    leader.run(8 * 60)
    assert 2 <= len(leader.hours()) <= 5


@pytest.mark.parametrize("name", INDICATORS)
def test_each_indicator_is_measured_where_it_says(name: str) -> None:
    """From records of everything that there is."""
    indicator = INDICATORS[name]
    more = ", sold: 8" if name == "capacity" else ""
    one = goal(name, more=more) if indicator.share else goal(name, THRESHOLD, objective=QUICK, more=more)
    (measured,) = measured_here([one], indicator.where, "east")
    store, at_ms = MemoryStore(), START + MINUTE
    done = at_ms - 30_000
    account = AccountRecord("region/east", "2026-09", 1, 1, UptimeClass.UP, 1, "", Totals(0, 0, 0, 0, 0))
    for key, record in (
        (HERE.health(DeviceId("east-1/gpu0")), records.health()),
        (HERE.liveness(records.liveness().node), records.liveness()),
        (HERE.account("region/east"), account),
        (HERE.account("device/east-1/gpu0"), replace(account, scope="device/east-1/gpu0")),
        (HERE.incident("i1"), replace(records.incident(), opened_ms=done, observed_ms=done - 40_000)),
        (HERE.drain("d1"), stamped(replace(records.drain(), planned_ms=done - 5_000), DrainState.DRAINED, done)),
        (KEYS.account("job/train"), replace(account, scope="job/train")),
        (KEYS.job(records.job().spec.name), records.job()),
        (KEYS.head(records.job().spec.name), records.head()),
        (KEYS.region(EAST), records.region()),
        (KEYS.run(records.job().spec.name, 1, 1), replace(
            records.run(), first_step=1, first_step_ms=done - 50_000, last_step_ms=done, started_ms=done - 60_000)),
        (KEYS.migration(records.migration().id), stamped(replace(
            records.migration(), rto_ms=20_000, rpo_ms=1_000, source_region=EAST), MigrationState.DONE, done)),
    ):  # fmt: skip
        store.put(key, record)
    keys = HERE if indicator.where is Where.REGION else KEYS
    state = state_of(store, indicator.where)
    (tick, *_) = decide_objectives([measured], keys, state, (), Now(0, at_ms), True)
    (write,) = tick.writes
    record = write.record
    assert isinstance(record, SloHourRecord) and record.total[0] > 0
    wanted = {"capacity": (1, 8), "time-to-detect": (0, 1), "time-to-drain": (1, 1), "rto": (1, 1), "rpo": (1, 1)}
    if name in wanted:
        assert (record.good[0], record.total[0]) == wanted[name]
    elif name == "goodput":
        assert record.good == (49_000,) and record.total == (90_000,)
    else:
        assert record.good[0] >= 1
    nothing = decide_objectives([measured], keys, state_of(MemoryStore(), indicator.where), (), Now(0, at_ms), True)
    assert name == "capacity" or not nothing, "nothing known is no data"


def stamped(record: object, state: object, at_ms: int) -> object:
    from gridkeeper.records.common import Stamp

    return replace(record, state=state, stages=(Stamp(str(state), at_ms),))  # type: ignore[type-var]


def state_of(store: MemoryStore, where: Where) -> object:
    from controlplane.shell.states import global_state, region_state

    if where is Where.REGION:
        return region_state(EAST, Kept(store, HERE.root))
    return global_state(Kept(store, KEYS.root))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: goal("step-time-p99"), "not the time of each step"),
        (lambda: goal("cost-per-token"), "no prices per device-hour"),
        (lambda: goal("mars"), "'mars' is none; there are device-availability"),
        (lambda: goal("rto"), "use a thresholdMetric"),
        (lambda: goal("capacity"), "needs how many devices were sold"),
        (lambda: goal("job-uptime", more=", region: east"), "cannot be chosen for job-uptime"),
        (lambda: goal(more=", sold: 3"), "spec.sold"),
        (lambda: goal(more=", mars: 3"), "spec.mars: there is no such field"),
    ],
)
def test_what_cannot_be_measured_is_said_by_field(wrong: object, told: str) -> None:
    with pytest.raises(NotMeasured, match=told):
        asked(wrong())  # type: ignore[operator]
    assert not set(MISSING) & set(INDICATORS)


def test_alerts_are_called_as_in_the_written_rules() -> None:
    import yaml

    one = goal()
    rules = [rule for group in yaml.safe_load(rules_text([one]))["groups"] for rule in group["rules"]]
    written = [(rule["alert"], rule["labels"]) for rule in rules if "alert" in rule]
    assert written == [(c.alert, c.labels) for c in conditions(one, one.levels[0])]


# -- telling ----------------------------------------------------------------------------------------------------------


class FakePager:
    def __init__(self) -> None:
        self.posts: list[tuple[str, str, object]] = []
        self.down: set[str] = set()

    async def post(self, url: str, key: str, body: bytes) -> None:
        if any(url.startswith(place) for place in self.down):
            raise PagerUnavailable(f"{url} answers 503")
        self.posts.append((url, key, json.loads(body)))

    def keys(self) -> list[str]:
        return [key for _, key, _ in self.posts if key]


class FakeApplier:
    """Writes to the store; ``dies``: before that."""

    def __init__(self, store: MemoryStore) -> None:
        self.store, self.dies = store, False

    async def apply_together(self, decisions: object, actor: str, fence: object) -> int:
        if self.dies:
            raise asyncio.CancelledError
        for decision in decisions:  # type: ignore[attr-defined]
            self.store.apply(decision)
        return self.store.revision

    async def caught_up(self, revision: int) -> None:
        return


class Bureau:
    def __init__(self, leader: Leader, pager: FakePager | None = None, **policy: object) -> None:
        self.leader, self.pager = leader, pager or FakePager()
        self.clock = SimClock(asyncio.get_running_loop())
        self.applier = FakeApplier(leader.store)
        self.policy = AlertsPolicy(("http://am",), ("http://hook",), **policy)  # type: ignore[arg-type]

    def paging(self) -> Paging:
        """Of a new leader."""
        settings = Settings(policy=Policy(alerts=self.policy))
        mirror = Kept(self.leader.store, HERE.root)
        return Paging(
            "region/east", HERE, mirror, self.applier, "machine/a", Fence("k", 1), self.pager,  # type: ignore[arg-type]
            lambda: settings, self.clock,
        )  # fmt: skip


def burning() -> Leader:
    leader = Leader(goal())
    leader.fleet(0)
    leader.run(1)
    return leader


def test_each_place_is_told_once_and_an_alertmanager_reminded() -> None:
    async def main() -> None:
        bureau = Bureau(burning())
        paging = bureau.paging()
        for _ in range(3):
            await paging.look()
        sent = len(bureau.leader.alerts())
        assert [url for url, _, _ in bureau.pager.posts] == ["http://am/api/v2/alerts"] + ["http://hook"] * sent
        (_, _, posted), *_ = bureau.pager.posts
        assert posted[0]["labels"]["alertname"] == "SloBudgetBurn" and posted[0]["endsAt"] > posted[0]["startsAt"]
        assert all(set(alert.told) == set(PLACES) for alert in bureau.leader.alerts().values())
        await bureau.clock.sleep(60_000)
        await paging.look()
        assert [url for url, _, _ in bureau.pager.posts[1 + sent :]] == ["http://am/api/v2/alerts"], "reminded"
        await bureau.paging().look()
        assert len(bureau.pager.keys()) == sent, "the next leader pages nobody again"

    run_virtual(main())


def test_who_tells_and_dies_before_writing_it_down_tells_it_again_under_the_same_key() -> None:
    async def main() -> None:
        bureau = Bureau(burning())
        bureau.applier.dies = True
        with pytest.raises(asyncio.CancelledError):
            await bureau.paging().look()
        first = bureau.pager.keys()
        bureau.applier.dies = False
        await bureau.paging().look()
        assert bureau.pager.keys() == first * 2 and len(set(first)) == len(first) > 0

    run_virtual(main())


def test_a_place_that_is_away_keeps_nobody_else_waiting_and_is_told_later() -> None:
    async def main() -> None:
        bureau = Bureau(burning())
        bureau.pager.down = {"http://am"}
        paging = bureau.paging()
        for _ in range(20):
            await paging.look()
            await bureau.clock.sleep(1_000)
        assert {tuple(alert.told) for alert in bureau.leader.alerts().values()} == {("http://hook",)}
        bureau.pager.down = set()
        await bureau.clock.sleep(60_000)
        await paging.look()
        assert all(set(alert.told) == set(PLACES) for alert in bureau.leader.alerts().values())

    run_virtual(main())


def test_the_end_is_told_under_a_key_of_its_own() -> None:
    async def main() -> None:
        bureau = Bureau(burning())
        await bureau.paging().look()
        bureau.leader.fleet(10)
        bureau.leader.run(400)
        count = len(bureau.pager.posts)
        await bureau.paging().look()
        ends = [body for url, key, body in bureau.pager.posts[count:] if key.endswith("/resolved")]
        assert ends and {body["state"] for body in ends} == {"resolved"}  # type: ignore[index]
        posted = [body for url, _, body in bureau.pager.posts[count:] if url.startswith("http://am")]
        assert any(alert["endsAt"] < "2027" for alert in posted[0])  # type: ignore[attr-defined]

    run_virtual(main())


def test_no_place_gets_more_requests_than_its_share() -> None:
    async def main() -> None:
        goals = [replace(goal(), name=f"slo-{number}") for number in range(10)]
        leader = Leader(*goals)
        leader.fleet(0)
        leader.run(1)
        bureau = Bureau(leader, per_minute=5)
        paging = bureau.paging()
        await paging.look()
        assert len(bureau.pager.keys()) == 5
        for _ in range(28):
            await bureau.clock.sleep(20_000)
            await paging.look()
        wanted = len(leader.alerts())
        assert 40 <= wanted == len(bureau.pager.keys()) == len(set(bureau.pager.keys())), "late, and none is lost"

    run_virtual(main())


class Handler(BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    seen: ClassVar[list[tuple[str, str | None, str | None, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Idempotency-Key"], self.headers["Authorization"], body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen, Handler.status = [], 200
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


async def test_over_http(server: str, tmp_path: object) -> None:
    from pathlib import Path

    token = Path(str(tmp_path)) / "token"
    token.write_text("secret\n")
    await HttpPager(str(token)).post(f"{server}/hook", "k1", b"{}")
    assert Handler.seen == [("/hook", "k1", "Bearer secret", b"{}")]
    Handler.status = 503
    with pytest.raises(PagerUnavailable, match="answers 503"):
        await HttpPager().post(f"{server}/hook", "k1", b"{}")
    with pytest.raises(PagerUnavailable):
        await HttpPager().post("http://127.0.0.1:1/", "k1", b"{}")
