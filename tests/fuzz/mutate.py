"""Inputs near the seeds, the same for the same number: for CI, which must not depend on luck."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

TOKENS = (
    b"\x00", b"\xff", b"\n", b"\r\n", b"|", b"%", b"..", b"../", b"/etc/passwd", b"'", b'"', b"\\", b"\\x00", b"{",
    b"[", b"&a [*a]", b"*a", b"!!python/object/apply:os.system [x]", b"!!binary", b": ", b"- ", b"<<: ", b"nan", b"-1",
    b"1e999", b"18446744073709551616", b"9" * 40, b"\xed\xa0\x80", b"\xe2\x80\xae", b"A" * 300, b"[" * 200,
    b"\x80\x80\x80\x80\x01",
)  # fmt: skip
MOST = 20_000


def mutated(seeds: Sequence[bytes], start: int, count: int) -> Iterator[bytes]:
    """``count`` inputs, from number ``start`` on."""
    for number in range(start, start + count):
        rng = random.Random(number)
        data = bytearray(rng.choice(seeds)) if seeds else bytearray()
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            _once(data, rng, seeds)
        yield bytes(data[:MOST])


def _once(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    what = rng.randrange(7)
    if what == 0 and data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
    elif what == 1 and data:
        data[at % len(data)] = rng.randrange(256)
    elif what == 2:
        del data[at : at + rng.choice((1, 2, 8, 64))]
    elif what == 3:
        data[at:at] = rng.choice(TOKENS)
    elif what == 4:
        data[at:at] = data[at : at + rng.choice((1, 4, 32, 256))] * rng.choice((1, 2, 8))
    elif what == 5:
        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 8))))
    elif seeds:
        other = rng.choice(seeds)
        cut = rng.randrange(len(other) + 1)
        data[at:] = other[cut:]
