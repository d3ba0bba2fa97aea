"""The loop that every leader runs: snapshot, decide, apply, wait for the world to move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.mirror import Mirror
from gridkeeper.decision import Decision
from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import NoSpace, StoreError, TooLarge

log = logging.getLogger("gridkeeper.leader")

TICK_MS = 500
"""Timers are looked at this often when nothing changes."""


async def apply_all(decisions: Iterable[Decision], applier: Applier, actor: str, fence: Fence | None) -> bool:
    """Apply what was decided on one snapshot. A conflict drops that decision only: the next tick decides anew.
    Returns whether anything was written. Raises ``StoreError`` when the store does not take writes."""
    newest = 0
    for decision in decisions:
        try:
            newest = max(newest, await applier.apply(decision, actor, fence))
        except Conflict as conflict:
            log.debug("%s", conflict)
        except TooLarge as error:  # would be so for ever: the others must not wait behind it
            log.error("%s on %s cannot be written: %s", decision.step, decision.subject, error)
        except NoSpace as error:
            log.error("%s is not stored: the store is out of space: %s", decision.step, error)
            raise
    if newest:
        await applier.caught_up(Revision(newest))
    return bool(newest)


async def lead_loop(name: str, tick: Callable[[], Awaitable[bool]], mirrors: tuple[Mirror, ...], clock: Clock) -> None:
    """Tick for ever: again at once while ticks write something, else when a mirror moves or ``TICK_MS`` have passed. A
    store that is away is waited for; nothing is decided on what may be stale by then."""
    while True:
        try:
            wrote = await tick()
        except StoreError as error:
            log.warning("%s waits for its store: %s", name, error)
            await clock.sleep(TICK_MS)
            continue
        if wrote:
            continue
        await wait_any(mirrors, TICK_MS)


async def wait_any(mirrors: tuple[Mirror, ...], timeout_ms: int) -> None:
    """Until one of the mirrors moves, or the time is up."""
    tasks = [asyncio.ensure_future(mirror.wait_moved(timeout_ms)) for mirror in mirrors]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
