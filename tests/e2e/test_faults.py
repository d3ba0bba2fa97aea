"""From a fault below the agent to a drained device, through every real process: nothing doubled, nothing lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.v1 import api_pb2, records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

GENEROUS = replace(default_policy(), budgets=(BudgetPolicy("region", 1.0, 1),))
DRAINED = records_pb2.HEALTH_STATE_DRAINED
DRAIN_DONE = records_pb2.DRAIN_STATE_DRAINED


async def test_each_way_that_a_fault_is_reported_drains_the_device_once(stage: Stage) -> None:
    async with stage(GridOptions(policy=GENEROUS)) as (grid, seen):
        # Through NVML alone, through the kernel log alone, and the same fault through both.
        grid.xid("east-1", 0, 48, kernel=False)
        grid.xid("east-1", 1, 48, nvml=False)
        grid.xid("east-1", 2, 48)
        for index in range(3):
            device = f"east-1/gpu{index}"
            await seen.until(f"{device} is drained", lambda d=device: seen.health(d) == DRAINED)  # type: ignore[misc]
            (drain,) = await seen.until(
                f"the drain of {device} is done",
                lambda d=device: [r for r in seen.drains(d) if r.state == DRAIN_DONE],  # type: ignore[misc]
            )
            (incident,) = await seen.until("its incident", lambda d=device: seen.incidents(d))  # type: ignore[misc]
            assert drain.incident == incident.id and drain.evidence and "XID 48" in drain.reason
            assert set(drain.budgets) == {"region"}
            explained = await seen.client.explain(api_pb2.KIND_DEVICE, device)
            assert {"backend.events", "detect.classify", "health.step", "drain.plan"} <= {
                link.step for link in explained.chain
            }
        events = [e.event for e in seen.of(api_pb2.KIND_EVENT) if e.event.device == "east-1/gpu2"]
        assert len(events) == 1, events
        untouched = [d for d in seen.health_states if d not in {f"east-1/gpu{i}" for i in range(3)}]
        assert {s for d in untouched for s in seen.health_states[d]} == {"healthy"}


async def test_an_agent_that_is_killed_and_restarted_adopts_its_job_and_loses_nothing(stage: Stage) -> None:
    async with stage(GridOptions(policy=GENEROUS)) as (grid, seen):
        spec = job_spec("steady", Training(steps=100_000, step_ms=50, checkpoint_every=50), 2)
        await seen.client.submit_job(spec)
        job = await seen.until("the job runs", lambda: seen.running("steady"))
        node, pids = job.ownership.node, grid.job_pids(job.ownership.node, "steady")
        idle = next(f"{node}/gpu{i}" for i in range(8) if f"{node}/gpu{i}" not in job.ownership.devices)
        grid.kill_agent(node)
        # A fault while nobody listens: the kernel log keeps it.
        grid.xid(node, int(idle[-1]), 48, nvml=False)
        before = grid.steps("steady")[-1].step
        grid.start_agent(node)
        await seen.until(f"{idle} is drained", lambda: seen.health(idle) == DRAINED)
        await seen.until("the job goes on", lambda: grid.steps("steady")[-1].step > before + 40)
        after = seen.running("steady", epoch=1)
        assert after is not None and grid.job_pids(node, "steady") == pids
        await seen.until("its drain is done", lambda: [d for d in seen.drains(idle) if d.state == DRAIN_DONE])
        assert [d.device for d in seen.drains()] == [idle]
        assert [m.kind for m in seen.migrations("steady")] == [records_pb2.MIGRATION_KIND_START]
        steps = [line.step for line in grid.steps("steady")]
        assert steps == sorted(set(steps))
