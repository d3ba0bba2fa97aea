"""XID 74 on Hopper: bits of its registers say what kind of NVLink error it is (NVIDIA's WORKFLOW_NVLINK_ERR).

    NVRM: Xid (PCI:0003:00:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x0, 0x0,
    0x10000, 0x0, 0x0, 0x0, 0x0)

Seven registers; the first, third, fourth and fifth count. On other architectures, and for bits that the workflow does
not name, the number alone decides.
"""

from __future__ import annotations

import enum
import re

_LINE = re.compile(r"\blink\s+(\d{1,3})\s*\((0x[0-9a-fA-F]{1,8}(?:,\s*0x[0-9a-fA-F]{1,8}){4,7})\)", re.IGNORECASE)


class LinkFault(enum.StrEnum):
    """What the bits say, from the least to the gravest."""

    NOTHING = "bits that can be ignored"
    CORRECTED = "a threshold of corrected ECC errors"
    FOLLOWS = "a consequence of another error"
    REPEATED = "an error that matters only if it comes again"
    PARITY = "likely ECC or parity hardware, if it comes again on this link"
    SIGNAL = "marginal signal integrity"
    HARDWARE = "possibly hardware or its connection"


NAMED: tuple[tuple[int, tuple[int, ...], LinkFault], ...] = (
    (0, (0, 23, 30), LinkFault.NOTHING),
    (0, (1, 20), LinkFault.FOLLOWS),
    (0, (4, 5), LinkFault.PARITY),
    (0, (8, 9, 12, 16, 17, 24, 28), LinkFault.HARDWARE),
    (0, (21, 22), LinkFault.SIGNAL),
    (0, (27, 29), LinkFault.REPEATED),
    (2, (0, 1, 2, 6), LinkFault.PARITY),
    (2, (13,), LinkFault.HARDWARE),
    (2, (16, 17, 18, 19), LinkFault.REPEATED),
    (3, (16, 17), LinkFault.FOLLOWS),
    (3, (18,), LinkFault.HARDWARE),  # a consequence too, but the fabric must be reset
    (4, (18, 19, 21, 22, 24, 25, 27, 28), LinkFault.PARITY),
    (4, (20, 23, 26, 29), LinkFault.CORRECTED),
)
"""Register, bits, meaning (NVSentinel, design 019, citing NVIDIA's workflow)."""

STAYS = frozenset({LinkFault.NOTHING, LinkFault.CORRECTED, LinkFault.FOLLOWS, LinkFault.REPEATED, LinkFault.PARITY})
"""Alone, seen once, these do not take the device out."""

_GRAVITY = list(LinkFault)


def read(message: str) -> tuple[int, tuple[int, ...]] | None:
    """Link and registers; None: the text has none."""
    found = _LINE.search(message)
    if found is None:
        return None
    return int(found[1]), tuple(int(word, 16) for word in re.split(r",\s*", found[2]))


def decode(registers: tuple[int, ...]) -> LinkFault | None:
    """The gravest meaning of the bits that are set; None: none is, or one is that the workflow does not name."""
    found: set[LinkFault] = set()
    for number in (0, 2, 3, 4):
        left = registers[number] if number < len(registers) else 0
        for register, bits, meaning in NAMED:
            mask = sum(1 << bit for bit in bits)
            if register == number and left & mask:
                found.add(meaning)
                left &= ~mask
        if left:
            return None
    return max(found, key=_GRAVITY.index, default=None)
