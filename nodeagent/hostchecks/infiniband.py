"""InfiniBand and RoCE ports by /sys/class/infiniband. The rules are gpud's: down for 4 minutes is a drop; down for 25 s
and back three times is a flap. A port that was never active is not in use.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import number, text

DROP_MS = 240_000
FLAP_DOWN_MS = 25_000
FLAPS = 3
FLAP_WINDOW_MS = 24 * 3_600_000
"""gpud keeps a flap for ever; three in a day are enough to be one here."""

ERRORS = ("symbol_error", "link_error_recovery", "local_link_integrity_errors", "excessive_buffer_overrun_errors",
          "port_rcv_errors")  # fmt: skip
"""Counters of ``counters/`` whose growth is told (IBTA PortCounters)."""

_ACTIVE = "4:"  # "4: ACTIVE"


class Infiniband:
    period_ms = 0  # each sample

    def __init__(self, root: Path) -> None:
        self._root = root
        self._down_since: dict[str, int | None] = {}  # ports that were active once; None while they are
        self._flaps: dict[str, deque[int]] = {}

    def look(self, seen: Conditions, now_ms: int) -> None:
        for path in sorted(self._root.glob("sys/class/infiniband/*/ports/*/state")):
            port = path.parent
            name = f"{port.parent.parent.name}/{port.name}"
            self._state(name, text(path), now_ms)
            grown = {
                counter: more
                for counter in ERRORS
                if (more := seen.grew("", f"{name} {counter}", _count(port, counter)))
            }
            if grown:
                words = ", ".join(f"{counter} +{more:.0f}" for counter, more in grown.items())
                seen.say("", int(HostCode.PORT_ERRORS), f"errors on port {name}: {words}", now_ms)
        dropped = {
            f"{name} ({text(self._port(name) / 'phys_state') or 'no state'})"
            for name, since in self._down_since.items()
            if since is not None and now_ms - since >= DROP_MS
        }
        seen.lasts_for("ib-drop", dropped, HostCode.PORT_DROP, "ports are down:", now_ms, over=HostCode.PORT_UP)
        flapping = {
            name for name, at in self._flaps.items() if len(at) >= FLAPS and now_ms - at[-FLAPS] < FLAP_WINDOW_MS
        }
        seen.lasts_for("ib-flap", flapping, HostCode.PORT_FLAP, "ports flap:", now_ms)

    def _state(self, name: str, state: str, now_ms: int) -> None:
        if state.startswith(_ACTIVE):
            since = self._down_since.get(name)
            if since is not None and now_ms - since >= FLAP_DOWN_MS:
                self._flaps.setdefault(name, deque(maxlen=2 * FLAPS)).append(now_ms)
            self._down_since[name] = None
        elif state and name in self._down_since and self._down_since[name] is None:
            self._down_since[name] = now_ms

    def _port(self, name: str) -> Path:
        device, _, port = name.partition("/")
        return self._root / "sys/class/infiniband" / device / "ports" / port


def _count(port: Path, counter: str) -> float | None:
    return number(port / "counters" / counter)
