"""A region is cut off, not killed: from the global store and from the other region, its job ends in time and goes on
there, never twice at once; from the global store alone, its job goes on by the promise of the other region."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from failover.domain.grants import extend_every_ms
from gridkeeper.cli.demo_checks import all_steps, old_epoch_is_silent, same_losses
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.runs import StepLine
from gridkeeper.cli.local.training import Training, job_spec, run_undisturbed
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import RegionLossPolicy
from gridkeeper.timings import SHORT
from gridkeeper.v1 import api_pb2, records_pb2
from tests.e2e.observer import Observer
from tests.fixtures.tunnel import Tunnels

pytestmark = [pytest.mark.e2e, pytest.mark.etcd, pytest.mark.timeout(300)]

TRAINING = Training(steps=680, step_ms=50, checkpoint_every=40)
LOSS = RegionLossPolicy(after_ms=5_000, veto_window_ms=1_000)
SUCCEEDED = records_pb2.JOB_STATE_SUCCEEDED


def of_epoch(grid: LocalGrid, number: int) -> list[StepLine]:
    return [line for line in grid.steps("train") if line.epoch.number == number]


async def test_a_region_that_is_cut_off_lets_its_job_go_and_one_that_is_promised_time_keeps_it(tmp_path: Path) -> None:
    """Protects: one owner by the job's own log, at most one checkpoint interval lost, losses equal to the last bit, and
    that a region that was cut off says so when it is back."""
    options = GridOptions(nodes=1, devices=4, policy=replace(default_policy(), region_loss=LOSS))
    ways = Tunnels()
    baseline = await run_undisturbed(TRAINING, tmp_path / "undisturbed")
    async with LocalGrid(tmp_path / "grid", options, ways=ways) as grid, Observer(grid.client_config()) as seen:
        await seen.client.submit_job(job_spec("train", TRAINING, 2))
        job = await seen.until("the job runs", lambda: seen.running("train"))
        home = job.ownership.region
        away = next(region for region in options.regions if region != home)

        def ahead() -> bool:
            view = seen.job("train")
            return view is not None and view.head.step >= 40 and away in view.head.regions

        await seen.until("a checkpoint is in both regions", ahead)
        ways.cut_from_global_store(home)
        ways.cut_questions_to(away)
        cut_ms = grid.clock.wall_ms()
        await seen.until("the job makes steps in the other region", lambda: len(of_epoch(grid, 2)) > 5, 90)
        old, new = of_epoch(grid, 1), of_epoch(grid, 2)
        assert {line.node for line in old} == {f"{home}-1"} and {line.node for line in new} == {f"{away}-1"}
        assert old[-1].wall_ms - cut_ms <= SHORT.fence_ms
        silent_ms = LOSS.after_ms - extend_every_ms(SHORT)  # of it, some may have passed at the cut
        assert new[0].wall_ms - cut_ms >= silent_ms + LOSS.veto_window_ms + SHORT.takeover_ms
        before_cut = [line.step for line in old if line.wall_ms <= cut_ms]
        assert 0 <= before_cut[-1] - (new[0].step - 1) <= TRAINING.checkpoint_every

        ways.heal()
        told = await seen.until("its incident", lambda: seen.incidents(f"region:{home}"), 60)
        assert f"train to {away}" in told[0].title
        ended = records_pb2.INCIDENT_STATE_RESOLVED
        await seen.until("the region is back", lambda: seen.incidents(f"region:{home}")[0].state == ended, 60)
        loss = (await seen.client.get(api_pb2.KIND_LOSS, home)).loss
        assert loss.state == records_pb2.LOSS_STATE_RETURNED

        ways.cut_from_global_store(away)
        until_ms = grid.clock.wall_ms() + LOSS.after_ms + LOSS.veto_window_ms + SHORT.fence_ms

        def lives_on() -> bool:
            grid.check()
            return of_epoch(grid, 2)[-1].wall_ms >= until_ms

        await seen.until("the job goes on without the global store", lives_on)
        ways.heal()
        await seen.until("the job succeeds", lambda: _state(seen) == SUCCEEDED, 90)
        lines = grid.steps("train")
        assert {line.epoch.number for line in lines} == {1, 2}
        for verdict in (
            all_steps(lines, TRAINING.steps),
            old_epoch_is_silent(lines),
            same_losses(lines, baseline),
        ):
            assert verdict.true, f"{verdict.claim}: {verdict.detail}"
        doubts = [item.name for item in (await seen.client.list(api_pb2.KIND_LOSS)).objects]
        assert doubts == [home], "nobody took the region that was promised time for lost"
    await ways.close()


def _state(seen: Observer) -> int:
    view = seen.job("train")
    return view.record.state if view else 0
