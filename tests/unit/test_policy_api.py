"""Protects: applying a policy is checked, compared and swapped, recorded, and can be taken back."""

from __future__ import annotations

import grpc
import pytest

from controlplane.rpc.grid import GridService
from controlplane.rpc.policies import KEPT
from controlplane.rpc.refusal import Refusal
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.identity.spiffe import UserRole
from gridkeeper.keys import KEYS
from gridkeeper.policy.difference import differences
from gridkeeper.policy.document import default_policy, default_text, parse_policy
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.v1 import api_pb2
from tests.fixtures.grid import FakeGrid


class Desk:
    def __init__(self) -> None:
        self.grid = FakeGrid("east")
        self.service = GridService(self.grid, self.grid, SystemClock(), SystemRng())

    async def apply(self, text: str, expect: int = -1, dry_run: bool = False) -> api_pb2.ApplyPolicyResponse:
        request = api_pb2.ApplyPolicyRequest(
            text=text, source="p.yaml", reason="because", expect_version=expect, dry_run=dry_run
        )
        return await self.service.apply_policy(request, "user/ann")

    async def refused(self, text: str, expect: int = -1) -> Refusal:
        with pytest.raises(Refusal) as refused:
            await self.apply(text, expect)
        return refused.value

    @property
    def stored(self) -> PolicyRecord | None:
        held = self.grid.globe.data.get(KEYS.policy)
        return held.record if held else None


async def test_a_version_is_applied_recorded_and_shown() -> None:
    desk = Desk()
    told = await desk.apply("freeze_fraction: 0.3\n")
    assert told.version == 1 and "freeze_fraction: 0.5 -> 0.3" in told.changes
    assert desk.stored is not None and desk.stored.applied_by == "user/ann" and desk.stored.reason == "because"
    shown = await desk.service.get_policy(api_pb2.GetPolicyRequest(version=1))
    assert shown.record.text == "freeze_fraction: 0.3\n"
    audits = [v.record for key, v in desk.grid.globe.data.items() if "/audit/" in key]
    assert [(a.verb, a.actor, a.object) for a in audits] == [("policy.apply", "user/ann", "policy/1")]
    assert "freeze_fraction: 0.5 -> 0.3" in audits[0].sentence


async def test_the_same_document_again_changes_nothing() -> None:
    desk = Desk()
    await desk.apply(default_text())
    told = await desk.apply(default_text())
    assert (told.version, list(told.changes)) == (1, []) and "already" in told.sentence
    assert len(desk.grid.globe.under(KEYS.prefix("policies"))) == 1


async def test_a_dry_run_checks_and_writes_nothing() -> None:
    desk = Desk()
    told = await desk.apply("probation_ms: 1\n", dry_run=True)
    assert told.version == 1 and "probation_ms: 600000 -> 1" in told.changes and desk.stored is None
    with pytest.raises(Refusal, match=r"p\.yaml:1: probation_ms: -1"):
        await desk.apply("probation_ms: -1\n", dry_run=True)


async def test_every_fault_is_refused_with_its_line() -> None:
    desk = Desk()
    refusal = await desk.refused("mode: no\nrules:\n  - {name: a, when: 'temprature_c > 1'}\n")
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT and desk.stored is None
    assert "p.yaml:3: rules[0].when: there is no column 'temprature_c'; did you mean temperature_c" in str(refusal)


async def test_it_is_compared_and_swapped() -> None:
    """Protects against two people who each put back what the other changed."""
    desk = Desk()
    await desk.apply("probation_ms: 1\n", expect=0)
    refusal = await desk.refused("probation_ms: 2\n", expect=0)
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION and "the newest policy is version 1, not 0" in str(
        refusal
    )
    won = desk.grid.globe.data[KEYS.policy].record

    def race() -> None:
        desk.grid.put(KEYS.policy, PolicyRecord(2, won.text + "#\n", "other", "user/bob", 1, "first"))

    desk.grid.races.append(race)
    assert "not 1" in str(await desk.refused("probation_ms: 3\n", expect=1))
    assert desk.stored is not None and desk.stored.applied_by == "user/bob"


async def test_a_history_is_kept_and_bounded() -> None:
    desk = Desk()
    for number in range(KEPT + 5):
        await desk.apply(f"probation_ms: {number}\n")
    answer = await desk.service.policy_history()
    assert [record.version for record in answer.records] == list(range(6, KEPT + 6))
    assert not any(record.text for record in answer.records)
    with pytest.raises(Refusal, match="policy '1' is not in the history"):
        await desk.service.get_policy(api_pb2.GetPolicyRequest(version=1))


async def test_after_a_restored_backup_versions_still_only_grow() -> None:
    desk = Desk()
    desk.grid.put(desk.grid.keys.policy, PolicyRecord(7, "probation_ms: 7\n", "x", "user/ann", 1, ""))
    assert (await desk.apply("probation_ms: 8\n")).version == 8


async def test_without_one_the_built_in_document_is_shown() -> None:
    desk = Desk()
    shown = await desk.service.get_policy(api_pb2.GetPolicyRequest())
    assert shown.record.version == 0 and parse_policy(shown.record.text, "x").rules == desk.grid.settings().policy.rules
    told = await desk.service.info("user/ann", UserRole.ADMIN)
    assert (told.policy_version, told.policy_problem) == (0, "")


def test_differences_are_named() -> None:
    old = default_policy()
    text = default_text().replace("name: hot\n", "name: hotter\n").replace("remap_failed >= 1", "remap_failed >= 2")
    told = differences(old, parse_policy(text + "drain: {flaps: 9}\n", "x"))
    assert told == (
        "rule hot removed",
        "rule hotter added",
        "rule remap-failed.when: remap_failed >= 1 -> remap_failed >= 2",
        "drain.flaps: 3 -> 9",
    )
    assert differences(old, old) == ()
