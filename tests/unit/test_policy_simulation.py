"""Protects: in the whole simulated grid, an applied policy counts in every region without a restart, and goes on
counting in a region that is cut off from the global store, also for a replica that starts meanwhile."""

from __future__ import annotations

from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.loop import run_virtual
from controlplane.rpc.grid import GridService
from gridkeeper.v1 import api_pb2

TEXT = """\
probation_ms: 1234
rules:
  - {name: any-power, when: power_w > 0, severity: warning, action: watch, fault_class: power, meaning: draws power}
"""


def test_it_counts_everywhere_and_survives_a_cut_and_a_restart() -> None:
    async def main() -> None:
        async with SimGrid("policy/1", Shape(nodes=1, devices=2)) as grid:
            servers = list(grid.servers.values())
            await grid.until(
                lambda: all(s.replica.front.info().global_store_reachable for s in servers), "the grid is up", 30_000
            )
            front = servers[0].replica.front
            service = GridService(front, front, servers[0].clock, servers[0].rng)
            request = api_pb2.ApplyPolicyRequest(text=TEXT, expect_version=0, reason="because")
            assert (await service.apply_policy(request, "user/ann")).version == 1
            await grid.until(
                lambda: all(s.replica.front.settings().policy.probation_ms == 1234 for s in servers), "in force", 10_000
            )
            raised = await grid.until(
                lambda: (
                    [
                        held.record
                        for region in grid.shape.regions
                        for held in grid.servers[f"{region}-cp1"].replica.front.region().findings.values()
                        if held.record.rule == "any-power"
                    ]
                    or None
                ),
                "the new rule has raised",
                10_000,
            )
            assert {(f.rule_version, f.active) for f in raised} == {(1, True)}

            cut = "east-cp1"
            await grid.kill_replica(cut)
            grid.start_replica(cut)
            grid.partition_store(cut, "global")
            await grid.until(
                lambda: grid.servers[cut].replica.front.settings().policy.version == 1, "still in force", 30_000
            )
            assert not grid.servers[cut].replica.front.info().global_store_reachable

    run_virtual(main(), 300)
