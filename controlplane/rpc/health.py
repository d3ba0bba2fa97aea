"""The standard gRPC health service: a replica serves while its region's store answers it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.rpc.sources import Views
from gridkeeper.ports.clock import Clock

POLL_MS = 500


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, views: Views, services: frozenset[str], clock: Clock) -> None:
        self._views = views
        self._services = services
        self._clock = clock

    def _status(self, service: str) -> Any:
        known = health_pb2.HealthCheckResponse
        if service not in self._services:
            return known.SERVICE_UNKNOWN
        return known.SERVING if self._views.info().region_store_reachable else known.NOT_SERVING

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {request.service[:80]!r} is not served here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncGenerator[Any, None]:
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await self._clock.sleep(POLL_MS)


def add_health(server: grpc.aio.Server, views: Views, services: tuple[str, ...], clock: Clock) -> None:
    """``services``: names that may be asked for; "" is the server as a whole."""
    add: Any = health_pb2_grpc.add_HealthServicer_to_server  # untyped
    add(_Health(views, frozenset({"", *services}), clock), server)
