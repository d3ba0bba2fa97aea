"""Too much fails at once in three regions that share one budget, while one is cut off from the global store."""

from __future__ import annotations

from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE
from chaos.simulate.play import Claim, Story
from gridkeeper.ids import DeviceId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, Policy
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.limits import EscrowRecord, ShareRecord

REGIONS = ("east", "north", "west")
DEVICES = 4
LIMIT = 6  # half of all
READY_MS, SOON_MS, LONG_MS = 30_000, 30_000, 120_000
POLICY = Policy(
    budgets=(BudgetPolicy("fleet", 0.5, 1), BudgetPolicy("region", 1.0, 1), BudgetPolicy("rack", 1.0, 1)),
    breakers=(BreakerPolicy("region", drains=DEVICES, fraction=0.0),),
)


async def shared_budget(grid: SimGrid) -> tuple[Claim, ...]:
    """Each region drains what its share allows; a third region's places are lent; nobody takes the cut-off one's."""
    await grid.until(lambda: sum(_held(grid, name) for name in REGIONS) == LIMIT, "each region's share", READY_MS)
    fair = {name: _held(grid, name) for name in REGIONS}
    start = int(grid.rng.uniform(0, 3))
    alone, needy, idle = (REGIONS[(start + offset) % 3] for offset in range(3))
    replicas = [name for name, server in grid.servers.items() if server.region == alone]
    for replica in replicas:
        grid.partition_store(replica, "global")
    for name in (alone, needy):
        for slot in range(DEVICES):
            grid.xid(DeviceId(f"{name}-1/gpu{slot}"), 79)
    if grid.rng.uniform(0, 1) < 0.5:
        leader = next(name for name, server in grid.servers.items() if server.region == needy)
        await grid.kill_replica(leader)
        await grid.clock.sleep(3_000)
        grid.start_replica(leader)
    await grid.until(lambda: len(_out(grid, alone)) == fair[alone], f"{alone} spends its share", SOON_MS)
    await grid.until(lambda: len(_out(grid, needy)) > fair[needy], f"{needy} is lent places", LONG_MS)
    while_cut = len(_out(grid, alone))
    for replica in replicas:
        grid.heal_store(replica, "global")
    await grid.until(lambda: sum(len(_out(grid, name)) for name in REGIONS) == LIMIT, "all places are used", LONG_MS)
    escrow = grid.one(GLOBAL_STORE, KEYS.escrow("fleet"), EscrowRecord)
    refused = [d for name in (alone, needy) for d in _drains(grid, name) if d.state is DrainState.REFUSED]
    told = len(refused) == 2 and all("fleet" in drain.budgets for drain in refused)
    return (
        Claim("the region that was cut off spent its share, no more", while_cut == fair[alone], f"{while_cut}"),
        Claim("nothing in the idle region was drained", not _out(grid, idle), ", ".join(_out(grid, idle))),
        Claim("the division is of half the fleet", escrow is not None and escrow.limit == LIMIT, f"{escrow}"),
        Claim("what had no room is refused, by the fleet's budget", told, ", ".join(d.id for d in refused)),
    )


def _held(grid: SimGrid, name: str) -> int:
    share = grid.one(name, RegionKeys(RegionId(name)).share("fleet"), ShareRecord)
    return share.amount if share else 0


def _drains(grid: SimGrid, name: str) -> tuple[DrainRecord, ...]:
    return grid.all(name, RegionKeys(RegionId(name)).prefix("drains"), DrainRecord)


def _out(grid: SimGrid, name: str) -> list[str]:
    return [drain.device for drain in _drains(grid, name) if drain.state is DrainState.DRAINED]


SHARED_BUDGET = Story(
    "shared-budget",
    "three regions share one budget, and one is cut off",
    shared_budget,
    Shape(regions=REGIONS, nodes=1, devices=DEVICES, policy=POLICY),
)
