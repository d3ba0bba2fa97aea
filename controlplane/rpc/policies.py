"""Pure: applying a policy, and what the API shows of the policies that there are."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.rpc.intents import Wish
from controlplane.rpc.refusal import invalid, not_found, precondition
from gridkeeper.configfile import ConfigError
from gridkeeper.decision import Decision, Delete, Draft, Now, Put, Versioned
from gridkeeper.keys import KEYS
from gridkeeper.policy.difference import differences
from gridkeeper.policy.document import default_policy, default_text, digest_of, parse_policy, policy_text
from gridkeeper.policy.model import Policy
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.snapshot import GlobalState, RegionState

KEPT = 100
"""Versions in the history; the oldest leaves when a newer one is applied."""
SHOWN = 4


@dataclass(frozen=True, slots=True)
class Applied:
    """``decision`` None: nothing is to be written."""

    sentence: str
    version: int
    changes: tuple[str, ...]
    decision: Decision | None = None


def newest(region: RegionState, world: GlobalState) -> int:
    """The highest version that there has been: the global store's, or (it was restored from a backup) a region's."""
    held = [v.record.version for v in (world.policy, region.policy) if v is not None]
    return max(held, default=0)


def apply(
    text: str, source: str, expect: int, wish: Wish, region: RegionState, world: GlobalState, in_force: Policy, now: Now
) -> Applied:
    """The next version. ``expect``: what the newest one must be; -1: any. Raises ``Refusal``."""
    name = source if source.isprintable() and 0 < len(source) <= 200 else "policy"
    try:
        wanted = parse_policy(text, name)
    except ConfigError as error:
        raise invalid(str(error)) from error
    if expect < -1:
        raise invalid(f"expect_version: {expect} is no version; use -1 for whichever is the newest")
    if KEYS.policy in world.suspect_keys:
        raise precondition(f"{KEYS.policy} does not decode: a newer program wrote it; apply from that one")
    held, version = world.policy, newest(region, world)
    if expect not in (-1, version):
        raise precondition(
            f"expect_version: the newest policy is version {version}, not {expect}; look at 'gridkeeper policy diff "
            f"{expect} {version}', put both together and apply with --expect-version {version}"
        )
    before = _read(held, in_force)
    changes = differences(before, wanted)
    if held is not None and held.record.digest == digest_of(text):
        return Applied(f"this is policy version {held.record.version} already", held.record.version, ())
    record = PolicyRecord(version + 1, text, digest_of(text), wish.actor, now.ledger_ms, wish.reason)
    draft = Draft()
    draft.put(KEYS.policy, record, held)
    draft.put(KEYS.policy_version(record.version), record, None)
    writes: list[Put | Delete] = [*draft.writes()]
    writes += [Delete(KEYS.policy_version(old.record.version), old.revision) for old in _too_old(world)]
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    what = "; ".join(changes[:SHOWN]) + more if changes else "only its text differs"
    sentence = f"policy version {record.version} applied by {wish.actor}: {wish.reason} ({what})"
    decision = Decision(
        "policy.apply", sentence, tuple(writes), (), f"policy/{record.version}", (f"policy/{version}",), wish.trace
    )
    return Applied(sentence, record.version, changes, decision)


def _read(held: Versioned[PolicyRecord] | None, in_force: Policy) -> Policy:
    """The newest policy, or (it does not validate here) the one in force."""
    if held is None:
        return in_force
    try:
        return parse_policy(held.record.text, f"policy version {held.record.version}", held.record.version)
    except ConfigError:
        return in_force


def _too_old(world: GlobalState) -> list[Versioned[PolicyRecord]]:
    ordered = sorted(world.policies.values(), key=lambda v: v.record.version)
    return ordered[: max(0, len(ordered) - (KEPT - 1))]


def shown(version: int, region: RegionState, world: GlobalState, in_force: Policy) -> PolicyRecord:
    """A version of the history; 0: the one in force here. Raises ``Refusal``."""
    wanted = version or in_force.version
    if wanted == 0:
        text = default_text() if in_force == default_policy() else policy_text(in_force)
        return PolicyRecord(0, text, digest_of(text), "", 0, "in force until a policy is applied")
    held = [*world.policies.values(), *([region.policy] if region.policy else [])]
    known: dict[int, PolicyRecord] = {v.record.version: v.record for v in held}
    if wanted not in known:
        raise not_found("policy", str(wanted), [str(v) for v in known], "in the history ('gridkeeper policy history')")
    return known[wanted]


def history(world: GlobalState) -> tuple[PolicyRecord, ...]:
    """Oldest first."""
    return tuple(sorted((v.record for v in world.policies.values()), key=lambda record: record.version))
