"""What would have been drained: decided and recorded, and nothing else. Pure.

A finding of a rule in shadow mode, or any finding while the whole policy is in shadow mode, leaves a ``DrainRecord`` in
state ``shadow`` with reason, cost and what the budgets would have said: no hold, no change of health, no incident. Once
per evidence: a device gets another one when findings call for it that its newest one does not cite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controlplane.domain.budget import Book
from controlplane.domain.cost import Capacity, cost_of
from controlplane.domain.evacuation import jobs_on
from controlplane.domain.evidence import Finding, asks_out, is_fresh, rank, seen_ms
from controlplane.domain.health import MACHINE, OUT
from controlplane.domain.words import duration, listed, made_id
from gridkeeper.decision import Decision, Draft, Guard, Now
from gridkeeper.ids import DeviceId, DrainId, IncidentId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Mode
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainState, HoldKind
from gridkeeper.snapshot import GlobalState, RegionState, Settings

BATCH = 32
"""Shadow drains per tick: nothing hurries with them."""

CITED = 48
"""Findings that one shadow drain cites; in order of their ids, so that looking again finds the same ones."""


def decide_shadows(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    findings: Mapping[str, list[Finding]],
) -> Iterator[Decision]:
    """One decision per device that shadow evidence would take out."""
    everything = settings.policy.mode is Mode.SHADOW
    due = sorted(
        DeviceId(subject)
        for subject, every in findings.items()
        if subject in state.health and any(_counts(f, everything, settings, now) for f in every)
    )
    if not due:
        return
    told, written = _told(state), 0
    book, capacity = Book.of(state, settings, now), Capacity(state)
    for device in due:
        if state.health[device].record.state in OUT:
            continue  # there is nothing left to take out
        calling = [f for f in findings[device] if _counts(f, everything, settings, now)]
        calling = sorted(calling, key=lambda f: f.record.id)[:CITED]
        if told.get(device, frozenset()).issuperset(f.record.id for f in calling):
            continue
        yield _shadow(state, world, settings, now, device, calling, book, capacity)
        written += 1
        if written == BATCH:
            return


def _counts(finding: Finding, everything: bool, settings: Settings, now: Now) -> bool:
    record = finding.record
    if not record.active or not asks_out(record) or not (record.shadow or everything):
        return False
    return is_fresh(record, settings.policy.drain.evidence_ms, now.ledger_ms)


def _told(state: RegionState) -> dict[DeviceId, frozenset[str]]:
    """What the shadow drains of each device cite already."""
    cited: dict[DeviceId, frozenset[str]] = {}
    for drain in state.drains.values():
        if drain.record.state is DrainState.SHADOW:
            cited[drain.record.device] = cited.get(drain.record.device, frozenset()) | set(drain.record.evidence)
    return cited


def _shadow(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    device: DeviceId,
    calling: list[Finding],
    book: Book,
    capacity: Capacity,
) -> Decision:
    held, keys, policy = state.health[device].record, RegionKeys(state.region), settings.policy
    ranked = sorted((f.record for f in calling), key=rank, reverse=True)
    main, refusal, name = ranked[0], book.refusal(device), DrainId(made_id(device, "shadow", state.revision))
    if refusal is None:
        book.hold(device, HoldKind.DRAIN, name, Draft())  # on this book alone, to tell what would be used after it
    age = max(0, now.ledger_ms - seen_ms(main))
    verdict = f"would be refused: {refusal.sentence}" if refusal else f"would be admitted, budgets {book.usage(device)}"
    watches = "it only watches" if main.shadow else "the policy is in shadow mode"
    source = f"rule {main.rule} v{main.rule_version}, and {watches}"
    reason = f"{main.sentence}, {duration(age)} old, evidence {listed(main.evidence, 2)}; {source}; it {verdict}"
    jobs = tuple(sorted(jobs_on(state, world, device).jobs))
    mode = DrainMode(policy.drain.mode)
    drain = DrainRecord(
        id=name,
        region=state.region,
        node=held.node,
        device=device,
        uuid=held.uuid,
        incident=held.incident if not main.shadow else IncidentId(""),
        state=DrainState.SHADOW,
        reason=reason,
        evidence=(*(f.record.id for f in calling), *main.evidence),
        evidence_age_ms=age,
        decided_revision=state.revision,
        rule=main.rule,
        rule_version=main.rule_version,
        budgets=refusal.names if refusal else book.covering(device),
        jobs=jobs,
        requested_by=MACHINE,
        planned_ms=now.ledger_ms,
        deadline_ms=0,
        stages=(Stamp(DrainState.SHADOW.value, now.ledger_ms),),
        trace=main.trace,
        mode=mode,
        policy_version=policy.version,
        cost=cost_of(world, device, jobs, capacity, book.usage(device), now, settings.policy.placement),
    )
    draft = Draft()
    draft.put(keys.drain(drain.id), drain, None)
    guards = tuple(Guard(keys.finding(f.record.id), f.revision) for f in calling[:4])
    sentence = f"shadow: {device} would be drained and is not: {reason}"
    return Decision("drain.shadow", sentence, draft.writes(), guards, f"drain/{drain.id}", drain.evidence, drain.trace)
