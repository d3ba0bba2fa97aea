"""Child processes that die with their parent, write to a log file, and can be killed, paused and started again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gridkeeper.ports.clock import Clock

POLL_MS = 20
LOG_TAIL = 2_000

_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; it outlives execv
if os.getppid() != int(sys.argv[1]):  # the parent died before that call
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program. A ``preexec_fn`` could do the same, but Python code between fork and exec may deadlock in a
process with threads, and gRPC has some."""


class GridError(RuntimeError):
    """The local grid cannot be started or steered as asked; says why and what to do."""


class Child:
    """One program. ``start`` may be called again after it has ended."""

    def __init__(self, name: str, command: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises ``GridError`` if it runs already. To be called from the main thread: the kernel takes the death of the
        starting thread for the parent's."""
        if self.running:
            raise GridError(f"{self.name} runs already, as process {self.pid}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, which stops its children in order
                env=self._environment,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> int | None:
        """Exit status (negative: signal) of one that was started and has ended."""
        return self._process.poll() if self._process is not None else None

    @property
    def pid(self) -> int:
        """Raises ``GridError`` if it does not run."""
        return self._alive().pid

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise GridError(f"{self.name} does not run; start it")
        return self._process

    def signal(self, number: int) -> None:
        """Raises ``GridError`` if it does not run."""
        self._alive().send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the kernel to have done it."""
        process = self._alive()
        process.kill()
        process.wait()

    async def stop(self, clock: Clock, grace_ms: int) -> None:
        """SIGTERM (and SIGCONT, in case it is paused), SIGKILL after ``grace_ms``. Idempotent."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        until_ms = clock.mono_ms() + grace_ms
        while process.poll() is None and clock.mono_ms() < until_ms:
            await clock.sleep(POLL_MS)
        if process.poll() is None:
            process.kill()
        process.wait()

    def tail(self) -> str:
        """The end of its log."""
        try:
            return self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip() or "its log is empty"
        except OSError as error:
            return f"its log cannot be read: {error}"


PORTS = range(15_000, 32_000)
"""Below what Linux gives to outgoing connections (``net.ipv4.ip_local_port_range``, from 32768 on): a port that is
free now is not taken by one of them before its server is up."""


def free_ports(count: int) -> tuple[int, ...]:
    """Loopback ports that were free a moment ago, chosen at random: two grids that start together hardly meet.

    Raises ``GridError`` if there are not so many.
    """
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(PORTS, len(PORTS)):
            if len(sockets) == count:
                break
            each = socket.socket()
            sockets.append(each)
            try:
                each.bind(("127.0.0.1", port))
            except OSError:  # somebody has it: the next one
                sockets.pop().close()
        if len(sockets) < count:
            raise GridError(f"fewer than {count} ports from {PORTS.start} to {PORTS.stop - 1} are free on 127.0.0.1")
        return tuple(int(each.getsockname()[1]) for each in sockets)
    finally:
        for each in sockets:
            each.close()
