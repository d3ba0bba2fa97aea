"""The loop that every leader runs: snapshot, decide, apply, wait for the world to move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable

from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.grouping import waves
from controlplane.shell.mirror import Mirror
from gridkeeper.decision import Decision
from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import NoSpace, StoreError, TooLarge

log = logging.getLogger("gridkeeper.leader")

TICK_MS = 500
"""Timers are looked at this often when nothing changes."""

REST_MS = 200
"""The longest rest after a tick."""


async def apply_all(decisions: Iterable[Decision], applier: Applier, actor: str, fence: Fence | None) -> bool:
    """Apply what was decided on one snapshot, what can go together in one transaction, and several of these at once. A
    conflict drops the decision that it is about and no other: the next tick decides anew. Returns whether anything was
    written. Raises ``StoreError`` when the store does not take writes."""
    newest = 0
    for wave in waves(decisions):
        applied = await asyncio.gather(
            *(_apply_group(group, applier, actor, fence) for group in wave), return_exceptions=True
        )
        for revision in applied:  # all have ended: none goes on behind an error of another one
            if isinstance(revision, BaseException):
                raise revision
            newest = max(newest, revision)
    if newest:
        await applier.caught_up(Revision(newest))
    return bool(newest)


async def _apply_group(group: tuple[Decision, ...], applier: Applier, actor: str, fence: Fence | None) -> int:
    """The store's revision after the last one that was applied; 0: none was."""
    try:
        return await applier.apply_together(group, actor, fence)
    except Conflict as conflict:
        log.debug("%s", conflict)
    except TooLarge as error:
        if len(group) == 1:  # would be so for ever: the others must not wait behind it
            log.error("%s on %s cannot be written: %s", group[0].step, group[0].subject, error)
    except NoSpace as error:
        log.error("%s is not stored: the store is out of space: %s", group[0].step, error)
        raise
    if len(group) == 1:
        return 0
    going = await applier.still_current(group, fence)
    if len(going) < len(group):
        return await _apply_group(going, applier, actor, fence) if going else 0
    half = len(group) // 2
    first = await _apply_group(group[:half], applier, actor, fence)
    return max(first, await _apply_group(group[half:], applier, actor, fence))


async def lead_loop(name: str, tick: Callable[[], Awaitable[bool]], mirrors: tuple[Mirror, ...], clock: Clock) -> None:
    """Tick for ever: again at once while ticks write something or the world has changed meanwhile, else when it changes
    (how far jobs have come alone is nothing to wake up for) or ``TICK_MS`` have passed. A store that is away is waited
    for; nothing is decided on what may be stale by then.

    After each tick come as long a time for everything else, at most ``REST_MS``: where a look at the whole region takes
    long, it must not be all that the process does, or the mirrors fall behind what the next look needs."""
    while True:
        began, stirs = clock.mono_ms(), [mirror.stirs for mirror in mirrors]
        try:
            wrote = await tick()
        except StoreError as error:
            log.warning("%s waits for its store: %s", name, error)
            await clock.sleep(TICK_MS)
            continue
        rest_ms = min(REST_MS, clock.mono_ms() - began)
        if rest_ms > 0:
            await clock.sleep(rest_ms)
        if not wrote and stirs == [mirror.stirs for mirror in mirrors]:
            await _first([mirror.wait_stirred(TICK_MS) for mirror in mirrors])


async def wait_any(mirrors: tuple[Mirror, ...], timeout_ms: int) -> None:
    """Until one of the mirrors moves, or the time is up."""
    await _first([mirror.wait_moved(timeout_ms) for mirror in mirrors])


async def _first(waits: list[Coroutine[None, None, bool]]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
