"""Every process of a region is killed at once, its store too: its job goes on in the other one, never twice at once,
and the region that returns takes nothing back and says what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.ids import RegionId
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import RegionLossPolicy
from gridkeeper.timings import SHORT
from gridkeeper.v1 import api_pb2, records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.etcd, pytest.mark.timeout(240)]

LONG = Training(steps=100_000, step_ms=50, checkpoint_every=20)
LOSS = RegionLossPolicy(after_ms=6_000, veto_window_ms=2_000)


async def test_a_killed_regions_job_is_recovered_in_the_other_one_and_stays_there(stage: Stage) -> None:
    options = GridOptions(nodes=1, devices=4, policy=replace(default_policy(), region_loss=LOSS))
    async with stage(options) as (grid, seen):
        await seen.client.submit_job(job_spec("train", LONG, 2))
        job = await seen.until("the job runs", lambda: seen.running("train"))
        home = RegionId(job.ownership.region)
        away = next(region for region in options.regions if region != home)

        def ahead() -> bool:
            view = seen.job("train")
            return view is not None and view.head.step >= 40 and away in view.head.regions

        await seen.until("a checkpoint is in both regions", ahead)
        for node in [n.name for n in grid.nodes if n.region == home]:
            grid.kill_node(node)
        for replica in [r.name for r in grid.replicas if r.region == home]:
            grid.kill_replica(replica)
        grid.etcd(home).kill(0)
        killed_ms = grid.clock.wall_ms()

        moved = await seen.until("the job runs in the other region", lambda: seen.running("train", 2, away), 90)
        assert moved.ownership.region == away
        loss = (await seen.client.get(api_pb2.KIND_LOSS, home)).loss
        assert (loss.state, loss.decided_by, loss.jobs) == (records_pb2.LOSS_STATE_DECLARED, "machine", 1)
        old = [line for line in grid.steps("train") if line.epoch.number == 1]
        new = [line for line in grid.steps("train") if line.epoch.number == 2]
        assert new[0].wall_ms - killed_ms >= LOSS.after_ms + LOSS.veto_window_ms + SHORT.takeover_ms
        assert max(line.wall_ms for line in old) < new[0].wall_ms
        assert 0 <= old[-1].step - (new[0].step - 1) <= LONG.checkpoint_every

        await grid.etcd(home).restart(0)
        for replica in [r.name for r in grid.replicas if r.region == home]:
            grid.start_replica(replica)
        for node in [n.name for n in grid.nodes if n.region == home]:
            grid.start_agent(node)

        async def returned() -> bool:
            return (await seen.client.get(api_pb2.KIND_LOSS, home)).loss.state == records_pb2.LOSS_STATE_RETURNED

        until_ms = grid.clock.mono_ms() + 60_000
        while not await returned():
            assert grid.clock.mono_ms() < until_ms, "the region did not take its grant again"
            await grid.clock.sleep(200)
        story = " ".join(link.sentence for link in (await seen.client.explain(api_pb2.KIND_REGION, home)).chain)
        assert "may be lost" in story and "is heard again" in story
        before = grid.steps("train")[-1].step
        await seen.until("the job still runs there", lambda: grid.steps("train")[-1].step > before + 20)
        assert {line.node for line in grid.steps("train") if line.epoch.number > 1} == {new[0].node}
        assert {line.epoch.number for line in grid.steps("train")} == {1, 2}
