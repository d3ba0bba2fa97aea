"""Cyclic garbage collection that does not hold a replica up.

A replica of a large region holds millions of objects that stay (records, streams), and makes many that do not. Left
to itself, Python looks through all of them again and again just when there is most to do: a third of a second each time
with 12,000 devices, in which no renewal is answered, and grpc ends streams that arrive meanwhile. So what is old is
left alone, but for one full look now and then.
"""

from __future__ import annotations

import gc
import logging

from gridkeeper.ports.clock import Clock

log = logging.getLogger("gridkeeper.controlplane")

YOUNG, MIDDLE, OLD = 20_000, 20, 1_000_000
"""Thresholds of the three generations (``gc.set_threshold``): most cycles, such as those of exceptions, die in the
first two. The third is, by its own count, never reached between two full looks."""
FULL_MS = 600_000


async def collect_now_and_then(clock: Clock) -> None:
    """For ever."""
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    gc.freeze()
    while True:
        await clock.sleep(FULL_MS)
        began = clock.mono_ms()
        gc.unfreeze()
        found = gc.collect()
        gc.freeze()
        log.info("full garbage collection: %d objects in %d ms", found, clock.mono_ms() - began)
