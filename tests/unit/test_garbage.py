"""The collector of cycles is kept from looking at everything again and again, and yet lets nothing pile up."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from controlplane.garbage import FULL_MS, MIDDLE, OLD, YOUNG, collect_now_and_then


class Cycle:
    """Lives until somebody looks for cycles."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def collector() -> Iterator[None]:
    """As it was, for the other tests."""
    before = gc.get_threshold()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_what_is_old_is_left_alone_until_the_full_look_and_then_goes(collector: None) -> None:
    """Protects: what is there when a replica has started, and after each full look, is in no ordinary collection; a
    cycle that died meanwhile is freed by the next full look, so that memory stays bounded."""

    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        gc.collect()
        cycle = Cycle()
        died = weakref.ref(cycle)
        collecting = asyncio.ensure_future(collect_now_and_then(clock))
        await clock.sleep(1)
        assert gc.get_threshold() == (YOUNG, MIDDLE, OLD)
        assert gc.get_freeze_count() > 10_000, "all that is there"
        del cycle
        gc.collect()
        assert died() is not None, "an ordinary collection does not look at it"
        await clock.sleep(FULL_MS - 2)
        assert died() is not None
        await clock.sleep(2)
        assert died() is None, "the full look does"
        assert gc.get_freeze_count() > 10_000, "and what is left is left alone again"
        late = Cycle()
        died = weakref.ref(late)
        del late
        gc.collect(0)
        assert died() is None, "what dies young needs no full look"
        late = Cycle()
        died = weakref.ref(late)
        await clock.sleep(FULL_MS)
        del late
        await clock.sleep(FULL_MS)
        assert died() is None, "each time"
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)

    run_virtual(main(), limit_s=10 * FULL_MS / 1000)
