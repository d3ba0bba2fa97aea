"""A storm: one thing after another goes wrong, drawn from the seed, while jobs run; then all is healed, and everything
must find its end (liveness, architecture §4.8), whatever happened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from chaos.simulate.clock import SimRng
from chaos.simulate.executor import SimJob, loss_of, state_after
from chaos.simulate.grid import NotSeen, Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Injected
from chaos.simulate.play import Claim, Story
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, node_of
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    JobRecord,
    JobState,
    OfferRecord,
    ReservationRecord,
    RunRecord,
)
from gridkeeper.v1 import records_pb2

JOBS = ("alpha", "beta", "gamma")
STEPS = 300
STEP_MS = 100
STORM_MS = 40_000
PAUSE_MS = (200.0, 4_000.0)
LASTS_MS = (500.0, 12_000.0)
"""Shorter and longer than F: some faults are ridden out, some are not."""
HANGS_MS = (1_000.0, 25_000.0)
"""Shorter than the driver's limit, and longer than telemetry may stay away."""
AFTER_MS = 60_000
MAX_SICK = 3
"""Devices that fail: fewer than the budgets of a region allow, so that each can be drained."""
XIDS = (48, 62, 79, 95, 119)
"""Each asks for a drain."""

Heal = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Weather:
    """What is broken now, and when it is mended."""

    grid: SimGrid
    rng: SimRng
    due: list[tuple[int, int, Heal]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    sick: list[DeviceId] = field(default_factory=list)
    count: int = 0

    def pick(self, names: list[str]) -> str:
        return names[min(len(names) - 1, int(self.rng.uniform(0, len(names))))]

    def nodes(self) -> list[str]:
        """Those whose host and agent are whole."""
        return [str(node) for node in self.grid.hosts if node not in self.broken]

    def replicas(self) -> list[str]:
        return [name for name in self.grid.servers if name not in self.broken]

    def breaks(self, name: str, heal: Heal, lasts_ms: tuple[float, float] = LASTS_MS) -> None:
        """``name`` is broken for a time that is drawn."""
        self.broken.add(name)
        self.count += 1

        async def mend() -> None:
            self.broken.discard(name)
            await heal()

        self.due.append((self.grid.now_ms + round(self.rng.uniform(*lasts_ms)), self.count, mend))

    async def mend(self, until_ms: int) -> None:
        """Everything that is due by then, in order."""
        due = sorted((entry for entry in self.due if entry[0] <= until_ms), key=lambda entry: entry[:2])
        self.due = [entry for entry in self.due if entry[0] > until_ms]
        for _, _, heal in due:
            await heal()


async def storm(grid: SimGrid) -> tuple[Claim, ...]:
    """Faults of every kind for a while, then none."""
    weather = _Weather(grid, grid.rng.child("storm"))
    for name in JOBS:
        await grid.submit(_spec(name))
    end = grid.now_ms + STORM_MS
    while grid.now_ms < end:
        pause = weather.rng.uniform(*PAUSE_MS)
        await grid.clock.sleep(round(pause))
        await weather.mend(grid.now_ms)
        await _blow(weather)
        grid.check_alive()
    await weather.mend(1 << 62)
    limit = grid.shape.timings.takeover_ms + AFTER_MS
    with suppress(NotSeen):
        await grid.until(lambda: not _open(grid, weather), "everything at its end", limit)
    left = _open(grid, weather)
    return (Claim("everything found its end after the storm", not left, "; ".join(left)), *_same_ends(grid))


def _spec(name: str) -> records_pb2.JobSpec:
    return records_pb2.JobSpec(
        name=name,
        command=["train"],
        devices=4,
        prefer_other_region=True,
        handles_sigusr1=True,
        grace_ms=4_000,
        max_restarts=100,
    )


async def _blow(weather: _Weather) -> None:
    """One fault of a kind that is drawn; none if nothing whole of that kind is left."""
    grid, kinds = weather.grid, list(FAULTS)
    kind = weather.pick(kinds)
    await FAULTS[kind](weather, grid)


async def _kill_agent(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.nodes():
        node = NodeId(weather.pick(names))
        await grid.kill_agent(node)

        async def heal() -> None:
            grid.start_agent(node)

        weather.breaks(node, heal)


async def _freeze_agent(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.nodes():
        node = NodeId(weather.pick(names))
        grid.freeze_agent(node)

        async def heal() -> None:
            grid.thaw_agent(node)

        weather.breaks(node, heal)


async def _kill_node(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.nodes():
        node = NodeId(weather.pick(names))
        await grid.kill_node(node)

        async def heal() -> None:
            grid.boot_node(node)

        weather.breaks(node, heal)


async def _kill_replica(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.replicas():
        replica = weather.pick(names)
        await grid.kill_replica(replica)

        async def heal() -> None:
            grid.start_replica(replica)

        weather.breaks(replica, heal)


async def _partition(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.replicas():
        replica, store = weather.pick(names), weather.pick(["region", "global"])
        grid.partition_store(replica, store)

        async def heal() -> None:
            grid.heal_store(replica, store)

        weather.breaks(replica, heal)


async def _cut(weather: _Weather, grid: SimGrid) -> None:
    """One node and one replica of its region do not reach each other."""
    if names := weather.nodes():
        node = NodeId(weather.pick(names))
        region = grid.hosts[node].region
        replica = weather.pick([name for name, server in grid.servers.items() if server.region == region])
        grid.cut(node, replica)

        async def heal() -> None:
            grid.heal_cut(node)

        weather.breaks(node, heal)


async def _hang_driver(weather: _Weather, grid: SimGrid) -> None:
    """Nothing is known of a whole node's devices, which is no reason to take one out."""
    if names := weather.nodes():
        node = NodeId(weather.pick(names))
        grid.hang_driver(node)

        async def heal() -> None:
            grid.hang_driver(node, hung=False)

        weather.breaks(node, heal, HANGS_MS)


async def _lost_replies(weather: _Weather, grid: SimGrid) -> None:
    if names := weather.replicas():
        handle = grid.store_of(weather.pick(names), weather.pick(["region", "global"]))
        for disturb in (handle.lose_replies, handle.delay_writes, handle.lose_requests, handle.refuse):
            disturb(1 + int(weather.rng.uniform(0, 3)))


async def _crash(weather: _Weather, grid: SimGrid) -> None:
    grid.crash_job(weather.pick(list(JOBS)))


async def _sick(weather: _Weather, grid: SimGrid) -> None:
    """A device breaks for good: one of a job's, if there is one."""
    used = [device for name in JOBS if (owner := grid.owner(name)) for device in owner.devices]
    every = used or [DeviceId(f"{node}/gpu0") for node in grid.hosts]
    # On a host that is up and watched: what nobody was there to see, nobody can be blamed for not draining.
    well = [str(d) for d in every if d not in weather.sick and node_of(d) not in weather.broken]
    if len(weather.sick) < MAX_SICK and well:
        device = DeviceId(weather.pick(well))
        weather.sick.append(device)
        grid.xid(device, int(weather.pick([str(code) for code in XIDS])), nvml=weather.rng.uniform(0, 1) < 0.5)


async def _compact(weather: _Weather, grid: SimGrid) -> None:
    cluster = grid.stores[weather.pick(list(grid.stores))]
    if cluster.revision > cluster.mvcc.compacted:
        cluster.compact()


async def _new_store_leader(weather: _Weather, grid: SimGrid) -> None:
    grid.stores[weather.pick(list(grid.stores))].new_leader()


FAULTS: dict[str, Callable[[_Weather, SimGrid], Awaitable[None]]] = {
    "kill agent": _kill_agent,
    "freeze agent": _freeze_agent,
    "kill node": _kill_node,
    "kill replica": _kill_replica,
    "partition store": _partition,
    "cut network": _cut,
    "hang driver": _hang_driver,
    "lose replies": _lost_replies,
    "crash job": _crash,
    "sick device": _sick,
    "compact": _compact,
    "store leader": _new_store_leader,
}


# -- what must be true in the end


def _open(grid: SimGrid, weather: _Weather) -> list[str]:
    """What has not found its end."""
    found: list[str] = []
    for name in JOBS:
        job = grid.one(GLOBAL_STORE, KEYS.job(JobId(name)), JobRecord)
        if job is None or job.state is not JobState.SUCCEEDED:
            found.append(f"{name} is {job.state.value}: {job.reason}" if job else f"{name} is lost")
    for region in grid.checkpoints:
        keys = RegionKeys(region)
        for drain in grid.all(region, keys.prefix("drains"), DrainRecord):
            if drain.state is not DrainState.DRAINED:
                found.append(f"drain {drain.id} is {drain.state.value}: {drain.reason}")
        for held in grid.all(region, keys.prefix("reservations"), ReservationRecord):
            found.append(f"{held.job} still holds {', '.join(held.devices)}")
    drained = _drained(grid)
    found += [f"{device} is not drained" for device in weather.sick if device not in drained]
    for offer in grid.all(GLOBAL_STORE, KEYS.prefix("offers"), OfferRecord):
        found.append(f"the offer of {offer.region} for {offer.migration} is left")
    return found


def _drained(grid: SimGrid) -> set[DeviceId]:
    every: list[DrainRecord] = []
    for region in map(RegionId, grid.shape.regions):
        every += grid.all(region, RegionKeys(region).prefix("drains"), DrainRecord)
    return {drain.device for drain in every if drain.state is DrainState.DRAINED}


def _same_ends(grid: SimGrid) -> tuple[Claim, ...]:
    """Each job that ended did so in the state of an undisturbed run."""
    claims: list[Claim] = []
    runs = grid.all(GLOBAL_STORE, KEYS.prefix("runs"), RunRecord)
    for name in map(JobId, JOBS):
        job = grid.one(GLOBAL_STORE, KEYS.job(name), JobRecord)
        # One that was ended after its last step, unheard, is started once more and finds nothing left to do.
        last = max((run for run in runs if run.job == name), key=lambda run: run.last_step, default=None)
        if job is None or job.state not in TERMINAL_JOB or last is None:
            continue
        wanted = loss_of(state_after(name, STEPS - 1))
        text = f"{name}'s final loss is the undisturbed run's"
        claims.append(Claim(text, last.last_loss == wanted, f"{last.last_loss!r}, undisturbed {wanted!r}"))
    faults = [entry for entry in grid.history if isinstance(entry, Injected)]
    claims.append(Claim("it was a storm", len(faults) >= 10, f"{len(faults)} faults and repairs"))
    return tuple(claims)


STORM = Story(
    "storm",
    "faults of every kind, then none",
    storm,
    Shape(jobs={name: SimJob(STEP_MS, 20, STEPS) for name in JOBS}),
)
