"""Repairs and self-tests of this host, as the control plane orders them: each id begins at most once, ever.

Level-triggered like jobs: a command is repeated until its answer is durable, and each repetition is answered by where
it stands. That an id begins is on disk before it begins. An agent that finds, when it starts, an id that had begun and
not ended cannot know what became of it: it is ``lost``.

A reboot is done once the host has another boot id, and not before: ``systemctl reboot`` ends with 0 while the host
still runs. Until then it is under way and no job is started here, also after a restart of the agent; past its timeout
without another boot id it is ``lost``.

Nothing is begun on a device that a job uses, or is about to use, and no job is started on one that is being repaired.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from gridkeeper.config import RepairCommands
from gridkeeper.ids import BadName, checked_name
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import Device
from gridkeeper.ports.disk import DiskError
from gridkeeper.ports.hostwork import CannotTell, Ended, HostRunner
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import HostCommand, HostReport
from nodeagent.statefile import StateFile

log = logging.getLogger("gridkeeper.agent.repairs")

KEPT = 512
"""Ids that are remembered. The control plane has one under way per node, each with a deadline."""
MAX_DETAIL = 500
MAX_ID = 300
BUILTIN = "builtin"
RUNNING, DONE, FAILED, LOST = "running", "done", "failed", "lost"
REBOOT = "reboot_node"
KINDS = {
    records_pb2.REPAIR_KIND_SELF_TEST: "self_test",
    records_pb2.REPAIR_KIND_RESET_DEVICE: "reset_device",
    records_pb2.REPAIR_KIND_REBOOT_NODE: REBOOT,
}
STATES = {
    RUNNING: records_pb2.REPAIR_STATE_RUNNING,
    DONE: records_pb2.REPAIR_STATE_DONE,
    FAILED: records_pb2.REPAIR_STATE_FAILED,
    LOST: records_pb2.REPAIR_STATE_LOST,
}


@dataclass(frozen=True, slots=True)
class Begun:
    """One id that has begun here. ``until_ms``: when a reboot is given up, on the boot-time clock of ``boot_id``."""

    id: str
    kind: str
    slot: str
    boot_id: str
    state: str
    detail: str = ""
    until_ms: int = 0


class NoRunner:
    """``HostRunner`` of an agent that can run nothing."""

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Ended:
        return Ended(127, "this agent runs no repairs")


class BadMemory(ValueError):
    """What had begun here cannot be read: an id could run twice. The message names the file's fault."""


class HostCommands:
    """One per agent. ``take`` and ``report`` are called by the stream, on the loop. ``user_of``: the job that uses a
    slot, or is about to ("" as the slot: any of the host)."""

    def __init__(
        self,
        commands: RepairCommands,
        memory: StateFile,
        runner: HostRunner,
        boot_id: str,
        devices: Callable[[], Sequence[Device]],
        user_of: Callable[[str], str],
        clock: Clock,
    ) -> None:
        """Raises ``BadMemory`` and ``DiskError``."""
        self._commands = commands
        self._memory = memory
        self._runner = runner
        self._boot_id = boot_id
        self._devices = devices
        self._user_of = user_of
        self._clock = clock
        self._term = 0
        self._begun: dict[str, Begun] = {}
        self._refused: dict[str, str] = {}
        self._waiting: asyncio.Queue[HostCommand] = asyncio.Queue()
        self._queued: set[str] = set()
        self._load()

    @property
    def busy(self) -> frozenset[str]:
        """Slots that no job may be started on now; "" stands for all of the host."""
        return frozenset(b.slot for b in self._begun.values() if b.state == RUNNING)

    def take(self, command: HostCommand) -> None:
        """One that is malformed or of a term that is over is logged and changes nothing."""
        if command.term < self._term:
            log.warning("Repair %.80s refused: term %d is over, %d leads", command.id, command.term, self._term)
            return
        self._term = command.term
        if not command.id or len(command.id) > MAX_ID or not command.id.isprintable():
            log.warning("Repair refused: command.id: %.80r is no id", command.id)
            return
        if command.id in self._begun or self._queued or self.busy:
            return  # behind another it could begin long after it was given up; while it is wanted, it is repeated
        self._queued.add(command.id)
        self._waiting.put_nowait(command)

    def report(self, repair: str) -> HostReport | None:
        """Where an id stands; None: nothing to say yet."""
        begun = self._begun.get(repair)
        if begun is not None:
            return HostReport(id=repair, state=STATES[begun.state], detail=begun.detail)
        if repair in self._refused:
            return HostReport(id=repair, state=records_pb2.REPAIR_STATE_FAILED, detail=self._refused[repair])
        return None

    async def run(self) -> None:
        """For ever, one after another; first what an earlier life of the agent left under way."""
        for begun in [b for b in self._begun.values() if b.state == RUNNING]:
            await self._end(begun, *await self._not_rebooted(begun, "the agent restarted meanwhile"))
        while True:
            command = await self._waiting.get()
            try:
                await self._carry_out(command)
            finally:
                self._queued.discard(command.id)

    async def _carry_out(self, command: HostCommand) -> None:
        try:
            kind, argv = self._argv(command)
        except ValueError as error:
            self._refuse(command.id, str(error))
            return
        slot = "" if kind == REBOOT else command.slot
        user = self._user_of(slot)
        if user:
            self._refuse(command.id, f"job {user} uses {command.slot or 'the node'}: nothing was begun")
            return
        until_ms = self._clock.mono_ms() + command.timeout_ms if kind == REBOOT else 0
        begun = Begun(command.id, kind, slot, self._boot_id, RUNNING, until_ms=until_ms)
        self._begun[command.id] = begun  # from here on no job is started on it
        try:
            await self._save()
        except DiskError as error:
            del self._begun[command.id]
            log.error("Repair %s is not begun, since that cannot be written down: %s", command.id, error)
            return  # the command is repeated
        log.info("Repair %s begins: %s", command.id, shlex.join(argv))
        rebooting = kind == REBOOT
        await self._end(
            begun, *await (self._reboot(begun, command, argv) if rebooting else self._outcome(command, argv))
        )

    async def _end(self, begun: Begun, state: str, detail: str) -> None:
        log.log(logging.INFO if state == DONE else logging.WARNING, "Repair %s is %s: %s", begun.id, state, detail)
        self._begun[begun.id] = replace(begun, state=state, detail=detail[:MAX_DETAIL])
        try:
            await self._save()
        except DiskError as error:
            log.error("The end of repair %s is not on disk; after a restart it counts as lost: %s", begun.id, error)

    async def _outcome(self, command: HostCommand, argv: tuple[str, ...]) -> tuple[str, str]:
        try:
            ended = await self._runner.run(argv, self._environment(command.slot), command.timeout_ms)
        except CannotTell as error:
            return LOST, str(error)
        said = ended.output.strip() or "it said nothing"
        if ended.code == 0:
            return DONE, said
        if ended.timed_out:
            return FAILED, f"no end within {command.timeout_ms} ms: {said}"
        if command.kind == records_pb2.REPAIR_KIND_SELF_TEST:
            if ended.code == CANNOT_TEST:
                return LOST, said  # neither passed nor failed
            if ended.code == -signal.SIGKILL:
                return LOST, f"somebody killed it, or the kernel for want of memory: {said}"
        return FAILED, f"exit status {ended.code}: {said}"

    async def _reboot(self, begun: Begun, command: HostCommand, argv: tuple[str, ...]) -> tuple[str, str]:
        """Failed only if the command itself says so: one that a signal or the timeout ended may have been heard, and a
        host that goes down kills it and us."""
        try:
            ended = await self._runner.run(argv, {}, command.timeout_ms)
        except CannotTell as error:
            return await self._not_rebooted(begun, str(error))
        said = ended.output.strip() or "it said nothing"
        if ended.code > 0:
            return FAILED, f"exit status {ended.code}: {said}"
        return await self._not_rebooted(begun, f"exit status {ended.code}: {said}")

    async def _not_rebooted(self, begun: Begun, said: str) -> tuple[str, str]:
        """A new boot id ends the wait together with this process."""
        await self._clock.sleep(max(0, begun.until_ms - self._clock.mono_ms()))
        return LOST, f"the host has not booted anew in time, so nobody knows what became of it ({said})"

    def _argv(self, command: HostCommand) -> tuple[str, tuple[str, ...]]:
        """(kind, command line). Raises ``ValueError`` for what cannot be run here."""
        kind = KINDS.get(command.kind)
        if kind is None:
            raise ValueError(f"kind {command.kind} is none that an agent of this version knows")
        if command.timeout_ms <= 0:
            raise ValueError(f"timeout_ms: {command.timeout_ms} is not positive")
        if kind == REBOOT:
            line: Sequence[str] = self._commands.reboot_node
        else:
            device = self._device(command.slot)
            if kind == "self_test":
                return kind, _self_test(command.command, device)
            line = tuple(_filled(part, device) for part in self._commands.reset_device)
        if not line:
            raise ValueError(f"repair_commands.{kind}: this agent has none configured, so nothing was done")
        return kind, tuple(line)

    def _device(self, slot: str) -> Device:
        try:
            checked_name("command.slot", slot)
        except BadName as error:
            raise ValueError(str(error)) from error
        device = next((d for d in self._devices() if d.slot == slot), None)
        if device is None:
            raise ValueError(f"slot {slot!r} is not in the inventory of this node")
        return device

    def _environment(self, slot: str) -> Mapping[str, str]:
        """What the command may know of its device. Device runtimes see that one alone."""
        device = next((d for d in self._devices() if d.slot == slot), None)
        if device is None:
            return {}
        shown = {"GRIDKEEPER_DEVICES": slot, "GRIDKEEPER_DEVICE_UUID": device.uuid}
        if device.vendor == "nvidia" and device.uuid:
            shown["CUDA_VISIBLE_DEVICES"] = device.uuid
        return shown

    def _refuse(self, repair: str, why: str) -> None:
        """It has not begun, and never will under this id: the answer stays the same."""
        log.warning("Repair %s is refused: %s", repair, why)
        while len(self._refused) >= KEPT:
            del self._refused[next(iter(self._refused))]
        self._refused[repair] = why[:MAX_DETAIL]

    # -- memory --

    def _load(self) -> None:
        data = self._memory.load()
        if data is None:
            return
        try:
            rows = [Begun(**row) for row in json.loads(data)["begun"]]
        except (ValueError, TypeError, KeyError) as error:
            raise BadMemory(
                f"the file with the repairs that have begun does not decode ({error!r}); see that none is under way, "
                "then remove it"
            ) from error
        for begun in rows:
            self._begun[begun.id] = self._after_restart(begun)

    def _after_restart(self, begun: Begun) -> Begun:
        if begun.state != RUNNING:
            return begun
        if begun.kind == REBOOT:
            anew = replace(begun, state=DONE, detail=f"the host booted anew (boot id {self._boot_id})")
            return begun if begun.boot_id == self._boot_id else anew
        return replace(begun, state=LOST, detail="the agent restarted meanwhile, so nobody knows whether it was done")

    async def _save(self) -> None:
        """Raises ``DiskError``."""
        ended = [name for name, begun in self._begun.items() if begun.state != RUNNING]
        for name in ended[: max(0, len(self._begun) - KEPT)]:
            del self._begun[name]
        rows = {"begun": [asdict(begun) for begun in self._begun.values()]}
        await self._memory.save(json.dumps(rows).encode())


CANNOT_TEST = 3
"""Exit status of a self-test that could not test: neither passed nor failed."""


def _self_test(command: str, device: Device) -> tuple[str, ...]:
    if command == BUILTIN:
        return (sys.executable, "-P", "-m", "nodeagent.selftest", "--vendor", device.vendor)
    try:
        line = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command: {command[:80]!r} is no command line: {error}") from error
    if not line:
        raise ValueError("command: it is empty; write a command line, or builtin")
    return tuple(line)


def _filled(part: str, device: Device) -> str:
    """``{slot}``, ``{uuid}`` and ``{pci}`` of the device."""
    return part.replace("{slot}", device.slot).replace("{uuid}", device.uuid).replace("{pci}", device.pci_bus_id)
