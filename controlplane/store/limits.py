"""What one etcd transaction may hold, checked before anything is sent, so that the answer is never in doubt.

Sources: etcd's defaults ``--max-txn-ops=128`` (counted for compares, success and failure apart) and
``--max-request-bytes=1572864``. Every store adapter, the simulated one included, calls ``check_txn``.
"""

from __future__ import annotations

from collections.abc import Sequence

from gridkeeper.ports.store import Compare, DeleteOp, GetOp, Op, PutOp, TooLarge

MAX_OPS = 128
MAX_BYTES = 1_572_864
_PER_ITEM = 64
"""Bytes that protobuf and etcd's raft entry add around one key and value, rounded up."""
_PER_REQUEST = 1_024
"""Header of the raft entry (request id, user name, auth revision), rounded up."""


def _branch(name: str, ops: Sequence[Op]) -> int:
    size = 0
    puts: set[str] = set()
    deletes: set[str] = set()
    for op in ops:
        match op:
            case PutOp(key, value, _):
                if key in puts or key in deletes:
                    raise ValueError(f"txn {name}: {key!r} is written twice; merge the two writes into one")
                puts.add(key)
                size += len(value)
            case DeleteOp(key):
                if key in puts:
                    raise ValueError(f"txn {name}: {key!r} is put and deleted; keep one of the two")
                deletes.add(key)
            case GetOp(key):
                pass
        size += len(key.encode()) + _PER_ITEM
    return size


def check_txn(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> None:
    """Raises ``TooLarge`` if etcd would refuse the transaction for its size, ``ValueError`` if it writes a key twice
    in one branch."""
    for name, items in (("compares", compares), ("success", success), ("failure", failure)):
        if len(items) > MAX_OPS:
            raise TooLarge(f"txn {name}: {len(items)} operations, at most {MAX_OPS}; split the transaction")
    size = _PER_REQUEST + sum(len(c.key.encode()) + _PER_ITEM for c in compares)
    size += _branch("success", success) + _branch("failure", failure)
    if size > MAX_BYTES:
        raise TooLarge(f"txn: about {size} bytes, at most {MAX_BYTES}; split the transaction or shrink its values")
