"""Scenarios of silence: a rack, a region, a way that is cut in one direction only. Nothing may be drained for it."""

from __future__ import annotations

from chaos.simulate.executor import SimJob
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.network import UP
from chaos.simulate.play import Claim, Story
from chaos.simulate.stories import (
    EVERY,
    JOB,
    SOON_MS,
    STEP_MS,
    STEPS,
    finished,
    job_ended,
    moves_of_job,
    nothing_drained,
    recovered,
    steady,
)
from controlplane.domain.grouping import CONTACT
from controlplane.domain.liveness import WITNESSED
from gridkeeper.ids import NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.records.fleet import LivenessRecord, NodeState

WIDE = Shape(nodes=6, devices=4, racks=3, jobs={JOB: SimJob(STEP_MS, EVERY, STEPS)})


async def rack_lost(grid: SimGrid) -> tuple[Claim, ...]:
    """The rack of the job's node loses power; then it comes back."""
    owner = await steady(grid)
    rack = grid.hosts[owner.node].rack
    members = [node for node, host in grid.hosts.items() if host.rack == rack]
    for node in members:
        await grid.kill_node(node)
    await recovered(grid)
    await grid.until(lambda: _contact(grid, owner.region), "an incident of the rack", SOON_MS)
    judged = [_judged(grid, node) for node in members]
    opened = _contact(grid, owner.region)
    for node in members:
        grid.boot_node(node)
    await finished(grid)
    await _well_again(grid, owner.region, members)
    patterns = {record.pattern for record in judged}
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("all nodes of the rack were unreachable", _all(judged, NodeState.UNREACHABLE), f"{judged}"),
        Claim("it was known as the silence of the rack", patterns == {f"rack {rack}"}, ", ".join(sorted(patterns))),
        Claim(
            "one incident, and it is of the rack", [i.subject for i in opened] == [f"rack:{rack}"],
            ", ".join(i.title for i in opened), calm=True,
        ),
    )  # fmt: skip


async def region_lost(grid: SimGrid) -> tuple[Claim, ...]:
    """All nodes of a region are cut off from its replicas at once, and come back: the observer may be at fault."""
    owner = await steady(grid)
    members = [node for node, host in grid.hosts.items() if host.region == owner.region]
    for node in members:
        for replica, server in grid.servers.items():
            if server.region == owner.region:
                grid.cut(node, replica)
    await grid.until(lambda: _contact(grid, owner.region), "an incident of the region", SOON_MS)
    await grid.clock.sleep(grid.shape.timings.takeover_ms)
    judged = [_judged(grid, node) for node in members]
    opened = _contact(grid, owner.region)
    grid.heal_network()
    await finished(grid)
    await _well_again(grid, owner.region, members)
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("nobody was convicted", _all(judged, NodeState.ALIVE), f"{judged}"),
        Claim(
            "one incident, and it is of the region", [i.subject for i in opened] == [f"region:{owner.region}"],
            ", ".join(i.title for i in opened), calm=True,
        ),
    )  # fmt: skip


async def one_way_cut(grid: SimGrid) -> tuple[Claim, ...]:
    """What the job's node sends does not arrive, what is sent to it does; its peers reach it."""
    owner = await steady(grid)
    for replica, server in grid.servers.items():
        if server.region == owner.region:
            grid.cut(owner.node, replica, UP)
    began = grid.now_ms

    def witnessed() -> bool:
        return WITNESSED in _judged(grid, owner.node).reason

    await grid.until(witnessed, f"witnesses that {owner.node} lives", SOON_MS)
    words = _judged(grid, owner.node).witnesses
    early = [m for m in moves_of_job(grid) if grid.now_ms - began < grid.shape.timings.takeover_ms]
    await grid.until(lambda: _judged(grid, owner.node).state is not NodeState.ALIVE, "the end of patience", SOON_MS)
    held_ms = grid.now_ms - began
    await recovered(grid)
    grid.heal_network()
    await finished(grid)
    await _well_again(grid, owner.region, [owner.node])
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("peers testified", any("reached its agent" in word for word in words), "; ".join(words)),
        Claim("the job was left alone meanwhile", not early, f"{[m.id for m in early]}", calm=True),
        Claim("it was held for alive for R", held_ms >= grid.shape.timings.takeover_ms, f"{held_ms} ms"),
    )


SILENCES: dict[str, Story] = {
    story.name: story
    for story in (
        Story("rack-lost", "a rack loses power, and comes back", rack_lost, WIDE),
        Story("region-lost", "a region's nodes are cut off from its replicas", region_lost, WIDE),
        Story("one-way-cut", "a node is not heard, but its peers reach it", one_way_cut, WIDE),
    )
}


def _contact(grid: SimGrid, region: str) -> list[IncidentRecord]:
    keys = next(RegionKeys(r) for r in grid.checkpoints if r == region)
    found = grid.all(region, keys.prefix("incidents"), IncidentRecord)
    return [i for i in found if i.fault_class == CONTACT and i.state is not IncidentState.RESOLVED]


def _judged(grid: SimGrid, node: NodeId) -> LivenessRecord:
    region = grid.hosts[node].region
    record = grid.one(region, RegionKeys(region).liveness(node), LivenessRecord)
    assert record is not None, f"{node} has been judged before"
    return record


def _all(judged: list[LivenessRecord], state: NodeState) -> bool:
    return all(record.state is state for record in judged)


async def _well_again(grid: SimGrid, region: str, nodes: list[NodeId]) -> None:
    def well() -> bool:
        heard = all(_judged(grid, node).reason.startswith("heard by") for node in nodes)
        return heard and not _contact(grid, region)

    await grid.until(well, f"{', '.join(nodes)} heard again and no incident left", SOON_MS)
