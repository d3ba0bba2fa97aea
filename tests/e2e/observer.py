"""Watches a grid through its public API and waits for what a test claims: a condition with a deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gridkeeper.client import GridClient
from gridkeeper.client.changes import Gone, Put
from gridkeeper.config import ClientConfig
from gridkeeper.v1 import api_pb2, records_pb2

T = TypeVar("T")

KINDS = (
    api_pb2.KIND_REGION,
    api_pb2.KIND_NODE,
    api_pb2.KIND_DEVICE,
    api_pb2.KIND_INCIDENT,
    api_pb2.KIND_DRAIN,
    api_pb2.KIND_JOB,
    api_pb2.KIND_MIGRATION,
    api_pb2.KIND_EVENT,
    api_pb2.KIND_FINDING,
    api_pb2.KIND_REPAIR,
    api_pb2.KIND_MAINTENANCE,
)


class TimedOut(AssertionError):
    """What was waited for did not come; the message shows what was there instead."""


class Observer:
    """Every object of the grid as it is now, and every state that each went through."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self.client: GridClient
        self.objects: dict[tuple[int, str], api_pb2.Object] = {}
        self.migration_states: dict[str, list[str]] = {}
        self.health_states: dict[str, list[str]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Observer:
        self.client = GridClient(self._config)
        self._task = asyncio.ensure_future(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()

    async def _follow(self) -> None:
        async for change in self.client.watch(KINDS):
            if isinstance(change, Put):
                self._keep(change.object)
            elif isinstance(change, Gone):
                self.objects.pop((change.kind, change.name), None)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _keep(self, item: api_pb2.Object) -> None:
        self.objects[(item.kind, item.name)] = item
        if item.kind == api_pb2.KIND_MIGRATION:
            state = records_pb2.MigrationState.Name(item.migration.state).removeprefix("MIGRATION_STATE_").lower()
            seen = self.migration_states.setdefault(item.name, [])
            if not seen or seen[-1] != state:
                seen.append(state)
        if item.kind == api_pb2.KIND_DEVICE and item.device.HasField("health"):
            state = records_pb2.HealthState.Name(item.device.health.state).removeprefix("HEALTH_STATE_").lower()
            seen = self.health_states.setdefault(item.name, [])
            if not seen or seen[-1] != state:
                seen.append(state)

    def of(self, kind: int) -> list[api_pb2.Object]:
        return [item for (k, _), item in sorted(self.objects.items()) if k == kind]

    async def until(self, what: str, condition: Callable[[], T | None], timeout_s: float = 45) -> T:
        """The first truthy value of ``condition``, looked at after every change."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    changed = self._changed
                    found = condition()
                    if found:
                        return found
                    try:
                        async with asyncio.timeout(0.5):
                            await changed.wait()
                    except TimeoutError:
                        continue  # some conditions look at files, which announce nothing
        except TimeoutError:
            raise TimedOut(f"{what}: not within {timeout_s} s\n{self.summary()}") from None

    def summary(self) -> str:
        lines = [f"job {o.name}: {o.job.record}" for o in self.of(api_pb2.KIND_JOB)]
        lines += [f"run {o.name}: {o.job.run}" for o in self.of(api_pb2.KIND_JOB)]
        lines += [f"migration {o.name}: {self.migration_states[o.name]}" for o in self.of(api_pb2.KIND_MIGRATION)]
        lines += [f"incident {o.name}: {o.incident.title}" for o in self.of(api_pb2.KIND_INCIDENT)]
        lines += [f"drain {o.name}: {o.drain.state} {o.drain.reason}" for o in self.of(api_pb2.KIND_DRAIN)]
        lines += [f"{name}: {states}" for name, states in self.health_states.items() if len(states) > 1]
        return "\n".join(lines)

    # -- what tests ask ------------------------------------------------------------------------------------------

    def job(self, name: str) -> api_pb2.JobView | None:
        item = self.objects.get((api_pb2.KIND_JOB, name))
        return item.job if item else None

    def running(self, name: str, epoch: int | None = None, region: str = "") -> api_pb2.JobView | None:
        """The job if it runs (makes steps), at that epoch, in that region."""
        job = self.job(name)
        if job is None or not job.HasField("run") or job.record.state != records_pb2.JOB_STATE_RUNNING:
            return None
        right = job.run.epoch.number == job.ownership.epoch.number and job.run.first_step >= 0
        right = right and (epoch is None or job.ownership.epoch.number == epoch)
        return job if right and (not region or job.ownership.region == region) else None

    def node_state(self, name: str) -> int:
        item = self.objects.get((api_pb2.KIND_NODE, name))
        return item.node.liveness.state if item else 0

    def witnesses(self, name: str) -> tuple[str, ...]:
        item = self.objects.get((api_pb2.KIND_NODE, name))
        return tuple(item.node.liveness.witnesses) if item else ()

    def health(self, device: str) -> int:
        item = self.objects.get((api_pb2.KIND_DEVICE, device))
        return item.device.health.state if item else 0

    def incidents(self, subject: str) -> list[records_pb2.IncidentRecord]:
        return [o.incident for o in self.of(api_pb2.KIND_INCIDENT) if o.incident.subject == subject]

    def drains(self, device: str = "") -> list[records_pb2.DrainRecord]:
        return [o.drain for o in self.of(api_pb2.KIND_DRAIN) if not device or o.drain.device == device]

    def repairs(self, device: str, kind: int) -> list[records_pb2.RepairRecord]:
        found = [o.repair for o in self.of(api_pb2.KIND_REPAIR)]
        return [r for r in found if r.device == device and r.kind == kind]

    def migrations(self, job: str, kind: int | None = None) -> list[records_pb2.MigrationRecord]:
        found = [o.migration for o in self.of(api_pb2.KIND_MIGRATION) if o.migration.job == job]
        return [m for m in found if kind is None or m.kind == kind]


def steps(path: Path) -> list[tuple[int, int, str]]:
    """(epoch number, step, loss in hex) of every progress line of a job on one node."""
    found = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found.append((int(str(entry["epoch"]).rpartition(".")[2]), int(entry["step"]), str(entry["loss_hex"])))
    return found
