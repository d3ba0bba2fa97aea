"""Probes of peers: what agents carry out and report, and what a replica writes down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from gridkeeper import codec
from gridkeeper.ids import NodeId
from gridkeeper.ports.probe import CannotProbe, Probed
from gridkeeper.ports.store import DeleteOp, PutOp
from gridkeeper.records.care import ProbeRecord, WitnessRecord
from gridkeeper.v1.agent_pb2 import AgentFrame, ProbeReport, ProbeRequest
from nodeagent.probing import MAX_PROBES, Probing
from tests.unit.ingestbench import KEYS, Bench, bench, hello, until

N2 = NodeId("n2")


class Scripted:
    """Each attempt's time and outcome, in order; the last one for all that follow."""

    def __init__(self, clock: SimClock, *outcomes: tuple[int, Probed | CannotProbe]) -> None:
        self._clock = clock
        self._outcomes = list(outcomes)
        self.began: list[int] = []

    async def probe(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        self.began.append(self._clock.mono_ms())
        took, outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if took >= timeout_ms:
            await self._clock.sleep(timeout_ms)
            return Probed(False, "no answer")
        await self._clock.sleep(took)
        if isinstance(outcome, CannotProbe):
            raise outcome
        return outcome


def carried_out(*outcomes: tuple[int, Probed | CannotProbe]) -> tuple[ProbeReport | None, int, list[int]]:
    """What is reported, after how long, and when attempts began."""

    async def main() -> tuple[ProbeReport | None, int, list[int]]:
        clock = SimClock(asyncio.get_running_loop(), boot_ms=0)
        prober = Scripted(clock, *outcomes)
        request = ProbeRequest(node="n2", address="n2:1", round=7, timeout_ms=1_000)
        report = await Probing(prober, clock).report(request)
        return report, clock.mono_ms(), prober.began

    return run_virtual(main())


GOOD = Probed(True, "", 900, boot_id="boot")
REFUSED = Probed(False, "connection refused", refused=True)


def test_one_lost_packet_is_not_a_dead_host() -> None:
    """Protects: a second attempt that succeeds while the first one hangs counts."""
    report, took, began = carried_out((5_000, GOOD), (20, GOOD))
    assert report is not None and report.reached and (report.node, report.round, report.boot_id) == ("n2", 7, "boot")
    assert took == 270 and began == [0, 250]


def test_a_host_that_answers_nothing_is_reported_when_the_time_is_up() -> None:
    """Protects: the answer comes within the time that the control plane gave."""
    report, took, _ = carried_out((5_000, GOOD))
    assert report is not None and (report.reached, report.refused, report.rtt_us) == (False, False, -1)
    assert took == 1_000


def test_a_refusal_outweighs_a_time_out() -> None:
    """Protects: a host that answered once is there, which forbids an early conviction."""
    report, _, _ = carried_out((5_000, GOOD), (1, REFUSED), (5_000, GOOD))
    assert report is not None and report.refused and report.detail == "connection refused"


def test_a_host_that_cannot_probe_says_nothing_of_another() -> None:
    """Protects: a peer without a route of its own is no witness against anybody."""
    report, _, _ = carried_out((1, CannotProbe("no route")))
    assert report is None
    mixed, _, _ = carried_out((1, CannotProbe("no route")), (1, GOOD))
    assert mixed is not None and mixed.reached


def test_requests_beyond_the_bound_and_for_names_that_are_none_are_dropped() -> None:
    """Protects: the control plane cannot make an agent open connections without bound, or to nobody."""

    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        probing = Probing(Scripted(clock, (100, GOOD)), clock)
        request = ProbeRequest(node="n2", address="n2:1", round=1, timeout_ms=1_000)
        reports = await asyncio.gather(*(probing.report(request) for _ in range(MAX_PROBES + 5)))
        assert sum(report is not None for report in reports) == MAX_PROBES
        assert await probing.report(request) is not None
        assert await probing.report(ProbeRequest(node="../n2", address="n2:1", timeout_ms=100)) is None

    run_virtual(main())


# -- the replica


async def ask(b: Bench, number: int = 1, peers: tuple[str, ...] = ("n1",)) -> None:
    record = ProbeRecord(N2, "n2:1", tuple(map(NodeId, peers)), 0, number)
    done = await b.reader.txn([], [PutOp(KEYS.probe(N2), codec.encode(record))])
    for replica in b.replicas:
        await replica.local.wait_revision(done.revision, 5_000)


async def written(b: Bench) -> list[WitnessRecord]:
    page = await b.reader.range(KEYS.prefix("witnesses"))
    return [codec.decode(WitnessRecord, kv.value) for kv in page.items]


def report(**changes: Any) -> AgentFrame:
    values: dict[str, Any] = {"node": "n2", "round": 1, "reached": True, "rtt_us": 900, "boot_id": "boot"}
    return AgentFrame(probe=ProbeReport(**(values | changes)))


Play = Callable[[Bench, Any], Coroutine[Any, Any, None]]


def played(play: Play) -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            await play(b, session)

    run_virtual(main())


def test_a_question_goes_to_the_peer_and_its_answer_into_the_store() -> None:
    """Protects: the way of a question, once per round."""

    async def play(b: Bench, session: Any) -> None:
        for number in (1, 2):
            await ask(b, number)
            asked = (await until(session, "probe_request")).probe_request
            assert (asked.node, asked.address, asked.round) == ("n2", "n2:1", number) and 0 < asked.timeout_ms < 2_000
            await session.send(report(round=number))
            await b.clock.sleep(200)
            [witness] = await written(b)
            assert (witness.peer, witness.round, witness.reached, witness.boot_id) == ("n1", number, True, "boot")

    played(play)


@pytest.mark.parametrize(
    "changes",
    [{"node": "n3"}, {"round": 2}, {"round": 0}, {"node": "../../x"}],
)
def test_an_answer_that_was_not_asked_for_is_dropped(changes: dict[str, Any]) -> None:
    """Protects: an agent testifies only where the leader has asked it, about whom it was asked."""

    async def play(b: Bench, session: Any) -> None:
        await ask(b)
        await until(session, "probe_request")
        await session.send(report(**changes))
        await b.clock.sleep(500)
        assert await written(b) == []

    played(play)


def test_a_peer_that_was_not_asked_cannot_testify_and_nobody_twice() -> None:
    """Protects: one word per peer and round."""

    async def play(b: Bench, session: Any) -> None:
        other = await b.open(hello("n4"), node="n4")
        await until(other, "welcome")
        await ask(b)
        await until(session, "probe_request")
        await other.send(report())
        await session.send(report(reached=False, detail="no\nanswer"))
        await session.send(report())
        await b.clock.sleep(500)
        [witness] = await written(b)
        assert (witness.peer, witness.reached, witness.rtt_us, witness.detail) == ("n1", False, -1, "noanswer")

    played(play)


def test_an_answer_to_a_question_that_is_gone_leaves_nothing_behind() -> None:
    """Protects: what is written about a node that is heard again would never be deleted."""

    async def play(b: Bench, session: Any) -> None:
        await ask(b)
        await until(session, "probe_request")
        await b.reader.txn([], [DeleteOp(KEYS.probe(N2))])
        await session.send(report())
        await b.clock.sleep(500)
        assert await written(b) == []

    played(play)
