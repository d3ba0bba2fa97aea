"""The shell of the comparisons: what is found becomes one durable finding, and is cleared when its reason is gone."""

from __future__ import annotations

from dataclasses import replace

from chaos.simulate.loop import run_virtual
from gridkeeper import codec
from gridkeeper.ids import Epoch, FindingId, JobId, NodeId
from gridkeeper.policy.model import Mode, PeerPolicy, Policy
from gridkeeper.ports.store import PutOp
from gridkeeper.records.common import Action, Scope
from gridkeeper.records.faults import FindingRecord
from gridkeeper.records.jobs import RunPhase
from gridkeeper.v1.agent_pb2 import AgentFrame, Heartbeat
from tests.fixtures import records
from tests.unit.ingestbench import KEYS, WORLD, Bench, SimAgentSession, bench, hello, until

JOB = JobId("train")


async def _ran(b: Bench, number: int, node: str, step_ms: int, phase: RunPhase = RunPhase.EXITED) -> None:
    """An epoch of the job that made a thousand steps."""
    run = replace(
        records.run(), epoch=Epoch(1, number), node=NodeId(node), phase=phase, first_step=0, last_step=1_000,
        first_step_ms=1_000, last_step_ms=1_000 + 1_000 * step_ms,
    )  # fmt: skip
    await b.reader.txn([], [PutOp(WORLD.run(JOB, 1, number), codec.encode(run))])


async def _findings(b: Bench, session: SimAgentSession, active: bool) -> list[FindingRecord]:
    """As soon as there is one like that; the node is heard meanwhile."""
    for _ in range(60):
        await session.send(AgentFrame(heartbeat=Heartbeat()))
        await b.clock.sleep(500)
        page = await b.reader.range(KEYS.prefix("findings"))
        found = [codec.decode(FindingRecord, kv.value) for kv in page.items]
        if any(finding.active is active for finding in found):
            return found
    raise AssertionError(f"no finding with active={active}")


async def _slow_node(b: Bench) -> SimAgentSession:
    session = await b.open(hello())
    await until(session, "welcome")
    for number in (1, 2, 3):
        await _ran(b, number, f"n{number + 1}", 980 + number)
    await _ran(b, 4, "n1", 1_420, RunPhase.RUNNING)
    await b.own(JOB, 4)
    return session


def test_a_slow_node_is_one_finding_until_the_job_has_left() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await _slow_node(b)
            (found,) = await _findings(b, session, active=True)
            assert (found.node, found.device, found.scope) == ("n1", "", Scope.NODE)
            assert found.sentence.startswith("n1: job train makes a step in 1.42 s, on the 3 other nodes")
            assert found.trace and found.evidence[0] == "step_ms=1420"
            await b.own(JOB, 5)
            await _ran(b, 4, "n1", 1_420)
            await _ran(b, 5, "n1", 980, RunPhase.RUNNING)
            (over,) = await _findings(b, session, active=False)
            assert over == replace(found, active=False)

    run_virtual(main())


def test_a_comparison_that_is_switched_off_convicts_nobody_any_more() -> None:
    """Protects: a finding that nothing keeps up must not hold its node under suspicion for ever."""

    async def main() -> None:
        async with bench() as b:
            session = await _slow_node(b)
            await _findings(b, session, active=True)
            await b.adopt(Policy(peers=PeerPolicy(mode=Mode.OFF)))
            await _findings(b, session, active=False)

    run_virtual(main())


def test_in_shadow_mode_a_finding_is_marked() -> None:
    async def main() -> None:
        async with bench() as b:
            await b.adopt(Policy(peers=PeerPolicy(mode=Mode.SHADOW)))
            (found,) = await _findings(b, await _slow_node(b), active=True)
            assert found.shadow

    run_virtual(main())


def test_what_stands_follows_the_policy_in_force() -> None:
    """Protects: a finding of the time in which the comparison acted is not acted on once it only watches, and one that
    was only watched is acted on as soon as the policy says so; its evidence and trace stay."""

    async def main() -> None:
        async with bench() as b:
            session = await _slow_node(b)
            (found,) = await _findings(b, session, active=True)
            for mode, action in ((Mode.SHADOW, Action.DRAIN), (Mode.ACT, Action.WATCH)):
                await b.adopt(Policy(peers=PeerPolicy(mode=mode, action=action)))
                for _ in range(60):
                    (now,) = await _findings(b, session, active=True)
                    if now != found:
                        break
                assert now == replace(found, shadow=mode is Mode.SHADOW, action=action)
                found = now

    run_virtual(main())


def test_a_rule_of_the_policy_may_call_its_findings_slow() -> None:
    """Protects: switching the comparison off clears its own findings, and nobody else's of the same fault class."""

    async def main() -> None:
        async with bench() as b:
            session = await _slow_node(b)
            (found,) = await _findings(b, session, active=True)
            other = replace(found, id=FindingId("n1:policy-lazy"), rule="lazy", code="lazy")
            await b.reader.txn([], [PutOp(KEYS.finding(other.id), codec.encode(other))])
            await b.adopt(Policy(peers=PeerPolicy(mode=Mode.OFF)))
            after = {finding.id: finding.active for finding in await _findings(b, session, active=False)}
            assert after == {found.id: False, other.id: True}

    run_virtual(main())
