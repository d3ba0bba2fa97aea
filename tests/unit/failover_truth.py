"""What is really so in the small grid, and the invariants of failover that every write is checked against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gridkeeper.decision import Decision, Put
from gridkeeper.ids import (
    JobId,
    NodeId,
    RegionId,
)
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    TERMINAL_MIGRATION,
    JobRecord,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    RunPhase,
)
from tests.unit.failover_parts import Host, Memory, Proc

PAST_THE_FENCE = frozenset({MigrationState.SOURCE_FENCED, MigrationState.COPYING, MigrationState.VERIFIED})


class Truth:
    """Stores, hosts and stored checkpoints. ``log``: every decision that held."""

    def __init__(self, regions: Iterable[str]) -> None:
        self.memory = Memory()
        self.time_ms = 1_000_000
        self.hosts: dict[NodeId, Host] = {}
        self.stored: dict[RegionId, set[str]] = {RegionId(r): set() for r in regions}
        self.log: list[str] = []
        self.withdrawn = 0  # revoke intents

    def apply(self, decision: Decision) -> bool:
        before = dict(self.memory.items)
        assert decision.sentence, f"{decision.step} gives no reason"
        if not self.memory.apply(decision):
            return False
        self.log.append(f"{self.time_ms} {decision.step}: {decision.sentence}")
        self._check(before, decision)
        return True

    def alive(self) -> Iterable[tuple[Host, Proc]]:
        for host in self.hosts.values():
            for proc in host.procs.values():
                if proc.alive:
                    yield host, proc

    def _check(self, before: dict[str, tuple[Any, int, int]], decision: Decision) -> None:
        for write in decision.writes:
            old = before[write.key][0] if write.key in before else None
            new = write.record if isinstance(write, Put) else None
            if isinstance(new, OwnershipRecord):
                self._check_ownership(old, new)
            elif isinstance(new, MigrationRecord):
                over = old is not None and old.state in TERMINAL_MIGRATION
                assert not over or old.state is new.state, f"{new.id} left a terminal state"
                active = [
                    r.id for k, (r, _, _) in self.memory.items.items()
                    if k.startswith(KEYS.prefix("migrations")) and r.job == new.job
                    and r.state not in TERMINAL_MIGRATION
                ]  # fmt: skip
                assert len(active) <= 1, f"two active migrations: {active}"
            elif isinstance(new, JobRecord) and new.state in TERMINAL_JOB:
                living = [p for _, p in self.alive() if p.job == new.spec.name]
                assert not living, f"{new.spec.name} is {new.state} and lives: {living}"
            elif write.key.startswith(KEYS.prefix("heads")):
                assert new is not None, "a head was deleted"
                assert old is None or new.step > old.step or (new.step, new.digest) == (old.step, old.digest)
                owner = self.memory.record(KEYS.ownership(new.job))
                copied = old is not None and old.digest == new.digest
                assert copied or owner.epoch == new.epoch, f"epoch {new.epoch} commits, {owner.epoch} owns the job"
                for region in new.regions:
                    assert new.digest in self.stored[region], f"the head names {new.digest}, not verified in {region}"

    def _check_ownership(self, old: OwnershipRecord | None, new: OwnershipRecord) -> None:
        if old is not None:
            assert new.epoch >= old.epoch, "an epoch went back"
        if old is not None and old.epoch == new.epoch:
            if old.revoke is not None and new.revoke is None:
                self._check_withdrawal(old)
            return
        living = [(h.node, p.epoch) for h, p in self.alive() if p.job == new.job]
        assert not living, f"{new.job} gets epoch {new.epoch} while {living} live"
        assert self.job(new.job).desired is Desired.RUN, f"{new.job} is to stop and gets epoch {new.epoch}"
        head = self.memory.record(KEYS.head(new.job))
        assert new.resume_step == (head.step if head else -1), "it does not resume from the newest checkpoint"
        assert head is None or new.region in head.regions, "its checkpoint is not where it starts"

    def _check_withdrawal(self, old: OwnershipRecord) -> None:
        """Nothing that proves a wait for this intent may outlive it, and nothing may start under its epoch again."""
        assert old.revoke is not None and old.revoke.withdrawable
        [migration] = [m for m in self.migrations(old.job) if m.id == old.revoke.migration]
        assert migration.state in (MigrationState.CANCELLED, MigrationState.PLANNED)
        proofs = [m.id for m in self.migrations(old.job) if m.state in PAST_THE_FENCE and m.source_epoch == old.epoch]
        assert not proofs, f"{proofs} still say that somebody has waited"
        run = self.memory.record(KEYS.run(old.job, old.epoch.generation, old.epoch.number))
        assert run.phase is RunPhase.RUNNING
        self.withdrawn += 1

    def jobs(self) -> tuple[JobId, ...]:
        prefix = KEYS.prefix("jobs")
        return tuple(JobId(k.removeprefix(prefix)) for k in sorted(self.memory.items) if k.startswith(prefix))

    def job(self, name: str) -> JobRecord:
        record = self.memory.record(KEYS.job(JobId(name)))
        assert isinstance(record, JobRecord)
        return record

    def owner(self, name: str) -> OwnershipRecord:
        record = self.memory.record(KEYS.ownership(JobId(name)))
        assert isinstance(record, OwnershipRecord)
        return record

    def migrations(self, name: str) -> list[MigrationRecord]:
        """Of one job, oldest first."""
        prefix = KEYS.prefix("migrations")
        found = [(c, r) for k, (r, _, c) in self.memory.items.items() if k.startswith(prefix) and r.job == name]
        return [record for _, record in sorted(found, key=lambda item: item[0])]
