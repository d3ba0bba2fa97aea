"""Pure: jobs, checkpoints and SLA accounts as users see them."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.rpc.rows import Inputs, KindSpec, Scene, message, new_object, word, yes
from failover.domain.lag import Lag, lags
from failover.domain.scrub import places
from gridkeeper.ids import JobId, RegionId
from gridkeeper.kinds import checkpoint_name
from gridkeeper.records.jobs import JobState
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object


def run_key(job: str, generation: int, number: int) -> str:
    """The key of a run under ``runs/``, as in ``gridkeeper.keys``."""
    return f"{job}/{generation:06d}.{number:010d}"


def _job_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    world = scene.world
    behind: dict[JobId, tuple[Lag, ...]] = {}
    for lag in lags(world):
        behind[lag.job] = (*behind.get(lag.job, ()), lag)
    for name, job in world.jobs.items():
        owner = world.ownership.get(name)
        run = None
        if owner:
            run = world.runs.get(run_key(name, owner.record.epoch.generation, owner.record.epoch.number))
        yield name, (job, owner, run, world.heads.get(name), behind.get(name, ()))


def _job(region: RegionId, name: str, inputs: Inputs) -> Object:
    job, owner, run, head, behind = inputs
    record = job.record
    home = owner.record.region if owner and record.state is not JobState.PENDING else ""
    labels = {
        "region": home,
        "node": owner.record.node if owner else "",
        "state": word(record.state),
        "desired": word(record.desired),
        "namespace": record.spec.namespace,
    }
    item = new_object(api_pb2.KIND_JOB, name, home, inputs, labels)
    item.job.CopyFrom(
        api_pb2.JobView(
            record=message(job),
            ownership=message(owner),
            run=message(run),
            head=message(head),
            lags=[
                api_pb2.CheckpointLag(region=lag.region, steps=lag.steps, work_ms=lag.work_ms, bytes=lag.bytes)
                for lag in behind
            ],
        )
    )
    return item


def _checkpoint_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    for key, checkpoint in scene.world.checkpoints.items():
        head = scene.world.heads.get(checkpoint.record.job)
        yield key, (checkpoint, head if head and head.record.step == checkpoint.record.step else None)


def _checkpoint(region: RegionId, key: str, inputs: Inputs) -> Object:
    checkpoint, head = inputs
    record = checkpoint.record
    labels = {
        "region": record.region,
        "job": record.job,
        "head": yes(head is not None),
        "suspect": yes(record.suspect),
        "damaged": yes(bool(record.damage)),
    }
    item = new_object(api_pb2.KIND_CHECKPOINT, checkpoint_name(key), record.region, inputs, labels)
    regions = head.record.regions if head else places(record)
    item.checkpoint.CopyFrom(api_pb2.CheckpointView(record=message(checkpoint), head=head is not None, regions=regions))
    return item


def _sla_rows(scene: Scene) -> Iterator[tuple[str, Inputs]]:
    for scope, account in scene.region.accounts.items():
        yield scope, (account, True)
    for scope, account in scene.world.accounts.items():
        yield scope, (account, False)


def _sla(region: RegionId, name: str, inputs: Inputs) -> Object:
    account, region_owned = inputs
    scope, _, subject = account.record.scope.partition("/")
    home = region if region_owned else ""
    labels = {
        "region": home,
        "scope": scope,
        "device": subject if scope == "device" else "",
        "job": subject if scope == "job" else "",
        "current": word(account.record.current),
    }
    item = new_object(api_pb2.KIND_SLA, name, home, inputs, labels)
    item.sla.account.CopyFrom(message(account))
    return item


JOBS: tuple[KindSpec, ...] = (
    KindSpec(
        api_pb2.KIND_JOB,
        ("region", "node", "state", "desired", "namespace"),
        lambda s: (
            s.world.jobs,
            s.world.ownership,
            s.world.runs,
            s.world.heads,
            s.world.checkpoints,
            s.world.regions,
        ),
        _job_rows,
        _job,
    ),
    KindSpec(
        api_pb2.KIND_CHECKPOINT,
        ("region", "job", "head", "suspect", "damaged"),
        lambda s: (s.world.checkpoints, s.world.heads),
        _checkpoint_rows,
        _checkpoint,
    ),
    KindSpec(
        api_pb2.KIND_SLA,
        ("region", "scope", "device", "job", "current"),
        lambda s: (s.region.accounts, s.world.accounts),
        _sla_rows,
        _sla,
    ),
)
