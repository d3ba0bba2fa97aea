"""The agent's end of the guardian's socket: asks, restarts a guardian that is gone, ends one that is frozen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from failover.executors.protocol import (
    MAX_REPLY,
    BadMessage,
    Reply,
    Request,
    decode_reply,
    encode_request,
    socket_address,
)
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorUnavailable

log = logging.getLogger("gridkeeper.guardian-client")

ANSWER_MS = 2_000
"""A guardian answers within milliseconds; one that takes this long is stopped or starved."""
BOOT_MS = 5_000
RETRY_MS = 20
MARK = "nodeagent.guardian"

_SAFE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


def plain_environment() -> dict[str, str]:
    """What a process of ours may inherit: no variable that could carry a secret."""
    return {name: os.environ[name] for name in _SAFE if name in os.environ}


class GuardianClient:
    """``command`` starts a guardian for ``state_dir`` that detaches by itself; empty: somebody else starts it, and
    until then nothing answers."""

    def __init__(self, state_dir: Path, command: Sequence[str], clock: Clock) -> None:
        self._state_dir = state_dir
        self._command = tuple(command)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Request) -> Reply:
        """One request, one reply; a guardian that is not there is started. All requests may be repeated, so a broken
        connection is opened again. Raises ``ExecutorUnavailable``."""
        async with self._turn:
            try:
                async with asyncio.timeout((ANSWER_MS + BOOT_MS) / 1000):
                    return await self._persistently(request)
            except (OSError, EOFError, TimeoutError, BadMessage, asyncio.LimitOverrunError) as error:
                self._drop()
                raise ExecutorUnavailable(
                    f"guardian of {self._state_dir}: {error or type(error).__name__}; is it stopped, or its disk full?"
                ) from error
            except asyncio.CancelledError:
                self._drop()  # its reply would be taken for the next one's
                raise

    async def _persistently(self, request: Request) -> Reply:
        """Through the death of a guardian: it may break a few connections before its successor answers."""
        give_up = self._clock.mono_ms() + (BOOT_MS if self._command else 0)
        while True:
            try:
                return await self._once(request)
            except TimeoutError:
                raise
            except (OSError, EOFError):
                self._drop()
                if self._clock.mono_ms() >= give_up:
                    raise
                await self._clock.sleep(RETRY_MS)

    async def _once(self, request: Request) -> Reply:
        if self._stream is None:
            self._stream = await self._open()
        reader, writer = self._stream
        writer.write(encode_request(request))
        async with asyncio.timeout(ANSWER_MS / 1000):
            await writer.drain()
            line = await reader.readuntil(b"\n")
        return decode_reply(line)

    def _drop(self) -> None:
        if self._stream:
            self._stream[1].close()
            self._stream = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return await asyncio.open_unix_connection(socket_address(directory), limit=MAX_REPLY)
        finally:
            os.close(directory)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await self._connect()
        except OSError:
            if not self._command:
                raise
        await self._launch()
        give_up = self._clock.mono_ms() + BOOT_MS
        while True:
            try:
                return await self._connect()
            except OSError:
                if self._clock.mono_ms() >= give_up:
                    raise
            await self._clock.sleep(RETRY_MS)

    async def _launch(self) -> None:
        log.info("Starting the guardian of %s.", self._state_dir)
        process = self._popen()
        while process.poll() is None:  # it detaches at once
            await self._clock.sleep(RETRY_MS)
        if process.returncode:
            raise OSError(f"{' '.join(self._command)} ended with {process.returncode}; see guardian.log")

    def _popen(self) -> subprocess.Popen[bytes]:
        with open(self._state_dir / "guardian.log", "ab") as output:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=plain_environment(),
                start_new_session=True,
            )

    def end_frozen(self) -> bool:
        """SIGKILL to a guardian that does not answer; its keepers then end all its jobs. True: there was one."""
        try:
            pid = int((self._state_dir / "guardian.lock").read_text().strip() or "0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if pid else []
        except (OSError, ValueError):
            return False
        if MARK.encode() not in command or str(self._state_dir).encode() not in command:
            return False
        log.error("The guardian (pid %d) is frozen past a deadline: killing it, and with it its jobs.", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._drop()
        return True

    def close(self) -> None:
        self._drop()
