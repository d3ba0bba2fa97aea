"""A made-up night on a small grid: for the picture in the README, for tests, and for looking at the screens without a
control plane."""

from __future__ import annotations

from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from gridkeeper.v1.api_pb2 import Metric, Object
from tui import sample_story
from tui.sample_story import DRAIN_ID, HOT, HOUR, INCIDENT_ID, MINUTE, NOW_MS, chain, event_object, incident_object

__all__ = ["HOT", "INCIDENT_ID", "NOW_MS", "chain", "event_object", "incident_object"]

DAY = 24 * HOUR

_RACKS = {"east": ("a1", "a2", "b2"), "west": ("k1", "k2")}
_NODES_PER_RACK = 3
_JOBS = {
    "a1-n1": "vision-pretrain",
    "a1-n2": "vision-pretrain-2",
    "a2-n1": "rlhf-31b",
    "a2-n3": "speech-small",
    "k1-n1": "embed-nightly",
    "k1-n3": "llm-7b-cont",
    "k2-n2": "protein-fold",
}
_ODD: dict[str, tuple[str, str]] = {
    HOT: ("DRAINED", "XID 48 double-bit ECC error, contained by 94; row remap pending"),
    "a1-n3/gpu2": ("SUSPECT", "126 corrected memory errors in the last hour (limit 100)"),
    "k2-n1/gpu0": ("PROBATION", "replaced card passed its self-test; watched until 02:04"),
    "k1-n2/gpu7": ("DEGRADED", "PCIe runs at x8 instead of x16"),
}


def nodes() -> list[tuple[str, str, str]]:
    """(region, rack, node)."""
    return [
        (region, rack, f"{rack}-n{i}")
        for region, racks in _RACKS.items()
        for rack in racks
        for i in range(1, _NODES_PER_RACK + 1)
    ]


def objects() -> list[Object]:
    """Everything there is."""
    out: list[Object] = []
    for region in _RACKS:
        out.append(_region(region))
    for region, rack, node in nodes():
        out.append(node_object(region, rack, node))
        out += [device_object(region, rack, node, slot) for slot in range(8)]
    return [*out, *_jobs(), *_slas(), *sample_story.objects()]


def _region(region: str) -> Object:
    count = len(_RACKS[region]) * _NODES_PER_RACK
    east = region == "east"
    record = pb.RegionRecord(
        region=region,
        leader=f"cp-{region}-1",
        nodes=count,
        nodes_alive=count - east,
        devices=count * 8,
        usable=count * 8 - (9 if east else 10),
        free=31 if east else 14,
        largest_free=8 if east else 7,
        updated_ms=NOW_MS - 20_000,
    )
    held = [pb.BudgetHold(device=HOT, kind=pb.HOLD_KIND_DRAIN, ref=DRAIN_ID)] if east else []
    budgets = [
        pb.BudgetRecord(name="region", holds=held, limit=count * 2, total=count * 8),
        pb.BudgetRecord(name="rack-b2", holds=held, limit=12, total=24),
    ]
    view = api_pb2.RegionView(record=record, leader=record.leader, budgets=budgets)
    labels = {"region": region, "leader": record.leader, "in_doubt": "no"}
    return Object(kind=api_pb2.KIND_REGION, name=region, region=region, revision=10, labels=labels, region_view=view)


def node_object(region: str, rack: str, node: str, state: str = "") -> Object:
    """``state``: a ``NodeState`` without its prefix; by default one node of the sample is silent."""
    silent = node == "b2-n3"
    state = state or ("UNREACHABLE" if silent else "ALIVE")
    view = api_pb2.NodeView(
        record=pb.NodeRecord(
            name=node,
            region=region,
            rack=rack,
            boot_id="6d1f1c22",
            agent_version="0.1.0",
            backends=["nvml"],
            devices=[f"{node}/gpu{i}" for i in range(8)],
        ),
        liveness=pb.LivenessRecord(
            node=node,
            state=pb.NodeState.Value(f"NODE_STATE_{state}"),
            since_ms=NOW_MS - (70_000 if silent else 3 * DAY),
            reason="silent for 1m 10s: no session at any replica" if silent else "",
        ),
        replica="" if silent else f"cp-{region}-1",
        heard_age_ms=-1 if silent else 240,
        devices_usable=0 if silent else 8 - sum(f"{node}/gpu{i}" in _ODD and node != "a1-n3" for i in range(8)),
    )
    if node == "k2-n3":
        reason = pb.CordonReason(owner="mara", reason="rack power work until 04:00", created_ms=NOW_MS - HOUR)
        view.cordon.CopyFrom(pb.CordonRecord(target=node, reasons=[reason]))
    cordoned = "yes" if node == "k2-n3" else "no"
    labels = {"region": region, "rack": rack, "state": state.lower(), "cordoned": cordoned}
    return Object(kind=api_pb2.KIND_NODE, name=node, region=region, revision=10, labels=labels, node=view)


def device_object(region: str, rack: str, node: str, slot: int, health: str = "") -> Object:
    """``health``: a ``HealthState`` without its prefix."""
    name = f"{node}/gpu{slot}"
    odd = _ODD.get(name)
    state, reason = odd or ("UNKNOWN" if node == "b2-n3" else "HEALTHY", "")
    state = health or state
    job = _JOBS.get(node, "") if not (odd and odd[0] == "DRAINED") else ""
    view = api_pb2.DeviceView(
        record=pb.DeviceRecord(
            id=name,
            node=node,
            slot=f"gpu{slot}",
            uuid=f"GPU-5f3a9c{slot:02d}",
            vendor="nvidia",
            model="H100 80GB HBM3",
            pci_bus_id=f"0000:{16 + slot:02x}:00.0",
            memory_mib=81_559,
            rack=rack,
            region=region,
            present=True,
        ),
        health=pb.HealthRecord(
            device=name,
            node=node,
            state=pb.HealthState.Value(f"HEALTH_STATE_{state}"),
            since_ms=NOW_MS - (3 * MINUTE if odd else 3 * DAY),
            reason=reason,
            evidence=["ev-b2-n1-118"] if odd else [],
            incident=INCIDENT_ID if name == HOT else "",
            drain=DRAIN_ID if name == HOT else "",
            rule="xid-48" if name == HOT else "",
            rule_version=1 if name == HOT else 0,
        ),
        job=job,
        metrics=_metrics(node, slot, bool(job)),
        metrics_age_ms=600,
    )
    if node == "b2-n3":
        view.metrics_age_ms = -1
        del view.metrics[:]
    labels = {
        "region": region,
        "rack": rack,
        "node": node,
        "vendor": "nvidia",
        "health": state.lower(),
        "job": job,
        "present": "yes",
        "cordoned": "yes" if node == "k2-n3" else "no",
    }
    return Object(kind=api_pb2.KIND_DEVICE, name=name, region=region, revision=10, labels=labels, device=view)


def _metrics(node: str, slot: int, busy: bool) -> list[Metric]:
    wobble = (sum(map(ord, node)) * 7 + slot * 13) % 17
    temperature = 38.0 + wobble / 2 + (31 if busy else 0)
    load = 88.0 + wobble / 2 if busy else 0.0
    values = (
        ("temperature", "Cel", temperature, 9.0),
        ("temperature_slowdown", "Cel", 90.0, 0.0),
        ("power", "W", 120.0 + 5 * load, 60.0),
        ("utilisation", "%", load, 12.0),
        ("memory_used", "MiB", 71_000.0 if busy else 620.0, 0.0),
        ("memory_total", "MiB", 81_559.0, 0.0),
        ("ecc_corrected", "1", float(wobble), 0.0),
        ("ecc_uncorrected", "1", 0.0, 0.0),
    )
    return [
        Metric(
            name=name,
            unit=unit,
            value=value,
            known=True,
            recent=[max(0.0, value - swing * ((i * 7 + wobble) % 5) / 5) for i in range(40)],
        )
        for name, unit, value, swing in values
    ]


def _jobs() -> list[Object]:
    out: list[Object] = []
    for index, (node, name) in enumerate(sorted(_JOBS.items(), key=lambda item: item[1])):
        region = "west" if node.startswith("k") else "east"
        step = 48_391 if name == "llm-7b-cont" else 9_113 + index * 7_901
        out.append(job_object(name, region, node, step, index))
    waiting = pb.JobRecord(
        spec=pb.JobSpec(name="ablation-13", devices=16, command=["python", "train.py"]),
        state=pb.JOB_STATE_PENDING,
        reason="no node has 16 free devices; the largest is 8 (k2-n3 is cordoned)",
        submitted_by="ines",
        submitted_ms=NOW_MS - 50 * MINUTE,
    )
    labels = {"state": "pending", "region": "", "node": ""}
    view = api_pb2.JobView(record=waiting)
    out.append(Object(kind=api_pb2.KIND_JOB, name="ablation-13", revision=22, labels=labels, job=view))
    return out


def job_object(name: str, region: str, node: str, step: int, index: int = 0) -> Object:
    """A running job."""
    epoch = pb.Epoch(generation=1, number=7 if name == "llm-7b-cont" else 1 + index % 3)
    spec = pb.JobSpec(name=name, devices=8, command=["python", "train.py", "--config", f"{name}.yaml"], max_restarts=3)
    view = api_pb2.JobView(
        record=pb.JobRecord(
            spec=spec,
            state=pb.JOB_STATE_RUNNING,
            desired=pb.DESIRED_RUN,
            submitted_by="ines",
            submitted_ms=NOW_MS - 2 * DAY,
        ),
        ownership=pb.OwnershipRecord(
            job=name, epoch=epoch, region=region, node=node, devices=[f"{node}/gpu{i}" for i in range(8)]
        ),
        run=pb.RunRecord(
            job=name,
            epoch=epoch,
            region=region,
            node=node,
            phase=pb.RUN_PHASE_RUNNING,
            last_step=step,
            last_step_ms=NOW_MS - 900 - index * 120,
            last_loss=2.31 - index * 0.17,
        ),
        head=pb.HeadRecord(
            job=name,
            step=step - step % 100,
            epoch=epoch,
            size_bytes=13_400_000_000,
            regions=["east", "west"],
            committed_ms=NOW_MS - 30_000 - index * 9_000,
        ),
    )
    labels = {"state": "running", "region": region, "node": node}
    return Object(kind=api_pb2.KIND_JOB, name=name, region=region, revision=22, labels=labels, job=view)


def _slas() -> list[Object]:
    down = pb.UPTIME_CLASS_DOWN
    return [
        sla_object("region/east", down_ms=0, degraded_ms=3 * MINUTE, unknown_ms=70_000),
        sla_object("region/west", down_ms=0, degraded_ms=0, unknown_ms=0),
        sla_object("job/llm-7b-cont", down_ms=21_400, degraded_ms=0, unknown_ms=0),
        sla_object("job/vision-pretrain", down_ms=0, degraded_ms=0, unknown_ms=0),
        sla_object(f"device/{HOT}", down_ms=3 * MINUTE, degraded_ms=0, unknown_ms=0, current=down),
        sla_object("device/k2-n1/gpu0", down_ms=5 * HOUR, degraded_ms=0, unknown_ms=0),
        sla_object("device/b2-n3/gpu0", down_ms=0, degraded_ms=0, unknown_ms=70_000, current=pb.UPTIME_CLASS_UNKNOWN),
    ]


def sla_object(
    scope: str, down_ms: int, degraded_ms: int, unknown_ms: int, current: pb.UptimeClass.ValueType = pb.UPTIME_CLASS_UP
) -> Object:
    """An account of 23 days and some hours."""
    elapsed = 23 * DAY + 2 * HOUR
    up = elapsed - down_ms - degraded_ms - unknown_ms
    served, divisor = up + degraded_ms, up + degraded_ms + down_ms
    view = api_pb2.SlaView(
        account=pb.AccountRecord(
            scope=scope, month="2026-11", sequence=9, current=current, since_ms=NOW_MS - 3 * MINUTE
        ),
        totals=pb.Totals(up_ms=up, degraded_ms=degraded_ms, down_ms=down_ms, unknown_ms=unknown_ms),
        elapsed_ms=elapsed,
        as_of_ms=NOW_MS,
        uptime=f"{served}/{divisor}",
        uptime_percent=100 * served / divisor,
    )
    labels = {"scope": scope, "class": "up"}
    return Object(kind=api_pb2.KIND_SLA, name=scope, revision=23, labels=labels, sla=view)
