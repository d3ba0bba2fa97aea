"""An agent begins each repair at most once, never on a device in use, and says what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from gridkeeper.config import RepairCommands
from gridkeeper.ports.devices import Device
from gridkeeper.ports.disk import DiskError
from gridkeeper.ports.hostwork import CannotTell, Ended
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import HostCommand
from nodeagent.hostcommands import KEPT, BadMemory, HostCommands
from nodeagent.statefile import MemoryState

RESET, REBOOT, TEST = (
    records_pb2.REPAIR_KIND_RESET_DEVICE,
    records_pb2.REPAIR_KIND_REBOOT_NODE,
    records_pb2.REPAIR_KIND_SELF_TEST,
)
GPU = Device("gpu0", "GPU-1", "nvidia", "H100", "hopper", "0000:91:00.0", "1", 81_559, "570")
COMMANDS = RepairCommands(("reset", "-i", "{uuid}", "{pci}"), ("reboot",))


async def answered(repairs: HostCommands, name: str, *states: int) -> str:
    """The words of the answer, once it is one of ``states``."""
    for _ in range(10_000):
        report = repairs.report(name)
        if report is not None and report.state in states:
            return report.detail
        await asyncio.sleep(0)
    raise AssertionError(f"repair {name} is {repairs.report(name)}")


class HandClock:
    """``Clock`` that the test moves on."""

    def __init__(self) -> None:
        self.now_ms = 5_000
        self._moved = asyncio.Event()

    def mono_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    async def sleep(self, ms: int) -> None:
        until_ms = self.now_ms + ms
        while self.now_ms < until_ms:
            await self._moved.wait()

    def move(self, ms: int) -> None:
        self.now_ms += ms
        self._moved.set()
        self._moved = asyncio.Event()


class Bench:
    """An agent's repairs, with a runner that ends when it is told to."""

    def __init__(
        self, memory: MemoryState | None = None, boot: str = "b1", user: str = "", clock: HandClock | None = None
    ) -> None:
        self.clock = clock or HandClock()
        self.memory = memory or MemoryState()
        self.user = user
        self.ran: list[tuple[str, ...]] = []
        self.environments: list[Mapping[str, str]] = []
        self.ending: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.repairs = HostCommands(
            COMMANDS, self.memory, self, boot, lambda: (GPU,), lambda slot: self.user, self.clock
        )
        self.task = asyncio.ensure_future(self.repairs.run())

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Ended:
        self.ran.append(tuple(argv))
        self.environments.append(environment)
        return await self.ending

    def take(self, name: str = "r1", kind: int = RESET, slot: str = "gpu0", term: int = 5, **more: object) -> None:
        command = HostCommand(term=term, id=name, slot=slot, timeout_ms=1_000, **more)  # type: ignore[arg-type]
        command.kind = kind  # type: ignore[assignment]
        self.repairs.take(command)

    async def until(self, name: str, *states: int) -> str:
        return await answered(self.repairs, name, *states)

    async def die(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


RUNNING, DONE = records_pb2.REPAIR_STATE_RUNNING, records_pb2.REPAIR_STATE_DONE
FAILED, LOST = records_pb2.REPAIR_STATE_FAILED, records_pb2.REPAIR_STATE_LOST


async def test_a_repair_runs_once_however_often_it_is_ordered() -> None:
    bench = Bench()
    for _ in range(3):
        bench.take()
    await bench.until("r1", RUNNING)
    assert bench.repairs.busy == {"gpu0"}, "no job is started on it meanwhile"
    bench.take()
    bench.ending.set_result(Ended(0, "reset"))
    assert await bench.until("r1", DONE) == "reset"
    bench.take(term=9)
    await asyncio.sleep(0)
    assert bench.ran == [("reset", "-i", "GPU-1", "0000:91:00.0")] and not bench.repairs.busy
    assert bench.environments[0]["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    await bench.die()


async def test_an_agent_that_died_in_the_middle_says_lost_and_never_runs_it_again() -> None:
    bench = Bench()
    bench.take()
    await bench.until("r1", RUNNING)
    await bench.die()
    again = Bench(bench.memory)
    again.take()
    assert "restarted meanwhile" in await again.until("r1", LOST)
    await asyncio.sleep(0)
    assert not again.ran
    await again.die()


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_reboot_that_was_begun_is_done_when_the_host_has_booted_anew() -> None:
    bench = Bench()
    bench.take(kind=REBOOT, slot="")
    await bench.until("r1", RUNNING)
    assert bench.repairs.busy == {""}
    await bench.die()
    other = Bench(bench.memory, boot="b2")
    assert "booted anew" in await other.until("r1", DONE) and not other.repairs.busy
    await other.die()


@pytest.mark.parametrize("ended", [Ended(0, ""), Ended(-15, "killed"), CannotTell("no word of it")])
async def test_a_reboot_whose_command_ended_is_under_way_until_its_time_is_up(ended: Ended | CannotTell) -> None:
    """Protects: a command that only asks for the reboot (or that the shutdown itself kills) does not pass for one, and
    no job is started on a host that is about to go down."""
    bench = Bench()
    if isinstance(ended, CannotTell):
        bench.ending.set_exception(ended)
    else:
        bench.ending.set_result(ended)
    bench.take(kind=REBOOT, slot="")
    await bench.until("r1", RUNNING)
    bench.clock.move(999)
    await turns()
    bench.take("r2")
    await turns()
    assert bench.repairs.busy == {""} and len(bench.ran) == 1
    await bench.until("r1", RUNNING)
    bench.clock.move(1)
    assert "has not booted anew in time" in await bench.until("r1", LOST) and not bench.repairs.busy
    await turns()
    assert bench.repairs.report("r2") is None, "what was ordered meanwhile is begun only if it is still wanted"
    await bench.die()


async def test_a_reboot_is_waited_for_by_an_agent_that_restarted_on_the_same_boot() -> None:
    """Protects: a restart of the agent neither proves a reboot nor ends the wait for it."""
    bench = Bench()
    bench.take(kind=REBOOT, slot="")
    await bench.until("r1", RUNNING)
    await bench.die()
    bench.clock.move(600)
    again = Bench(bench.memory, clock=bench.clock)
    await turns()
    again.take("r2")
    await turns()
    assert again.repairs.busy == {""} and not again.ran
    await again.until("r1", RUNNING)
    again.clock.move(400)
    assert "the agent restarted meanwhile" in await again.until("r1", LOST) and not again.repairs.busy
    await turns()
    assert again.repairs.report("r2") is None
    await again.die()


async def test_a_reboot_whose_command_fails_has_failed() -> None:
    bench = Bench()
    bench.ending.set_result(Ended(1, "access denied"))
    bench.take(kind=REBOOT, slot="")
    assert await bench.until("r1", FAILED) == "exit status 1: access denied" and not bench.repairs.busy
    await bench.die()


async def test_nothing_begins_on_a_device_that_a_job_uses() -> None:
    bench = Bench(user="train")
    bench.take()
    assert "job train uses gpu0" in await bench.until("r1", FAILED)
    assert not bench.ran and bench.memory.load() is None
    await bench.die()


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"slot": "gpu7"}, "not in the inventory"),
        ({"slot": "../etc"}, "slot"),
        ({"kind": records_pb2.REPAIR_KIND_TICKET}, "none that an agent"),
        ({"kind": TEST, "command": "'"}, "no command line"),
        ({"kind": TEST, "command": ""}, "it is empty"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_and_says_why(order: dict[str, object], why: str) -> None:
    bench = Bench()
    bench.take(**order)  # type: ignore[arg-type]
    assert why in await bench.until("r1", FAILED) and not bench.ran
    await bench.die()


async def test_what_is_not_configured_is_refused() -> None:
    bench = Bench()
    bare = HostCommands(RepairCommands(), MemoryState(), bench, "b", lambda: (GPU,), lambda slot: "", bench.clock)
    task = asyncio.ensure_future(bare.run())
    command = HostCommand(term=1, id="r", slot="gpu0", timeout_ms=1)
    command.kind = RESET  # type: ignore[assignment]
    bare.take(command)
    assert "repair_commands.reset_device" in await answered(bare, "r", FAILED) and not bench.ran
    task.cancel()
    await bench.die()


async def test_an_order_of_a_leader_that_was_succeeded_is_ignored() -> None:
    bench = Bench()
    bench.take("r1", term=7)
    await bench.until("r1", RUNNING)
    bench.take("r2", term=6)
    bench.ending.set_result(Ended(1, "no"))
    assert await bench.until("r1", FAILED) == "exit status 1: no"
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.repairs.report("r2") is None and len(bench.ran) == 1
    await bench.die()


async def test_an_order_that_came_while_another_ran_begins_only_if_it_is_still_repeated() -> None:
    """Protects: a repair that was given up, its device returned, is not begun late because it had waited in line."""
    bench = Bench()
    bench.take("r1")
    await bench.until("r1", RUNNING)
    bench.take("r2")
    bench.ending.set_result(Ended(0, "reset"))
    await bench.until("r1", DONE)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.repairs.report("r2") is None and len(bench.ran) == 1
    bench.take("r2")
    await bench.until("r2", DONE)
    assert len(bench.ran) == 2
    await bench.die()


@pytest.mark.parametrize(
    ("ended", "state", "detail"),
    [
        (Ended(0, ""), DONE, "it said nothing"),
        (Ended(3, "cannot test: no PyTorch"), LOST, "no PyTorch"),
        (Ended(1, "failed: wrong product"), FAILED, "wrong product"),
        (Ended(-9, "killed", timed_out=True), FAILED, "no end within 1000 ms"),
        (Ended(-9, ""), LOST, "for want of memory"),
        (Ended(-11, ""), FAILED, "exit status -11"),
        (CannotTell("its host is gone"), LOST, "its host is gone"),
    ],
)
async def test_how_a_self_test_ends(ended: Ended | CannotTell, state: int, detail: str) -> None:
    bench = Bench()
    bench.take(kind=TEST, command="builtin")
    if isinstance(ended, CannotTell):
        bench.ending.set_exception(ended)
    else:
        bench.ending.set_result(ended)
    assert detail in await bench.until("r1", state)
    assert bench.ran[0][-4:] == ("-m", "nodeagent.selftest", "--vendor", "nvidia")
    await bench.die()


class FullDisk(MemoryState):
    full = True

    async def save(self, data: bytes) -> None:
        if self.full:
            raise DiskError("no space left")
        await super().save(data)


async def test_what_cannot_be_written_down_is_not_begun_until_it_can() -> None:
    disk = FullDisk()
    bench = Bench(disk)
    bench.take()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not bench.ran and bench.repairs.report("r1") is None and not bench.repairs.busy
    disk.full = False
    bench.take()
    await bench.until("r1", RUNNING)
    await bench.die()


async def test_its_memory_is_bounded_and_a_damaged_one_is_an_error() -> None:
    bench = Bench()
    bench.ending.set_result(Ended(0, "ok"))
    for number in range(KEPT + 40):
        bench.take(f"r{number}")
        await bench.until(f"r{number}", DONE)
    assert (bench.memory.load() or b"").count(b'"id"') == KEPT
    await bench.die()
    damaged = MemoryState()
    await damaged.save(b'{"begun": [{"id": 1}]}')
    with pytest.raises(BadMemory, match="does not decode"):
        Bench(damaged)
