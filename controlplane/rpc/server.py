"""The Grid API on grpc.aio: each call is authorised, refusals are logged, and errors become statuses."""

from __future__ import annotations

import logging
from collections import OrderedDict
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
from controlplane.rpc.tenant import TenantViews, checked_request
from controlplane.security.gate import Caller, NoLonger
from controlplane.security.guards import Guards
from controlplane.security.origin import ORIGIN, host_of
from controlplane.security.rates import TooMany
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.codec import CorruptRecord
from gridkeeper.identity.spiffe import Identity, UserRole
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
    guards: Guards,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> Desk:
    """Serve Grid to those with a certificate, health and reflection. ``clock`` and ``rng``: the system's unless
    given."""
    desk = Desk(views, acts, guards, clock or SystemClock(), rng or SystemRng())
    server.add_generic_rpc_handlers((desk.handlers(certified=True),))
    names = (GRID.full_name, agent_pb2.DESCRIPTOR.services_by_name["AgentLink"].full_name)
    add_health(server, views, names, clock or SystemClock())
    enable: Any = reflection.enable_server_reflection  # untyped
    enable((*names, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    return desk


def streams(service: GridService) -> dict[str, Stream]:
    """RPC -> how its stream is made."""
    return {"Watch": service.watch, "Samples": service.samples}


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
        "CreateJoinToken": lambda request, who, role: service.identities.create_token(request, str(who)),
        "CancelJoinToken": lambda request, who, role: service.identities.cancel_token(request, str(who)),
        "JoinTokens": lambda request, who, role: service.identities.tokens(),
        "Revoke": lambda request, who, role: service.identities.revoke(request, str(who)),
        "Reinstate": lambda request, who, role: service.identities.reinstate(request, str(who)),
        "Revocations": lambda request, who, role: service.identities.revocations(),
    }


MOST_TENANTS = 64
"""Sets of namespaces whose part of the grid is kept ready."""


class Desk:
    """Answers calls: who asks, may they, how fast, from which part of the grid, and what is written down of refusals.

    ``certified``: callers are known by certificates, else by bearer tokens."""

    def __init__(self, views: Views, acts: Acts, guards: Guards, clock: Clock, rng: Rng) -> None:
        self._views = views
        self._acts = acts
        self._guards = guards
        self._clock = clock
        self._rng = rng
        self._whole = GridService(views, acts, clock, rng)
        self._tenants: OrderedDict[tuple[str, ...], GridService] = OrderedDict()

    def handlers(self, certified: bool) -> grpc.GenericRpcHandler:
        """One handler per RPC of the service's descriptor. Raises ``KeyError`` for an RPC without a role or an
        answer."""
        known = answers(self._whole)
        table: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in GRID.methods:
            NEEDS[method.name]
            request: Any = getattr(api_pb2, method.input_type.name)
            response: Any = getattr(api_pb2, method.output_type.name)
            if method.server_streaming:
                streams(self._whole)[method.name]
                handler: Any = grpc.unary_stream_rpc_method_handler
                behaviour: Any = self._streaming(method.name, certified)
            else:
                known[method.name]
                handler = grpc.unary_unary_rpc_method_handler
                behaviour = self._unary(method.name, certified)
            table[method.name] = handler(
                behaviour, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )
        return grpc.method_handlers_generic_handler(GRID.full_name, table)

    def _service(self, identity: Identity) -> GridService:
        """The whole grid, or a tenant's part of it."""
        if identity.role is not UserRole.JOB_OWNER:
            return self._whole
        namespaces = identity.namespaces
        service = self._tenants.get(namespaces)
        if service is None:
            service = GridService(TenantViews(self._views, namespaces), self._acts, self._clock, self._rng)
            self._tenants[namespaces] = service
            if len(self._tenants) > MOST_TENANTS:
                self._tenants.popitem(last=False)
        self._tenants.move_to_end(namespaces)
        return service

    async def _admitted(self, rpc: str, request: Any, caller: Caller) -> tuple[GridService, UserRole, Any]:
        """Raises ``Refusal``."""
        identity = caller.identity
        role = authorise(rpc, identity)
        buckets = self._guards.reads if NEEDS[rpc] is UserRole.VIEWER else self._guards.acts
        wait_ms = buckets.admit(str(caller))
        if wait_ms:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{caller} asks too often; try {rpc} again in {wait_ms} ms"
            )
        if role is UserRole.JOB_OWNER:
            request = checked_request(rpc, request, identity.namespaces, self._views)
        return self._service(identity), role, request

    async def _caller(self, context: Context, certified: bool) -> Caller:
        gate = self._guards.gate
        return gate.certified(context) if certified else await gate.borne(context)

    def _unary(self, rpc: str, certified: bool) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            who = ""
            ORIGIN.set(host_of(context.peer()))
            try:
                caller = await self._caller(context, certified)
                who = str(caller)
                service, role, request = await self._admitted(rpc, request, caller)
                return await answers(service)[rpc](request, caller.identity, role)
            except (Refusal, StoreError, JobLogUnavailable, CorruptRecord) as error:
                await self._end(rpc, request, who, context, error)

        return call

    def _streaming(self, rpc: str, certified: bool) -> Callable[[Any, Context], AsyncGenerator[Any, None]]:
        async def call(request: Any, context: Context) -> AsyncGenerator[Any, None]:
            who = ""
            ORIGIN.set(host_of(context.peer()))
            try:
                caller = await self._caller(context, certified)
                who = str(caller)
                service, _, request = await self._admitted(rpc, request, caller)
                with self._guards.streams.one(who):
                    async with aclosing(streams(service)[rpc](request)) as events:
                        async for event in events:
                            # A stream says something at least every two seconds, so this ends it within that time.
                            trouble = self._guards.gate.trouble(caller)
                            if trouble:
                                raise Refusal(grpc.StatusCode.UNAUTHENTICATED, trouble)
                            yield event
            except TooMany as error:
                await self._end(rpc, request, who, context, Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)))
            except (Refusal, StoreError) as error:
                await self._end(rpc, request, who, context, error)

        return call

    async def _end(self, rpc: str, request: Any, who: str, context: Context, error: Exception) -> NoReturn:
        code, message = status_of(error)
        who = error.who if isinstance(error, NoLonger) else who
        if isinstance(error, Refusal) and (code in TURNED_AWAY or NEEDS[rpc] is not UserRole.VIEWER):
            trace = self._guards.book.note(who or "?", ORIGIN.get(), f"api.{rpc}", subject_of(request), message)
            log.warning("refused %s to %s at %s, trace %s: %s", rpc, who or "?", context.peer(), trace, message)
        else:
            log.info("%s by %s ended in %s: %s", rpc, who or "?", code.name, message)
        await context.abort(code, message)


TURNED_AWAY = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""Refusals that are written down whatever was asked; of acts, every refusal is."""
SUBJECTS = ("target", "name", "job", "id", "region")


def subject_of(request: Any) -> str:
    """What a request is about, as it says; at most 200 characters."""
    if isinstance(request, api_pb2.SubmitJobRequest):
        return f"job/{request.spec.name[:100]}"
    for field in SUBJECTS:
        value = getattr(request, field, "")
        if isinstance(value, str) and value:
            return value[:200]
    return ""


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
