"""Steers the simulated NVML from Python: devices, counters and XID events, as the hardware would change them.

    sim = SimNvml.create(path, devices=8, seed=1)
    environment |= sim.environment(build(directory))   # for the process that imports pynvml
    sim.device(3).set(temperature=91, ecc_corrected=5000, remap_pending=1)
    sim.xid(3, 48)

Readers may be any number of processes; each field is stored whole (see ``layout``). Posting events and processes
takes an ``flock`` on the file, so several steering processes may do it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import random
from collections.abc import Iterator
from pathlib import Path

from chaos.nvml import layout
from chaos.nvml.models import MIB, MODELS, Model

ENVIRONMENT = "GRIDKEEPER_NVML_SIM"
XID_EVENT_BIT = 3  # nvmlEventTypeXidCriticalError = 1 << 3
FALLEN_OFF_THE_BUS = 79
LINKS = 18  # NVLinks of an H100 or B200
FABRIC_COMPLETED = 3

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), -1)
_FUTEX_WAKE = 1
_NOT_STEERABLE = {"processes", "reserved", "lost", "hang"}


class SteerError(ValueError):
    """A device, field or value that the simulation does not have; the message says what it has."""


class SimDevice:
    """One simulated device. ``state`` is the mapped structure itself, in NVML's units."""

    def __init__(self, sim: SimNvml, index: int, state: layout.DeviceState) -> None:
        self._sim = sim
        self.index = index
        self.state = state

    def set(self, **fields: int) -> None:
        """Change fields of ``layout.DeviceState``, e.g. ``temperature=90``. Raises ``SteerError``."""
        known = {name: kind for name, kind, *_ in layout.DeviceState._fields_ if name not in _NOT_STEERABLE}
        for name, value in fields.items():
            kind = known.get(name)
            if kind not in (ctypes.c_uint32, ctypes.c_uint64):
                names = ", ".join(n for n, k in known.items() if k in (ctypes.c_uint32, ctypes.c_uint64))
                raise SteerError(f"{name}: a device has no such number; it has {names}")
            if not 0 <= value < 1 << (8 * ctypes.sizeof(kind)):
                raise SteerError(f"{name}: {value} does not fit into {ctypes.sizeof(kind)} bytes")
        for name, value in fields.items():
            setattr(self.state, name, value)

    @property
    def bus_id(self) -> str:
        """As the kernel log spells it: ``0000:91:00``."""
        return f"{self.state.pci_domain:04x}:{self.state.pci_bus:02x}:{self.state.pci_device:02x}"

    @property
    def uuid(self) -> str:
        return bytes(self.state.uuid).decode()


class SimNvml:
    """The state file of one simulated host. Make it with ``create`` or join it with ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "r+b")  # noqa: SIM115 - lives as long as the mapping
        self._map = mmap.mmap(self._file.fileno(), ctypes.sizeof(layout.State))
        self.state = layout.State.from_buffer(self._map)
        self._libc = ctypes.CDLL(None, use_errno=True)

    @classmethod
    def create(cls, path: Path, devices: int = 8, seed: int = 0, model: str = "H100") -> SimNvml:
        """A fresh host with ``devices`` healthy cards; the same arguments give the same host. Replaces the file (a
        process that mapped the old one keeps the old one). Raises ``SteerError``."""
        if not 0 <= devices <= layout.MAX_DEVICES:
            raise SteerError(f"devices: {devices} is not between 0 and {layout.MAX_DEVICES}")
        if model not in MODELS:
            raise SteerError(f"model: {model!r} is not one of {', '.join(MODELS)}")
        state = layout.State(
            magic=layout.MAGIC,
            version=layout.VERSION,
            size=ctypes.sizeof(layout.State),
            device_count=devices,
            driver_version=b"570.124.06",
            nvml_version=b"12.570.124.06",
        )
        chance = random.Random(f"{seed}/{model}")
        for index in range(devices):
            _fresh(state.devices[index], index, MODELS[model], chance)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(bytes(state))
        os.replace(scratch, path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> SimNvml:
        """Join an existing file. Raises ``SteerError`` if its layout is another."""
        if path.stat().st_size != ctypes.sizeof(layout.State):
            raise SteerError(f"{path}: not a state file of this version; make it anew with SimNvml.create")
        sim = cls(path)
        if (sim.state.magic, sim.state.version) != (layout.MAGIC, layout.VERSION):
            raise SteerError(f"{path}: not a state file of this version; make it anew with SimNvml.create")
        return sim

    def environment(self, library: Path) -> dict[str, str]:
        """What a process needs to see this host: ``library`` is what ``build`` returned."""
        before = os.environ.get("LD_LIBRARY_PATH", "")
        return {ENVIRONMENT: str(self.path), "LD_LIBRARY_PATH": f"{library}:{before}" if before else str(library)}

    def device(self, index: int) -> SimDevice:
        """Raises ``SteerError``."""
        if not 0 <= index < self.state.device_count:
            raise SteerError(f"device: {index} is not between 0 and {self.state.device_count - 1}")
        return SimDevice(self, index, self.state.devices[index])

    @property
    def devices(self) -> tuple[SimDevice, ...]:
        return tuple(self.device(index) for index in range(self.state.device_count))

    def xid(self, index: int, code: int) -> None:
        """Post an XID event; waiters wake at once."""
        self.device(index)
        with self._locked():
            sequence = (self.state.head + 1) & 0xFFFFFFFF
            self.state.ring[sequence % layout.RING_SIZE] = layout.pack_event(sequence, code, index, XID_EVENT_BIT)
            self.state.head = sequence
        self._wake("head")

    def lose(self, index: int, announce: bool = True) -> None:
        """The device falls off the bus: XID 79 (unless ``announce=False``), then every call says GPU_IS_LOST."""
        if announce:
            self.xid(index, FALLEN_OFF_THE_BUS)
        self.device(index).state.lost = 1
        self._wake("head")

    def restore(self, index: int) -> None:
        """A lost device answers again (it was reset or reseated)."""
        self.device(index).state.lost = 0

    def hang(self, on: bool, index: int | None = None) -> None:
        """Calls block while on: on one device, or (``index=None``) all calls."""
        if index is None:
            self.state.hang = int(on)
            self._wake("hang")
        else:
            self.device(index).state.hang = int(on)
            self._wake_at(ctypes.addressof(self.device(index).state) + layout.DeviceState.hang.offset)

    def fail(self, code: int, index: int | None = None) -> None:
        """Calls return this NVML error (0: no more): of one device, or (``index=None``) all calls, init included."""
        if index is None:
            self.state.fail_code = code
        else:
            self.device(index).state.fail_code = code

    def add_process(self, index: int, pid: int, memory_mib: int = 1024) -> None:
        """A compute process appears on the device. Raises ``SteerError`` when its table is full."""
        if not 0 < pid < 1 << 31:
            raise SteerError(f"pid: {pid} is not a process id")
        with self._locked():
            for slot in self.device(index).state.processes:
                if slot.pid in (0, pid):
                    slot.memory = memory_mib * MIB
                    slot.pid = pid
                    return
        raise SteerError(f"device {index}: more than {layout.MAX_PROCESSES} processes; remove one first")

    def remove_process(self, index: int, pid: int) -> None:
        """It has ended. Nothing happens if it was not there."""
        with self._locked():
            for slot in self.device(index).state.processes:
                if slot.pid == pid:
                    slot.pid = 0

    def load(self, index: int, busy: float, tick: int = 0) -> None:
        """Set temperatures, power, clocks, utilisation and memory as under a load of ``busy`` (0 to 1), with a small
        ripple that ``tick`` moves on: what a dashboard shows as life. Counters stay."""
        state = self.device(index).state
        ripple = random.Random(f"{state.uuid!r}/{tick}").uniform(-1.0, 1.0)
        state.temperature = round(34 + 34 * busy + 2 * ripple)
        state.temperature_memory = round(38 + 38 * busy + 2 * ripple)
        state.power = round(state.power_limit * (0.1 + 0.8 * busy + 0.02 * ripple))
        state.clock_sm = round(state.clock_sm_max * (0.2 + 0.78 * busy + 0.01 * ripple))
        state.utilisation = max(0, min(100, round(100 * busy + 2 * ripple * (busy > 0))))
        state.memory_used = round(state.memory_total * (0.01 + 0.75 * busy))

    def close(self) -> None:
        """Unmap. The file stays."""
        del self.state
        with contextlib.suppress(BufferError):  # a SimDevice still points into it; the mapping goes with that
            self._map.close()
        self._file.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _wake(self, field: str) -> None:
        self._wake_at(ctypes.addressof(self.state) + getattr(layout.State, field).offset)

    def _wake_at(self, address: int) -> None:
        if _SYS_FUTEX >= 0:  # elsewhere waiters look again every 20 ms by themselves
            self._libc.syscall(_SYS_FUTEX, ctypes.c_void_p(address), _FUTEX_WAKE, 1 << 30, None, None, 0)


def _fresh(state: layout.DeviceState, index: int, model: Model, chance: random.Random) -> None:
    state.present = 1
    state.features = model.features
    state.architecture = model.architecture
    state.pci_domain, rank = divmod(index, 14)
    state.pci_bus = 0x11 + 0x10 * rank
    state.pci_device_id = model.pci_device_id
    state.temperature = chance.randint(31, 38)
    state.temperature_memory = state.temperature + 4
    state.temperature_slowdown = model.slowdown
    state.temperature_shutdown = model.shutdown
    state.temperature_gpu_max = model.gpu_max
    state.temperature_memory_max = model.memory_max
    state.power = model.power_limit // 10 + chance.randint(0, 5_000)
    state.power_limit = model.power_limit
    state.clock_sm = state.clock_sm_max = model.clock_sm_max
    state.clock_memory = state.clock_memory_max = model.clock_memory_max
    state.memory_total = model.memory_mib * MIB
    state.memory_used = chance.randint(400, 600) * MIB
    state.pcie_generation = state.pcie_generation_max = model.pcie_generation
    state.pcie_width = state.pcie_width_max = 16
    state.nvlink_count, state.nvlink_up, state.fabric_state = LINKS, (1 << LINKS) - 1, FABRIC_COMPLETED
    state.name = model.name.encode()
    digits = f"{chance.getrandbits(128):032x}"
    state.uuid = f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode()
    state.serial = f"{chance.randrange(10**12, 10**13)}".encode()
