"""Stories of faults that no driver reports: a card that is slower than its peers, a job that hangs. Each is found and
named, nothing that is healthy is touched, and when it is over it is said to be over."""

from __future__ import annotations

from chaos.simulate.executor import SimJob, loss_of, state_after
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Started, Stepped
from chaos.simulate.play import Claim, Story
from controlplane.domain.evidence import job_subject
from gridkeeper.ids import DeviceId, JobId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import PeerPolicy, Policy
from gridkeeper.records.faults import DrainRecord, FindingRecord, IncidentRecord, IncidentState
from gridkeeper.records.fleet import HealthRecord, HealthState
from gridkeeper.records.jobs import JobRecord, JobState, OwnershipRecord, RunRecord
from gridkeeper.v1 import records_pb2

JOB = JobId("train")
DEVICES = 8
STEPS, STEP_MS, STALL_AT, STALL_MS = 260, 100, 60, 12_000
SOON_MS = 60_000
POLICY = Policy(peers=PeerPolicy(for_ms=3_000, hang_ms=4_000))
SLOW_MHZ = 1_155
CLOCK, HANG = "peers-sm-clock", "job-hang"


async def gray(grid: SimGrid) -> tuple[Claim, ...]:
    """The clocks of one card drop, and come back after the replica that convicted it has died."""
    owner = await _running(grid, 40)
    device = owner.devices[int(grid.rng.uniform(0, DEVICES))]
    healthy = grid.metric(device, "clock_sm")
    grid.set_metrics(device, clock_sm=SLOW_MHZ)
    began_ms = grid.now_ms
    found = await grid.until(lambda: _active(grid, owner, CLOCK), f"{device} is convicted", SOON_MS)
    after_ms = grid.now_ms - began_ms
    await grid.until(lambda: _incident(grid, owner, device), f"an incident of {device}", SOON_MS)
    states = _states(grid, owner)
    convictor = grid.replica_of(owner.node)
    await grid.kill_replica(convictor)
    await grid.until(lambda: grid.replica_of(owner.node) not in ("", convictor), f"{owner.node} is heard", SOON_MS)
    grid.set_metrics(device, clock_sm=healthy)
    await grid.until(lambda: not _active(grid, owner, CLOCK), f"{device} is as fast as its peers again", SOON_MS)
    grid.start_replica(convictor)
    await _finished(grid)
    comparison = found.sentence
    return (
        *_whole(grid, owner),
        _all_of(grid, owner, "the card alone is convicted", {device}),
        Claim("not before the time has passed", after_ms >= POLICY.peers.for_ms, f"{after_ms} ms"),
        Claim("the comparison is named", "7 others of job train have median 1,700" in comparison, comparison),
        Claim(
            "no state but that card's changes, and it stays in service",
            states == {name: "suspect" if name == device else "healthy" for name in owner.devices},
            f"{states}",
        ),
    )


async def hang(grid: SimGrid) -> tuple[Claim, ...]:
    """A job makes no step for a while: seven of its cards spin, one waits; then it goes on."""
    owner = await _running(grid, 20)
    device = owner.devices[int(grid.rng.uniform(0, DEVICES))]
    await grid.until(lambda: _last_step(grid) >= STALL_AT, f"step {STALL_AT}", SOON_MS)
    stalled_ms = grid.now_ms
    for name in owner.devices:
        grid.set_metrics(name, utilisation=0 if name == device else 100)
    found = await grid.until(lambda: _active(grid, owner, HANG), f"{JOB} hangs", SOON_MS)
    after_ms = grid.now_ms - stalled_ms
    await grid.until(lambda: _incident(grid, owner, job_subject(JOB)), f"an incident of {JOB}", SOON_MS)
    await grid.until(lambda: _last_step(grid) > STALL_AT, f"{JOB} goes on", SOON_MS)
    for name in owner.devices:
        grid.set_metrics(name, utilisation=80)
    await grid.until(lambda: not _active(grid, owner, HANG), f"{JOB} hangs no more", SOON_MS)
    await _finished(grid)
    told = found.sentence
    return (
        *_whole(grid, owner),
        Claim("not before the time has passed", after_ms >= POLICY.peers.hang_ms - STEP_MS, f"{after_ms} ms"),
        Claim("the odd one out is named", f"the odd one out is {device}: utilisation 0 %" in told, told),
        _all_of(grid, owner, "nobody else is accused", {device, job_subject(JOB)}),
    )


STORIES = (
    Story(
        "gray", "the clocks of one card of a job drop", gray,
        Shape(policy=POLICY, jobs={JOB: SimJob(STEP_MS, 20, STEPS)}),
    ),
    Story(
        "hang", "a job makes no more steps", hang,
        Shape(policy=POLICY, jobs={JOB: SimJob(STEP_MS, 20, STEPS, stall_at=STALL_AT, stall_ms=STALL_MS)}),
    ),
)  # fmt: skip


# -- how


async def _running(grid: SimGrid, step: int) -> OwnershipRecord:
    spec = records_pb2.JobSpec(
        name=JOB, command=["train"], devices=DEVICES, handles_sigusr1=True, grace_ms=10_000, max_restarts=3
    )
    await grid.submit(spec)
    await grid.until(lambda: _last_step(grid) >= step, f"step {step} of {JOB}", SOON_MS)
    return await grid.until(lambda: grid.owner(JOB), f"the owner of {JOB}", SOON_MS)


async def _finished(grid: SimGrid) -> None:
    def ended() -> bool:
        job = grid.one(GLOBAL_STORE, KEYS.job(JOB), JobRecord)
        return job is not None and job.state in (JobState.SUCCEEDED, JobState.FAILED)

    await grid.until(ended, f"the end of {JOB}", SOON_MS)


def _last_step(grid: SimGrid) -> int:
    return next((entry.step for entry in reversed(grid.history.entries) if isinstance(entry, Stepped)), -1)


def _active(grid: SimGrid, owner: OwnershipRecord, code: str) -> FindingRecord | None:
    every = grid.all(owner.region, RegionKeys(owner.region).prefix("findings"), FindingRecord)
    return next((finding for finding in every if finding.active and finding.code == code), None)


def _incident(grid: SimGrid, owner: OwnershipRecord, subject: str) -> IncidentRecord | None:
    every = grid.all(owner.region, RegionKeys(owner.region).prefix("incidents"), IncidentRecord)
    return next((i for i in every if i.subject == subject), None)


def _states(grid: SimGrid, owner: OwnershipRecord) -> dict[DeviceId, str]:
    keys = RegionKeys(owner.region)
    found = ((device, grid.one(owner.region, keys.health(device), HealthRecord)) for device in owner.devices)
    return {device: record.state.value if record else "none" for device, record in found}


# -- claims


def _all_of(grid: SimGrid, owner: OwnershipRecord, text: str, subjects: set[str]) -> Claim:
    """All comparisons and hangs ever told, of all regions."""
    every = [
        finding
        for region in grid.checkpoints
        for finding in grid.all(str(region), RegionKeys(region).prefix("findings"), FindingRecord)
        if finding.fault_class in ("slow", "job-hang")
    ]
    accused = {job_subject(JobId(f.job)) if f.job else str(f.device) for f in every}
    return Claim(text, bool(accused) and accused <= subjects, ", ".join(sorted(accused)), calm=True)


def _whole(grid: SimGrid, owner: OwnershipRecord) -> tuple[Claim, ...]:
    """The job is as if nothing had happened; nothing is drained, and what was opened is resolved."""
    runs = grid.all(GLOBAL_STORE, KEYS.prefix("runs"), RunRecord)
    last = max(runs, key=lambda run: run.epoch, default=None)
    wanted = loss_of(state_after(JOB, STEPS - 1))
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    drains = [d.id for r in grid.checkpoints for d in grid.all(str(r), RegionKeys(r).prefix("drains"), DrainRecord)]
    incidents = grid.all(owner.region, RegionKeys(owner.region).prefix("incidents"), IncidentRecord)
    unresolved = [i.id for i in incidents if i.state is not IncidentState.RESOLVED]
    return (
        Claim("the final loss is the undisturbed run's", last is not None and last.last_loss == wanted, f"{wanted!r}"),
        Claim("the job ran in one epoch", len(starts) == 1, f"{len(starts)} starts", calm=True),
        Claim("nothing was drained", not drains, ", ".join(drains)),
        Claim("what was opened is resolved", not unresolved, ", ".join(unresolved), calm=True),
        Claim("every card is in service", set(_states(grid, owner).values()) <= IN_SERVICE, f"{_states(grid, owner)}"),
    )


IN_SERVICE = {HealthState.HEALTHY.value, HealthState.SUSPECT.value}
