"""The Grid service: every RPC on top of the ports of ``sources``. Who may call is decided before, in ``server``."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Iterator

from controlplane.rpc import care_intents, documents, drain_intents, explain, intents, moves, policies
from controlplane.rpc.acts import Actor, checked_ttl
from controlplane.rpc.choices import choices
from controlplane.rpc.identities import Identities
from controlplane.rpc.jobspec import checked_spec, name
from controlplane.rpc.ledger import LedgerPages
from controlplane.rpc.listing import Pages, checked_kind, scene_of
from controlplane.rpc.live import with_live
from controlplane.rpc.objects import ObjectCache
from controlplane.rpc.query import QueryDesk
from controlplane.rpc.refusal import invalid, not_found
from controlplane.rpc.sampling import Sampling
from controlplane.rpc.settlement import SettlementDesk
from controlplane.rpc.sources import Acts, Views
from controlplane.rpc.thread import Thread, joined, thread_of
from controlplane.rpc.trail import AuditTrail
from controlplane.rpc.watching import Watches
from gridkeeper import codec
from gridkeeper.identity.spiffe import UserRole
from gridkeeper.ids import JobId, RegionId
from gridkeeper.kinds import BY_NUMBER, UnknownKind, object_named
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.records.books import AuditRecord, EntryRecord
from gridkeeper.records.documents import DocumentRecord
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import ActResponse, Object, SlaView, WatchEvent

MAX_NAME = 512
MAX_TAIL = 65_536
DEFAULT_TAIL = 16_384
ENTRIES = 200
"""Ledger entries that an explanation looks back on, per scope."""


class GridService:
    """One replica's answers. Methods take the request and who asks; they raise ``Refusal`` and store errors."""

    def __init__(self, views: Views, acts: Acts, clock: Clock, rng: Rng) -> None:
        self._views = views
        self._acts = acts
        self._actor = Actor(views, acts, rng)
        self._cache = ObjectCache()
        self._pages = Pages(views, self._cache)
        self._trail = AuditTrail(views, acts)
        self._queries = QueryDesk(views)
        self._ledger = LedgerPages(views, acts)
        self.settlement = SettlementDesk(views, acts, self._actor)
        self._watches = Watches(views, self._cache, self._trail, clock)
        self._sampling = Sampling(views, clock)
        self.identities = Identities(views, self._actor, rng)

    async def page(self, request: api_pb2.ListRequest) -> api_pb2.ListResponse:
        if request.kind == api_pb2.KIND_AUDIT:
            return await self._trail.page(request)
        return self._pages.list(request)

    async def get(self, request: api_pb2.GetRequest) -> Object:
        kind, wanted = self._named(request)
        if kind == api_pb2.KIND_AUDIT:
            entry = await self._trail.get(wanted)
            if entry is None:
                raise not_found("audit", wanted, (), "in the trail")
            return entry
        table = self._cache.table(kind, scene_of(self._views)).objects
        item = table.get(wanted)
        if item is None:
            raise not_found(BY_NUMBER[kind].singular, wanted, table.keys(), self._where(kind))
        return with_live(item, self._views, recent=True)

    def watch(self, request: api_pb2.WatchRequest) -> AsyncGenerator[WatchEvent, None]:
        return self._watches.watch(request)

    def samples(self, request: api_pb2.SamplesRequest) -> AsyncGenerator[api_pb2.SampleBlock, None]:
        return self._sampling.stream(request)

    async def explain(self, request: api_pb2.GetRequest) -> api_pb2.Explanation:
        kind, wanted = self._named(request)
        if kind not in EXPLAINABLE:
            words = ", ".join(BY_NUMBER[k].singular for k in EXPLAINABLE)
            raise invalid(f"kind: a {BY_NUMBER[kind].singular} has no chain of evidence; use one of {words}")
        region, world = self._views.region(), self._views.world()
        if kind == api_pb2.KIND_AUDIT:
            return await self._explain_entry(wanted)
        thread = thread_of(kind, wanted, region, world)
        if thread is None:
            names = self._cache.table(kind, scene_of(self._views)).objects
            raise not_found(BY_NUMBER[kind].singular, wanted, names, self._where(kind))
        entries = await self._entries(thread)
        links = list(explain.chain(thread, region, world, entries))
        if kind in (api_pb2.KIND_JOB, api_pb2.KIND_MIGRATION):
            settings, now = self._acts.settings(), self._views.now()
            links += choices(sorted(thread.migrations), region, world, settings, now)
            links.sort(key=lambda link: link.at_ms)
        return api_pb2.Explanation(chain=links)

    async def _explain_entry(self, name: str) -> api_pb2.Explanation:
        """An entry of the audit trail, and the stories of its object and of the evidence that it cites."""
        item = await self._trail.get(name)
        if item is None:
            raise not_found("audit", name, (), "in the trail")
        entry = codec.from_message(AuditRecord, item.audit)
        region, world = self._views.region(), self._views.world()
        found = [thread_of(kind, wanted, region, world) for kind, wanted in cited(entry)]
        thread = joined(thread for thread in found if thread is not None)
        links = explain.chain(thread, region, world, await self._entries(thread))
        return api_pb2.Explanation(chain=sorted((*links, explain.audit_link(entry)), key=lambda link: link.at_ms))

    async def _entries(self, thread: Thread) -> list[EntryRecord]:
        region, world = self._views.region(), self._views.world()
        found: list[EntryRecord] = []
        for scope in thread.scopes():
            for store, accounts in (("region", region.accounts), ("global", world.accounts)):
                held = accounts.get(scope)
                if held is None:
                    continue
                after = f"{scope}/{max(0, held.record.sequence - ENTRIES):020d}"
                page = await self._acts.history(
                    "entries", "region" if store == "region" else "global", f"{scope}/", after=after, limit=ENTRIES
                )
                found += [item.record for item in page.items if isinstance(item.record, EntryRecord)]
        return found

    def _named(self, request: api_pb2.GetRequest) -> tuple[int, str]:
        kind = checked_kind(request.kind)
        if not request.name or len(request.name) > MAX_NAME:
            raise invalid(f"name: {len(request.name)} characters; give the name of one object, at most {MAX_NAME}")
        return kind, request.name

    def _where(self, kind: int) -> str:
        return f"in region {self._views.info().region}" if BY_NUMBER[kind].region_owned else "in the grid"

    async def cordon(self, request: api_pb2.CordonRequest, who: str) -> ActResponse:
        wish, ttl_ms = self._actor.wish(who, request.reason), checked_ttl(request.ttl_ms)
        views, settings = self._views, self._acts.settings()
        return await self._actor.carry_out(
            "region",
            who,
            lambda: intents.cordon(
                request.target, ttl_ms, request.maintenance, wish, views.region(), settings, views.now()
            ),
        )

    async def uncordon(self, request: api_pb2.CordonRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        views, settings = self._views, self._acts.settings()
        return await self._actor.carry_out(
            "region",
            who,
            lambda: intents.uncordon(request.target, request.maintenance, wish, views.region(), settings, views.now()),
        )

    async def drain(self, request: api_pb2.DrainRequest, who: str) -> ActResponse:
        """With ``dry_run`` nothing is written, and the answer is what would be."""
        wish, views, settings = self._actor.wish(who, request.reason), self._views, self._acts.settings()
        manner = drain_intents.checked_manner(request, settings.policy.drain)
        if request.dry_run:
            return drain_intents.rehearse(
                request.target, manner, wish, views.region(), views.world(), settings, views.now()
            )
        return await self._actor.carry_out(
            "region", who, lambda: drain_intents.drain(request.target, manner, wish, views.region(), views.now())
        )

    async def cancel_drain(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        views, settings = self._views, self._acts.settings()
        return await self._actor.carry_out(
            "region", who, lambda: intents.cancel_drain(request.name, wish, views.region(), settings, views.now())
        )

    async def plan_maintenance(self, request: api_pb2.MaintenanceRequest, who: str) -> ActResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        return await self._actor.carry_out(
            "region", who, lambda: care_intents.plan_maintenance(request, wish, views.region(), views.now())
        )

    async def cancel_maintenance(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish, views, settings = self._actor.wish(who, request.reason), self._views, self._acts.settings()
        return await self._actor.carry_out(
            "region",
            who,
            lambda: care_intents.cancel_maintenance(request.name, wish, views.region(), settings, views.now()),
        )

    async def decide_repair(self, request: api_pb2.RepairDecision, who: str) -> ActResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        return await self._actor.carry_out(
            "region",
            who,
            lambda: care_intents.decide_repair(request.id, request.approve, wish, views.region(), views.now()),
        )

    async def reset_breaker(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        views = self._views
        return await self._actor.carry_out(
            "region", who, lambda: intents.reset_breaker(request.name, wish, views.region(), views.now())
        )

    async def ack_incident(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, request.reason)
        return await self._actor.carry_out(
            "region", who, lambda: intents.ack_incident(request.name, wish, self._views.region())
        )

    async def submit_job(self, request: api_pb2.SubmitJobRequest, who: str) -> ActResponse:
        wish = self._actor.wish(who, "")
        spec = checked_spec(request.spec, self._views.world().regions.keys())
        return await self._actor.carry_out(
            "global", who, lambda: intents.submit_job(spec, wish, self._views.world(), self._views.now())
        )

    async def stop_job(self, request: api_pb2.ObjectRequest, who: str) -> ActResponse:
        wish, job = self._actor.wish(who, request.reason), name("name", request.name)
        return await self._actor.carry_out("global", who, lambda: intents.stop_job(job, wish, self._views.world()))

    async def migrate_job(self, request: api_pb2.MigrateJobRequest, who: str) -> ActResponse:
        wish, job = self._actor.wish(who, request.reason), name("job", request.job)
        return await self._actor.carry_out(
            "global",
            who,
            lambda: moves.migrate_job(job, request.to_region, wish, self._views.world(), self._views.now()),
        )

    async def decide_loss(self, request: api_pb2.LossDecision, who: str) -> ActResponse:
        wish, region = self._actor.wish(who, request.reason), RegionId(name("region", request.region))
        return await self._actor.carry_out(
            "global",
            who,
            lambda: moves.decide_loss(region, request.approve, wish, self._views.world(), self._views.now()),
        )

    async def job_logs(self, request: api_pb2.JobLogsRequest) -> api_pb2.JobLogsResponse:
        job = JobId(name("job", request.job))
        if not 0 <= request.tail_bytes <= MAX_TAIL:
            raise invalid(f"tail_bytes: {request.tail_bytes} is not between 0 (= {DEFAULT_TAIL}) and {MAX_TAIL}")
        jobs = self._views.world().jobs
        if job not in jobs:
            raise not_found("job", job, jobs.keys(), "in the grid")
        node, text = await self._acts.job_log(job, request.tail_bytes or DEFAULT_TAIL)
        return api_pb2.JobLogsResponse(node=node, text=text)

    async def ledger_entries(self, request: api_pb2.LedgerRequest) -> api_pb2.LedgerResponse:
        return await self._ledger.page(request)

    async def sla_status(self, request: api_pb2.SlaRequest) -> api_pb2.SlaResponse:
        table = self._cache.table(api_pb2.KIND_SLA, scene_of(self._views)).objects
        if not request.scope:
            return api_pb2.SlaResponse(slas=[self._sla(item) for item in table.values()])
        item = table.get(request.scope)
        if item is None:
            raise not_found("sla", request.scope, table.keys(), self._where(api_pb2.KIND_SLA))
        return api_pb2.SlaResponse(slas=[self._sla(item)])

    def _sla(self, item: Object) -> SlaView:
        return with_live(item, self._views).sla

    async def apply_policy(self, request: api_pb2.ApplyPolicyRequest, who: str) -> api_pb2.ApplyPolicyResponse:
        wish, views, acts = self._actor.wish(who, request.reason), self._views, self._acts

        def wanted() -> policies.Applied:
            return policies.apply(
                request.text, request.source, request.expect_version, wish, views.region(), views.world(),
                acts.settings().policy, views.now(),
            )  # fmt: skip

        applied = wanted()
        if request.dry_run:
            sentence = f"policy version {applied.version} would be applied" if applied.decision else applied.sentence
            return api_pb2.ApplyPolicyResponse(sentence=sentence, version=applied.version, changes=applied.changes)

        def plan() -> intents.Plan:
            nonlocal applied
            applied = wanted()
            return intents.Plan(applied.sentence, (f"policy/{applied.version}",), applied.decision)

        await self._actor.carry_out("global", who, plan)
        return api_pb2.ApplyPolicyResponse(sentence=applied.sentence, version=applied.version, changes=applied.changes)

    async def get_policy(self, request: api_pb2.GetPolicyRequest) -> api_pb2.PolicyResponse:
        info, views = self._views.info(), self._views
        record = policies.shown(request.version, views.region(), views.world(), self._acts.settings().policy)
        return api_pb2.PolicyResponse(record=_policy(record), in_force=info.policy_version, problem=info.policy_problem)

    async def policy_history(self) -> api_pb2.PolicyHistoryResponse:
        records = [_policy(dataclasses.replace(record, text="")) for record in policies.history(self._views.world())]
        return api_pb2.PolicyHistoryResponse(records=records, in_force=self._views.info().policy_version)

    async def apply_document(self, request: api_pb2.ApplyDocumentRequest, who: str) -> api_pb2.ApplyDocumentResponse:
        wish, views = self._actor.wish(who, request.reason), self._views
        kind = documents.checked_kind(request.kind)

        def wanted() -> documents.Applied:
            return documents.apply(
                kind, request.name, request.text, request.source, request.expect_version, wish, views.world(),
                views.now(),
            )  # fmt: skip

        applied = wanted()
        sentence = applied.sentence
        if request.dry_run and applied.decision is not None:
            sentence = f"{kind.value} {applied.record.name}, version {applied.record.version}, would be applied"
        elif not request.dry_run:

            def plan() -> intents.Plan:
                nonlocal applied
                applied = wanted()
                return intents.Plan(applied.sentence, (f"{kind.value}/{applied.record.name}",), applied.decision)

            await self._actor.carry_out("global", who, plan)
            sentence = applied.sentence
        record = applied.record
        return api_pb2.ApplyDocumentResponse(sentence=sentence, name=record.name, version=record.version)

    async def documents(self, request: api_pb2.DocumentsRequest) -> api_pb2.DocumentsResponse:
        found = documents.shown(documents.checked_kind(request.kind), request.name, self._views.world())
        if not request.name:
            found = tuple(dataclasses.replace(record, text="") for record in found)
        return api_pb2.DocumentsResponse(records=[_document(record) for record in found])

    async def query(self, request: api_pb2.QueryRequest) -> api_pb2.QueryResponse:
        return await self._queries.rows(request)

    async def info(self, who: str, role: UserRole) -> api_pb2.InfoResponse:
        info = self._views.info()
        return api_pb2.InfoResponse(
            replica=info.replica,
            region=info.region,
            version=info.version,
            region_leader=info.region_leader == info.replica,
            global_leader=info.global_leader == info.replica,
            identity=who,
            role=role.value,
            wall_ms=info.wall_ms,
            global_store_reachable=info.global_store_reachable,
            region_store_reachable=info.region_store_reachable,
            policy_version=info.policy_version,
            policy_problem=info.policy_problem,
        )


def _document(record: DocumentRecord) -> records_pb2.DocumentRecord:
    message = codec.to_message(record)
    assert isinstance(message, records_pb2.DocumentRecord)
    return message


def _policy(record: PolicyRecord) -> records_pb2.PolicyRecord:
    message = codec.to_message(record)
    assert isinstance(message, records_pb2.PolicyRecord)
    return message


EXPLAINABLE = (
    api_pb2.KIND_DEVICE,
    api_pb2.KIND_NODE,
    api_pb2.KIND_INCIDENT,
    api_pb2.KIND_DRAIN,
    api_pb2.KIND_MIGRATION,
    api_pb2.KIND_JOB,
    api_pb2.KIND_FINDING,
    api_pb2.KIND_EVENT,
    api_pb2.KIND_REGION,
    api_pb2.KIND_CHECKPOINT,
    api_pb2.KIND_SLA,
    api_pb2.KIND_AUDIT,
)


def cited(entry: AuditRecord) -> Iterator[tuple[int, str]]:
    """(kind, name) of what an entry is about and rests on. Evidence is ids of findings and of events."""
    try:
        info, name = object_named(entry.object)
        yield info.kind, name
    except UnknownKind:
        pass  # the store itself, or a kind that has no story
    for evidence in entry.evidence:
        yield api_pb2.KIND_FINDING, evidence
        yield api_pb2.KIND_EVENT, evidence
