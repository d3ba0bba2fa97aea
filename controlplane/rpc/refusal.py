"""How a request is turned down."""

from __future__ import annotations

import difflib
from collections.abc import Collection

import grpc

NEAR_LIMIT = 2_000
"""More names than this are compared by what they contain only: similarity is quadratic in their length."""


class Refusal(Exception):
    """Ends a call with ``code``; the message names the field, the value and the remedy."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def precondition(message: str) -> Refusal:
    """The object's state does not allow it."""
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)


def not_found(what: str, name: str, names: Collection[str], where: str) -> Refusal:
    """``what``: singular of the kind. Names that come near are told."""
    shown = name[:100]
    close = near(name, names)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; see 'gridkeeper get {what}'"
    return Refusal(grpc.StatusCode.NOT_FOUND, f"{what} {shown!r} is not {where}{hint}")


def near(name: str, names: Collection[str]) -> list[str]:
    """Up to three names that ``name`` may have meant."""
    name = name[:100]
    inside = [other for other in names if name and (other.startswith(name) or name in other)][:3]
    if inside:
        return inside
    if len(names) > NEAR_LIMIT:
        return []
    return difflib.get_close_matches(name, names, n=3, cutoff=0.75)
