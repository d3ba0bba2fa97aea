"""The guardian: a small process beside the agent that ends jobs at their deadlines, whether or not the agent lives.

    python -m nodeagent.guardian --state-dir DIR

It forks one keeper per (job, epoch) (``nodeagent.keeper``), holds each epoch's deadline on CLOCK_BOOTTIME, and sends
SIGTERM and SIGKILL when it nears. The agent moves deadlines when a renewal was acknowledged. The highest epoch per job
is on disk before its process exists; lower ones are refused, for ever.

What it survives: the agent's death or freeze (jobs run on to their deadlines and are then ended), suspend (the timer
runs on boot time), its own death (keepers kill their trees; a new guardian reports them as killed once nothing is
left). What it does not: a guardian that is itself stopped (SIGSTOP) or never scheduled kills nobody; nor does anyone
kill a process in uninterruptible sleep. Both show as a stop that is not confirmed, and the checkpoint fence alone
protects then. If guardian and keeper are both killed with SIGKILL at one instant, a process that also wiped its
environment is not found again.

It goes by itself when it has no live runs and no agent has spoken for a minute. SIGTERM stops all jobs, then itself.
With ``--once`` (started by a batch system for one epoch) it goes with that epoch, and with its exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass

from failover.executors import guardian_state
from failover.executors.protocol import MAX_LINE, SOCKET, encode_reply, socket_address
from nodeagent.guardian_core import IDLE_MS, Guardian
from nodeagent.linux import BootTimer, become_subreaper, boot_ms

MAX_CLIENTS = 64
"""There is one agent; a few more connections may be left by dead ones or belong to a person who looks."""
ACCEPT_AGAIN_MS = 100


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    unread: bytes = b""
    unsent: bytes = b""


class Server:
    """The socket, the timer and the signals around a ``Guardian``."""

    def __init__(self, guardian: Guardian, listener: socket.socket) -> None:
        self._guardian = guardian
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._timer = BootTimer()
        self._clients: dict[int, _Client] = {}
        self._pipes: set[tuple[int, int]] = set()
        self._accept_at_ms: int | None = None  # when to look at the listener again; None: it is looked at
        wake_reader, wake_writer = socket.socketpair()
        wake_reader.setblocking(False)
        wake_writer.setblocking(False)
        self._wake = (wake_reader, wake_writer)
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: guardian.stop_all())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for source in (self._listener, wake_reader, self._timer):
            self._selector.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        while not self._guardian.finished:
            self._follow_pipes()
            self._listen_again()
            due = [at for at in (self._guardian.due_ms(), self._accept_at_ms) if at is not None]
            self._timer.arm(min(due, default=None))
            ready = self._selector.select()
            self._timer.clear()
            # Deadlines before requests: nobody can talk the guardian out of a fence that is due.
            self._guardian.tick()
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake[0]:
                    with contextlib.suppress(BlockingIOError):
                        self._wake[0].recv(4096)
                elif key.fd in self._clients:
                    self._serve(self._clients[key.fd])
            self._guardian.tick()

    def _follow_pipes(self) -> None:
        wanted = self._guardian.pipes()
        for fd, _ in self._pipes - wanted:
            self._selector.unregister(fd)
        for fd, _ in wanted - self._pipes:
            self._selector.register(fd, selectors.EVENT_READ)
        self._pipes = wanted

    def _listen_again(self) -> None:
        if self._accept_at_ms is not None and boot_ms() >= self._accept_at_ms:
            self._accept_at_ms = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors or memory left: whoever waits is served when there are again
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._selector.unregister(self._listener)
            self._accept_at_ms = boot_ms() + ACCEPT_AGAIN_MS
            return
        if len(self._clients) >= MAX_CLIENTS:  # descriptors are needed to find and end jobs
            connection.close()
            return
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.geteuid():
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, client: _Client) -> None:
        try:
            if not client.unsent:
                data = client.connection.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                client.unread += data
            while not client.unsent and b"\n" in client.unread:
                line, _, client.unread = client.unread.partition(b"\n")
                client.unsent = encode_reply(self._guardian.answer(line))
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
            if client.unsent:
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
            if len(client.unread) > MAX_LINE:
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            self._selector.unregister(client.connection)
            del self._clients[client.connection.fileno()]
            client.connection.close()
            return
        events = selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ
        self._selector.modify(client.connection, events)


def listen(directory: str) -> socket.socket:
    """The bound socket, 0600, in place of an older one. The caller holds the directory's lock."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, SOCKET))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(socket_address(fd))
        finally:
            os.umask(before)
    finally:
        os.close(fd)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nodeagent.guardian", description="Ends jobs at their deadlines.")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--idle-exit-ms", type=int, default=IDLE_MS)
    parser.add_argument("--detach", action="store_true", help="go on in the background once the socket is there")
    parser.add_argument("--once", action="store_true", help="end with the first run, and with its exit status")
    parser.add_argument("--inherit", nargs="*", default=[], metavar="PREFIX", help="variables that runs get from here")
    options = parser.parse_args(arguments)
    lock = os.open(os.path.join(options.state_dir, "guardian.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if options.detach and os.fork():
        os._exit(0)
    if options.detach:
        os.setsid()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"guardian: another one serves {options.state_dir}", file=sys.stderr)
        return 3
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    become_subreaper()
    try:
        given = {k: v for k, v in os.environ.items() if k.startswith(tuple(options.inherit))}
        guardian = Guardian(options.state_dir, options.idle_exit_ms, options.once, given)
    except (guardian_state.BadState, OSError) as error:
        print(f"guardian: {error}", file=sys.stderr)
        return 1
    Server(guardian, listen(options.state_dir)).run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(options.state_dir, SOCKET))
    return guardian.status


if __name__ == "__main__":
    sys.exit(main())
