"""Slurm's drain of this node: set while the control plane wants the node closed, taken back only if it is ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from failover.executors.batch import BatchError
from failover.executors.commands import Commands
from failover.executors.queued import TICKETS
from failover.executors.slurm import said
from gridkeeper.ports.gate import GateError

OWNER = "gridkeeper: "
"""Begins the reason of each drain of ours. Without it, the drain is somebody else's."""
MAX_REASON = 300
_STATE = re.compile(r"(?:^|\s)State=(\S+)")
_REASON = re.compile(r"\sReason=(.*)")


@dataclass(frozen=True, slots=True)
class NodeView:
    """As ``scontrol show node`` has it. ``reason``: "" if there is none; who gave it, and when, follow in brackets."""

    drained: bool
    reason: str

    @property
    def ours(self) -> bool:
        return self.drained and self.reason.startswith(OWNER)


def parse_node(text: str) -> NodeView:
    """Of its output in one line. Raises ``GateError``: what is not understood is neither open nor closed."""
    state = _STATE.search(text)
    if state is None:
        raise GateError(f"scontrol: {text[:200]!r} does not tell a node's state")
    reason = _REASON.search(text)
    flags = re.split(r"[+*~#!%$@^-]", state.group(1).upper())
    return NodeView(not {"DRAIN", "DRAINED", "DRAINING"}.isdisjoint(flags), reason.group(1) if reason else "")


class SlurmGate:
    """``requeue``: batch jobs of others that run on the node when it is closed are put back into the queue, to start
    elsewhere at once. Needs a user whom Slurm lets update nodes (and requeue others' jobs)."""

    title = "Slurm"

    def __init__(
        self, commands: Commands, node: str, requeue: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        self._commands = commands
        self._node = node
        self._requeue = requeue
        self._environment = dict(environment or {})
        self._waiting: set[str] = set()  # jobs that were requeued, until they may start

    async def close(self, reason: str) -> str:
        words = OWNER + "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON]
        view = await self.view()
        done: list[str] = []
        if not view.drained:
            await self._ask("scontrol", "update", f"nodename={self._node}", "state=drain", f"reason={words}")
            done.append(f"node {self._node} is drained in Slurm: {reason}")
        elif view.ours and not view.reason.startswith(words):
            await self._ask("scontrol", "update", f"nodename={self._node}", f"reason={words}")
            done.append(f"node {self._node} stays drained in Slurm, now since {reason}")
        if self._requeue:
            done += await self._requeued()
        return "; ".join(done)

    async def open(self) -> str:
        hurried = "; ".join(await self._hurry())
        if not (await self.view()).ours:
            return hurried
        await self._ask("scontrol", "update", f"nodename={self._node}", "state=undrain")
        return f"node {self._node} takes work of Slurm again"

    async def view(self) -> NodeView:
        """Raises ``GateError``."""
        return parse_node(await self._ask("scontrol", "show", "node", self._node, "--oneliner"))

    async def _requeued(self) -> list[str]:
        """Those that Slurm does not requeue (interactive ones, or by their owner's wish) run on, and are named."""
        done = await self._hurry()
        listed = await self._ask(
            "squeue", "--noheader", f"--nodelist={self._node}", "--states=RUNNING", "--format=%A|%j"
        )
        for line in listed.splitlines():
            number, _, name = line.partition("|")
            if name.startswith(TICKETS) or not number.isdecimal():
                continue
            try:
                await self._ask("scontrol", "requeue", number)
                self._waiting.add(number)
                done.append(f"job {number} of Slurm is requeued")
            except GateError as error:
                done.append(f"job {number} of Slurm runs on: {error}")
        return done

    async def _hurry(self) -> list[str]:
        """A requeued job would wait for over two minutes, the time that Slurm gives its node to become clean. Slurm
        sets that once the job's processes have ended, so it is taken back at a later look than the requeue."""
        if not self._waiting:
            return []
        listed = await self._ask("squeue", "--noheader", "--states=all", "--format=%A|%T|%r")
        rows = {number: rest for number, _, rest in (line.partition("|") for line in listed.splitlines())}
        done: list[str] = []
        for number in sorted(self._waiting):
            if rows.get(number, "").startswith(("RUNNING|", "COMPLETING|", "REQUEUED|")):
                continue
            self._waiting.discard(number)
            if rows.get(number) == "PENDING|BeginTime":
                await self._ask("scontrol", "update", f"jobid={number}", "starttime=now")
                done.append(f"job {number} of Slurm may start at once")
        return done

    async def _ask(self, *argv: str) -> str:
        try:
            return await said(self._commands, argv, self._environment)
        except BatchError as error:
            raise GateError(str(error)) from error
