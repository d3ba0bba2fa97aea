"""Running a vendor's command-line tool: its output or a reason, in bounded time and memory."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from gridkeeper.ports.devices import BackendError

OUTPUT_LIMIT = 8 * 1024 * 1024
"""A host has at most some dozens of devices of some kilobytes each."""

KILL_S = 60.0
"""A tool that has not answered by then is killed. The sampler calls it a ``DRIVER_HANG`` long before
(``driver_timeout_ms``); killing it only keeps hung processes from piling up."""


ERRORS_KEPT = 4_096
"""Bytes of what it says on standard error."""

_CHUNK = 65_536


class Tool:
    """One executable, by name (looked up in PATH) or path. Safe to call from several threads, one call at a time."""

    def __init__(self, command: str, remedy: str, kill_s: float = KILL_S) -> None:
        """``remedy``: what to do when it is not there."""
        self._command = command
        self._remedy = remedy
        self._kill_s = kill_s
        self._busy = threading.Lock()

    @property
    def name(self) -> str:
        return os.path.basename(self._command)

    def run(self, *arguments: str, cwd: Path | None = None, any_end: bool = False) -> str:
        """What it prints. Raises ``BackendError`` if it is not there, ends with an error (``any_end``: that is one of
        its answers), prints more than ``OUTPUT_LIMIT`` bytes or does not answer."""
        path = shutil.which(self._command)
        if path is None:
            raise BackendError(f"{self._command}: is not there; {self._remedy}")
        said = " ".join((self.name, *arguments))
        with self._busy:
            try:
                process = subprocess.Popen(
                    [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    cwd=cwd, start_new_session=True, env=os.environ | {"LC_ALL": "C"},
                )  # fmt: skip
            except OSError as error:
                raise BackendError(f"{said}: cannot be run ({error.strerror}); {self._remedy}") from error
            late = threading.Event()
            timer = threading.Timer(self._kill_s, _kill, (process, late))
            timer.daemon = True
            timer.start()
            try:
                output, errors = _hear(process)
                if len(output) > OUTPUT_LIMIT:
                    _kill(process, threading.Event())
                code = process.wait()
            finally:
                timer.cancel()
            if late.is_set():
                raise BackendError(f"{said}: has not answered in {self._kill_s:.0f} s and was killed")
            if len(output) > OUTPUT_LIMIT:
                raise BackendError(f"{said}: prints more than {OUTPUT_LIMIT} bytes")
            if code != 0 and not any_end:
                why = " ".join((errors or output[-ERRORS_KEPT:]).decode("utf-8", "replace").split())
                raise BackendError(f"{said}: ends with {code}: {why[-300:] or 'no words'}")
        return output.decode("utf-8", "replace")


def _hear(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What it prints, until it prints no more or more than ``OUTPUT_LIMIT``, and the first words of its complaints. All
    of these are read, so that a tool that complains without end neither blocks nor fills a disk."""
    assert process.stdout is not None and process.stderr is not None  # pipes, as asked for
    output, errors = bytearray(), bytearray()
    with process.stdout as said, process.stderr as complained, selectors.DefaultSelector() as selector:
        selector.register(said, selectors.EVENT_READ, output)
        selector.register(complained, selectors.EVENT_READ, errors)
        while said in selector.get_map() and len(output) <= OUTPUT_LIMIT:
            for key, _ in selector.select():
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is output:
                    output += chunk
                else:
                    errors += chunk[: max(0, ERRORS_KEPT - len(errors))]
        os.set_blocking(complained.fileno(), False)
        with contextlib.suppress(BlockingIOError):  # a last word that came with the end of the output
            errors += os.read(complained.fileno(), ERRORS_KEPT)
    return bytes(output), bytes(errors[:ERRORS_KEPT])


def _kill(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
