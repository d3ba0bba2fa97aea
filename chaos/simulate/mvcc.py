"""etcd's multi-version store as a data structure: no time, no chance, no waiting.

What etcd does and this does alike: one revision per transaction that changes anything; a delete of an absent key
changes nothing; operations of a transaction run in order and later reads see earlier writes; a put re-attaches its key
to the lease it names; revoking a lease deletes its keys, in key order, at one revision; compaction keeps, of each key,
the newest version at or below the compacted revision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    ANY,
    Change,
    Compare,
    DeleteOp,
    GetOp,
    KeyValue,
    LeaseGone,
    Op,
    Page,
    PutOp,
    RevisionCompacted,
    StoreError,
    TxnResult,
)


@dataclass(slots=True)
class _History:
    """Versions of one key, oldest first; ``None`` is a tombstone."""

    revisions: list[int] = field(default_factory=list)
    versions: list[KeyValue | None] = field(default_factory=list)

    def at(self, revision: int) -> KeyValue | None:
        index = bisect_right(self.revisions, revision)
        return self.versions[index - 1] if index else None


Witness = Callable[[int, tuple[Change, ...], tuple[Compare, ...]], None]
"""Told of every revision: its number, its changes, and the compares that it was made under."""


class Mvcc:
    """Keys with their history. A fresh store is at revision 1, as etcd's is. ``witness``: see ``Witness``."""

    def __init__(self) -> None:
        self.witness: Witness | None = None
        self.revision = 1
        self.compacted = 0
        self._keys: list[str] = []  # sorted; every key that has a history
        self._histories: dict[str, _History] = {}
        self._log: list[tuple[int, tuple[Change, ...]]] = []  # since the compaction, oldest first
        self._lease_keys: dict[int, dict[str, None]] = {}

    # -- leases: which exist and what hangs on them; when they end is the caller's business

    def add_lease(self, lease: int) -> None:
        self._lease_keys[lease] = {}

    def has_lease(self, lease: int) -> bool:
        return lease in self._lease_keys

    def revoke(self, lease: int) -> bool:
        """End a lease and delete its keys. True if anything was deleted. Raises ``LeaseGone``."""
        if lease not in self._lease_keys:
            raise LeaseGone(f"lease {lease:x}: not found")
        keys = sorted(self._lease_keys.pop(lease))
        if not keys:
            return False
        changes = [self._delete(key, self.revision + 1) for key in keys]
        self._commit([change for change in changes if change is not None], ())
        return True

    # -- reading

    def current(self, key: str) -> KeyValue | None:
        history = self._histories.get(key)
        return history.versions[-1] if history else None

    def _under(self, prefix: str, after: str) -> Sequence[str]:
        start = bisect_left(self._keys, prefix) if after < prefix else bisect_right(self._keys, after)
        end = start
        while end < len(self._keys) and self._keys[end].startswith(prefix):
            end += 1
        return self._keys[start:end]

    def range(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int = 0,
        revision: Revision = ANY,
        min_mod_revision: Revision = ANY,
    ) -> Page:
        """As ``Store.range``. Raises ``RevisionCompacted``, and ``StoreError`` for a revision yet to come."""
        at = revision or self.revision
        if at > self.revision:
            raise StoreError(f"revision {at}: is in the future, the store is at {self.revision}")
        if at < self.compacted:
            raise RevisionCompacted(f"revision {at}: compacted, the oldest is {self.compacted}")
        found = []
        for key in self._under(prefix, after):
            kv = self._histories[key].at(at)
            if kv is not None and kv.mod_revision >= min_mod_revision:
                found.append(kv)
        more = 0 < limit < len(found)
        return Page(tuple(found[:limit] if limit else found), Revision(self.revision), more)

    def changes_since(self, prefix: str, revision: int) -> tuple[Change, ...]:
        """Changes under ``prefix`` at ``revision`` or later, in order. Raises ``RevisionCompacted``."""
        if revision <= self.compacted:
            raise RevisionCompacted(f"revision {revision}: compacted, the oldest is {self.compacted}")
        start = bisect_left(self._log, revision, key=lambda entry: entry[0])
        return tuple(c for _, changes in self._log[start:] for c in changes if c.kv.key.startswith(prefix))

    # -- writing

    def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> TxnResult:
        """One transaction. Raises ``LeaseGone`` if the branch taken puts under a lease that is not."""
        succeeded = all(self._holds(compare) for compare in compares)
        branch = success if succeeded else failure
        for op in branch:
            if isinstance(op, PutOp) and op.lease and op.lease not in self._lease_keys:
                raise LeaseGone(f"lease {op.lease:x} of {op.key!r}: not found")
        revision = self.revision + 1
        changes: list[Change] = []
        values: list[KeyValue | None] = []
        for op in branch:
            match op:
                case PutOp():
                    changes.append(self._put(op, revision))
                case DeleteOp(key):
                    change = self._delete(key, revision)
                    if change is not None:
                        changes.append(change)
                case GetOp(key):
                    values.append(self.current(key))
        self._commit(changes, tuple(compares) if succeeded else ())
        return TxnResult(succeeded, Revision(self.revision), tuple(values))

    def _holds(self, compare: Compare) -> bool:
        kv = self.current(compare.key)
        if kv is None:
            return compare.revision == 0
        return compare.revision == (kv.create_revision if compare.create else kv.mod_revision)

    def _put(self, op: PutOp, revision: int) -> Change:
        old = self.current(op.key)
        if old is not None and old.lease in self._lease_keys:
            self._lease_keys[old.lease].pop(op.key, None)
        if op.lease:
            self._lease_keys[op.lease][op.key] = None
        kv = KeyValue(
            op.key,
            op.value,
            old.create_revision if old else Revision(revision),
            Revision(revision),
            old.version + 1 if old else 1,
            op.lease,
        )
        self._append(op.key, revision, kv)
        return Change(kv, deleted=False)

    def _delete(self, key: str, revision: int) -> Change | None:
        old = self.current(key)
        if old is None:
            return None
        if old.lease in self._lease_keys:
            self._lease_keys[old.lease].pop(key, None)
        self._append(key, revision, None)
        return Change(KeyValue(key, b"", Revision(0), Revision(revision), 0, 0), deleted=True)

    def _append(self, key: str, revision: int, kv: KeyValue | None) -> None:
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = _History()
            insort(self._keys, key)
        history.revisions.append(revision)
        history.versions.append(kv)

    def _commit(self, changes: list[Change], compares: tuple[Compare, ...]) -> None:
        if changes:
            self.revision += 1
            self._log.append((self.revision, tuple(changes)))
            if self.witness:
                self.witness(self.revision, tuple(changes), compares)

    # -- compaction

    def compact(self, revision: int) -> None:
        """Forget what was before ``revision``. Raises ``RevisionCompacted``, or ``StoreError`` for the future."""
        if revision > self.revision:
            raise StoreError(f"compact {revision}: is in the future, the store is at {self.revision}")
        if revision <= self.compacted:
            raise RevisionCompacted(f"compact {revision}: already compacted to {self.compacted}")
        self.compacted = revision
        self._log = [entry for entry in self._log if entry[0] > revision]
        for key in list(self._keys):
            history = self._histories[key]
            keep = max(0, bisect_right(history.revisions, revision) - 1)
            if history.versions[keep] is None and history.revisions[keep] <= revision:
                keep += 1
            del history.revisions[:keep], history.versions[:keep]
            if not history.revisions:
                del self._histories[key]
                self._keys.remove(key)
