"""What operators plan and approve, through the command line and every real process: announced maintenance, and a repair
with a self-test before service."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.config import RepairCommands
from gridkeeper.policy.model import BudgetPolicy, Consent, EventPolicy, Policy, RepairPolicy
from gridkeeper.records.common import Action, Severity
from gridkeeper.v1 import api_pb2, records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DRAINED, HEALTHY = records_pb2.HEALTH_STATE_DRAINED, records_pb2.HEALTH_STATE_HEALTHY
SELF_TEST, RESET = records_pb2.REPAIR_KIND_SELF_TEST, records_pb2.REPAIR_KIND_RESET_DEVICE
DONE, PROPOSED = records_pb2.REPAIR_STATE_DONE, records_pb2.REPAIR_STATE_PROPOSED


async def cli(config: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gridkeeper.cli.main", "--config", str(config), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def options(log: Path) -> GridOptions:
    """Short times; XID 48 asks for a reset, which writes a line, and the self-test writes another one."""
    test = f"/bin/sh -c 'echo test $GRIDKEEPER_DEVICES >> {log}; echo fine'"
    policy = Policy(
        budgets=(BudgetPolicy("region", 1.0, 1),),
        events=(EventPolicy("resettable", "xid", Severity.FATAL, Action.RESET_DEVICE, (48,)),),
        repair=RepairPolicy(reset_device=Consent.CONFIRM, self_test=test),
        probation_ms=2_000,
        repair_hold_ms=1_000,
    )
    reset = ("/bin/sh", "-c", f"echo reset {{slot}} >> {log}")
    return GridOptions(regions=("east",), nodes=2, policy=policy, repair_commands=RepairCommands(reset_device=reset))


async def test_maintenance_and_a_repair_that_a_human_approves(stage: Stage, tmp_path: Path) -> None:
    log = tmp_path / "repairs"
    async with stage(options(log)) as (grid, seen):
        config, planned, faulty = grid.places.client, "east-2/gpu1", "east-1/gpu0"
        await seen.until("all devices are healthy", lambda: seen.health(planned) == seen.health(faulty) == HEALTHY)
        rehearsed = await cli(config, "drain", "east-2", "--dry-run")
        assert "would take out 8 of 8 devices" in rehearsed and not seen.drains()
        said = await cli(
            config, "maintenance", "plan", planned, "--from", "+8s", "--until", "+16s", "--lead", "4s", "--reason",
            "new firmware",
        )  # fmt: skip
        assert "new firmware" in said
        (window,) = await seen.until("the window", lambda: [o.maintenance for o in seen.of(api_pb2.KIND_MAINTENANCE)])
        (drain,) = await seen.until("its drain", lambda: seen.drains(planned))
        assert drain.maintenance == window.id and drain.planned_ms < window.from_ms, "it begins ahead of the window"
        await seen.until("it is drained", lambda: seen.health(planned) == DRAINED)

        # Meanwhile: a fault, a repair that waits for a human, the repair, the self-test, service.
        grid.xid("east-1", 0, 48)
        (repair,) = await seen.until(
            "a repair is proposed", lambda: [r for r in seen.repairs(faulty, RESET) if r.state == PROPOSED]
        )
        assert not log.exists(), "nothing is done without consent"
        assert repair.id in await cli(config, "repair", "list")
        assert "approved" in await cli(config, "repair", "approve", repair.id, "--reason", "go on")
        await seen.until("it is repaired", lambda: [r for r in seen.repairs(faulty, RESET) if r.state == DONE])
        await seen.until("it is tested", lambda: [r for r in seen.repairs(faulty, SELF_TEST) if r.state == DONE])
        await seen.until("it is back in service", lambda: seen.health(faulty) == HEALTHY)
        assert log.read_text().splitlines()[:2] == ["reset gpu0", "test gpu0"]

        await seen.until("the maintained device is back", lambda: seen.health(planned) == HEALTHY)
        ended = next(o.maintenance for o in seen.of(api_pb2.KIND_MAINTENANCE))
        assert ended.state == records_pb2.MAINTENANCE_STATE_ENDED and ended.until_ms == window.until_ms
        (account,) = (await seen.client.sla_status(f"device/{planned}")).slas
        assert account.totals.excluded_ms == window.until_ms - window.from_ms, "exactly what was announced"
        node = await seen.client.get(api_pb2.KIND_DEVICE, planned)
        assert not node.device.HasField("cordon")
