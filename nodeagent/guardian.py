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
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass

from failover.executors.protocol import (
    MAX_LINE,
    SOCKET,
    TREE_VARIABLE,
    BadMessage,
    Checkpoint,
    Extend,
    Forget,
    ListRuns,
    Ping,
    Reply,
    Request,
    RunState,
    Start,
    Stop,
    decode_request,
    encode_reply,
    epoch_number,
    socket_address,
)
from nodeagent import guardian_state
from nodeagent.guardian_runs import Key, Run, look_for_lost
from nodeagent.keeper import spawn
from nodeagent.linux import BootTimer, become_subreaper, boot_ms, children, send_signal

IDLE_MS = 60_000
SHUTDOWN_GRACE_MS = 10_000


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class Refused(Exception):
    """The request cannot be done; names job, epoch and why."""


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    unread: bytes = b""
    unsent: bytes = b""


class Guardian:
    def __init__(self, directory: str, idle_ms: int) -> None:
        self._directory = directory
        self._idle_ms = idle_ms
        self._spoken_ms = boot_ms()
        self._stopping = False
        self._runs: dict[Key, Run] = {}
        found = guardian_state.load(directory)
        self._state = found or guardian_state.State(os.urandom(8).hex(), boot_id())
        for old in self._state.runs:
            self._runs[old.job, old.epoch] = self._returned(old)
        self._state.boot_id = boot_id()
        self._save()

    def _returned(self, old: RunState) -> Run:
        """A run of an earlier guardian: its keeper ended with that one, or with the host."""
        now = boot_ms()
        run = Run(old.job, old.epoch, self._tag(old.job, old.epoch), old.started_ms, old.deadline_ms, 0, 0)
        run.exit_code, run.exit_signal = old.exit_code, old.exit_signal
        run.ended_ms, run.tree_gone = old.ended_ms, old.tree_gone
        run.fenced, run.stop_asked = old.fenced, old.stop_asked
        if not old.tree_gone:
            run.keeper_ended(clean=self._state.boot_id != boot_id(), now=now)
        return run

    def _tag(self, job: str, epoch: str) -> str:
        return f"{self._state.tag}/{job}@{epoch}"

    def _save(self) -> None:
        self._state.runs = [run.state(with_pids=False) for run in self._runs.values()]
        guardian_state.save(self._directory, self._state)

    # Requests

    def answer(self, line: bytes) -> Reply:
        try:
            return self._do(decode_request(line))
        except (BadMessage, Refused) as error:
            return Reply(str(error), os.getpid())
        except OSError as error:
            return Reply(f"guardian: {error}", os.getpid())

    def _do(self, request: Request) -> Reply:
        self._spoken_ms = now = boot_ms()
        match request:
            case Ping():
                pass
            case ListRuns():
                return Reply("", os.getpid(), tuple(run.state(with_pids=True) for run in self._runs.values()))
            case Start():
                self._start(request, now)
            case Extend():
                self._known(request.job, request.epoch).extend(
                    request.deadline_ms, request.term_before_ms, request.kill_before_ms
                )
            case Stop():
                self._known(request.job, request.epoch).stop(now, request.grace_ms)
            case Checkpoint():
                run = self._known(request.job, request.epoch)
                if not run.alive or not run.leader:
                    raise Refused(f"job {request.job} epoch {request.epoch} has ended; nothing to checkpoint")
                send_signal(run.leader, signal.SIGUSR1)
            case Forget():
                self._forget(request.job, request.epoch)
        return Reply("", os.getpid())

    def _known(self, job: str, epoch: str) -> Run:
        run = self._runs.get((job, epoch))
        if run is None:
            raise Refused(f"job {job} epoch {epoch} is not known to this guardian; list tells what is")
        return run

    def _forget(self, job: str, epoch: str) -> None:
        run = self._runs.get((job, epoch))
        if run is None:
            return
        if not run.tree_gone:
            raise Refused(f"job {job} epoch {epoch} still has processes; stop it first")
        del self._runs[job, epoch]
        self._save()

    def _start(self, request: Start, now: int) -> None:
        if (request.job, request.epoch) in self._runs:
            return
        what = f"job {request.job} epoch {request.epoch}"
        highest = self._state.highest.get(request.job)
        if highest is not None and epoch_number(request.epoch) <= epoch_number(highest):
            raise Refused(f"{what} is not higher than {highest}, which was started before; use a higher epoch")
        for other in self._runs.values():
            if other.job == request.job and not other.tree_gone:
                raise Refused(f"{what}: epoch {other.epoch} still has processes; stop it first")
        if self._stopping:
            raise Refused(f"{what}: the guardian is shutting down; try again")
        if request.deadline_ms - request.term_before_ms <= now:
            raise Refused(f"{what}: its deadline has come already; renew first")
        if not request.argv:
            raise Refused(f"{what}: command is empty")
        tag = self._tag(request.job, request.epoch)
        run = Run(
            request.job, request.epoch, tag, now, request.deadline_ms, request.term_before_ms, request.kill_before_ms
        )
        self._state.highest[request.job] = request.epoch
        self._runs[run.key] = run
        self._save()  # before the process exists: whatever happens next, this epoch is used up
        env = {**dict(request.env), TREE_VARIABLE: tag}
        run.keeper, run.pipe = spawn(request.argv, env, request.cwd, request.log)
        said = b""
        while not said.endswith(b"\n"):  # ends at exec, or with the keeper
            chunk = os.read(run.pipe, 4096)
            if not chunk:
                break
            said += chunk
        first, _, rest = said.partition(b"\n")
        if first.startswith(b"started "):
            run.leader = int(first.split()[1])
            os.set_blocking(run.pipe, False)
            run.hear(rest, now)
            return
        os.close(run.pipe)
        os.waitpid(run.keeper, 0)
        del self._runs[run.key]
        self._save()
        raise Refused(f"{what}: {first.removeprefix(b'failed ').decode(errors='replace') or 'the keeper died'}")

    # Time and processes

    def due_ms(self) -> int | None:
        """When to wake by itself."""
        times = [due for run in self._runs.values() if (due := run.due_ms()) is not None]
        if not times:
            times.append(self._spoken_ms + self._idle_ms)
        return min(times)

    @property
    def finished(self) -> bool:
        idle = self._stopping or boot_ms() >= self._spoken_ms + self._idle_ms
        return idle and all(run.tree_gone for run in self._runs.values())

    def stop_all(self) -> None:
        self._stopping = True
        for run in self._runs.values():
            if run.alive:
                run.stop(boot_ms(), SHUTDOWN_GRACE_MS)

    def tick(self) -> None:
        """Everything that is due now. Called after each wake-up."""
        now = boot_ms()
        for run in list(self._runs.values()):
            self._hear(run, now)
            run.act(now)
        lost = [run for run in self._runs.values() if run.lost and run.look_ms <= now]
        if lost:
            keepers = {run.keeper for run in self._runs.values() if run.keeper}
            look_for_lost(lost, keepers, now)
            self._reap_adopted(keepers)
            if any(run.tree_gone for run in lost):
                self._save()

    def _hear(self, run: Run, now: int) -> None:
        if run.pipe < 0:
            return
        try:
            while data := os.read(run.pipe, 4096):
                run.hear(data, now)
        except BlockingIOError:
            return
        os.close(run.pipe)
        run.pipe = -1
        _, status = os.waitpid(run.keeper, 0)
        run.keeper_ended(clean=status == 0, now=now)
        self._save()

    def _reap_adopted(self, keepers: set[int]) -> None:
        for pid in children(os.getpid()):
            if pid not in keepers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def pipes(self) -> set[tuple[int, int]]:
        """(file descriptor, keeper): a number alone may have been used anew."""
        return {(run.pipe, run.keeper) for run in self._runs.values() if run.pipe >= 0}


class Server:
    """The socket, the timer and the signals around a ``Guardian``."""

    def __init__(self, guardian: Guardian, listener: socket.socket) -> None:
        self._guardian = guardian
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._timer = BootTimer()
        self._clients: dict[int, _Client] = {}
        self._pipes: set[tuple[int, int]] = set()
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
            self._timer.arm(self._guardian.due_ms())
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

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
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
        guardian = Guardian(options.state_dir, options.idle_exit_ms)
    except (guardian_state.BadState, OSError) as error:
        print(f"guardian: {error}", file=sys.stderr)
        return 1
    Server(guardian, listen(options.state_dir)).run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(options.state_dir, SOCKET))
    return 0


if __name__ == "__main__":
    sys.exit(main())
