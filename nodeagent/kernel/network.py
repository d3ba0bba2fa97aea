"""Network interfaces. Pure. Wordings: drivers/net/ethernet (mellanox/mlx5, broadcom/bnxt, intel/ixgbe, i40e, ice, igb,
e1000e), net/sched/sch_generic.c, drivers/net/bonding.

    mlx5_core 0000:3b:00.0 enp59s0f0np0: Link down
    bnxt_en 0000:af:00.0 eth0: NIC Link is Down
    ixgbe 0000:01:00.0 eno1: NIC Link is Down
    mlx5_core 0000:3b:00.0: poll_health:739:(pid 0): device's health compromised - reached miss count
    NETDEV WATCHDOG: eth0 (mlx5_core): transmit queue 3 timed out 5000 ms

A link that is down while its host boots is not up yet: nothing is reported of the first minutes after the boot. That a
link is up again is left to the host backend, which sees all links at once: "up" must not end another one's "down".
"""

from __future__ import annotations

import re

from gridkeeper.catalogue.codes import HostCode
from nodeagent.kernel.found import ADDRESS, Found, host

BOOT_US = 300_000_000
"""So long after the boot a link may come up for the first time: drivers load, switches and LACP negotiate."""

_DOWN = re.compile(
    rf"(?:\w{{1,20}} {ADDRESS} )?(?:\w{{1,20}} )?([A-Za-z][\w.-]{{0,31}}): (?:e1000e?|igb|igc)?(?:: )?"
    r"(?:(?!NIC|[Ll]ink)([A-Za-z]\w{0,31}) )?(?:NIC )?[Ll]ink (?:is )?[Dd]own\b"
)
_MLX_HEALTH = re.compile(
    rf"mlx[45]_core ({ADDRESS})[^:]{{0,40}}: .*(?:device's health compromised|Fatal error detected|"
    r"assert_var\[0\]|firmware internal error|internal error state|Fatal device error)"
)
_BNXT_FATAL = re.compile(
    rf"bnxt_en ({ADDRESS})[^:]{{0,40}}: .*(?:[Ff]irmware fatal|Error recovery|Abandoning msg|hwrm_\w{{1,40}} timeout)"
)
_WATCHDOG = re.compile(r"NETDEV WATCHDOG: ([\w.-]{1,32}) \([\w.-]{1,32}\): transmit queue [0-9]{1,6} timed out")
_TX_HANG = re.compile(
    rf"\w{{1,20}} ({ADDRESS}) ([\w.-]{{1,32}}): (?:Detected (?:Tx|Hardware) Unit Hang|tx hang|TX timeout)"
)


def read(text: str, boot_us: int = -1) -> Found | None:
    """A line of a network driver. ``boot_us``: its stamp, microseconds since boot; -1 if unknown."""
    down = _DOWN.match(text)
    if down:
        return None if 0 <= boot_us < BOOT_US else host(HostCode.NIC_DOWN, down.group(2) or down.group(1))
    trouble = _MLX_HEALTH.match(text) or _BNXT_FATAL.match(text)
    if trouble:
        return host(HostCode.NIC_DRIVER_ERROR, trouble.group(1))
    hang = _TX_HANG.match(text)
    return host(HostCode.NIC_DRIVER_ERROR, hang.group(2)) if hang else None


def read_watchdog(text: str) -> Found | None:
    match = _WATCHDOG.match(text)
    return host(HostCode.NIC_DRIVER_ERROR, match.group(1)) if match else None
