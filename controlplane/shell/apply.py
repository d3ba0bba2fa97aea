"""Decisions become transactions here, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from controlplane.security.origin import ORIGIN
from controlplane.shell.mirror import Mirror
from gridkeeper import codec, tracing
from gridkeeper.decision import ABSENT, Decision, Put
from gridkeeper.failpoint import Failpoints, NoFailpoints
from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Rng
from gridkeeper.ports.store import Compare, DeleteOp, GetOp, KeyValue, Op, OutcomeUnknown, PutOp, Store
from gridkeeper.records.books import AuditRecord
from gridkeeper.records.jobs import MigrationRecord

log = logging.getLogger("gridkeeper.apply")

MIRROR_WAIT_MS = 2_000


class Conflict(Exception):
    """The world moved on since the decision was made: decide again on the newer state."""


def _edges(decision: Decision) -> tuple[str, ...]:
    """Names of the transaction for failpoints: its step, and the state that it brings a migration to."""
    states = [w.record.state for w in decision.writes if isinstance(w, Put) and isinstance(w.record, MigrationRecord)]
    return (decision.step, *(f"migration.{state.value}" for state in states))


@dataclass(frozen=True, slots=True)
class Fence:
    """The leader key that every write of a leader is guarded by: its create revision is the term."""

    key: str
    term: int


def _leads(fence: Fence) -> Compare:
    return Compare(fence.key, Revision(fence.term), create=True)


def _rests_on(decision: Decision) -> Iterator[tuple[str, Revision]]:
    """Each key that the decision's transaction compares, with the revision that it has to have."""
    for guard in decision.guards:
        yield guard.key, guard.expected
    for write in decision.writes:
        yield write.key, write.expected


def _revision(kv: KeyValue | None, create: bool = False) -> Revision:
    if kv is None:
        return ABSENT
    return kv.create_revision if create else kv.mod_revision


class Applier:
    """Applies decisions to one store. ``fence`` None: not a leader's write (ingest, API, a region's leader writing
    globally under its grant); those carry their own guards."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        audit_key: Callable[[str], str],
        rng: Rng,
        wall_ms: Callable[[], int],
        failpoints: Failpoints | None = None,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._audit_key = audit_key
        self._rng = rng
        self._wall_ms = wall_ms
        self._failpoints = failpoints or NoFailpoints()

    async def apply(self, decision: Decision, actor: str, fence: Fence | None) -> Revision:
        """One transaction: leader guard, guards, writes, audit record. Returns the store's revision after it.

        Raises ``Conflict`` (also when the reply was lost and the transaction is not to be seen: deciding again is then
        right, since whatever is still under way compares the same revisions), and the store's errors.
        """
        return await self.apply_together((decision,), actor, fence)

    async def apply_together(self, decisions: Sequence[Decision], actor: str, fence: Fence | None) -> Revision:
        """Several decisions of which none writes what another one writes or rests on (``grouping.groups``), in one
        transaction: all or none. What the store holds then is what one after the other would have left. Raises as
        ``apply``."""
        at_ms = self._wall_ms()
        compares = [Compare(key, expected) for decision in decisions for key, expected in _rests_on(decision)]
        if fence:
            compares.append(_leads(fence))
        ops: list[Op] = []
        audit_key = ""
        for decision in decisions:
            ops += (
                PutOp(write.key, codec.encode(write.record)) if isinstance(write, Put) else DeleteOp(write.key)
                for write in decision.writes
            )
            if decision.audit:
                audit_key = self._audit_key(f"{at_ms:013d}-{self._rng.token(6)}")
                ops.append(PutOp(audit_key, codec.encode(self._audit(audit_key, decision, actor, at_ms))))
        edges = [edge for decision in decisions for edge in _edges(decision)]
        self._failpoints.hit(f"{edge}.before" for edge in edges)
        try:
            with ExitStack() as stack:
                for decision in decisions:
                    attributes = {"gridkeeper.object": decision.subject}
                    stack.enter_context(tracing.span(decision.step, decision.trace, attributes))
                result = await self._store.txn(list(dict.fromkeys(compares)), ops)
        except OutcomeUnknown:
            return await self._settle(decisions[0], ops, audit_key)
        if not result.succeeded:
            first = decisions[0]
            others = f" and {len(decisions) - 1} others" if len(decisions) > 1 else ""
            raise Conflict(f"{first.step} on {first.subject or 'the store'}{others}: decided on older state")
        self._failpoints.hit(f"{edge}.after" for edge in edges)
        for decision in decisions:
            if decision.audit:
                log.info("%s: %s", decision.step, decision.sentence)
        return result.revision

    async def still_current(self, decisions: Sequence[Decision], fence: Fence | None) -> tuple[Decision, ...]:
        """Those that the store, as it is now, has not overtaken; none if the term is over. After a conflict this tells
        which of many it was about, with one read. As many as one transaction takes. Raises the store's errors."""
        keys = dict.fromkeys(key for decision in decisions for key, _ in _rests_on(decision))
        if fence:
            keys[fence.key] = None
        result = await self._store.txn([], [GetOp(key) for key in keys])
        found = dict(zip(keys, result.values, strict=True))
        if fence and _revision(found[fence.key], create=True) != fence.term:
            return ()
        return tuple(d for d in decisions if all(_revision(found[key]) == expected for key, expected in _rests_on(d)))

    def _audit(self, key: str, decision: Decision, actor: str, at_ms: int) -> AuditRecord:
        return AuditRecord(
            id=key.rpartition("/")[2],
            at_ms=at_ms,
            actor=actor,
            verb=decision.step,
            object=decision.subject,
            sentence=decision.sentence,
            result="applied",
            revision=self._mirror.revision,
            evidence=decision.evidence,
            trace=decision.trace,
            origin=ORIGIN.get(),
        )

    async def _settle(self, decision: Decision, ops: list[Op], audit_key: str) -> Revision:
        """The reply was lost. Look whether our own values are there; if not, decide again."""
        probes = [op for op in ops if isinstance(op, PutOp)]
        probe = next((op for op in probes if op.key == audit_key), probes[0] if probes else None)
        if probe is None:
            raise Conflict(f"{decision.step}: the reply was lost")
        result = await self._store.txn([], [GetOp(probe.key)])
        found = result.values[0]
        if found is not None and found.value == probe.value and (probe.key == audit_key or len(ops) == 1):
            return found.mod_revision
        raise Conflict(f"{decision.step}: the reply was lost and its writes are not there")

    async def caught_up(self, revision: Revision) -> None:
        """Wait until the mirror has what was written, so that the next decision sees it."""
        await self._mirror.wait_revision(revision, MIRROR_WAIT_MS)
