"""The Grid API on grpc.aio: each call is authorised, refusals are logged, and errors become statuses."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from grpc_reflection.v1alpha import reflection

from controlplane.rpc.auth import NEEDS, authorise
from controlplane.rpc.grid import GridService
from controlplane.rpc.health import add_health
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.sources import Acts, JobLogUnavailable, Views
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.codec import CorruptRecord
from gridkeeper.identity.spiffe import BadIdentity, Identity, UserRole
from gridkeeper.identity.tls import peer_identity
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import NoSpace, OutcomeUnknown, RevisionCompacted, StoreError, TooLarge
from gridkeeper.v1 import agent_pb2, api_pb2

log = logging.getLogger("gridkeeper.api")

Context = grpc.aio.ServicerContext[Any, Any]
Stream = Callable[[Any], AsyncGenerator[Any, None]]
Answer = Callable[[Any, Identity, UserRole], Awaitable[Any]]
GRID = api_pb2.DESCRIPTOR.services_by_name["Grid"]


def add_grid(
    server: grpc.aio.Server,
    views: Views,
    acts: Acts,
    trust_domain: str,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> None:
    """Serve Grid, health and reflection. ``clock`` and ``rng``: the system's unless given."""
    service = GridService(views, acts, clock or SystemClock(), rng or SystemRng())
    server.add_generic_rpc_handlers((handlers(service, trust_domain),))
    names = (GRID.full_name, agent_pb2.DESCRIPTOR.services_by_name["AgentLink"].full_name)
    add_health(server, views, names, clock or SystemClock())
    enable: Any = reflection.enable_server_reflection  # untyped
    enable((*names, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)


def answers(service: GridService) -> dict[str, Answer]:
    """RPC -> how it is answered; all but those that stream."""
    return {
        "List": lambda request, who, role: service.page(request),
        "Get": lambda request, who, role: service.get(request),
        "Explain": lambda request, who, role: service.explain(request),
        "Cordon": lambda request, who, role: service.cordon(request, str(who)),
        "Uncordon": lambda request, who, role: service.uncordon(request, str(who)),
        "Drain": lambda request, who, role: service.drain(request, str(who)),
        "CancelDrain": lambda request, who, role: service.cancel_drain(request, str(who)),
        "PlanMaintenance": lambda request, who, role: service.plan_maintenance(request, str(who)),
        "CancelMaintenance": lambda request, who, role: service.cancel_maintenance(request, str(who)),
        "DecideRepair": lambda request, who, role: service.decide_repair(request, str(who)),
        "AckIncident": lambda request, who, role: service.ack_incident(request, str(who)),
        "SubmitJob": lambda request, who, role: service.submit_job(request, str(who)),
        "StopJob": lambda request, who, role: service.stop_job(request, str(who)),
        "MigrateJob": lambda request, who, role: service.migrate_job(request, str(who)),
        "JobLogs": lambda request, who, role: service.job_logs(request),
        "SlaStatus": lambda request, who, role: service.sla_status(request),
        "ApplyPolicy": lambda request, who, role: service.apply_policy(request, str(who)),
        "GetPolicy": lambda request, who, role: service.get_policy(request),
        "PolicyHistory": lambda request, who, role: service.policy_history(),
        "Query": lambda request, who, role: service.query(request),
        "ApplyDocument": lambda request, who, role: service.apply_document(request, str(who)),
        "Documents": lambda request, who, role: service.documents(request),
        "LedgerEntries": lambda request, who, role: service.ledger_entries(request),
        "Info": lambda request, who, role: service.info(str(who), role),
        "ResetBreaker": lambda request, who, role: service.reset_breaker(request, str(who)),
        "DecideLoss": lambda request, who, role: service.decide_loss(request, str(who)),
        "RecordExclusion": lambda request, who, role: service.settlement.record(request, str(who)),
        "RetractExclusion": lambda request, who, role: service.settlement.retract(request, str(who)),
        "Settlement": lambda request, who, role: service.settlement.shown(request),
    }


def handlers(service: GridService, trust_domain: str) -> grpc.GenericRpcHandler:
    """One handler per RPC of the service's descriptor. Raises ``KeyError`` for an RPC without a role or an answer."""
    unary = answers(service)
    streams: dict[str, Stream] = {"Watch": service.watch, "Samples": service.samples}
    table: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in GRID.methods:
        NEEDS[method.name]
        request: Any = getattr(api_pb2, method.input_type.name)
        response: Any = getattr(api_pb2, method.output_type.name)
        if method.server_streaming:
            handler: Any = grpc.unary_stream_rpc_method_handler
            behaviour: Any = _streaming(method.name, streams[method.name], trust_domain)
        else:
            handler = grpc.unary_unary_rpc_method_handler
            behaviour = _unary(method.name, unary[method.name], trust_domain)
        table[method.name] = handler(
            behaviour, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
    return grpc.method_handlers_generic_handler(GRID.full_name, table)


def _caller(rpc: str, context: Context, trust_domain: str) -> tuple[Identity, UserRole]:
    try:
        identity = peer_identity(context.auth_context(), trust_domain)
    except BadIdentity as error:
        raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
    return identity, authorise(rpc, identity)


def _unary(rpc: str, answer: Answer, trust_domain: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        who = "?"
        try:
            identity, role = _caller(rpc, context, trust_domain)
            who = str(identity)
            return await answer(request, identity, role)
        except (Refusal, StoreError, JobLogUnavailable, CorruptRecord) as error:
            await _end(rpc, who, context, error)

    return call


def _streaming(rpc: str, stream: Stream, trust_domain: str) -> Callable[[Any, Context], AsyncGenerator[Any, None]]:
    async def call(request: Any, context: Context) -> AsyncGenerator[Any, None]:
        who = "?"
        try:
            identity, _ = _caller(rpc, context, trust_domain)
            who = str(identity)
            async with aclosing(stream(request)) as events:
                async for event in events:
                    yield event
        except (Refusal, StoreError) as error:
            await _end(rpc, who, context, error)

    return call


async def _end(rpc: str, who: str, context: Context, error: Exception) -> NoReturn:
    code, message = status_of(error)
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        log.warning("refused %s to %s at %s: %s", rpc, who, context.peer(), message)
    else:
        log.info("%s by %s ended in %s: %s", rpc, who, code.name, message)
    await context.abort(code, message)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and message of what a call ended in."""
    match error:
        case Refusal():
            return error.code, str(error)
        case CorruptRecord():
            return grpc.StatusCode.INVALID_ARGUMENT, f"{error}; use the names of the API's enums"
        case JobLogUnavailable():
            # Another replica may hold the node's stream: clients ask the next one on this status.
            return grpc.StatusCode.UNAVAILABLE, str(error)
        case NoSpace():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, f"the store is full, reads go on: {error}"
        case OutcomeUnknown():
            return grpc.StatusCode.UNAVAILABLE, f"it may have been done: look, then ask again ({error})"
        case TooLarge():
            return grpc.StatusCode.INVALID_ARGUMENT, f"too much for one transaction; name fewer objects ({error})"
        case RevisionCompacted():
            return grpc.StatusCode.UNAVAILABLE, f"the store dropped that revision meanwhile; ask again ({error})"
        case _:
            return grpc.StatusCode.UNAVAILABLE, f"the store does not answer; try again ({error})"
