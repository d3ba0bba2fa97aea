"""``GridClient``: the whole grid as one, over as many regions as there are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message

from gridkeeper.client import fanout, follow, ledger, samples, settlements
from gridkeeper.client.answers import Act, Explained, Listing, ReplicaStatus, SlaListing
from gridkeeper.client.changes import Change
from gridkeeper.client.errors import ClientError, Incomplete, InvalidRequest, NotFound, Unreachable, from_rpc
from gridkeeper.client.identities import Identities
from gridkeeper.client.replicas import Patience, Replicas
from gridkeeper.clock import SystemClock
from gridkeeper.config import ClientConfig
from gridkeeper.ids import RegionId
from gridkeeper.kinds import BY_NUMBER, is_global, reference
from gridkeeper.ports.clock import Clock
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import Kind, Object

if TYPE_CHECKING:
    from gridkeeper.client.query import Answer

R = TypeVar("R", bound=Message)

PAGE_SIZE = 2_000
SEVERAL = frozenset({"fleet.sample", "budget.reserve", "breaker.state"})
"""Steps of which an explanation has several about one object at one time."""
LIST_ATTEMPTS = 4
"""A page token is bound to one replica's snapshot: when that is gone, the listing begins anew."""


def _credentials(config: ClientConfig) -> grpc.ChannelCredentials:
    """Raises ``TlsError``."""
    from gridkeeper.identity.bearer import bearer_credentials
    from gridkeeper.identity.tls import channel_credentials, entry_credentials

    if not config.token_file:
        return channel_credentials(config.tls)
    return grpc.composite_channel_credentials(entry_credentials(config.tls), bearer_credentials(config.token_file))


class GridClient:
    """Use as ``async with GridClient(config) as grid:`` inside a running event loop.

    Every method raises ``ClientError`` subclasses whose message can be shown as it is.
    """

    def __init__(
        self,
        config: ClientConfig,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Clock | None = None,
        patience: Patience | None = None,
    ) -> None:
        if not config.regions:
            raise InvalidRequest("regions: the client configuration names none; add one with its addresses")
        if credentials is None:
            credentials = _credentials(config)
        self._clock = clock or SystemClock()
        self._all = tuple(Replicas(region, credentials, patience or Patience()) for region in config.regions)
        self._regions: dict[RegionId, Replicas] = {replicas.region: replicas for replicas in self._all}
        self.identities = Identities(self._regions)

    async def __aenter__(self) -> GridClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for replicas in self._all:
            await replicas.close()

    @property
    def regions(self) -> tuple[RegionId, ...]:
        """In the order of the configuration."""
        return tuple(self._regions)

    # -- reading ------------------------------------------------------------------------------------------------

    async def list(self, kind: Kind.ValueType, selector: str = "") -> Listing:
        """Everything of one kind. A region that does not answer becomes a sentence in ``partial``; if none answers,
        raises ``Unreachable``."""
        if not BY_NUMBER[kind].region_owned:
            whole = await fanout.first_whole(self._all, lambda replicas: self._list_region(replicas, kind, selector))
            if whole is not None:
                return whole
        answers, errors = await fanout.everywhere(
            self._all, lambda replicas: self._list_region(replicas, kind, selector)
        )
        merged: dict[str, Object] = {}
        for item in (item for answer in answers for item in answer.objects):
            old = merged.get(item.name)
            if old is None or (is_global(item) and item.revision > old.revision):
                merged[item.name] = item
        objects = tuple(merged.values())
        if kind in (api_pb2.KIND_SLA, api_pb2.KIND_AUDIT):
            objects = tuple(sorted(objects, key=lambda item: item.name))
        partial = tuple(dict.fromkeys([*errors, *(s for answer in answers for s in answer.partial)]))
        return Listing(kind, objects, partial, min(answer.as_of_ms for answer in answers))

    async def get(self, kind: Kind.ValueType, name: str) -> Object:
        """One object, with recent telemetry. Raises ``NotFound`` (with names that come near), or ``Incomplete`` when
        a region that may have it does not answer."""
        return (await self._locate(kind, name))[1]

    async def explain(self, kind: Kind.ValueType, name: str) -> Explained:
        """The chain of evidence, oldest first, from every region that knows a part of it."""
        request = api_pb2.GetRequest(kind=kind, name=name)
        answers, errors = await fanout.everywhere(
            self._all, lambda replicas: replicas.call("Explain", request, api_pb2.Explanation), tolerate=NotFound
        )
        links: dict[tuple[str, str, int, str], api_pb2.Link] = {}
        for link in (link for answer in answers for link in answer.chain):
            several = link.sentence if link.step in SEVERAL else ""
            links.setdefault((link.step, link.object, link.at_ms, several), link)
        return Explained(tuple(sorted(links.values(), key=lambda link: link.at_ms)), tuple(errors))

    def watch(self, kinds: Sequence[Kind.ValueType], selector: str = "") -> AsyncGenerator[Change, None]:
        """All changes of these kinds in all regions, for ever: first everything that exists, then ``Synced``. It
        reconnects by itself and then tells what has vanished meanwhile. Close it by ``aclose()``."""
        request = api_pb2.WatchRequest(kinds=list(kinds), selector=selector)
        return follow.watch(self._all, request, self._clock)

    def samples(self, period_ms: int = 0) -> AsyncGenerator[api_pb2.SampleBlock, None]:
        """Telemetry of all replicas of all regions, each row once per ``period_ms`` (0: 10 s), for ever. Close it by
        ``aclose()``."""
        return samples.samples(self._all, api_pb2.SamplesRequest(period_ms=period_ms), self._clock)

    async def sla_status(self, scope: str = "") -> SlaListing:
        """Accounts with their open interval; ``scope`` "" = all, else ``device/<id>``, ``region/<r>``, ``job/<id>``."""
        request = api_pb2.SlaRequest(scope=scope)
        answers, errors = await fanout.everywhere(
            self._all, lambda replicas: replicas.call("SlaStatus", request, api_pb2.SlaResponse), tolerate=NotFound
        )
        views: dict[str, api_pb2.SlaView] = {}
        for view in (view for answer in answers for view in answer.slas):
            old = views.get(view.account.scope)
            if old is None or view.account.sequence > old.account.sequence:
                views[view.account.scope] = view
        return SlaListing(tuple(views[scope] for scope in sorted(views)), tuple(errors))

    async def ledger(self, from_ms: int, until_ms: int, scope: str = "") -> ledger.LedgerListing:
        """Entries that overlap [from_ms, until_ms) of a scope, or (ending with "/") of all that begin so; "": all."""
        return await ledger.everything(self._all, from_ms, until_ms, scope)

    async def info(self) -> tuple[ReplicaStatus, ...]:
        """Each replica of each region, asked one by one; never raises for one that is away."""
        asked = [
            self._info_of(replicas, index, address)
            for replicas in self._all
            for index, address in enumerate(replicas.addresses)
        ]
        return tuple(await asyncio.gather(*asked))

    async def job_logs(self, job: str, tail_bytes: int = 16_384) -> tuple[str, bytes]:
        """(node, the end of the output of the job's newest epoch)."""
        _, item = await self._locate(api_pb2.KIND_JOB, job)
        request = api_pb2.JobLogsRequest(job=job, tail_bytes=tail_bytes)
        owner = self._regions.get(RegionId(item.job.ownership.region))
        call = owner.call("JobLogs", request, api_pb2.JobLogsResponse, act=True) if owner else None
        answer = await (call or self._anywhere("JobLogs", request, api_pb2.JobLogsResponse))
        return answer.node, answer.text

    async def policy(self, version: int = 0) -> api_pb2.PolicyResponse:
        """A version of the policy; 0: the one in force at the first region that answers."""
        return await self._anywhere("GetPolicy", api_pb2.GetPolicyRequest(version=version), api_pb2.PolicyResponse)

    async def policy_history(self) -> api_pb2.PolicyHistoryResponse:
        return await self._anywhere("PolicyHistory", api_pb2.PolicyHistoryRequest(), api_pb2.PolicyHistoryResponse)

    async def query(self, sql: str, limit: int = 10_000) -> Answer:
        """SQL over the live state of all regions: rows from every replica, run here in a process of its own."""
        from gridkeeper.client import query as queries
        from gridkeeper.query.limits import Limits

        wanted = queries.checked_query(sql)
        request = api_pb2.QueryRequest(sql=sql)
        asked = [(replicas, index) for replicas in self._all for index in range(len(replicas.addresses))]
        outcomes = await asyncio.gather(
            *(replicas.call_one(index, "Query", request, api_pb2.QueryResponse, act=True) for replicas, index in asked),
            return_exceptions=True,
        )
        answers: list[api_pb2.QueryResponse] = []
        away: list[str] = []
        for (replicas, index), outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, grpc.aio.AioRpcError):
                error = from_rpc(outcome)
                if not isinstance(error, Unreachable):
                    raise error from outcome
                away.append(f"replica {replicas.addresses[index]} of region {replicas.region} does not answer: {error}")
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers.append(outcome)
        if not answers:
            raise Unreachable("; ".join(away))
        return await queries.run(wanted, answers, away, Limits(rows=limit))

    # -- acting -------------------------------------------------------------------------------------------------

    async def cordon(self, target: str, reason: str, ttl_ms: int = 0, maintenance: bool = False) -> Act:
        """Nothing new is placed on the node or device ``target``. ``ttl_ms`` 0: until uncordoned. ``maintenance``: it
        is announced, and the ledger excludes its time."""
        replicas = await self._home_of(target)
        request = api_pb2.CordonRequest(target=target, reason=reason, ttl_ms=ttl_ms, maintenance=maintenance)
        return await self._act(replicas, "Cordon", request)

    async def uncordon(self, target: str, reason: str = "", maintenance: bool = False) -> Act:
        """Take back the caller's own cordon of ``target``, or end its ``maintenance``, whoever announced that."""
        replicas = await self._home_of(target)
        request = api_pb2.CordonRequest(target=target, reason=reason, maintenance=maintenance)
        return await self._act(replicas, "Uncordon", request)

    async def drain(
        self,
        target: str,
        reason: str,
        *,
        mode: str = "",
        wait_ms: int = 0,
        priority: int = 0,
        delay_ms: int = 0,
        dry_run: bool = False,
    ) -> Act:
        """Ask for ``target`` (a device, or each device of a node) to be taken out, within the budgets. ``mode``:
        checkpoint, wait or deadline; "": as the policy says. ``dry_run``: change nothing, tell the ``plan``."""
        replicas = await self._home_of(target)
        request = api_pb2.DrainRequest(
            target=target, reason=reason, wait_ms=wait_ms, priority=priority, delay_ms=delay_ms, dry_run=dry_run
        )
        if mode:
            request.mode = records_pb2.DrainMode.Value(f"DRAIN_MODE_{mode.upper()}")
        return await self._act(replicas, "Drain", request)

    async def cancel_drain(self, drain: str, reason: str) -> Act:
        replicas, _ = await self._locate(api_pb2.KIND_DRAIN, drain)
        return await self._act(replicas, "CancelDrain", api_pb2.ObjectRequest(name=drain, reason=reason))

    async def plan_maintenance(self, target: str, from_ms: int, until_ms: int, lead_ms: int, reason: str) -> Act:
        """Announce work on ``target`` over [from, until), ms of wall time; its drain begins ``lead_ms`` before."""
        request = api_pb2.MaintenanceRequest(
            target=target, from_ms=from_ms, until_ms=until_ms, lead_ms=lead_ms, reason=reason
        )
        return await self._act(await self._home_of(target), "PlanMaintenance", request)

    async def extend_maintenance(self, maintenance: str, until_ms: int) -> Act:
        """Another end of a window that is not over."""
        replicas, _ = await self._locate(api_pb2.KIND_MAINTENANCE, maintenance)
        request = api_pb2.MaintenanceRequest(id=maintenance, until_ms=until_ms)
        return await self._act(replicas, "PlanMaintenance", request)

    async def cancel_maintenance(self, maintenance: str, reason: str = "") -> Act:
        replicas, _ = await self._locate(api_pb2.KIND_MAINTENANCE, maintenance)
        return await self._act(replicas, "CancelMaintenance", api_pb2.ObjectRequest(name=maintenance, reason=reason))

    async def decide_repair(self, repair: str, approve: bool, reason: str = "") -> Act:
        """Approve or reject a repair that waits for a human."""
        replicas, _ = await self._locate(api_pb2.KIND_REPAIR, repair)
        request = api_pb2.RepairDecision(id=repair, approve=approve, reason=reason)
        return await self._act(replicas, "DecideRepair", request)

    async def reset_breaker(self, breaker: str, reason: str) -> Act:
        """Close ``<region>/<scope>``, so that the machine drains there again."""
        replicas, _ = await self._locate(api_pb2.KIND_BREAKER, breaker)
        return await self._act(replicas, "ResetBreaker", api_pb2.ObjectRequest(name=breaker, reason=reason))

    async def ack_incident(self, incident: str, reason: str = "") -> Act:
        replicas, _ = await self._locate(api_pb2.KIND_INCIDENT, incident)
        return await self._act(replicas, "AckIncident", api_pb2.ObjectRequest(name=incident, reason=reason))

    async def submit_job(self, spec: records_pb2.JobSpec) -> Act:
        return await self._act(None, "SubmitJob", api_pb2.SubmitJobRequest(spec=spec))

    async def stop_job(self, job: str, reason: str = "") -> Act:
        return await self._act(None, "StopJob", api_pb2.ObjectRequest(name=job, reason=reason))

    async def migrate_job(self, job: str, to_region: str = "", reason: str = "") -> Act:
        request = api_pb2.MigrateJobRequest(job=job, to_region=to_region, reason=reason)
        return await self._act(None, "MigrateJob", request)

    async def apply_document(
        self, kind: str, name: str, text: str, source: str, reason: str, expect_version: int = -1, dry_run: bool = False
    ) -> api_pb2.ApplyDocumentResponse:
        """Make ``text`` the newest version of a contract or of objectives. ``kind``: contract or objectives."""
        request = api_pb2.ApplyDocumentRequest(
            kind=kind,
            name=name,
            text=text,
            source=source,
            reason=reason,
            expect_version=expect_version,
            dry_run=dry_run,
        )
        return await self._anywhere("ApplyDocument", request, api_pb2.ApplyDocumentResponse)

    async def documents(self, kind: str, name: str = "") -> api_pb2.DocumentsResponse:
        """One, or ("") all of a kind without their texts."""
        request = api_pb2.DocumentsRequest(kind=kind, name=name)
        return await self._anywhere("Documents", request, api_pb2.DocumentsResponse)

    async def decide_loss(self, region: str, approve: bool, reason: str = "") -> Act:
        """Approve or veto that a suspected region is taken for lost."""
        request = api_pb2.LossDecision(region=region, approve=approve, reason=reason)
        return await self._act(None, "DecideLoss", request)

    async def settlement(self, zone: str = "", month: str = "") -> settlements.Settlement:
        """Exclusions, closed months and signed heads; with zone and month also that month's adjustments."""
        return await settlements.everything(self._all, zone, month)

    async def record_exclusion(
        self, scope: str, cause: records_pb2.Cause.ValueType, from_ms: int, until_ms: int, reason: str,
        evidence: Sequence[str] = (),
    ) -> Act:  # fmt: skip
        """A time, ms since the Unix epoch, that contracts may leave out."""
        request = api_pb2.ExclusionRequest(
            scope=scope, cause=cause, from_ms=from_ms, until_ms=until_ms, reason=reason, evidence=evidence
        )
        kind, _, name = scope.partition("/")
        home = await self._home_of(name) if kind in ("device", "node") else None
        return await self._act(home, "RecordExclusion", request)

    async def retract_exclusion(self, number: str, reason: str) -> Act:
        return await self._act(None, "RetractExclusion", api_pb2.ObjectRequest(name=number, reason=reason))

    async def apply_policy(
        self, text: str, source: str, reason: str, expect_version: int = -1, dry_run: bool = False
    ) -> api_pb2.ApplyPolicyResponse:
        """Make ``text`` the newest policy, if the newest version is ``expect_version`` (-1: whichever it is)."""
        request = api_pb2.ApplyPolicyRequest(
            text=text, source=source, reason=reason, expect_version=expect_version, dry_run=dry_run
        )
        return await self._anywhere("ApplyPolicy", request, api_pb2.ApplyPolicyResponse)

    # -- how ----------------------------------------------------------------------------------------------------

    async def _act(self, replicas: Replicas | None, name: str, request: Any) -> Act:
        if replicas is not None:
            answer = await replicas.call(name, request, api_pb2.ActResponse, act=True)
            region = replicas.region
        else:
            answer = await self._anywhere(name, request, api_pb2.ActResponse)
            region = RegionId("")
        return Act(answer.sentence, tuple(answer.objects), answer.revision, region, tuple(answer.plan))

    async def _anywhere(self, name: str, request: Any, response: type[R]) -> R:
        """At the first region that answers."""
        failures: tuple[str, ...] = ()
        for replicas in self._all:
            try:
                return await replicas.call(name, request, response, act=True)
            except Unreachable as error:
                failures += (str(error),)
        raise Unreachable("; ".join(failures))

    async def _home_of(self, target: str) -> Replicas:
        kind = api_pb2.KIND_DEVICE if "/" in target else api_pb2.KIND_NODE
        return (await self._locate(kind, target))[0]

    async def _locate(self, kind: Kind.ValueType, name: str) -> tuple[Replicas, Object]:
        """Ask every region at once; the first that has it wins, and the others are not waited for."""
        request = api_pb2.GetRequest(kind=kind, name=name)

        async def ask(replicas: Replicas) -> tuple[Replicas, Object]:
            return replicas, await replicas.call("Get", request, api_pb2.Object)

        absent: tuple[NotFound, ...] = ()
        unreachable: tuple[Unreachable, ...] = ()
        asked = fanout.as_completed([ask(replicas) for replicas in self._all])
        async with contextlib.aclosing(asked) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, NotFound):
                    absent += (outcome,)
                elif isinstance(outcome, Unreachable):
                    unreachable += (outcome,)
                elif isinstance(outcome, ClientError):
                    raise outcome
                else:
                    return outcome
        away = "; ".join(str(error) for error in unreachable)
        if not absent:
            raise Unreachable(away)
        if unreachable and BY_NUMBER[kind].region_owned:
            raise Incomplete(f"{reference(kind, name)} is not in the regions that answer, and {away}")
        raise max(absent, key=lambda error: len(str(error)))

    async def _list_region(self, replicas: Replicas, kind: Kind.ValueType, selector: str) -> Listing:
        for attempt in range(LIST_ATTEMPTS):
            objects: tuple[Object, ...] = ()
            request = api_pb2.ListRequest(kind=kind, selector=selector, page_size=PAGE_SIZE)
            while True:
                try:
                    page = await replicas.call("List", request, api_pb2.ListResponse)
                except InvalidRequest:
                    if request.page_token and attempt + 1 < LIST_ATTEMPTS:
                        break
                    raise
                objects += tuple(page.objects)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    return Listing(kind, objects, tuple(page.partial), page.as_of_wall_ms)
        raise AssertionError("the last attempt returns or raises")

    async def _info_of(self, replicas: Replicas, index: int, address: str) -> ReplicaStatus:
        try:
            answer = await replicas.call_one(index, "Info", api_pb2.InfoRequest(), api_pb2.InfoResponse)
        except grpc.aio.AioRpcError as error:
            return ReplicaStatus(replicas.region, address, None, str(from_rpc(error)))
        return ReplicaStatus(replicas.region, address, answer, "")
