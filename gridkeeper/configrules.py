"""What a field's value must satisfy beyond its type: one table, (class, field) -> rule. Pure."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from gridkeeper.config import (
    AgentConfig,
    BearerConfig,
    ClientConfig,
    ControlPlaneConfig,
    KubernetesHost,
    LimitsConfig,
    RegionEndpoints,
    RegionPath,
    SlurmHost,
    StoreConfig,
    TlsFiles,
)
from gridkeeper.identity.spiffe import BadIdentity, checked_trust_domain
from gridkeeper.ids import BadName, NodeId, RegionId, ReplicaId, checked_name
from gridkeeper.policy.model import (
    AlertsPolicy,
    BreakerPolicy,
    BudgetPolicy,
    CataloguePolicy,
    CheckpointPolicy,
    DrainPolicy,
    EventPolicy,
    LinkPolicy,
    LivenessPolicy,
    MovePolicy,
    PlacementPolicy,
    PlacementWeights,
    Policy,
    RegionTerms,
    RepairPolicy,
    RepeatPolicy,
    RulePolicy,
    SettlementPolicy,
)
from gridkeeper.records.common import Label
from gridkeeper.records.fleet import EventKind
from gridkeeper.selector import BadSelector
from gridkeeper.selector import parse as parse_selector
from gridkeeper.sla.contract import Commitment, Contract, Source
from gridkeeper.sla.credit import Tier
from gridkeeper.sla.measure import Rule as UptimeRule
from gridkeeper.sla.months import BadMonth, zone_of
from gridkeeper.storeurl import checked_url
from gridkeeper.timings import Timings


class Wrong(ValueError):
    """Value and remedy; the reader adds file, line and field."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Applied to the value, or to each entry of a list (``whole``: to the list); ``some``: it must not be empty."""

    check: Callable[[Any], None]
    some: bool = False
    whole: bool = False

    def __call__(self, value: Any) -> None:
        self.check(value)


NAMES = frozenset({NodeId, RegionId, ReplicaId})
"""Types of text that are parts of keys."""

_HOST = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?)\Z")


def address(value: str) -> None:
    """``host:port``. Raises ``Wrong``."""
    host, colon, port = value.rpartition(":")
    if not colon or not _HOST.match(host):
        raise Wrong(f"{value[:80]!r} is not host:port; write it like 10.0.0.5:7443 or [::1]:7443")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65_535:
        raise Wrong(f"{value[:80]!r} has the port {port[:20]!r}; use 1 to 65535")


def _optional_address(value: str) -> None:
    if value:
        address(value)


def _endpoint(value: str) -> None:
    for scheme in ("https://", "http://"):
        value = value.removeprefix(scheme)
    address(value.rstrip("/"))


def _url(value: str) -> None:
    if value:
        _endpoint(value)


def _key_set(value: str) -> None:
    _filled(value)
    if "://" in value and not value.startswith("https://"):
        raise Wrong(f"{value[:80]!r} could be changed on its way; use https:// or a file")


def _filled(value: str) -> None:
    if not value.strip():
        raise Wrong("is empty; give a path")
    if "\0" in value:
        raise Wrong(f"{value[:80]!r} holds a NUL character; remove it")


def _store_place(value: str) -> None:
    _filled(value)
    if "://" in value:
        try:
            checked_url(value)
        except ValueError as error:
            raise Wrong(str(error)) from error


def _name(value: str) -> None:
    try:
        checked_name("", value)
    except BadName as error:
        raise Wrong(str(error).removeprefix(": ")) from error


def _optional_name(value: str) -> None:
    if value:
        _name(value)


def _backend(value: str) -> None:
    word, colon, rest = value.partition(":")
    if value in ("nvml", "host") or (word == "replay" and colon and rest):
        return
    if word in ("amd", "ascend", "cambricon", "thead") and bool(colon) == bool(rest):
        return
    known = "nvml, amd, ascend, cambricon, thead (each of these four also as <name>:<path of its tool>), host"
    raise Wrong(f"{value[:80]!r} is no backend; use {known} or replay:<file>")


def _trust_domain(value: str) -> None:
    try:
        checked_trust_domain(value)
    except BadIdentity as error:
        raise Wrong(str(error).removeprefix("trust_domain: ")) from error


def _one_of(what: str, *words: str) -> Rule:
    def check(value: str) -> None:
        if value not in words:
            raise Wrong(f"{value[:80]!r} is no {what}; use {', '.join(words[:-1])} or {words[-1]}")

    return Rule(check)


def _selector(value: str) -> None:
    try:
        parse_selector(value)
    except BadSelector as error:
        raise Wrong(str(error).removeprefix("selector: ")) from error


def _budgets(budgets: tuple[BudgetPolicy, ...]) -> None:
    """Each budget has a name of its own, which its kind, window and selector make."""
    seen: set[tuple[str, int, str]] = set()
    for budget in budgets:
        if budget.kind == "fleet" and (budget.window_ms or budget.select.strip()):
            raise Wrong("the fleet's budget is divided by shares; leave out its window_ms and select")
        key = (budget.kind, budget.window_ms, str(parse_selector(budget.select)))
        if key in seen:
            raise Wrong(f"there are two budgets of kind {budget.kind} alike; remove one, or give it another window_ms")
        seen.add(key)


def _breakers(breakers: tuple[BreakerPolicy, ...]) -> None:
    kinds = [breaker.kind for breaker in breakers]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise Wrong(f"there are two breakers of kind {twice[0]}; remove one")


def _links(links: tuple[LinkPolicy, ...]) -> None:
    pairs = [(link.source, link.target) for link in links]
    twice = next((pair for pair in pairs if pairs.count(pair) > 1 or pair[0] == pair[1]), None)
    if twice:
        raise Wrong(f"from {twice[0]} to {twice[1]} is there twice, or goes nowhere; remove one")


def _expression(value: str) -> None:
    # Imported when there is a rule: the agent, which has none, needs neither Polars nor a SQL parser.
    from gridkeeper.policy.expression import compile_expression
    from gridkeeper.policy.terms import BadExpression

    try:
        compile_expression(value)
    except BadExpression as error:
        raise Wrong(str(error)) from error


def _event_kind(value: str) -> None:
    kinds = [kind.value for kind in EventKind]
    if value not in kinds:
        raise Wrong(f"{value[:80]!r} is no kind of event; use one of {', '.join(kinds)}")


def _repeat_kind(value: str) -> None:
    if value != "drain":
        _event_kind(value)


def _pattern(value: str) -> None:
    """By the engine that will match it, whose time is linear in the text; it has no look-around and no references."""
    import polars as pl

    try:
        pl.Series([""]).str.contains(value)
    except pl.exceptions.ComputeError as error:
        told = next((line for line in str(error).splitlines() if line.startswith("error:")), str(error).splitlines()[0])
        raise Wrong(f"{value[:80]!r} is no regular expression: {told.removeprefix('error: ')}") from error


def _verdict_source(value: Label) -> None:
    from gridkeeper.catalogue.tables import VENDOR, sources

    vendors = sorted(set(VENDOR.values()))
    if value.key not in vendors:
        raise Wrong(f"{value.key[:80]!r} is no vendor of the fault catalogue; use one of {', '.join(vendors)}")
    if value.value != value.key and value.value not in sources():
        known = ", ".join(sorted(sources()))
        raise Wrong(f"{value.value[:80]!r} is no source of verdicts; use {value.key} (its own) or one of {known}")


def _optional_expression(value: str) -> None:
    if value:
        _expression(value)


def _text(value: str) -> None:
    if not value.strip() or not value.isprintable():
        raise Wrong(f"{value[:80]!r} is empty or holds control characters; write one line of text")


def _web_address(value: str) -> None:
    if value and not re.match(r"https?://[^/\s:@]+(:\d+)?(/\S*)?\Z", value):
        raise Wrong(f"{value[:80]!r} is no address of a web service; write it like https://desk.example/tickets")


def _web_addresses(values: tuple[str, ...]) -> None:
    for value in values:
        _web_address(value or "-")
    if len(set(values)) < len(values) or len(values) > 8:
        raise Wrong(f"{len(values)} addresses; use at most 8, each once")


def _command_line(value: str) -> None:
    try:
        shlex.split(value)
    except ValueError as error:
        raise Wrong(f"{value[:80]!r} is no command line: {error}; quote it as for a shell, or write builtin") from error


def _percentage(value: Fraction) -> None:
    """Seven decimals: beyond that a month's ms cannot be compared in 64 bits."""
    if not 0 <= value <= 100 or (value * 10**7).denominator != 1:
        raise Wrong(f"{float(value)} is no percentage with at most seven decimals, between 0 and 100")


def _currency(value: str) -> None:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise Wrong(f"{value[:80]!r} is no code of a currency; use three capital letters, like USD")


def _zone(value: str) -> None:
    try:
        zone_of(value)
    except BadMonth as error:
        raise Wrong(str(error).removeprefix("zone: ")) from error


def between(least: float, most: float) -> Rule:
    """A number in [least, most]."""

    def check(value: float) -> None:
        if not least <= value <= most:
            raise Wrong(f"{value} is not between {least} and {most}")

    return Rule(check)


def _slurm_node(value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise Wrong(f"{value[:80]!r} is no name of one node of Slurm; write it as scontrol show nodes does")


def _dns_name(value: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", value) or len(value) > 253:
        raise Wrong(f"{value[:80]!r} is no name of Kubernetes; write it as kubectl shows it")


def _absolute(value: str) -> None:
    if not value.startswith("/") or "/../" in f"{value}/":
        raise Wrong(f"{value[:80]!r} is no absolute path of this host")


_OURS = ("--job-name", "--nodelist", "--requeue", "--wrap", "--array", "--output", "--parsable", "--dependency")


def _sbatch_option(value: str) -> None:
    name = value.partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z-]*", name) or not value.isprintable():
        raise Wrong(f"{value[:80]!r} is no long option of sbatch; write it like --partition=gpu")
    if name in _OURS:
        raise Wrong(f"{value[:80]!r} is not to be chosen: the agent itself gives {name}")


_DAY = 24 * 3600 * 1000
_path = Rule(_filled)

RULES: dict[tuple[type, str], Rule] = {
    (TlsFiles, "certificate"): _path,
    (TlsFiles, "key"): _path,
    (TlsFiles, "authority"): _path,
    (StoreConfig, "endpoints"): Rule(_endpoint, some=True),
    (RegionPath, "path"): Rule(_store_place),
    (RegionEndpoints, "addresses"): Rule(address, some=True),
    (ClientConfig, "regions"): Rule(lambda _: None, some=True),
    (AgentConfig, "servers"): Rule(address, some=True),
    (AgentConfig, "state_dir"): _path,
    (AgentConfig, "checkpoints"): Rule(_store_place),
    (AgentConfig, "rack"): Rule(_name),
    (AgentConfig, "backends"): Rule(_backend, some=True),
    (AgentConfig, "zone"): Rule(_optional_name),
    (AgentConfig, "probe_listen"): Rule(_optional_address),
    (AgentConfig, "probe_advertise"): Rule(_optional_address),
    (AgentConfig, "metrics_listen"): Rule(_optional_address),
    (AgentConfig, "otlp_endpoint"): Rule(_url),
    (SlurmHost, "node"): Rule(_slurm_node),
    (SlurmHost, "options"): Rule(_sbatch_option),
    (KubernetesHost, "node"): Rule(_dns_name),
    (KubernetesHost, "namespace"): Rule(_dns_name),
    (KubernetesHost, "image"): Rule(_filled),
    (KubernetesHost, "python"): Rule(_filled),
    (KubernetesHost, "mounts"): Rule(_absolute),
    (KubernetesHost, "wait_ms"): between(1_000, 7 * _DAY),
    (SlurmHost, "wait_ms"): between(1_000, 7 * _DAY),
    (AgentConfig, "driver_timeout_ms"): between(100, 600_000),
    (AgentConfig, "spool_max_bytes"): between(64 * 1024, 1 << 40),
    (ControlPlaneConfig, "listen"): Rule(address),
    (ControlPlaneConfig, "advertise"): Rule(_optional_address),
    (ControlPlaneConfig, "metrics_listen"): Rule(_optional_address),
    (ControlPlaneConfig, "otlp_endpoint"): Rule(_url),
    (ControlPlaneConfig, "trust_domain"): Rule(_trust_domain),
    (ControlPlaneConfig, "entry_listen"): Rule(_optional_address),
    (ControlPlaneConfig, "node_certificate_hours"): between(1, 24 * 3650),
    (BearerConfig, "issuer"): _path,
    (BearerConfig, "audience"): _path,
    (BearerConfig, "jwks"): Rule(_key_set),
    **{(LimitsConfig, field.name): between(1, 1 << 40) for field in fields(LimitsConfig)},
    (ControlPlaneConfig, "checkpoints"): Rule(lambda _: None, some=True),
    (Timings, "stale_ms"): between(1, _DAY),
    (Timings, "fence_ms"): between(1, _DAY),
    (Timings, "takeover_ms"): between(1, _DAY),
    (Timings, "clock_ratio"): between(1.0, 2.0),
    (Timings, "renewal_ms"): between(1, _DAY),
    (Timings, "heartbeat_ms"): between(1, _DAY),
    (Timings, "telemetry_ms"): between(1, _DAY),
    (Timings, "unreachable_ms"): between(1, _DAY),
    (Timings, "settle_ms"): between(0, _DAY),
    (Timings, "lease_ttl_s"): between(1, 3600),
    (Timings, "drain_deadline_ms"): between(1, 30 * _DAY),
    (RulePolicy, "name"): Rule(_name),
    (RulePolicy, "when"): Rule(_expression),
    (RulePolicy, "clear"): Rule(_optional_expression),
    (RulePolicy, "fault_class"): Rule(_name),
    (RulePolicy, "meaning"): Rule(_text),
    (RulePolicy, "for_ms"): between(0, 7 * _DAY),
    (RulePolicy, "clear_ms"): between(0, 7 * _DAY),
    (RulePolicy, "select"): Rule(_selector),
    (CataloguePolicy, "sources"): Rule(_verdict_source),
    (EventPolicy, "name"): Rule(_name),
    (EventPolicy, "kind"): Rule(_event_kind),
    (EventPolicy, "pattern"): Rule(_pattern),
    (EventPolicy, "select"): Rule(_selector),
    (RepeatPolicy, "name"): Rule(_name),
    (RepeatPolicy, "kind"): Rule(_repeat_kind),
    (RepeatPolicy, "count"): between(1, 128),
    (RepeatPolicy, "within_ms"): between(1, 30 * _DAY),
    (RepeatPolicy, "burst_ms"): between(0, _DAY),
    (RepeatPolicy, "sticky_ms"): between(0, 30 * _DAY),
    (RepeatPolicy, "lasting_ms"): between(0, 30 * _DAY),
    (RepeatPolicy, "reboots"): between(0, 8),
    (RepeatPolicy, "meaning"): Rule(_text),
    (BudgetPolicy, "kind"): _one_of("kind of budget", "region", "zone", "rack", "vendor", "job", "fleet"),
    (BudgetPolicy, "fraction"): between(0.0, 1.0),
    (BudgetPolicy, "minimum"): between(0, 1_000_000),
    (BudgetPolicy, "maximum"): between(0, 1_000_000),
    (BudgetPolicy, "window_ms"): between(0, 365 * _DAY),
    (BudgetPolicy, "select"): Rule(_selector),
    (BreakerPolicy, "kind"): _one_of("kind of breaker", "region", "zone", "rack", "vendor"),
    (BreakerPolicy, "drains"): between(1, 1_000_000),
    (BreakerPolicy, "fraction"): between(0.0, 1.0),
    (BreakerPolicy, "within_ms"): between(1_000, 30 * _DAY),
    (BreakerPolicy, "cool_ms"): between(1_000, 30 * _DAY),
    (BreakerPolicy, "trickle"): between(1, 1_000),
    (BreakerPolicy, "trickle_ms"): between(1_000, 30 * _DAY),
    (BreakerPolicy, "close_ms"): between(1_000, 30 * _DAY),
    (RepairPolicy, "ticket_url"): Rule(_web_address),
    (RepairPolicy, "attempts"): between(1, 20),
    (RepairPolicy, "timeout_ms"): between(1_000, _DAY),
    (RepairPolicy, "self_test"): Rule(_command_line),
    (RepairPolicy, "self_test_timeout_ms"): between(1_000, _DAY),
    (DrainPolicy, "mode"): _one_of("way to drain", "checkpoint", "wait", "deadline"),
    (DrainPolicy, "wait_ms"): between(0, 31 * _DAY),
    (DrainPolicy, "evidence_ms"): between(1_000, 365 * _DAY),
    (DrainPolicy, "flaps"): between(1, 100),
    (DrainPolicy, "flap_ms"): between(1_000, 365 * _DAY),
    (Policy, "budgets"): Rule(_budgets, whole=True),
    (Policy, "breakers"): Rule(_breakers, whole=True),
    (CheckpointPolicy, "scrub_every_ms"): between(60_000, 365 * _DAY),
    (CheckpointPolicy, "scrub_bytes_per_s"): between(0, 1 << 40),
    (CheckpointPolicy, "copy_bytes_per_s"): between(0, 1 << 40),
    (CheckpointPolicy, "keep_last"): between(1, 10_000),
    (CheckpointPolicy, "keep_hourly"): between(0, 10_000),
    (CheckpointPolicy, "keep_daily"): between(0, 10_000),
    (CheckpointPolicy, "keep_doubtful_ms"): between(0, 365 * _DAY),
    (CheckpointPolicy, "grace_ms"): between(60_000, 365 * _DAY),
    (CheckpointPolicy, "sweep_every_ms"): between(60_000, 365 * _DAY),
    (LivenessPolicy, "phi"): between(1.0, 100.0),
    (LivenessPolicy, "witnesses"): between(0, 16),
    (LivenessPolicy, "witness_ms"): between(100, 60_000),
    (LivenessPolicy, "group_fraction"): between(0.0, 1.0),
    (LivenessPolicy, "local_lag_ms"): between(50, _DAY),
    (Policy, "version"): between(0, 1 << 31),
    (Policy, "freeze_fraction"): between(0.0, 1.0),
    (Policy, "probation_ms"): between(0, 365 * _DAY),
    (Policy, "repair_hold_ms"): between(0, 365 * _DAY),
    (PlacementPolicy, "incidents_ms"): between(0, 365 * _DAY),
    **{(PlacementWeights, weight.name): between(0, 1_000) for weight in dataclasses.fields(PlacementWeights)},
    (MovePolicy, "at_once"): between(0, 1_000_000),
    (MovePolicy, "per_link"): between(0, 1_000_000),
    (MovePolicy, "link_bytes_per_s"): between(0, 1 << 40),
    (MovePolicy, "links"): Rule(_links, whole=True),
    (LinkPolicy, "at_once"): between(0, 1_000_000),
    (LinkPolicy, "bytes_per_s"): between(0, 1 << 40),
    (SettlementPolicy, "close_after_ms"): between(0, 30 * _DAY),
    (AlertsPolicy, "alertmanagers"): Rule(_web_addresses, whole=True),
    (AlertsPolicy, "webhooks"): Rule(_web_addresses, whole=True),
    (AlertsPolicy, "resend_ms"): between(1_000, _DAY),
    (AlertsPolicy, "per_minute"): between(1, 10_000),
    (RegionTerms, "price"): between(0, 1e9),
    (RegionTerms, "spot_risk"): between(0.0, 1.0),
    (RegionTerms, "residency"): Rule(_name),
    (Contract, "name"): Rule(_name),
    (Contract, "provider"): Rule(_text),
    (Contract, "customer"): Rule(_text),
    (Contract, "currency"): Rule(_currency),
    (Contract, "decimals"): between(0, 4),
    (Contract, "zone"): Rule(_zone),
    (Contract, "minimum_payout"): between(0, 1e12),
    (Contract, "claim_days"): between(0, 3_650),
    (Contract, "commitments"): Rule(lambda _: None, some=True),
    (Source, "text"): Rule(_text),
    (Source, "date"): Rule(_text),
    (Commitment, "name"): Rule(_name),
    (Commitment, "target"): Rule(_percentage),
    (Commitment, "charge"): between(0, 1e12),
    (Commitment, "select"): Rule(_selector),
    (Tier, "below"): Rule(_percentage),
    (Tier, "credit"): between(0, 100),
    (UptimeRule, "minimum_ms"): between(0, _DAY),
}

UNIQUE: dict[tuple[type, str], str] = {
    (Policy, "rules"): "name",
    (Policy, "events"): "name",
    (Policy, "repeats"): "name",
    (PlacementPolicy, "regions"): "region",
    (Contract, "commitments"): "name",
    (Commitment, "tiers"): "below",
}
"""(class, list field) -> the field by which its entries are told apart."""
