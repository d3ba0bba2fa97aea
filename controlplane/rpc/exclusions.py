"""Pure: one more event of the log of exclusions, and the log as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.rpc.intents import Plan, Wish, devices_of
from controlplane.rpc.refusal import invalid, not_found, precondition
from gridkeeper.decision import ABSENT, Decision, Now, Put
from gridkeeper.keys import KEYS
from gridkeeper.records.settlement import Cause, ExclusionRecord
from gridkeeper.sla.exclusions import checked_scope, in_force
from gridkeeper.snapshot import GlobalState, RegionState

MAX_EVENTS = 20_000
"""Each replica mirrors the log."""
MAX_LENGTH_MS = 90 * 86_400_000
MAX_AGE_MS = 400 * 86_400_000
MAX_EVIDENCE = 8
MAX_REFERENCE = 200


@dataclass(frozen=True, slots=True)
class Asked:
    scope: str
    cause: Cause
    from_ms: int
    until_ms: int
    evidence: tuple[str, ...]


def record(asked: Asked, wish: Wish, region: RegionState, world: GlobalState, now: Now) -> Plan:
    """Raises ``Refusal``. The same again, while it is in force, changes nothing."""
    _checked(asked, region, world, now)
    log = _log(world)
    for held in in_force(log):
        same = Asked(held.scope, held.cause, held.from_ms, held.until_ms, held.evidence)
        if same == asked:
            return Plan(f"this is exclusion {held.sequence} already, by {held.recorded_by}", _named(held.sequence))
    event = ExclusionRecord(
        _next(log), asked.scope, asked.cause, asked.from_ms, asked.until_ms, wish.actor, now.ledger_ms, wish.reason,
        asked.evidence, 0, wish.trace,
    )  # fmt: skip
    return _appended(
        event, f"exclusion {event.sequence}: {event.cause} on {event.scope} by {wish.actor}: {wish.reason}"
    )


def retract(name: str, wish: Wish, world: GlobalState, now: Now) -> Plan:
    """That it does not hold any more, from its beginning. Raises ``Refusal``."""
    log = _log(world)
    number = int(name) if name.isdecimal() and len(name) < 19 else -1
    found = next((event for event in log if event.sequence == number and not event.retracts), None)
    if found is None:
        raise not_found("exclusion", name, [str(e.sequence) for e in log if not e.retracts], "in the grid")
    before = next((event for event in log if event.retracts == number), None)
    if before is not None:
        return Plan(f"exclusion {number} is retracted already, by {before.recorded_by}", _named(number))
    event = ExclusionRecord(
        _next(log), found.scope, found.cause, found.from_ms, found.until_ms, wish.actor, now.ledger_ms, wish.reason, (),
        number, wish.trace,
    )  # fmt: skip
    return _appended(event, f"exclusion {number} retracted by {wish.actor}: {wish.reason}")


def _appended(event: ExclusionRecord, sentence: str) -> Plan:
    """The key is the number, so of two who append at once one is decided again."""
    number = event.retracts or event.sequence
    write = Put(KEYS.exclusion(event.sequence), event, ABSENT)
    decision = Decision(
        "exclusion.append", sentence, (write,), (), f"exclusion/{number}", event.evidence, event.trace
    )  # fmt: skip
    return Plan(sentence, _named(number), decision)


def _named(number: int) -> tuple[str, ...]:
    return (f"exclusion/{number}",)


def _log(world: GlobalState) -> tuple[ExclusionRecord, ...]:
    """Raises ``Refusal``: it cannot be read whole."""
    torn = sorted(key for key in world.suspect_keys if key.startswith(KEYS.prefix("exclusions")))
    if torn:
        raise precondition(f"{torn[0]} does not decode, so the log of exclusions is not whole; use the newer program")
    return tuple(sorted((held.record for held in world.exclusions.values()), key=lambda event: event.sequence))


def _next(log: Sequence[ExclusionRecord]) -> int:
    if len(log) >= MAX_EVENTS:
        raise precondition(f"there are {len(log)} exclusions, and no more than {MAX_EVENTS} are kept")
    return log[-1].sequence + 1 if log else 1


def _checked(asked: Asked, region: RegionState, world: GlobalState, now: Now) -> None:
    try:
        checked_scope(asked.scope)
    except ValueError as error:
        raise invalid(str(error)) from error
    kind, _, name = asked.scope.partition("/")
    if kind in ("device", "node"):
        devices_of(name, region)
    elif kind == "region" and name not in world.regions:
        raise not_found("region", name, [str(one) for one in world.regions], "in the grid")
    elif kind == "job" and name not in world.jobs and asked.scope not in world.accounts:
        raise not_found("job", name, [str(one) for one in world.jobs], "in the grid")
    if asked.until_ms <= asked.from_ms:
        raise invalid(f"until_ms: {asked.until_ms} is not after from_ms, {asked.from_ms}")
    if asked.until_ms - asked.from_ms > MAX_LENGTH_MS:
        raise invalid(f"until_ms: {asked.until_ms - asked.from_ms} ms long; at most {MAX_LENGTH_MS} (90 days)")
    if asked.from_ms < now.ledger_ms - MAX_AGE_MS:
        raise invalid(f"from_ms: {asked.from_ms} is more than 400 days ago; no contract settles that any more")
    if asked.cause is Cause.MAINTENANCE and asked.from_ms <= now.ledger_ms:
        raise precondition(
            "from_ms: maintenance that has begun was not announced; announce it before, or name the cause that it was"
        )
    if len(asked.evidence) > MAX_EVIDENCE:
        raise invalid(f"evidence: {len(asked.evidence)} references; at most {MAX_EVIDENCE}")
    for reference in asked.evidence:
        if not reference.isprintable() or not 0 < len(reference) <= MAX_REFERENCE:
            raise invalid(f"evidence: {reference[:80]!r} must be one line of at most {MAX_REFERENCE} characters")
