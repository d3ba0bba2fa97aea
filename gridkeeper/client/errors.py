"""What a call to the grid can end in, each with the CLI's exit code.

Exit codes: 0 ok, 1 error, 2 usage, 3 partial result, 4 not found, 5 refused.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

OK = 0


class ClientError(Exception):
    """One sentence with a remedy, fit to be shown as it is."""

    exit_code: ClassVar[int] = 1


class Unreachable(ClientError):
    """No replica of the region (or of any region) answered."""


class Failed(ClientError):
    """The control plane could not do it now: its store is away, too many others write, or it has a bug."""


class InvalidRequest(ClientError):
    """The request itself is wrong: the message names field, value and remedy."""

    exit_code: ClassVar[int] = 2


class Incomplete(ClientError):
    """Not found where we could look, and not everything could be looked at."""

    exit_code: ClassVar[int] = 3


class NotFound(ClientError):
    """No such object in any region."""

    exit_code: ClassVar[int] = 4


class Refused(ClientError):
    """The caller may not, or the object's state does not allow it."""

    exit_code: ClassVar[int] = 5


RETRIABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
"""The replica did not answer: another one may. Every act of the API may be repeated without harm."""

_CLASSES: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.CANCELLED: Unreachable,
}


def from_rpc(error: grpc.aio.AioRpcError) -> ClientError:
    """The client's error of a failed call."""
    return _CLASSES.get(error.code(), Failed)(error.details() or error.code().name.lower().replace("_", " "))
