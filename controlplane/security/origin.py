"""The address that the call which is being answered came from: for the audit trail, wherever its entry is written."""

from __future__ import annotations

from contextvars import ContextVar

ORIGIN: ContextVar[str] = ContextVar("gridkeeper_origin", default="")
"""Set per call and per stream; tasks that they start inherit it. "": nobody called, the machine acts by itself."""


def host_of(peer: str) -> str:
    """``10.0.0.5`` of gRPC's ``ipv4:10.0.0.5:4711``, ``::1`` of ``ipv6:%5B::1%5D:4711``; at most 64 characters."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return peer[:64]
    host = rest.rpartition(":")[0] or rest
    return host.replace("%5B", "").replace("%5D", "").strip("[]")[:64]
