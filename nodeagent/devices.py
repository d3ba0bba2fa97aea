"""All devices of the host, over all backends: what the hello lists, and telemetry in the same order of rows.

A backend whose driver is slow to open must not make its devices look gone: until it has taken its inventory, the one
that was remembered from the last run stands in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from gridkeeper import __version__
from gridkeeper.config import AgentConfig
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import Device
from gridkeeper.ports.disk import DiskError
from gridkeeper.telemetry import METRICS, SCHEMA_VERSION
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import DeviceInfo, Hello, Telemetry
from nodeagent.hostowner import scheduler_of
from nodeagent.sampler import DeviceWatch
from nodeagent.statefile import StateFile

log = logging.getLogger("gridkeeper.agent.devices")

MAX_DEVICES = 100
"""A control plane registers at most this many per node."""


class Devices:
    """``Inventory`` of the uplink."""

    def __init__(
        self, config: AgentConfig, watches: Sequence[DeviceWatch], memory: StateFile, boot_id: str, clock: Clock
    ) -> None:
        self._config = config
        self._watches = tuple(watches)
        self._memory = memory
        self._boot_id = boot_id
        self._clock = clock
        self._remembered = self._load()
        self._saved_version = -1
        self._sent: tuple[int, ...] = ()

    def _load(self) -> Mapping[str, tuple[Device, ...]]:
        """What cannot be read is not remembered: the drivers will tell."""
        try:
            data = self._memory.load()
            values = json.loads(data) if data else {}
            return {name: tuple(Device(**row) for row in rows) for name, rows in values.items()}
        except (DiskError, ValueError, TypeError, AttributeError) as error:
            log.warning("The remembered inventory is not used: %s", error)
            return {}

    @property
    def version(self) -> int:
        """Grows with every change of what ``hello`` would list."""
        return sum(watch.version + watch.ready.is_set() for watch in self._watches)

    @property
    def watches(self) -> tuple[DeviceWatch, ...]:
        return self._watches

    @property
    def ready(self) -> bool:
        """Every backend has told its devices, or an earlier run of it did."""
        return all(watch.ready.is_set() or watch.backend.name in self._remembered for watch in self._watches)

    def _of(self, watch: DeviceWatch) -> tuple[Device, ...]:
        return watch.devices if watch.ready.is_set() else self._remembered.get(watch.backend.name, ())

    def all(self) -> tuple[Device, ...]:
        """Rows of the hello. A slot that two backends claim belongs to the first."""
        found: dict[str, Device] = {}
        for watch in self._watches:
            for device in self._of(watch):
                found.setdefault(device.slot, device)
        if len(found) > MAX_DEVICES:
            log.error("%d devices are more than %d; the last ones are not reported.", len(found), MAX_DEVICES)
        return tuple(found.values())[:MAX_DEVICES]

    async def remember(self) -> None:
        """Keep the inventory for the next start, if it changed."""
        if self._saved_version == self.version:
            return
        self._saved_version = self.version
        now = {watch.backend.name: [asdict(device) for device in self._of(watch)] for watch in self._watches}
        try:
            await self._memory.save(json.dumps(now).encode())
        except DiskError as error:
            log.warning("The inventory is not remembered: %s", error)

    def hello(self, spool_id: str) -> Hello:
        return Hello(
            node=self._config.node,
            region=self._config.region,
            rack=self._config.rack,
            labels=[records_pb2.Label(key=label.key, value=label.value) for label in self._config.labels],
            boot_id=self._boot_id,
            spool=spool_id,
            agent_version=__version__,
            backends=[watch.backend.name for watch in self._watches],
            metric_schema=SCHEMA_VERSION,
            devices=[DeviceInfo(**asdict(device)) for device in self.all()],
            uptime_ms=self._clock.mono_ms(),
            zone=self._config.zone,
            probe_address=self._config.probe_advertise or self._config.probe_listen,
            scheduler=scheduler_of(self._config),
        )

    def telemetry(self) -> Telemetry | None:
        """All rows; NaN for a device whose backend has no sample now. None without a sample that is newer than the last
        one sent. The age is that of the oldest sample in it."""
        devices = self.all()
        rows = np.full((len(devices), len(METRICS)), np.nan, dtype="<f4")
        place = {device.slot: index for index, device in enumerate(devices)}
        stamps: list[int] = []
        for watch in self._watches:
            latest = watch.latest()
            if latest is None:
                stamps.append(0)
                continue
            values, at_ms = latest
            stamps.append(at_ms)
            for device, row in zip(watch.devices, values, strict=False):
                index = place.get(device.slot)
                if index is not None and devices[index] == device:
                    rows[index] = row
        taken = [stamp for stamp in stamps if stamp]
        if not taken or tuple(stamps) == self._sent:
            return None
        self._sent = tuple(stamps)
        return Telemetry(
            rows=len(devices),
            columns=len(METRICS),
            values=rows.tobytes(),
            age_ms=max(0, self._clock.mono_ms() - min(taken)),
        )
