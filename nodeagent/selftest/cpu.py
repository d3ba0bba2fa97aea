"""Burn-in of the host: exact integer matrix products on all cores at once, and patterns through memory.

The products are of small integers in float64, so every correct machine gives the same bits (all sums stay below 2^53):
each thread must find the first one's digest, over and over.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nodeagent.selftest.outcome import Failed

SIZE = 384
VALUES = 1_000
"""Entries are below this: SIZE × VALUES² = 3.8e8, far below 2^53."""
PATTERNS = (0x00, 0xFF, 0x55, 0xAA)
BLOCK = 8 << 20


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices of integers as float64, (SIZE, SIZE) each."""
    numbers = np.random.Generator(np.random.PCG64(seed)).integers(0, VALUES, (2, SIZE, SIZE))
    return numbers[0].astype(np.float64), numbers[1].astype(np.float64)


def digest(product: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(product).tobytes(), digest_size=16).hexdigest()


def reference(seed: int) -> str:
    """The digest of the exact product, in integer arithmetic: it shares no instruction with the float one."""
    left, right = operands(seed)
    exact = left.astype(np.int64) @ right.astype(np.int64)
    return digest(exact.astype(np.float64))


def burn(seconds: float, mib: int) -> str:
    """What was done. Raises ``Failed``."""
    until = time.monotonic() + seconds
    threads = max(1, len(os.sched_getaffinity(0)))
    expected = {seed: reference(seed) for seed in range(2)}
    with ThreadPoolExecutor(threads) as pool:
        products = sum(pool.map(lambda core: _multiply(core, until, expected), range(threads)))
    blocks = memory(mib)
    return f"{products} products on {threads} threads, {blocks} blocks of memory in {len(PATTERNS)} patterns"


def _multiply(core: int, until: float, expected: dict[int, str]) -> int:
    """Products of one thread until the time is up, at least one each; how many."""
    done = 0
    while not done or time.monotonic() < until:
        for seed, good in expected.items():
            left, right = operands(seed)
            check(left @ right, good, f"thread {core}, product {done}")
            done += 1
    return done


def check(product: np.ndarray, good: str, where: str) -> None:
    """Raises ``Failed``."""
    found = digest(product)
    if found != good:
        raise Failed(f"a matrix product is wrong ({where}): digest {found} instead of {good}")


def memory(mib: int) -> int:
    """Write and read back each pattern in ``mib`` MiB; how many blocks. Raises ``Failed``."""
    count = max(1, (mib << 20) // BLOCK)
    blocks = [np.empty(BLOCK, dtype=np.uint8) for _ in range(count)]
    for pattern in PATTERNS:
        for number, block in enumerate(blocks):
            block.fill(pattern ^ (number & 0xFF))
        for number, block in enumerate(blocks):
            wrong = int(np.count_nonzero(block != (pattern ^ (number & 0xFF))))
            if wrong:
                raise Failed(f"{wrong} bytes of memory block {number} lost the pattern 0x{pattern:02x}")
    return count
