"""Commands of repairs as processes of this host, each in a session of its own with a bounded memory of what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from failover.executors.guardian_client import plain_environment
from gridkeeper.ports.hostwork import Ended

KEPT_BYTES = 4_096
LINGER_S = 1.0
"""A command that has ended has said all by then; what it left running in the background may hold its output open."""
KILLED_S = 5.0
"""A process that is not gone so long after SIGKILL hangs in a driver, which can last for ever: it is not waited for."""


class ProcessRunner:
    """``HostRunner``."""

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Ended:
        said = _LastWords()
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                env={**plain_environment(), **environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(reading)
            return Ended(127, f"{argv[0]} cannot be run: {error}")
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            # A pipe of our own: asyncio's would let ``wait`` return only when nobody holds it open any more.
            await asyncio.get_running_loop().connect_read_pipe(lambda: said, os.fdopen(reading, "rb", 0))
            async with asyncio.timeout(timeout_ms / 1000):
                code = await process.wait()
            await _within(LINGER_S, said.over.wait())
            return Ended(code, said.text())
        except TimeoutError:
            _kill(process.pid)
            gone = await _within(KILLED_S, process.wait())
            return Ended(-signal.SIGKILL, "killed" if gone else "killed, and not gone: it hangs in the kernel", True)
        except asyncio.CancelledError:
            _kill(process.pid)
            raise
        finally:
            said.close()


class _LastWords(asyncio.Protocol):
    """The end of what a command says, in bounded memory."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._kept = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-KEPT_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def text(self) -> str:
        return "".join(c if c.isprintable() else " " for c in self._kept.decode(errors="replace"))


async def _within(seconds: float, waiting: Coroutine[Any, Any, object]) -> bool:
    """Whether it came to its end in time."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
