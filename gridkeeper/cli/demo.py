"""``gridkeeper demo``: two stories of faults on a local grid, played once and checked. Exit 0 only if they came true.

Faults are injected below the agents: in the simulated NVML and the kernel log, as hardware and driver would tell them.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from gridkeeper.cli.demo_checks import Verdict, crash, planned_move
from gridkeeper.cli.demo_report import drain_lines, incident_lines, migration_lines, sla_lines, verdict_lines
from gridkeeper.cli.local.children import GridError
from gridkeeper.cli.local.follow import Follower, NotSeen, World
from gridkeeper.cli.local.grid import LocalGrid
from gridkeeper.cli.local.training import Baseline, Final, Training, job_spec, read_final, run_undisturbed
from gridkeeper.cli.local.weather import blow
from gridkeeper.cli.narrate import outcome
from gridkeeper.client import ClientError, GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, NodeId, node_of, slot_of
from gridkeeper.records.faults import DrainState
from gridkeeper.records.jobs import JobState, MigrationRecord, MigrationState, OwnershipRecord

DEVICES = 4
TRAINING = Training(steps=160, step_ms=100, checkpoint_every=20)
STEADY_S = 40.0
"""Longest wait for anything; with the short timings it takes a fraction."""
ECC_STEP = 25
ECC_EVERY_MS = 250
REMAP_AFTER_MS = 1_500
"""The driver records the remapped row a moment after the contained error."""
FAULT_AFTER_STEPS = 10
"""Injected between two checkpoints, when the older one is verified: a crash just while one is being stored may lose up
to two intervals, which is true, but another story."""


class Teller:
    """Prints each line with the time since the fault."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self._began_ms = clock.mono_ms()
        self._mark = " "

    def fault(self) -> None:
        """From now on times are since the fault."""
        self._began_ms = self._clock.mono_ms()
        self._mark = "+"

    def calm(self) -> None:
        """From now on times are since the beginning of the story."""
        self._began_ms = self._clock.mono_ms()
        self._mark = " "

    def say(self, sentence: str) -> None:
        seconds = (self._clock.mono_ms() - self._began_ms) / 1000
        print(f"{self._mark}{seconds:7.3f} s  {sentence}", flush=True)

    @staticmethod
    def head(title: str) -> None:
        print(f"\n== {title}", flush=True)

    @staticmethod
    def report(lines: list[str]) -> None:
        print("\n".join(f"           {line}" for line in lines), flush=True)


def run(directory: Path) -> int:
    """Returns the exit code: 0 both stories came true, 1 they did not."""
    try:
        return asyncio.run(_interruptible(directory))
    except GridError as error:
        print(f"gridkeeper: {error}", file=sys.stderr)  # with the end of a log, on lines of its own
        return 1


async def _interruptible(directory: Path) -> int:
    """Ctrl-C and SIGTERM end the demo like any other end: the grid is stopped in order."""
    task = asyncio.ensure_future(_demo(directory))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 130


async def _demo(directory: Path) -> int:
    clock = SystemClock()
    teller = Teller(clock)
    teller.head("A grid of two regions on this machine")
    grid = LocalGrid(directory, clock=clock, say=teller.say)
    async with grid, GridClient(grid.client_config()) as client:
        baseline = await run_undisturbed(TRAINING, directory / "undisturbed")
        teller.say(f"undisturbed training: {TRAINING.steps} steps, final loss {baseline.final.loss_hex}")
        follower = Follower(client, teller.say)
        hosts = {str(node.name): grid.nvml(node.name) for node in grid.nodes}
        tasks = [
            asyncio.create_task(follower.follow()),
            asyncio.create_task(blow(hosts, follower.world.devices_in_use, clock)),
        ]
        try:
            stage = Stage(grid, client, follower, teller, baseline, clock)
            good = await _unless_ended(tasks, stage.play)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    teller.head("Both stories came true" if good else "A story did NOT come true; logs are below " + str(directory))
    return 0 if good else 1


async def _unless_ended(tasks: list[asyncio.Task[None]], play: Callable[[], Awaitable[bool]]) -> bool:
    """The play's result; what ends one of the tasks (which go on for ever) ends the play."""
    playing = asyncio.ensure_future(play())
    try:
        done, _ = await asyncio.wait((*tasks, playing), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        return playing.result()
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


class Stage:
    """Plays the stories."""

    def __init__(
        self,
        grid: LocalGrid,
        client: GridClient,
        follower: Follower,
        teller: Teller,
        baseline: Baseline,
        clock: SystemClock,
    ) -> None:
        self._grid = grid
        self._client = client
        self._follower = follower
        self._teller = teller
        self._baseline = baseline
        self._clock = clock

    async def play(self) -> bool:
        """Each story; a wait that is in vain makes its story false."""
        good = True
        for story in (self._planned_move, self._crash):
            try:
                good &= await story()
            except (NotSeen, ClientError) as error:
                self._teller.say(f"FALSE: {error}")
                good = False
        return good

    async def _planned_move(self) -> bool:
        job = "planned-move"
        self._teller.head("Story 1, a planned move: a device has a row remap pending and its corrected errors rise")
        owner = await self._until_steady(job)
        device = owner.devices[0]
        node, index = _place(device)
        self._teller.fault()
        self._teller.say(f"FAULT, in NVML: {device} reports a pending row remap and rising corrected errors")
        self._grid.nvml(node).device(index).set(remap_pending=1)
        errors = asyncio.create_task(self._corrected_errors(node, index))
        try:
            await self._until_moved(job, device)
        finally:
            errors.cancel()
        final = await self._until_finished(job)
        return await self._report(job, device, planned_move(self._grid.steps(job), final, self._baseline))

    async def _crash(self) -> bool:
        job = "crash"
        self._teller.head("Story 2, a crash: an uncorrectable memory error kills the job's process")
        owner = await self._until_steady(job)
        device = owner.devices[0]
        node, index = _place(device)
        pids = self._grid.job_pids(node, job)
        pid = pids[0] if pids else None
        self._teller.fault()
        self._teller.say(f"FAULT, in NVML and the kernel log: XID 48 and 94 on {device}; the driver kills {pids}")
        self._grid.nvml(node).device(index).set(ecc_uncorrected=1)
        self._grid.xid(node, index, 48)
        self._grid.xid(node, index, 94, pid=pid)
        self._grid.kill_job(node, job)
        remap = asyncio.create_task(self._row_remapped(node, index))
        try:
            await self._until_moved(job, device)
        finally:
            await remap
        final = await self._until_finished(job)
        verdicts = crash(self._grid.steps(job), final, self._baseline, TRAINING.checkpoint_every)
        return await self._report(job, device, verdicts)

    # -- faults ---------------------------------------------------------------------------------------------------

    async def _corrected_errors(self, node: NodeId, index: int) -> None:
        device = self._grid.nvml(node).device(index)
        while True:
            device.set(ecc_corrected=device.state.ecc_corrected + ECC_STEP)
            await self._clock.sleep(ECC_EVERY_MS)

    async def _row_remapped(self, node: NodeId, index: int) -> None:
        await self._clock.sleep(REMAP_AFTER_MS)
        self._grid.nvml(node).device(index).set(remapped_uncorrected=1, remap_pending=1)
        self._grid.xid(node, index, 63)
        self._teller.say("FAULT, a moment later: XID 63, the row is recorded for remapping")

    # -- waiting --------------------------------------------------------------------------------------------------

    async def _until_steady(self, job: str) -> OwnershipRecord:
        """Submitted, running in the first region, one checkpoint verified, and half way to the next one."""
        self._teller.calm()
        act = await self._client.submit_job(job_spec(job, TRAINING, DEVICES))
        self._teller.say(act.sentence)

        def stored(world: World) -> OwnershipRecord | None:
            record, head, owner = world.job(job), world.head(job), world.owner(job)
            ready = record and record.state is JobState.RUNNING and head and head.step >= TRAINING.checkpoint_every
            return owner if ready else None

        owner = await self._follower.wait(f"the first verified checkpoint of {job}", stored, STEADY_S)
        wanted = TRAINING.checkpoint_every + FAULT_AFTER_STEPS
        until_ms = self._clock.mono_ms() + int(STEADY_S * 1000)
        while (step := max((line.step for line in self._grid.steps(job)), default=0)) < wanted:
            if self._clock.mono_ms() > until_ms:
                raise NotSeen(f"{job} is still at step {step}")
            await self._clock.sleep(20)
        self._teller.say(f"{job} trains on {owner.node} in {owner.region}, step {step}")
        return owner

    async def _until_moved(self, job: str, device: DeviceId) -> None:
        def moved(world: World) -> bool:
            moves, drains, owner = world.migrations(job), world.drains(device), world.owner(job)
            return bool(
                drains
                and drains[-1].state is DrainState.DRAINED
                and len(moves) > 1
                and moves[-1].state is MigrationState.DONE
                and owner
                and owner.region != moves[-1].source_region
            )

        await self._follower.wait(f"{device} drained and {job} running in another region", moved, STEADY_S)

    async def _until_finished(self, job: str) -> Final | None:
        def ended(world: World) -> JobState | None:
            record = world.job(job)
            return record.state if record and record.state in (JobState.SUCCEEDED, JobState.FAILED) else None

        state = await self._follower.wait(f"the end of {job}", ended, STEADY_S)
        if state is not JobState.SUCCEEDED:
            raise NotSeen(f"{job} has {state}")
        _, text = await self._client.job_logs(job)
        return read_final(text.decode(errors="replace"))

    # -- the end --------------------------------------------------------------------------------------------------

    async def _report(self, job: str, device: DeviceId, verdicts: tuple[Verdict, ...]) -> bool:
        world = self._follower.world
        incidents, drains = world.incidents(device), world.drains(device)
        moves = tuple(move for move in world.migrations(job) if move.source_node)
        scopes = {f"device/{device}", f"region/{node_of(device).rpartition('-')[0]}", f"job/{job}"}
        slas = [sla for sla in (await self._client.sla_status()).slas if sla.account.scope in scopes]
        verdicts = (
            *verdicts,
            Verdict("one incident for the device", len(incidents) == 1, f"{len(incidents)} found"),
            Verdict("one drain, within its budgets", len(drains) == 1, f"{len(drains)} found"),
            Verdict("one migration", len(moves) == 1, f"{len(moves)} found"),
            Verdict(
                "its RPO and RTO are known", bool(moves) and all(map(_measured, moves)), ", ".join(map(outcome, moves))
            ),
            Verdict(
                "the ledger knows device, region and job", len(slas) == len(scopes), f"{len(slas)} of {len(scopes)}"
            ),
        )
        print(flush=True)
        for lines in (
            incident_lines(incidents),
            drain_lines(drains),
            migration_lines(moves),
            sla_lines(slas),
            verdict_lines(verdicts),
        ):
            self._teller.report(lines)
        return all(verdict.true for verdict in verdicts)


def _measured(move: MigrationRecord) -> bool:
    return move.rto_ms >= 0 and move.rpo_steps >= 0


def _place(device: DeviceId) -> tuple[NodeId, int]:
    """Node and index of ``east-1/gpu3``."""
    return node_of(device), int(slot_of(device).removeprefix("gpu"))


if __name__ == "__main__":
    sys.exit(run(Path("var/demo")))
