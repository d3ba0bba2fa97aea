"""A host that dies and an agent that freezes: the job goes on elsewhere, never twice at once, and silence drains
nothing."""

from __future__ import annotations

import pytest

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RECOVERY = records_pb2.MIGRATION_KIND_RECOVERY
LONG = Training(steps=100_000, step_ms=50, checkpoint_every=20)


async def test_a_dead_node_is_unreachable_its_job_restarts_after_r_and_its_devices_are_not_drained(
    stage: Stage,
) -> None:
    async with stage(GridOptions()) as (grid, seen):
        await seen.client.submit_job(job_spec("survivor", LONG, 4))
        job = await seen.until("the job runs", lambda: seen.running("survivor"))
        node = job.ownership.node
        await seen.until("a checkpoint is committed", lambda: (j := seen.job("survivor")) and j.head.step >= 20)
        grid.kill_node(node)
        killed_ms = grid.clock.wall_ms()
        unreachable = records_pb2.NODE_STATE_UNREACHABLE
        await seen.until(f"{node} is unreachable", lambda: seen.node_state(node) == unreachable)
        peer = next(other.name for other in grid.nodes if other.region == job.ownership.region and other.name != node)
        assert any(f"{peer} found its host, but not its agent" in word for word in seen.witnesses(node))
        moved = await seen.until("the job runs elsewhere", lambda: seen.running("survivor", epoch=2), 60)
        assert moved.ownership.node != node
        old = [line for line in grid.steps("survivor") if line.epoch.number == 1]
        new = [line for line in grid.steps("survivor") if line.epoch.number == 2]
        # The revoke intent came after the kill, and the start R after it.
        assert new[0].wall_ms - killed_ms >= SHORT.takeover_ms
        assert 0 <= old[-1].step - (new[0].step - 1) <= LONG.checkpoint_every
        (recovery,) = await seen.until(
            "the recovery is done",
            lambda: [m for m in seen.migrations("survivor", RECOVERY) if m.state == records_pb2.MIGRATION_STATE_DONE],
        )
        assert recovery.rto_ms > 0 and recovery.rpo_steps >= 0
        assert seen.drains() == []
        for index in range(8):
            assert "drain" not in " ".join(seen.health_states[f"{node}/gpu{index}"])
        assert "unknown" in seen.health_states[f"{node}/gpu0"]
        # The node comes back: its devices are trusted again, and it does not run the old epoch.
        grid.start_agent(node)
        await seen.until(f"{node} is alive", lambda: seen.node_state(node) == records_pb2.NODE_STATE_ALIVE)
        healthy = records_pb2.HEALTH_STATE_HEALTHY
        await seen.until("its devices are healthy", lambda: seen.health(f"{node}/gpu0") == healthy)
        assert grid.job_pids(node, "survivor") == ()


async def test_a_frozen_agents_job_is_ended_by_its_guardian_before_anyone_starts_it_elsewhere(stage: Stage) -> None:
    async with stage(GridOptions()) as (grid, seen):
        await seen.client.submit_job(job_spec("fenced", LONG, 4))
        job = await seen.until("the job runs", lambda: seen.running("fenced"))
        node = job.ownership.node
        await seen.until("a checkpoint is committed", lambda: (j := seen.job("fenced")) and j.head.step >= 20)
        grid.pause_agent(node)
        unreachable = records_pb2.NODE_STATE_UNREACHABLE
        await seen.until(f"{node} is unreachable", lambda: seen.node_state(node) == unreachable)
        assert any("got no answer" in word for word in seen.witnesses(node))
        await seen.until("the guardian ends the job", lambda: grid.job_pids(node, "fenced") == ())
        ended_ms = grid.clock.wall_ms()
        assert all(line.epoch.number == 1 for line in grid.steps("fenced"))
        await seen.until("the job runs elsewhere", lambda: seen.running("fenced", epoch=2), 60)
        new = [line for line in grid.steps("fenced") if line.epoch.number == 2]
        old = [line for line in grid.steps("fenced") if line.epoch.number == 1]
        assert new[0].node != node and new[0].wall_ms > ended_ms
        assert max(line.wall_ms for line in old) < new[0].wall_ms
        assert seen.drains() == []
        grid.resume_agent(node)
        await seen.until(f"{node} is alive", lambda: seen.node_state(node) == records_pb2.NODE_STATE_ALIVE)
        before = grid.steps("fenced")[-1].step
        await seen.until("the job still runs there", lambda: grid.steps("fenced")[-1].step > before + 20)
        assert grid.job_pids(node, "fenced") == ()
        assert {line.node for line in grid.steps("fenced") if line.epoch.number > 1} == {new[0].node}
