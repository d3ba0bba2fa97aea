"""Waiting for conditions with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], what: str, seconds: float = 15.0) -> T:
    """The first true answer of ``look``; fails naming ``what`` after ``seconds``."""
    give_up = time.monotonic() + seconds
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {seconds} s: {what} (last seen: {found!r})")
        await asyncio.sleep(0.02)
