"""Commands of repairs as processes of this host, each in a session of its own with a bounded memory of what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from failover.executors.guardian_client import plain_environment
from gridkeeper.ports.hostwork import Ended

KEPT_BYTES = 4_096


class ProcessRunner:
    """``HostRunner``."""

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Ended:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**plain_environment(), **environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return Ended(127, f"{argv[0]} cannot be run: {error}")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                output = await _end_of(process.stdout)
                return Ended(await process.wait(), output)
        except TimeoutError:
            _kill(process.pid)
            await process.wait()
            return Ended(-signal.SIGKILL, "killed", timed_out=True)
        except asyncio.CancelledError:
            _kill(process.pid)
            raise


async def _end_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None, "the command was started with a pipe"
    kept = b""
    while chunk := await stream.read(KEPT_BYTES):
        kept = (kept + chunk)[-KEPT_BYTES:]
    return "".join(c if c.isprintable() else " " for c in kept.decode(errors="replace"))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
