"""The policy: one document, one tree of records. ``gridkeeper.configfile`` reads it strictly, with line numbers.

Durations are milliseconds, fractions are of 1. Selectors are the CLI's language (``gridkeeper.selector``) over a
device's labels (region, zone, rack, node, vendor, model, architecture and the node's own); "" selects everything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from gridkeeper.ids import RegionId
from gridkeeper.records.common import Action, Label, Scope, Severity

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Mode(enum.StrEnum):
    """``act``; ``shadow``: decide and record, do nothing; ``off``."""

    ACT = "act"
    SHADOW = "shadow"
    OFF = "off"


class Consent(enum.StrEnum):
    """Whether a repair may begin: ``off`` never, ``confirm`` once a human approves, ``auto`` at once."""

    OFF = "off"
    CONFIRM = "confirm"
    AUTO = "auto"


class Per(enum.StrEnum):
    """What a repeat rule counts by: one device, one code of one device, one place of one device (a link, a core; a text
    that names none is not counted), one node, one job (its devices together), or the number of *different* devices of
    one job, or of *different* jobs on one device (where the job is not known, each sighting counts)."""

    DEVICE = "device"
    CODE = "code"
    PLACE = "place"
    NODE = "node"
    JOB = "job"
    JOB_DEVICES = "job-devices"
    DEVICE_JOBS = "device-jobs"


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """A condition over the fleet table. ``when`` and ``clear`` are SQL expressions over its columns; "" clears when
    ``when`` is false. It must hold for ``for_ms`` to be raised and ``clear_ms`` to be cleared; unknown holds neither.
    ``meaning`` completes "<device>: …"."""

    name: str
    when: str
    severity: Severity
    action: Action
    fault_class: str
    meaning: str
    for_ms: int = 0
    clear: str = ""
    clear_ms: int = 0
    scope: Scope = Scope.DEVICE
    select: str = ""
    mode: Mode = Mode.ACT


@dataclass(frozen=True, slots=True)
class EventPolicy:
    """A site's own verdict on events, instead of the catalogue's. ``kind`` is an event kind; no ``codes``: all;
    ``pattern``: a regular expression that the message must contain. The first that matches decides."""

    name: str
    kind: str
    severity: Severity
    action: Action
    codes: tuple[int, ...] = ()
    pattern: str = ""
    fault_class: str = ""  # "": the catalogue's
    scope: Scope | None = None  # None: the catalogue's
    select: str = ""
    mode: Mode = Mode.ACT


@dataclass(frozen=True, slots=True)
class RepeatPolicy:
    """``count`` faults within ``within_ms`` mean more than one. ``kind``: an event kind, or "drain" to count a node's
    machine drains. Sightings within ``burst_ms`` of each other are one; raised, it holds for ``sticky_ms``.
    ``reboots``: count only a fault that came back after so many reboots. ``lasting_ms``: the first and the last
    sighting counted must lie at least so far apart. ``unless``: a rule that explains the same fault better: once that
    one has counted enough for the event's own subject, this one is not raised."""

    name: str
    kind: str
    count: int
    within_ms: int
    severity: Severity
    action: Action
    meaning: str
    codes: tuple[int, ...] = ()  # none: all
    except_codes: tuple[int, ...] = ()
    least: Severity = Severity.WARNING  # single faults below this are not counted
    per: Per = Per.DEVICE
    burst_ms: int = 0
    sticky_ms: int = 0
    reboots: int = 0
    fault_class: str = ""  # "": that of the faults
    mode: Mode = Mode.ACT
    lasting_ms: int = 0
    unless: str = ""


@dataclass(frozen=True, slots=True)
class CataloguePolicy:
    """``sources``: vendor -> whose verdicts apply (default: the vendor's own). What an unknown code means."""

    sources: tuple[Label, ...] = ()
    unknown_severity: Severity = Severity.WARNING
    unknown_action: Action = Action.WATCH


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """At most ``max(minimum, floor(fraction × durable inventory))`` devices out of service at once, never more than
    ``maximum`` (0: no such cap). With ``window_ms``: at most so many drains *begun* within that time instead.
    ``kind``: region, zone, rack, vendor, job, or fleet (all regions together, by escrowed shares)."""

    kind: str
    fraction: float
    minimum: int
    maximum: int = 0
    window_ms: int = 0
    select: str = ""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """More than ``drains`` machine drains (or ``fraction`` of the scope's devices, if more) wanted within ``within_ms``
    open it. After ``cool_ms`` it half-opens: ``trickle`` drains per ``trickle_ms``; ``close_ms`` without a further
    burst close it. ``kind`` as in a budget."""

    kind: str = "region"
    drains: int = 16
    fraction: float = 0.3
    within_ms: int = 600_000
    cool_ms: int = 900_000
    trickle: int = 1
    trickle_ms: int = 60_000
    close_ms: int = 1_800_000


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """``mode``: checkpoint (ask for a checkpoint, then stop), wait (for the job's own end), deadline (wait until
    ``wait_ms``, then as checkpoint). ``evidence_ms``: an older event convicts nobody. Flap damping: a device drained
    ``flaps`` times within ``flap_ms`` is not returned to service without a human."""

    mode: str = "checkpoint"
    wait_ms: int = HOUR_MS
    evidence_ms: int = DAY_MS
    flaps: int = 3
    flap_ms: int = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class RepairPolicy:
    """Hooks between drained and probation. ``self_test``: run before service; "builtin" or a command line; "" none."""

    reset_device: Consent = Consent.OFF
    reboot_node: Consent = Consent.OFF
    ticket: Consent = Consent.OFF
    ticket_url: str = ""
    attempts: int = 2
    timeout_ms: int = 900_000
    self_test: str = ""
    self_test_timeout_ms: int = 300_000


@dataclass(frozen=True, slots=True)
class LivenessPolicy:
    """``phi``: suspicion (phi accrual) from which silence is asked about. ``witnesses``: peers asked before a node is
    called unreachable, waited for at most ``witness_ms``. ``group_fraction``: of a rack or region silent at once, from
    which the silence is the group's. ``local_lag_ms``: an observer whose own timers are later than this convicts
    nobody."""

    phi: float = 8.0
    witnesses: int = 3
    witness_ms: int = 2_000
    group_fraction: float = 0.5
    local_lag_ms: int = 500


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """Gray failures: a device that deviates from its peers *in the same job* by more than ``sigmas`` robust standard
    deviations (1.4826 × MAD) and ``least`` (relative to the median) for ``for_ms``. ``hang_ms``: no step for this long,
    or ``hang_steps`` step times if that is more."""

    sigmas: float = 6.0
    least: float = 0.1
    for_ms: int = 180_000
    peers: int = 4
    hang_ms: int = 60_000
    hang_steps: int = 10
    severity: Severity = Severity.WARNING
    action: Action = Action.WATCH
    mode: Mode = Mode.ACT


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """Each region reads its checkpoints again every ``scrub_every_ms``, at most ``scrub_bytes_per_s``, and copies those
    of other regions ahead at most at ``copy_bytes_per_s`` (0: no limit; what a migration waits for has none). Kept of
    each job: the newest ``keep_last``, the newest of each of ``keep_hourly`` hours and ``keep_daily`` days, suspect and
    damaged ones ``keep_doubtful_ms``. The bytes of others go ``grace_ms`` later, unused chunks every
    ``sweep_every_ms``."""

    scrub_every_ms: int = 7 * DAY_MS
    scrub_bytes_per_s: int = 50_000_000
    copy_bytes_per_s: int = 0
    keep_last: int = 5
    keep_hourly: int = 24
    keep_daily: int = 7
    keep_doubtful_ms: int = 7 * DAY_MS
    grace_ms: int = HOUR_MS
    sweep_every_ms: int = 6 * HOUR_MS


@dataclass(frozen=True, slots=True)
class RegionLossPolicy:
    """When a whole region counts as lost: its grant was not extended for ``after_ms``, nobody vetoed within
    ``veto_window_ms`` after that, and ``automatic``; else only a human's approval declares it."""

    after_ms: int = 60_000
    veto_window_ms: int = 120_000
    automatic: bool = True


@dataclass(frozen=True, slots=True)
class PlacementWeights:
    """How much each criterion counts where a place is chosen; 0: not at all. Of regions: ``checkpoint`` (the newest one
    is there), ``capacity`` (share of its devices in service), ``price``, ``spot``, ``room``. Of nodes: ``health``
    (share of its devices that are good), ``incidents`` (recent ones of node and rack), ``packing`` (few devices left
    over), and ``topology`` (members of a gang near each other)."""

    checkpoint: int = 100
    capacity: int = 40
    price: int = 30
    spot: int = 30
    room: int = 10
    health: int = 60
    incidents: int = 60
    packing: int = 20
    topology: int = 80


@dataclass(frozen=True, slots=True)
class RegionTerms:
    """``price``: of a device-hour, in one currency for all; 0: not known. ``spot_risk``: chance that the provider takes
    a device back within a day. ``residency``: words that a job's spec may ask for, such as eu."""

    region: RegionId
    price: float = 0.0
    spot_risk: float = 0.0
    residency: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """``incidents_ms``: an incident seen last longer ago counts no more against its node and rack."""

    weights: PlacementWeights = field(default_factory=PlacementWeights)
    regions: tuple[RegionTerms, ...] = ()
    incidents_ms: int = DAY_MS


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """From one region to another, in this direction: ``at_once`` moves, copies at ``bytes_per_s`` (0: no limit)."""

    source: RegionId
    target: RegionId
    at_once: int = 0
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class MovePolicy:
    """How many jobs move at once, recoveries included: in all, and from one region to another (``per_link``, and at
    ``link_bytes_per_s`` all copies of checkpoints together); ``links``: pairs of regions for which something else
    holds. 0: no limit."""

    at_once: int = 0
    per_link: int = 0
    link_bytes_per_s: int = 0
    links: tuple[LinkPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class SettlementPolicy:
    """A month is closed so long after its end, in the billing time zone of each contract: until then, events that
    arrive late change it as if they had come in time."""

    close_after_ms: int = 2 * HOUR_MS


@dataclass(frozen=True, slots=True)
class AlertsPolicy:
    """Who is told of alerts on objectives: base URLs of Alertmanagers (API v2), and URLs of webhooks. Each place gets
    at most ``per_minute`` requests; what is left waits. An Alertmanager is reminded every ``resend_ms`` while an alert
    fires, and takes it for resolved when it has not been for three times that."""

    alertmanagers: tuple[str, ...] = ()
    webhooks: tuple[str, ...] = ()
    resend_ms: int = 60_000
    per_minute: int = 60


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators may tune, besides timings. ``version`` is given by the store when a document is applied; 0: none
    has been, and this is the built-in one or that of the configuration."""

    version: int = 0
    mode: Mode = Mode.ACT
    catalogue: CataloguePolicy = field(default_factory=CataloguePolicy)
    rules: tuple[RulePolicy, ...] = ()
    events: tuple[EventPolicy, ...] = ()
    repeats: tuple[RepeatPolicy, ...] = ()
    budgets: tuple[BudgetPolicy, ...] = (
        BudgetPolicy("region", 0.25, 1),
        BudgetPolicy("rack", 0.5, 1),
        BudgetPolicy("vendor", 0.25, 1),
    )
    breakers: tuple[BreakerPolicy, ...] = (BreakerPolicy(),)
    drain: DrainPolicy = field(default_factory=DrainPolicy)
    repair: RepairPolicy = field(default_factory=RepairPolicy)
    liveness: LivenessPolicy = field(default_factory=LivenessPolicy)
    peers: PeerPolicy = field(default_factory=PeerPolicy)
    freeze_fraction: float = 0.5  # more nodes than this silent at once: the observer is what is broken
    probation_ms: int = 600_000
    repair_hold_ms: int = 60_000  # drained at least this long before clear evidence moves it on to probation
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    region_loss: RegionLossPolicy = field(default_factory=RegionLossPolicy)
    placement: PlacementPolicy = field(default_factory=PlacementPolicy)
    moves: MovePolicy = field(default_factory=MovePolicy)
    settlement: SettlementPolicy = field(default_factory=SettlementPolicy)
    alerts: AlertsPolicy = field(default_factory=AlertsPolicy)
