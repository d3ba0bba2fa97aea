"""What the interface needs of the grid: a narrow part of ``gridkeeper.client.GridClient``, which satisfies it as it is.

Tests and the picture of the README bring their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gridkeeper.client import Change, Listing
from gridkeeper.client.answers import Act, Explained, ReplicaStatus
from gridkeeper.v1.api_pb2 import Kind, Object


class Feed(Protocol):
    """Every method raises ``ClientError`` subclasses whose message can be shown as it is."""

    def watch(self, kinds: Sequence[Kind.ValueType], selector: str = "") -> AsyncGenerator[Change, None]: ...

    async def list(self, kind: Kind.ValueType, selector: str = "") -> Listing: ...

    async def get(self, kind: Kind.ValueType, name: str) -> Object: ...

    async def explain(self, kind: Kind.ValueType, name: str) -> Explained: ...

    async def info(self) -> tuple[ReplicaStatus, ...]: ...

    async def job_logs(self, job: str, tail_bytes: int = 16_384) -> tuple[str, bytes]: ...

    async def cordon(self, target: str, reason: str, ttl_ms: int = 0) -> Act: ...

    async def uncordon(self, target: str, reason: str = "") -> Act: ...

    async def drain(self, target: str, reason: str) -> Act: ...

    async def cancel_drain(self, drain: str, reason: str) -> Act: ...

    async def ack_incident(self, incident: str, reason: str = "") -> Act: ...

    async def stop_job(self, job: str, reason: str = "") -> Act: ...

    async def migrate_job(self, job: str, to_region: str = "", reason: str = "") -> Act: ...


OpenFeed = Callable[[], AbstractAsyncContextManager[Feed]]
"""Opens a feed inside the running event loop; called again after it failed."""
