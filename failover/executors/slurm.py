"""Slurm as a ``BatchSystem``: room on this node through ``sbatch``, ``squeue`` and ``scancel``.

The text formats of ``squeue -o`` have been the same for decades; its JSON differs from version to version.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from failover.executors.batch import BatchError, BatchUnavailable, Placed, Standing, Ticket
from failover.executors.commands import Commands, NoAnswer, Output

TIMEOUT_MS = 15_000
"""``slurmctld`` that is busy with thousands of jobs answers within seconds; a command retries for longer by itself."""
AT_ONCE = 100
"""Names per command."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
AWAY = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "communications",
    "zero bytes were transmitted",
    "slurm backup controller in standby mode",
    "temporarily unable",
)
"""Words of errors after which it is not known whether anything was done, or is worth trying again."""


async def said(commands: Commands, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command of Slurm answers. Raises ``BatchError``."""
    try:
        output = await commands.run(argv, environment, TIMEOUT_MS)
    except NoAnswer as error:
        raise BatchUnavailable(str(error)) from error
    if output.code == 0:
        return output.text
    raise _fault(argv, output)


def _fault(argv: Sequence[str], output: Output) -> BatchError:
    words = output.error or output.text.strip()[-500:] or f"exit status {output.code}"
    away = output.code == 127 or output.code < 0 or any(each in words.lower() for each in AWAY)
    return (BatchUnavailable if away else BatchError)(f"{argv[0]}: {words}")


class Slurm:
    """``node``: this host's name in Slurm. ``options``: more of ``sbatch``; ``{devices}`` stands for their number.
    ``environment``: what its commands need beside the plain one (``SLURM_CONF``)."""

    title = "Slurm"

    def __init__(
        self,
        commands: Commands,
        node: str,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._commands = commands
        self._node = node
        self._options = tuple(options)
        self._environment = dict(environment or {})

    async def find(self, names: Sequence[str]) -> dict[str, Placed]:
        found: dict[str, Placed] = {}
        for at in range(0, len(names), AT_ONCE):
            wanted = names[at : at + AT_ONCE]
            argv = (
                "squeue",
                "--noheader",
                "--me",
                "--states=all",
                f"--name={','.join(wanted)}",
                "--format=%A|%T|%j|%r",
            )
            for line in (await said(self._commands, argv, self._environment)).splitlines():
                name, placed = _row(line)
                before = found.get(name)
                if before is None or _RANK[placed.standing] > _RANK[before.standing]:
                    found[name] = placed
        return found

    async def submit(self, ticket: Ticket) -> None:
        argv = (
            "sbatch",
            "--parsable",
            f"--job-name={ticket.name}",
            "--no-requeue",  # one epoch is one start: what comes after it is a new one
            "--nodes=1",
            "--ntasks=1",
            f"--nodelist={self._node}",
            "--chdir=/",
            "--input=/dev/null",
            f"--output={_literal(str(ticket.log))}",
            "--open-mode=append",
            *(option.replace("{devices}", str(len(ticket.slots))) for option in self._options),
            f"--wrap=exec {shlex.join(ticket.command)}",
        )
        await said(self._commands, argv, self._environment)

    async def cancel(self, name: str) -> None:
        await said(self._commands, ("scancel", _MINE, f"--name={name}"), self._environment)


_MINE = f"--user={os.geteuid()}"
_RANK = {Standing.ENDED: 0, Standing.WAITING: 1, Standing.RUNNING: 2}


def _literal(path: str) -> str:
    """``sbatch`` replaces %-patterns in paths of output."""
    return path.replace("%", "%%")


def _row(line: str) -> tuple[str, Placed]:
    """Raises ``BatchError``: what is not understood is not guessed at."""
    parts = line.split("|", 3)
    if len(parts) != 4:
        raise BatchError(f"squeue: {line[:200]!r} is not of the form that was asked for")
    number, state, name, reason = parts
    if state in ENDED:
        return name, Placed(Standing.ENDED, f"job {number} is {state}")
    if state in WAITING:
        return name, Placed(Standing.WAITING, f"job {number} is {state} ({reason})")
    return name, Placed(Standing.RUNNING, f"job {number} is {state}")
