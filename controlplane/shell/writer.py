"""Writes that many streams make at the same moment go into the store together: what one waits for is a round trip, and
hundreds of round trips would wait for each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.grouping import groups
from gridkeeper.decision import Decision
from gridkeeper.ids import Revision
from gridkeeper.ports.store import TooLarge


@dataclass(frozen=True, slots=True)
class _Wanted:
    decision: Decision
    done: asyncio.Future[Revision]


class GroupWriter:
    """What comes while a transaction is under way waits for its end, and is then written together. Nothing waits longer
    than for that. ``applier``: of decisions that carry their own guards."""

    def __init__(self, applier: Applier, actor: str) -> None:
        self._applier = applier
        self._actor = actor
        self._waiting: list[_Wanted] = []
        self._writing: asyncio.Task[None] | None = None

    async def apply(self, decision: Decision) -> Revision:
        """As ``Applier.apply``, and raises the same: a conflict only if it is this decision's own."""
        wanted = _Wanted(decision, asyncio.get_running_loop().create_future())
        self._waiting.append(wanted)
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())
        return await asyncio.shield(wanted.done)

    async def caught_up(self, revision: Revision) -> None:
        """Wait until the mirror has what was written."""
        await self._applier.caught_up(revision)

    async def _write(self) -> None:
        batch: list[_Wanted] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                by_decision = {id(wanted.decision): wanted for wanted in batch}
                for group in groups(wanted.decision for wanted in batch):
                    await self._together([by_decision[id(decision)] for decision in group])
        finally:
            self._writing = None
            for wanted in (*batch, *self._waiting):  # if anybody waits still, it was cancelled: the replica ends
                wanted.done.cancel()
            self._waiting = []

    async def _together(self, group: list[_Wanted]) -> None:
        try:
            revision = await self._applier.apply_together([wanted.decision for wanted in group], self._actor, None)
        except (Conflict, TooLarge) as error:
            if len(group) == 1:
                _fail(group, error)
                return
            half = len(group) // 2
            await self._together(group[:half])
            await self._together(group[half:])
        except Exception as error:  # noqa: BLE001 - raised again in each that waits, which can judge it
            _fail(group, error)
        else:
            for wanted in group:
                if not wanted.done.done():
                    wanted.done.set_result(revision)


def _fail(group: list[_Wanted], error: Exception) -> None:
    for wanted in group:
        if not wanted.done.done():
            wanted.done.set_exception(error)
            wanted.done.exception()  # whoever waited may have gone
