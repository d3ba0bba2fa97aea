"""How an applied policy comes into force in a region. Pure.

The global store holds the newest version; the region's leader copies it into the region's own store, which is what the
region decides by, also while it is cut off. What this program cannot read (a document of a newer one, after a
downgrade) is not copied: the version before stays in force.
"""

from __future__ import annotations

import functools

from gridkeeper.configfile import ConfigError
from gridkeeper.decision import ABSENT, Decision, Put
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.document import digest_of, parse_policy
from gridkeeper.policy.model import Policy
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.snapshot import GlobalState, RegionState


class BadPolicy(ValueError):
    """A stored policy that cannot come into force, and why."""


@functools.lru_cache(maxsize=8)
def policy_of(record: PolicyRecord) -> Policy:
    """What the record says. Raises ``BadPolicy``."""
    name = f"policy version {record.version}"
    if digest_of(record.text) != record.digest:
        raise BadPolicy(f"{name}: its text is not what was applied (the digest differs); apply it again")
    try:
        return parse_policy(record.text, name, record.version)
    except ConfigError as error:
        first, *more = str(error).splitlines()
        rest = f" (and {len(more)} more)" if more else ""
        raise BadPolicy(
            f"{name} does not validate here: {first}{rest}; the one before stays in force: upgrade this replica, or "
            "apply a policy that it knows"
        ) from error


def decide_policy(state: RegionState, world: GlobalState) -> tuple[Decision, ...]:
    """The copy of a newer policy that is valid, if there is one."""
    wanted, held = world.policy, state.policy
    key = RegionKeys(state.region).policy
    if wanted is None or key in state.suspect_keys:
        return ()
    record = wanted.record
    if held is not None and held.record.version >= record.version:
        return ()
    try:
        policy_of(record)
    except BadPolicy:
        return ()  # said by ``PolicyInForce`` of each replica
    before = f"version {held.record.version}" if held else "the built-in policy"
    sentence = (
        f"policy version {record.version} is in force in region {state.region} instead of {before}: applied by "
        f"{record.applied_by}: {record.reason}"
    )
    put = Put(key, record, held.revision if held else ABSENT)
    return (Decision("policy.copy", sentence, (put,), subject=f"policy/{record.version}"),)
