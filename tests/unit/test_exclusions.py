"""Protects: what a contract leaves out is on record with who, when and why, is only ever added to, counts once where
causes overlap, and is named by receipts, so that neither side adds or drops one unseen."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rpc.grid import GridService
from controlplane.rpc.refusal import Refusal
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.keys import KEYS
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.records.settlement import Cause, ExclusionRecord
from gridkeeper.sla import render
from gridkeeper.sla.books import frame_of
from gridkeeper.sla.contract import Per
from gridkeeper.sla.document import parse_contract, shipped_text
from gridkeeper.sla.exclusions import in_force, statements
from gridkeeper.sla.months import month_window
from gridkeeper.sla.page import html
from gridkeeper.sla.receipts import BadReceipt, Receipt, differences, exclusions_chain
from gridkeeper.sla.report import make_report
from gridkeeper.v1 import api_pb2, records_pb2
from tests.fixtures import records
from tests.fixtures.grid import BASE_MS, FakeGrid

HOUR = 3_600_000
WINDOW = month_window("2024-10", "UTC")
CUSTOMER = records_pb2.CAUSE_CUSTOMER


class Desk:
    def __init__(self) -> None:
        self.grid = FakeGrid("east")
        self.grid.put(self.grid.keys.node(records.node().name), records.node())
        self.grid.put(self.grid.keys.device(records.device().id), records.device())
        self.service = GridService(self.grid, self.grid, SystemClock(), SystemRng())

    async def add(
        self, scope: str = "node/east-1", cause: records_pb2.Cause.ValueType = CUSTOMER, begin: int = BASE_MS - HOUR,
        hours: int = 2, reason: str = "their driver", evidence: tuple[str, ...] = ("incident/i1",),
    ) -> str:  # fmt: skip
        request = api_pb2.ExclusionRequest(
            scope=scope, cause=cause, from_ms=begin, until_ms=begin + hours * HOUR, reason=reason, evidence=evidence
        )
        return (await self.service.settlement.record(request, "user/ann")).sentence

    async def retract(self, name: str, reason: str = "a mistake") -> str:
        request = api_pb2.ObjectRequest(name=name, reason=reason)
        return (await self.service.settlement.retract(request, "user/bob")).sentence

    async def log(self) -> list[tuple[int, int, str]]:
        answer = await self.service.settlement.shown(api_pb2.SettlementRequest())
        return [(event.sequence, event.retracts, event.recorded_by) for event in answer.exclusions]


async def test_the_log_is_only_added_to() -> None:
    desk = Desk()
    assert await desk.add() == "exclusion 1: customer on node/east-1 by user/ann: their driver"
    assert await desk.add() == "this is exclusion 1 already, by user/ann"
    assert "exclusion 2" in await desk.add("device/east-1/gpu0")
    assert await desk.retract("1") == "exclusion 1 retracted by user/bob: a mistake"
    assert await desk.retract("1") == "exclusion 1 is retracted already, by user/bob"
    assert "exclusion 4" in await desk.add(), "what was retracted may be recorded anew"
    assert await desk.log() == [(1, 0, "user/ann"), (2, 0, "user/ann"), (3, 1, "user/bob"), (4, 0, "user/ann")]
    audits = [held.record for key, held in desk.grid.globe.data.items() if "/audit/" in key]
    assert [(a.verb, a.object, a.actor) for a in audits][-2] == ("exclusion.append", "exclusion/1", "user/bob")


async def test_two_who_append_at_once_both_get_a_number() -> None:
    desk = Desk()
    other = ExclusionRecord(1, "job/x", Cause.CUSTOMER, 1, 2, "user/eve", 1, "first", (), 0, "")
    desk.grid.races.append(lambda: desk.grid.put(KEYS.exclusion(1), other))
    assert "exclusion 2" in await desk.add()
    assert await desk.log() == [(1, 0, "user/eve"), (2, 0, "user/ann")]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ({"scope": "rack/r1"}, grpc.StatusCode.INVALID_ARGUMENT, "scope: 'rack/r1' is none; write device/"),
        ({"scope": "node/a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "scope"),
        ({"scope": "node/mars"}, grpc.StatusCode.NOT_FOUND, "mars"),
        ({"scope": "region/mars"}, grpc.StatusCode.NOT_FOUND, "mars"),
        ({"scope": "job/mars"}, grpc.StatusCode.NOT_FOUND, "mars"),
        ({"cause": records_pb2.CAUSE_UNSPECIFIED}, grpc.StatusCode.INVALID_ARGUMENT, "cause: 0 is none"),
        ({"cause": records_pb2.CAUSE_MAINTENANCE}, grpc.StatusCode.FAILED_PRECONDITION, "was not announced"),
        ({"hours": 0}, grpc.StatusCode.INVALID_ARGUMENT, "until_ms"),
        ({"hours": 91 * 24}, grpc.StatusCode.INVALID_ARGUMENT, "90 days"),
        ({"begin": BASE_MS - 401 * 24 * HOUR}, grpc.StatusCode.INVALID_ARGUMENT, "400 days ago"),
        ({"reason": " "}, grpc.StatusCode.INVALID_ARGUMENT, "reason: it is empty"),
        ({"evidence": ("",)}, grpc.StatusCode.INVALID_ARGUMENT, "evidence"),
        ({"evidence": ("x",) * 9}, grpc.StatusCode.INVALID_ARGUMENT, "9 references"),
    ],
)
async def test_what_is_wrong_is_refused(arguments: dict[str, object], code: grpc.StatusCode, told: str) -> None:
    desk = Desk()
    with pytest.raises(Refusal, match=told) as refused:
        await desk.add(**arguments)  # type: ignore[arg-type]
    assert refused.value.code is code and await desk.log() == []
    with pytest.raises(Refusal, match="x9"):
        await desk.retract("x9")


async def test_maintenance_is_excluded_ahead_of_time() -> None:
    assert "maintenance" in await Desk().add(cause=records_pb2.CAUSE_MAINTENANCE, begin=BASE_MS + 1)


def event(number: int, retracts: int = 0, scope: str = "node/n1", **changes: object) -> ExclusionRecord:
    begin = WINDOW.from_ms + 10 * HOUR
    made = ExclusionRecord(
        number, scope, Cause.CUSTOMER, begin, begin + 2 * HOUR, "user/ann", begin, "their fault", ("i1",), retracts, ""
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def books() -> list[EntryRecord]:
    """Two devices of one node, of which the second is down for four hours."""
    cuts = [0, 10, 14, 744]
    found = []
    for slot, kinds in (("gpu0", "uuu"), ("gpu1", "udu")):
        for number, kind in enumerate(kinds):
            begin, end = (WINDOW.from_ms + cuts[number + part] * HOUR for part in (0, 1))
            uptime = UptimeClass.UP if kind == "u" else UptimeClass.DOWN
            found.append(EntryRecord(f"device/n1/{slot}", number + 1, "2024-10", begin, end, uptime, "", ()))
    return found


def test_a_report_leaves_out_what_is_in_force_once_and_says_so() -> None:
    contract = parse_contract(shipped_text("aws"), "c")
    promise = replace(contract.commitments[0], per=Per.NODE, select="")
    contract = replace(contract, zone="UTC", commitments=(promise,), covers_accelerators=True)
    entries = frame_of(books())
    scopes = entries["scope"].unique().to_list()

    def down(*log: ExclusionRecord) -> int:
        frame = entries.vstack(statements(log, scopes, {}))
        (line,) = make_report(contract, "2024-10", frame, WINDOW.until_ms, {}).sections[0].lines
        return line.measured.down_ms // HOUR

    assert down() == 4
    assert down(event(1)) == 2
    assert down(event(1), event(2, cause=Cause.FORCE_MAJEURE)) == 2, "where causes overlap a time counts once"
    assert down(event(1), event(2, retracts=1)) == 4
    assert down(event(1, scope="node/n10")) == 4, "a node is not what begins like it"
    assert down(event(1, scope="device/n1/gpu0")) == 4, "what excuses one device does not excuse another"
    assert down(event(1, scope="device/n1/gpu1")) == 2
    report = make_report(contract, "2024-10", entries.vstack(statements([event(1)], scopes, {})), WINDOW.until_ms, {})
    (left,) = report.exclusions
    assert (left.scope, left.scopes, left.refs) == ("device/n1/gpu0", 2, ("exclusion/1", "i1"))
    said = "their fault (recorded by user/ann, 2024-10-01 10:00:00Z)"
    assert said in left.reason and said in render.text(report) and said in html(report)


@given(st.permutations([event(1), event(2, scope="job/j"), event(3, retracts=1), event(4, scope="region/r")]))
def test_the_order_of_arrival_changes_nothing(log: list[ExclusionRecord]) -> None:
    assert [one.sequence for one in in_force(log)] == [2, 4]
    assert exclusions_chain(log) == exclusions_chain(sorted(log, key=lambda one: one.sequence))


def test_a_region_is_itself_and_its_devices() -> None:
    known = ["device/n1/gpu0", "device/n2/gpu0", "region/east", "job/j"]
    frame = statements([event(1, scope="region/east")], known, {"device/n1/gpu0": "east", "device/n2/gpu0": "west"})
    assert frame["scope"].to_list() == ["device/n1/gpu0", "region/east"]


def test_a_receipt_speaks_for_the_log_as_it_was() -> None:
    log = [event(1), event(2, scope="job/j")]
    chain = exclusions_chain(log)
    assert chain is not None
    receipt, empty = Receipt(1, 0, 2, "", (chain,)), frame_of(())
    assert differences(receipt, empty, [*log, event(3, retracts=1)]) == (), "what came later is no difference"
    assert differences(receipt, empty, None) == (), "a file has no log"
    (told,) = differences(receipt, empty, [log[0], replace(log[1], reason="another")])
    assert told == "exclusions: an entry between 1 and 2 was changed"
    (told,) = differences(receipt, empty, [])
    assert "not in the books" in told
    with pytest.raises(BadReceipt, match="event 2 is out of order"):
        differences(receipt, empty, log[1:])
