"""Ethernet interfaces of hardware: a link that went down, flaps, or is slower than it was.

Only an interface that is administratively up and had a carrier before can be down: an unused port is no fault. Several
interfaces are one condition, which is over when all are up.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import number, text

FLAP_CHANGES = 6
"""Three times down and up again…"""
FLAP_WINDOW_MS = 600_000
"""… within this time is flapping."""

_ETHERNET = 1  # ARPHRD_ETHER
_UP = 1  # IFF_UP


class Nics:
    period_ms = 0  # each sample

    def __init__(self, root: Path) -> None:
        self._net = root / "sys/class/net"
        self._had_carrier: set[str] = set()
        self._changes: dict[str, deque[tuple[int, float]]] = {}  # name -> (when, changes then)
        self._best: dict[str, float] = {}  # Mbit/s

    def look(self, seen: Conditions, now_ms: int) -> None:
        down, flapping, slow = set(), set(), set()
        for path in sorted(self._net.glob("*/device")):
            nic = path.parent
            name, flags = nic.name, number(nic / "flags")
            if number(nic / "type") != _ETHERNET or flags is None:
                continue
            up, carrier = bool(int(flags) & _UP), number(nic / "carrier")
            if up and carrier == 1:
                self._had_carrier.add(name)
            elif up and (carrier == 0 or text(nic / "operstate") == "down") and name in self._had_carrier:
                down.add(name)
            if self._flaps(name, number(nic / "carrier_changes"), now_ms):
                flapping.add(name)
            speed = number(nic / "speed") if carrier == 1 else None
            if speed is not None and speed > 0:
                self._best[name] = max(speed, self._best.get(name, 0))
                if speed < self._best[name]:
                    slow.add(f"{name} ({speed:.0f} of {self._best[name]:.0f} Mbit/s)")
        seen.lasts_for("nic-down", down, HostCode.NIC_DOWN, "links are down:", now_ms, over=HostCode.NIC_UP)
        seen.lasts_for("nic-flap", flapping, HostCode.NIC_FLAP, "links flap:", now_ms)
        seen.lasts_for("nic-slow", slow, HostCode.NIC_DEGRADED, "links are slower than they were:", now_ms)

    def _flaps(self, name: str, changes: float | None, now_ms: int) -> bool:
        history = self._changes.setdefault(name, deque(maxlen=1024))
        if changes is None:
            return False
        if history and changes < history[-1][1]:
            history.clear()  # the driver was loaded anew
        if not history or changes != history[-1][1]:
            history.append((now_ms, changes))
        while len(history) > 1 and history[1][0] <= now_ms - FLAP_WINDOW_MS:
            history.popleft()
        return changes - history[0][1] >= FLAP_CHANGES
