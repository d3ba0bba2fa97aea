"""What an etcd error means for the caller: was it done, was it not, is it in doubt.

The strings are etcd's own (``api/v3rpc/rpctypes/error.go``); they have not changed from 3.4 to 3.6.
"""

from __future__ import annotations

import enum
import re

import grpc

from gridkeeper.ports.store import (
    LeaseGone,
    NoSpace,
    OutcomeUnknown,
    RevisionCompacted,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    TooLarge,
)

_DEFINITE: tuple[tuple[str, type[StoreError], str], ...] = (
    ("database space exceeded", NoSpace, "compact, defragment and disarm the alarm, or raise the quota"),
    ("requested lease not found", LeaseGone, "it expired or was revoked; grant another"),
    ("required revision has been compacted", RevisionCompacted, "read at a newer revision"),
    ("request is too large", TooLarge, "split the transaction"),
    ("too many operations in txn request", TooLarge, "split the transaction"),
    ("received message larger than max", TooLarge, "split the transaction"),
    ("permission denied", StoreDenied, "grant the user a role on these keys"),
    ("authentication failed", StoreDenied, "check the store's user and password_file"),
    ("authentication is not enabled", StoreDenied, "remove the store's user, or enable authentication in etcd"),
)
"""Answers that etcd gives before, or instead of, applying anything: nothing was done."""

_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")
"""The token is checked before a request is proposed, and the auth revision before it is applied: nothing was done."""

_NOT_PROPOSED = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "not supported for learner",
)
"""Refused by the member before the request entered the raft log: nothing was done, another member may do it."""

_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)


class Verdict(enum.Enum):
    """What to do about a failed call."""

    FINAL = "final"  # etcd answered: raise what ``definite`` gives
    TOKEN = "token"  # not done; authenticate again, then repeat
    NOT_DONE = "not done"  # not done here; another member may
    IN_DOUBT = "in doubt"  # a read may be repeated, a write must not


def verdict(error: grpc.aio.AioRpcError) -> Verdict:
    """Classify a failed call."""
    details = error.details() or ""
    if any(text in details for text in _TOKEN):
        return Verdict.TOKEN
    if any(text in details for text in _NOT_PROPOSED):
        return Verdict.NOT_DONE
    if any(text in details for text, _, _ in _DEFINITE) or error.code() not in _TRANSIENT:
        return Verdict.FINAL
    return Verdict.IN_DOUBT


def definite(what: str, error: grpc.aio.AioRpcError) -> StoreError:
    """The exception for a call that etcd answered with an error."""
    details = error.details() or ""
    for text, kind, remedy in _DEFINITE:
        if text in details:
            return kind(f"{what}: {details}; {remedy}")
    return StoreError(f"{what}: {error.code().name}: {details}")


def in_doubt(what: str, address: str, error: grpc.aio.AioRpcError, *, write: bool) -> StoreError:
    """The exception for a call whose answer did not come."""
    sentence = f"{what} at {address}: {error.code().name}: {error.details() or 'no details'}"
    return OutcomeUnknown(sentence) if write else StoreUnavailable(sentence)


Version = tuple[int, int, int]

_VERSION = re.compile(r"^(\d+)\.(\d+)\.(\d+)")


def parse_version(text: str) -> Version:
    """``"3.5.1"`` or ``"3.6.0-rc.1"``. Raises ``StoreError``."""
    found = _VERSION.match(text)
    if not found:
        raise StoreError(f"etcd says its version is {text[:40]!r}, which is none; is it etcd that listens there?")
    return int(found[1]), int(found[2]), int(found[3])


def unsafe(version: Version) -> bool:
    """3.5.0 to 3.5.5 can lose consistency when killed under load (etcd issues 13766 and 14498)."""
    return (3, 5, 0) <= version <= (3, 5, 5)


def progress_in_order(version: Version) -> bool:
    """Whether a requested progress notification comes after all changes up to its revision, and comes at all.

    Before 3.4.25 and 3.5.8 it could overtake changes (etcd issue 15220); from there to 3.4.31 and 3.5.12 it did not
    come for a watch without events (etcd issue 17507).
    """
    if version[:2] == (3, 4):
        return version >= (3, 4, 32)
    return version >= (3, 5, 13)
