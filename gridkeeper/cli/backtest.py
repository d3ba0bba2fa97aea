"""``gridkeeper backtest``."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from controlplane.backtest import csvtrace
from controlplane.backtest.outcome import Outcome, as_recorded, difference, score
from controlplane.backtest.play import ASSUMED, SAMPLED, Player
from controlplane.backtest.recorded import is_recording, read_recording
from controlplane.backtest.trace import BadTrace, Trace
from gridkeeper import configfile
from gridkeeper.cli import backtest_report
from gridkeeper.cli.output import dump_json
from gridkeeper.cli.text import parse_span, span
from gridkeeper.ids import DeviceId, NodeId, RegionId
from gridkeeper.policy.document import default_policy, load_policy
from gridkeeper.policy.model import Policy
from gridkeeper.records.fleet import DeviceRecord

PER_NODE, NODES_PER_RACK = 8, 16
RECORDED = "recorded"


class Span(click.ParamType[int]):
    """``4h`` -> milliseconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_span(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option(
    "--policy", "policy_file", default="default", metavar="FILE", help="The policy to try; 'default' is built in."
)
@click.option("--trace", "trace_path", required=True, metavar="PATH", help="A CSV of faults, or what 'record' wrote.")
@click.option("--region", default="", metavar="NAME", help="Of a recording that holds several.")
@click.option("--against", default="", metavar="FILE", help="Compare with this policy, 'default' or 'recorded'.")
@click.option("--inventory", default="", metavar="FILE", help="CSV of all devices: budgets are of these.")
@click.option("--devices", default=0, metavar="N", help="Fill the inventory up to N devices that never failed.")
@click.option("--labels", default="", metavar="FILE", help="CSV of device,label: lemon or good.")
@click.option("--classes", default="", metavar="FILE", help="CSV of class,code: what your fault classes stand for.")
@click.option("--repair", type=Span(), default="24h", show_default=True, help="How long a repair takes.")
@click.option("--within", type=Span(), default="1h", show_default=True, help="When a real fault counts as missed.")
@click.option("--rows", default=20, show_default=True, help="Drains listed at most; 0: all.")
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
def backtest(
    policy_file: str,
    trace_path: str,
    region: str,
    against: str,
    inventory: str,
    devices: int,
    labels: str,
    classes: str,
    repair: int,
    within: int,
    rows: int,
    output: str,
) -> int:
    """What a policy would have done with what happened: which devices it would have drained, when, and at what cost.

    The decisions are the control plane's own, on virtual time. Nothing of the grid is touched.

    \b
    Examples:
      gridkeeper backtest --trace repairs.csv --devices 30000
      gridkeeper backtest --policy new.yaml --against default --trace repairs.csv --labels lemons.csv
      gridkeeper backtest --policy new.yaml --trace recorded/ -o json
    """  # fmt: skip
    try:
        policy = _policy(policy_file)
        other = _policy(against) if against and against != RECORDED else None
        trace = _trace(trace_path, region, inventory, devices, labels, classes)
        if against == RECORDED and not is_recording(Path(trace_path)):
            raise BadTrace(f"--against: {trace_path} is a CSV, which does not tell what was drained; name a policy")
        new = _play(trace, policy, _name(policy_file), repair)
        old = _play(trace, other, _name(against), repair) if other else as_recorded(trace) if against else None
    except (BadTrace, configfile.ConfigError) as error:
        for line in str(error).splitlines():
            print(f"gridkeeper: {line}", file=sys.stderr)
        return 1
    scored = score(new, trace.faults, trace.lemons, within)
    assumptions = [line.format(repair=span(repair)) for line in ASSUMED]
    if trace.telemetry:
        assumptions.append(SAMPLED)
    diff = difference(old, new) if old else None
    if output == "json":
        print(dump_json(backtest_report.document(trace, new, old, diff, scored, assumptions)))
        return 0
    old_scored = score(old, trace.faults, trace.lemons, within) if old else None
    for line in backtest_report.text(trace, new, old, diff, scored, old_scored, assumptions, rows):
        print(line)
    return 0


def _name(path: str) -> str:
    return "the default policy" if path == "default" else Path(path).name


def _policy(path: str) -> Policy:
    """Raises ``ConfigError``."""
    return default_policy() if path == "default" else load_policy(path)


def _play(trace: Trace, policy: Policy, name: str, repair_ms: int) -> Outcome:
    """What there is before it stays until after it, so the collector need not look through it again and again. Raises
    ``BadTrace`` for samples that do not read."""
    began = time.perf_counter()
    player = Player(trace, policy, name, repair_ms)
    gc.freeze()
    try:
        outcome = player.run()
    finally:
        gc.unfreeze()
    return replace(outcome, seconds=time.perf_counter() - began)


def _trace(path: str, wanted: str, inventory: str, devices: int, labels: str, classes: str) -> Trace:
    """Raises ``BadTrace``."""
    region = RegionId("trace")
    if is_recording(Path(path)):
        if inventory or devices or classes:
            raise BadTrace("--inventory, --devices and --classes: a recording brings its own; leave them out")
        return _labelled(read_recording(Path(path), wanted), labels)
    if wanted:
        raise BadTrace(f"--region: {path} is a CSV and has none; leave it out")
    meanings = csvtrace.read_classes(classes) if classes else None
    known = csvtrace.read_inventory(inventory, region) if inventory else None
    trace = csvtrace.read_csv(path, region, known, meanings)
    if devices:
        trace = filled(trace, devices, region)
    return _labelled(trace, labels)


def _labelled(trace: Trace, labels: str) -> Trace:
    """Raises ``BadTrace``."""
    lemons = csvtrace.read_lemons(labels) if labels else {}
    strangers = sorted(device for device in lemons if device not in trace.devices)
    notes = trace.notes
    if strangers:
        notes = (*notes, f"{len(strangers)} labelled devices are not in the inventory: {', '.join(strangers[:5])}")
    return replace(trace, lemons={d: lemon for d, lemon in lemons.items() if d in trace.devices}, notes=notes)


def filled(trace: Trace, devices: int, region: RegionId) -> Trace:
    """The inventory filled up with devices that never failed, so that budgets have their denominators."""
    missing = devices - len(trace.devices)
    if missing < 0:
        raise BadTrace(f"--devices: {devices} is less than the {len(trace.devices)} that the trace names; raise it")
    every: dict[DeviceId, DeviceRecord] = dict(trace.devices)
    for number in range(missing):
        node = NodeId(f"other-{number // PER_NODE}")
        device = DeviceId(f"{node}/gpu{number % PER_NODE}")
        row: Mapping[str, str] = {"rack": f"other-{number // PER_NODE // NODES_PER_RACK}"}
        every[device] = csvtrace.device_record(node, device, region, row)
    notes = tuple(note for note in trace.notes if not note.startswith("no inventory was given"))
    return replace(trace, devices=every, notes=(*notes, f"{missing} devices that never failed were added"))
