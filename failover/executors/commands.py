"""Running another program's command line tools, with a time limit and a bound on what they say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from failover.executors.guardian_client import plain_environment

MAX_OUTPUT = 4 << 20
MAX_ERROR = 2_048
GONE_S = 5.0
"""What is not gone so long after SIGKILL hangs in the kernel and is not waited for."""


class NoAnswer(Exception):
    """Whether the command did anything is not known. Names the command and why."""


@dataclass(frozen=True, slots=True)
class Output:
    """``error``: the end of what it said on its error stream, or why it could not be run (``code`` 127)."""

    code: int
    text: str
    error: str


class Commands(Protocol):
    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Output:
        """Run it to its end. Raises ``NoAnswer`` if that takes longer, or if it says more than fits."""
        ...


class HostCommandLine:
    """``Commands`` of this host. Each runs in a session of its own, with nothing in its environment that could carry a
    secret of ours."""

    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Output:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**plain_environment(), **environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            return Output(127, "", f"{argv[0]} cannot be run: {error}")
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                text, error_text = await asyncio.gather(_all(process.stdout), _end(process.stderr))
                code = await process.wait()
        except TimeoutError as error:
            raise NoAnswer(f"{argv[0]} has not ended within {timeout_ms} ms") from error
        except OverflowError as error:
            raise NoAnswer(f"{argv[0]} said more than {MAX_OUTPUT} bytes") from error
        finally:
            await _gone(process)
        return Output(code, text.decode(errors="replace"), _plain(error_text))


async def _all(stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(1 << 16):
        size += len(part)
        if size > MAX_OUTPUT:
            raise OverflowError
        parts.append(part)
    return b"".join(parts)


async def _end(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while part := await stream.read(1 << 16):
        kept = (kept + part)[-MAX_ERROR:]
    return kept


def _plain(text: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in text.decode(errors="replace")).strip()


async def _gone(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it, also when its caller was cancelled."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                await process.wait()
