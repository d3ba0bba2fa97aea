"""One object in full: its fields as people read them, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import yaml
from google.protobuf.message import Message

from gridkeeper.client.plain import plain as plain_message
from gridkeeper.client.plain import word
from gridkeeper.kinds import BY_NUMBER
from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import care, incidents, moves, sla, words
from tui.viewmodel.fleet import device_mark
from tui.viewmodel.jobs import checkpoint, epoch, job_mark, last_step, redo
from tui.viewmodel.state import DEVICE, DRAIN, EVENT, FINDING, INCIDENT, MIGRATION, Now, State, moment
from tui.viewmodel.table import Ref
from tui.viewmodel.text import (
    NONE,
    Span,
    Spans,
    Tone,
    age,
    cell,
    clean,
    clock_time,
    date_time,
    duration,
    joined,
    number,
    percent,
    size,
    span,
    sparkline,
)

Lines = list[Spans]
LABEL = 14


def title_of(ref: Ref) -> str:
    info = BY_NUMBER.get(ref.kind)
    return f"{info.singular if info else ref.kind} {clean(ref.name, 120)}"


def heading(text: str) -> Spans:
    return (Span(text, Tone.TITLE),)


def field(label: str, value: Spans | object, tone: Tone = Tone.PLAIN) -> Spans:
    """``label         value``."""
    spans = value if isinstance(value, tuple) else cell(value, tone)
    return (Span(f"{label:<{LABEL - 1}} ", Tone.KEY), *spans)


def when(ms: int, now_ms: int) -> Spans:
    if ms <= 0:
        return (Span(NONE, Tone.DIM),)
    return (Span(date_time(ms)), Span(f"  {age(ms, now_ms)} ago", Tone.DIM))


def lines(state: State, ref: Ref, now: Now, detail: Object | None = None) -> Lines:
    """The whole page of ``ref``. ``detail``: a fresh answer with telemetry, if one was fetched."""
    item = detail or state.get(ref.kind, ref.name)
    if item is None:
        gone = "is not there (any more)" if state.connection.synced else "is not known yet"
        return [(span(f"{title_of(ref)} {gone}", Tone.WARN),)]
    now_ms = state.now_ms(now)
    out: Lines = []
    if state.is_stale(item.region, now):
        region_age = state.connection.region_age_ms(item.region, now) or state.connection.age_ms(now)
        old = duration(region_age) if region_age is not None else "unknown"
        out += [(Span(f"STALE: last heard {old} ago", Tone.BAD),), ()]
    which = item.WhichOneof("view")
    if which == "device":
        out += _device(state, item, now_ms)
    elif which == "node":
        out += _node(state, item, now_ms)
    elif which == "incident":
        out += _incident(state, item, now)
    elif which == "drain":
        out += _drain(item.drain, now_ms)
    elif which == "migration":
        out += _migration(item.migration, now_ms)
    elif which == "job":
        out += _job(state, item, now_ms)
    elif which == "sla":
        out += _sla(item, now_ms)
    else:
        told = generic(getattr(item, which)) if which else []
        out += told or [(Span("the server told nothing about it", Tone.UNKNOWN),)]
    if item.labels:
        out += [(), heading("labels")]
        out += [field(clean(k, 40), item.labels[k], Tone.DIM) for k in sorted(item.labels) if item.labels[k]]
    return out


def generic(message: Message, indent: int = 0) -> Lines:
    """Every field that is set, for kinds without a page of their own."""
    out: Lines = []
    for descriptor, value in message.ListFields():
        label = " " * indent + descriptor.name
        values: Iterable[object] = value if descriptor.is_repeated else (value,)
        for one in values:
            if isinstance(one, Message):
                out.append((Span(label, Tone.KEY),))
                out += generic(one, indent + 2)
            elif descriptor.enum_type is not None:
                out.append(field(label, word(message, descriptor.name) if not descriptor.is_repeated else one))
            elif descriptor.name.endswith("_ms") and isinstance(one, int) and one > 1_000_000_000_000:
                out.append(field(label, date_time(one)))
            else:
                out.append(field(label + " ", one))
    return out


def as_yaml(item: Object) -> Lines:
    """The object as the CLI's ``-o yaml`` prints it."""
    text = yaml.safe_dump(plain_message(item), sort_keys=False, allow_unicode=True, width=10_000)
    return [(span(line),) for line in text.splitlines()]


def stages(stamps: Sequence[pb.Stamp], now_ms: int, live: bool) -> Lines:
    """Each stage with the time it took until the next."""
    out: Lines = []
    for index, stamp in enumerate(stamps):
        last = index + 1 == len(stamps)
        until = now_ms if last and live else stamps[index + 1].at_ms if not last else stamp.at_ms
        took = duration(max(0, until - stamp.at_ms)) if not last or live else ""
        name = stamp.name.replace("_", " ").lower()
        out.append(
            (
                Span(f"  {clock_time(stamp.at_ms)}  ", Tone.DIM),
                span(name.ljust(18), Tone.STRONG if last else Tone.PLAIN),
                Span(f"{took:>9}", Tone.DIM),
                Span(" …" if last and live else "", Tone.WARN),
            )
        )
    return out or [(Span("  none yet", Tone.DIM),)]


def metrics(view: api_pb2.DeviceView, columns: int = 32) -> Lines:
    """One line per reading, with its recent course where it is known."""
    if not view.metrics:
        return [(Span("  no telemetry here: it is with the replica that holds the node's stream", Tone.DIM),)]
    out: Lines = []
    for metric in view.metrics:
        if metric.known:
            unit = {"Cel": "°C", "1": ""}.get(metric.unit, metric.unit)
            shown: Spans = (Span(f"{number(metric.value):>9} ", Tone.STRONG), span(unit.ljust(5), Tone.DIM))
        else:
            shown = (Span(f"{'?':>9} ".ljust(15), Tone.UNKNOWN),)
        course = sparkline(list(metric.recent), columns)
        out.append((span(f"  {clean(metric.name, 22):<22}", Tone.KEY), *shown, Span(course, Tone.BUSY)))
    return out


def timeline(state: State, subject: str, now_ms: int, most: int = 20) -> Lines:
    """Events, findings, incidents, drains, repairs and maintenance of a device or node, the newest first."""
    entries: list[tuple[int, Spans]] = []
    for item in state.values(EVENT):
        event = item.event
        if subject in (event.device, event.node):
            mark = words.mark(words.EVENT_KIND, event.kind)
            code = f" {event.code}" if event.code else ""
            times = f" ×{event.count}" if event.count > 1 else ""
            text = (Span(f"{mark.glyph} {mark.word}{code}{times}", mark.tone), span(f"  {event.message}", Tone.DIM))
            entries.append((moment(item), text))
    for item in state.values(FINDING):
        finding = item.finding
        if subject in (finding.device, finding.node):
            mark = words.mark(words.SEVERITY, finding.severity)
            entries.append((moment(item), (Span(f"{mark.glyph} finding", mark.tone), span(f"  {finding.sentence}"))))
    for item in state.values(INCIDENT):
        if item.incident.subject == subject:
            mark = words.mark(words.INCIDENT, item.incident.state)
            title = span(f"  {item.incident.title}")
            entries.append((item.incident.opened_ms, (Span(f"{mark.glyph} incident {mark.word}", mark.tone), title)))
    for item in state.values(DRAIN):
        if subject in (item.drain.device, item.drain.node):
            mark = words.mark(words.DRAIN, item.drain.state)
            why = span(f"  {item.drain.reason}", Tone.DIM)
            entries.append((item.drain.planned_ms, (Span(f"{mark.glyph} drain {mark.word}", mark.tone), why)))
    entries += care.entries(state, subject)
    entries.sort(key=lambda e: -e[0])
    shown: Lines = [
        (Span(f"  {clock_time(ms)} ", Tone.DIM), Span(f"{age(ms, now_ms):>4}  ", Tone.DIM), *text)
        for ms, text in entries[:most]
    ]
    if len(entries) > most:
        shown.append((Span(f"  … and {len(entries) - most} older", Tone.DIM),))
    return shown or [(Span("  nothing was seen", Tone.DIM),)]


def _cordon(record: pb.CordonRecord, now_ms: int) -> Lines:
    out: Lines = []
    for reason in record.reasons:
        until = f", until {clock_time(reason.expires_ms)}" if reason.expires_ms else ""
        ago = age(reason.created_ms, now_ms)
        text = span(f"by {reason.owner}: {reason.reason}")
        out.append(field("cordoned", (text, span(f" ({ago} ago{until})", Tone.DIM))))
    return out


def _device(state: State, item: Object, now_ms: int) -> Lines:
    view, mark = item.device, device_mark(item)
    record, health = view.record, view.health
    out: Lines = [field("health", (*mark.spans(), Span(f"  for {age(health.since_ms, now_ms)}", Tone.DIM)))]
    if health.reason:
        out.append(field("why", health.reason))
    if health.rule:
        out.append(field("rule", f"{health.rule} v{health.rule_version}", Tone.DIM))
    if health.evidence:
        out.append(field("evidence", ", ".join(health.evidence), Tone.DIM))
    if health.incident:
        out.append(field("incident", health.incident))
    if health.drain:
        out.append(field("drain", health.drain))
    out.append(field("job", view.job, Tone.BUSY))
    out += _cordon(view.cordon, now_ms)
    memory = size(record.memory_mib * 1024 * 1024) if record.memory_mib else ""
    out.append(field("model", f"{record.vendor} {record.model} {memory}".strip()))
    out.append(field("card", f"{record.uuid} serial {record.serial or NONE} at {record.pci_bus_id or NONE}", Tone.DIM))
    out.append(field("place", f"{item.region} / {record.rack} / {record.node} / {record.slot}", Tone.DIM))
    old = f" {duration(view.metrics_age_ms)} ago" if view.metrics_age_ms >= 0 else ""
    out += [(), heading("timeline"), *timeline(state, item.name, now_ms, most=10)]
    return [*out, (), heading(f"readings{old}"), *metrics(view)]


def _node(state: State, item: Object, now_ms: int) -> Lines:
    view = item.node
    mark = words.mark(words.NODE, view.liveness.state) if view.HasField("liveness") else words.UNKNOWN
    out: Lines = [
        field("state", (*mark.spans(), Span(f"  for {age(view.liveness.since_ms, now_ms)}", Tone.DIM))),
        *([field("why", view.liveness.reason)] if view.liveness.reason else []),
        *([field("silent with", view.liveness.pattern)] if view.liveness.pattern else []),
        *(field("witness", word, Tone.DIM) for word in view.liveness.witnesses),
        field("place", f"{item.region} / {view.record.rack}"),
        field("devices", f"{view.devices_usable} usable of {len(view.record.devices)}"),
        field("stream", f"replica {view.replica}" if view.replica else "no replica holds it", Tone.DIM),
    ]
    out += _cordon(view.cordon, now_ms)
    out.append(field("agent", f"{view.record.agent_version} with {', '.join(view.record.backends)}", Tone.DIM))
    out.append(field("boot", view.record.boot_id, Tone.DIM))
    for device in sorted(state.devices_of.get(item.name, ()), key=lambda n: (len(n), n)):
        told = state.get(DEVICE, device)
        if told is not None:
            health = device_mark(told)
            job = span(f"  {told.device.job}", Tone.BUSY) if told.device.job else Span("")
            slot = device.rpartition("/")[2]
            out.append(
                field(f"  {clean(slot, 11)}", (*health.spans(), job, span(f"  {told.device.health.reason}", Tone.DIM)))
            )
    return [*out, (), heading("timeline"), *timeline(state, item.name, now_ms)]


def _incident(state: State, item: Object, now: Now) -> Lines:
    record, now_ms = item.incident, state.now_ms(now)
    severity, life = words.mark(words.SEVERITY, record.severity), words.mark(words.INCIDENT, record.state)
    related = incidents.migrations_by_incident(state).get(item.name, [])
    out: Lines = [
        field("what", record.title, Tone.STRONG),
        field("severity", severity.spans()),
        field("state", life.spans()),
        field("subject", record.subject),
        field("fault", record.fault_class),
        field("seen", f"{record.count} times, last {age(record.last_ms, now_ms)} ago"),
        field("first seen", when(record.observed_ms, now_ms)),
        field("opened", when(record.opened_ms, now_ms)),
    ]
    if record.acknowledged_by:
        out.append(field("acknowledged", f"by {record.acknowledged_by}"))
    if record.resolved_ms:
        out.append(field("resolved", when(record.resolved_ms, now_ms)))
        out.append(field("how", record.resolution))
    out += [(), heading("what the machine did")]
    out.append((Span("  "), *incidents.machine_did(state, item, now, related)))
    drain = state.get(DRAIN, record.drain) if record.drain else None
    if drain is not None:
        out += [field("  drain", drain.name, Tone.DIM), field("  why", drain.drain.reason)]
        out += stages(drain.drain.stages, now_ms, moves.drain_open(drain))
    for move in related:
        out += [(), heading(f"migration of {clean(move.migration.job)}"), *_migration(move.migration, now_ms)]
    return [*out, (), heading("timeline"), *timeline(state, record.subject, now_ms)]


def _drain(record: pb.DrainRecord, now_ms: int) -> Lines:
    mark = words.mark(words.DRAIN, record.state)
    live = mark.word in ("planned", "admitted", "evacuating")
    out: Lines = [
        field("device", record.device, Tone.STRONG),
        field("state", mark.spans()),
        field("why", record.reason),
        field("evidence", f"{', '.join(record.evidence) or NONE} ({duration(record.evidence_age_ms)} old)", Tone.DIM),
        field("rule", f"{record.rule} v{record.rule_version}, at revision {record.decided_revision}", Tone.DIM),
        field("asked by", record.requested_by),
        field("budgets", ", ".join(record.budgets)),
        field("jobs", ", ".join(record.jobs), Tone.BUSY),
        field("incident", record.incident),
        field("mode", care.manner(record)),
    ]
    if live and record.deadline_ms:
        left = record.deadline_ms - now_ms
        text = f"in {duration(left)}" if left >= 0 else f"passed {duration(-left)} ago"
        out.append(field("deadline", text, Tone.WARN if left < 0 else Tone.PLAIN))
    costs = care.cost(record)
    out += [(), heading("cost"), *costs] if costs else []
    return [*out, (), heading("stages"), *stages(record.stages, now_ms, live)]


def _migration(record: pb.MigrationRecord, now_ms: int) -> Lines:
    mark = words.mark(words.MIGRATION, record.state)
    live = mark.word not in ("done", "cancelled", "rolled back", "failed")
    target = f"{record.target_region or 'not chosen yet'} {record.target_node}".strip()
    out: Lines = [
        field("job", record.job, Tone.BUSY),
        field("state", joined((mark.spans(), moves.move_progress(record, 16)))),
        field("kind", words.mark(words.MIGRATION_KIND, record.kind).word),
        field("why", record.reason),
        field("from", f"{record.source_region or NONE} {record.source_node}".strip()),
        field("to", f"{target}, {devices_of(record.target_devices)}" if record.target_devices else target),
        field("epoch", f"{_epoch(record.source_epoch)} → {_epoch(record.target_epoch)}", Tone.DIM),
        field("resumes from", f"step {record.resume_step}" if record.resume_step >= 0 else "scratch"),
        field("RPO", moves.rpo(record)),
        field("RTO", moves.rto(record)),
    ]
    out += [field("refused", r, Tone.WARN) for r in record.refused]
    return [*out, (), heading("stages"), *stages(record.stages, now_ms, live)]


def devices_of(names: Sequence[str]) -> str:
    """Few by their slot, many by their number."""
    if len(names) > 4:
        return f"{len(names)} devices"
    return " ".join(clean(name.rpartition("/")[2], 40) for name in names)


def _epoch(value: pb.Epoch) -> str:
    return f"{value.generation}.{value.number}"


def _job(state: State, item: Object, now_ms: int) -> Lines:
    view, record = item.job, item.job.record
    owner, run, head = view.ownership, view.run, view.head
    step = last_step(view)
    out: Lines = [
        field("state", job_mark(item).spans()),
        field("why", record.reason),
        field("wanted", word(record, "desired"), Tone.DIM),
        field("epoch", epoch(view)),
        field("runs on", f"{owner.region} {owner.node}, {devices_of(owner.devices)}" if owner.node else ""),
        field("step", f"{step}, {age(run.last_step_ms, now_ms)} ago" if step >= 0 else NONE),
        field("loss", number(run.last_loss, 9) if step >= 0 else NONE),
        field(
            "checkpoint",
            (*checkpoint(view, now_ms), span(f"  in {', '.join(head.regions)}" if head.regions else "", Tone.DIM)),
        ),
        field("would redo", f"{redo(view)} steps if it crashed now"),
        field("restarts", f"{record.restarts} of {record.spec.max_restarts} after crashes of its own"),
        field("command", " ".join(record.spec.command), Tone.DIM),
        field("needs", f"{record.spec.devices} × {record.spec.model or 'any model'} on one node", Tone.DIM),
        field("submitted", (*when(record.submitted_ms, now_ms), span(f" by {record.submitted_by}", Tone.DIM))),
    ]
    if view.HasField("ownership") and owner.HasField("revoke"):
        out.insert(1, field("leaving", owner.revoke.reason, Tone.WARN))
    history = [i for i in state.values(MIGRATION) if i.migration.job == item.name]
    history.sort(key=lambda i: -i.migration.requested_ms)
    out += [(), heading("starts and moves")]
    for move in history[:10]:
        when_asked = Span(f"  {clock_time(move.migration.requested_ms)}  ", Tone.DIM)
        out.append((when_asked, *moves.migration_line(move.migration), span(f"  {move.migration.reason}", Tone.DIM)))
    return out


def _sla(item: Object, now_ms: int) -> Lines:
    view, t = item.sla, item.sla.totals
    mark = words.mark(words.UPTIME, view.account.current) if view.HasField("account") else words.UNKNOWN
    out: Lines = [
        field("scope", sla.scope_of(item), Tone.STRONG),
        field("now", (*mark.spans(), Span(f"  for {age(view.account.since_ms, now_ms)}", Tone.DIM))),
        field("why", view.account.reason),
        field("month", view.account.month),
        field("uptime", f"{percent(view.uptime)} %  = {view.uptime} ms", Tone.STRONG),
        field("", sla.composition(view, 40)),
    ]
    for name, ms in (
        ("up", t.up_ms),
        ("degraded", t.degraded_ms),
        ("down", t.down_ms),
        ("unknown", t.unknown_ms),
        ("excluded", t.excluded_ms),
        ("elapsed", view.elapsed_ms),
    ):
        out.append(
            field(name, (Span(f"{duration(ms):>10}", Tone.PLAIN if ms else Tone.DIM), Span(f"  {ms} ms", Tone.DIM)))
        )
    out.append(field("as of", when(view.as_of_ms, now_ms)))
    return out
