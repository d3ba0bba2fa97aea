"""Protects: the newest valid policy comes into force in each region without a restart, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.policies import BadPolicy, decide_policy, policy_of
from controlplane.shell.policies import PolicyInForce
from controlplane.shell.states import global_state, region_state
from gridkeeper.decision import ABSENT, Put
from gridkeeper.ids import RegionId
from gridkeeper.keys import GLOBAL, KEYS, RegionKeys, region_root
from gridkeeper.policy.document import default_policy, default_text, digest_of
from gridkeeper.policy.model import Mode, Policy
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.snapshot import RegionState, Settings
from gridkeeper.timings import Timings
from tests.fixtures.grid import Kept, MemoryStore

EAST = RegionId("east")
KEY = RegionKeys(EAST).policy


def record(version: int, text: str = "") -> PolicyRecord:
    text = text or f"freeze_fraction: 0.{version}\n"
    return PolicyRecord(version, text, digest_of(text), "user/ann", 5, "because")


class Stores:
    """Both stores, the region's leader, and what one replica decides by."""

    def __init__(self) -> None:
        self.local, self.globe = MemoryStore(), MemoryStore()
        self._local, self._world = Kept(self.local, region_root(EAST)), Kept(self.globe, GLOBAL)
        self.start()

    def start(self) -> None:
        """The replica, anew: it has read no policy yet."""
        self.force = PolicyInForce(EAST, self._local, self._world, Settings(Timings(), default_policy()))

    def unreadable(self, *keys: str) -> None:
        self._local.suspect = frozenset(keys)

    def lead(self) -> int:
        """A leader's round; how many decisions it made."""
        decisions = decide_policy(region_state(EAST, self._local), global_state(self._world))
        for decision in decisions:
            self.local.apply(decision)
        return len(decisions)

    @property
    def policy(self) -> Policy:
        return self.force.settings().policy


def test_what_is_applied_is_copied_into_the_region_and_counts_there() -> None:
    stores = Stores()
    assert stores.policy is default_policy() and stores.lead() == 0
    stores.globe.put(KEYS.policy, record(1))
    assert stores.policy is default_policy()  # the region decides by its own copy
    assert stores.lead() == 1 and stores.lead() == 0
    assert (stores.policy.version, stores.policy.freeze_fraction) == (1, 0.1)
    assert stores.policy is stores.policy  # read once
    stores.globe.put(KEYS.policy, record(2))
    assert stores.lead() == 1 and stores.policy.version == 2 and stores.force.problem == ""


def test_an_older_view_of_the_global_store_takes_nothing_back() -> None:
    stores = Stores()
    stores.local.put(KEY, record(3))
    stores.globe.put(KEYS.policy, record(2))
    assert stores.lead() == 0 and stores.policy.version == 3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (
            record(2, "rules: 1\n"),
            "policy version 2 does not validate here: policy version 2:1: rules: '1' is not a list",
        ),
        (record(2, "from_the_future: 1\n"), "there is no such field"),
        (replace(record(2), digest="x"), "its text is not what was applied"),
    ],
)
def test_what_does_not_validate_leaves_the_one_before_in_force_and_is_said(bad: PolicyRecord, told: str) -> None:
    stores = Stores()
    stores.globe.put(KEYS.policy, record(1))
    stores.lead()
    stores.globe.put(KEYS.policy, bad)
    assert stores.lead() == 0 and stores.policy.version == 1 and told in stores.force.problem
    stores.local.put(KEY, bad)  # a leader of a newer program copied it
    assert stores.policy.version == 1 and told in stores.force.problem
    stores.local.put(KEY, record(3))
    stores.globe.put(KEYS.policy, record(3))
    assert stores.policy.version == 3 and stores.force.problem == ""
    with pytest.raises(BadPolicy, match="policy version 2"):
        policy_of(bad)


def test_a_copy_that_is_gone_or_does_not_decode_changes_nothing() -> None:
    stores = Stores()
    stores.local.put(KEY, record(1))
    assert stores.policy.version == 1
    stores.local.delete(KEY)
    assert stores.policy.version == 1
    stores.globe.put(KEYS.policy, record(2))
    world = global_state(Kept(stores.globe, GLOBAL))
    assert decide_policy(RegionState(EAST, suspect_keys=frozenset({KEY})), world) == ()
    assert len(decide_policy(RegionState(EAST), world)) == 1


def test_the_copy_is_the_record_itself_on_the_revision_that_was_seen() -> None:
    stores = Stores()
    stores.globe.put(KEYS.policy, record(1, default_text()))
    (decision,) = decide_policy(RegionState(EAST), global_state(Kept(stores.globe, GLOBAL)))
    assert decision.writes == (Put(KEY, record(1, default_text()), ABSENT),)
    assert decision.audit and "applied by user/ann: because" in decision.sentence


@pytest.mark.parametrize("bad", [record(2, "from_the_future: 1\n"), replace(record(2), digest="x"), None])
def test_a_replica_that_starts_with_a_copy_that_it_cannot_read_drains_nothing_by_itself(
    bad: PolicyRecord | None,
) -> None:
    """Protects: a downgrade (or a broken record) does not turn a policy that forbids draining into the built-in one,
    which drains; what can be read again counts again."""
    stores = Stores()
    stores.local.put(KEY, record(1, "mode: shadow\n"))
    assert stores.policy.mode is Mode.SHADOW
    if bad is None:
        stores.local.delete(KEY)
        stores.unreadable(KEY)
    else:
        stores.local.put(KEY, bad)
    stores.start()
    assert default_policy().mode is Mode.ACT and stores.policy == replace(default_policy(), mode=Mode.SHADOW)
    assert "nothing is drained automatically" in stores.force.problem
    stores.unreadable()
    stores.local.put(KEY, record(3))
    assert (stores.policy.version, stores.policy.mode, stores.force.problem) == (3, Mode.ACT, "")


def test_a_replica_that_starts_without_a_copy_has_nothing_to_wait_for() -> None:
    """Protects: a new region drains by what it was started with."""
    stores = Stores()
    stores.local.put(KEY, record(2, "from_the_future: 1\n"))
    assert stores.policy.mode is Mode.SHADOW
    stores.local.delete(KEY)
    assert stores.policy is default_policy() and stores.force.problem == ""
