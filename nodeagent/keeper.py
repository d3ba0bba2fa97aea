"""The keeper: one small process per (job, epoch), forked by the guardian, parent and subreaper of that job's tree.

Whatever a job forks, detaches or daemonizes stays below its keeper, so "the tree is gone" is the kernel's own answer:
the keeper has no children left. It ends then, and only then, with status 0. When the guardian dies, the kernel tells
the keeper (parent-death signal), which kills the whole tree. The job's leading process in turn dies with its keeper.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence

from nodeagent.linux import become_subreaper, descendants, die_with_parent, send_signal

_AGAIN_S = 0.02


def _close_others(*keep: int) -> None:
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _kill_tree() -> None:
    """SIGKILL everything below this process until nothing is left."""
    while True:
        with contextlib.suppress(OSError):  # no descriptors left: the next look sees them
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_AGAIN_S)


def _job(argv: Sequence[str], env: Mapping[str, str], cwd: str, log: str, keeper: int, report: int) -> None:
    """In the job's leading process: never returns."""
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        _reset_signals()
        _close_others(report)  # first: whatever hangs below must not hold the guardian's pipe open
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        os.write(report, f"{argv[0]}: {error.strerror or error}".encode())
    finally:
        os._exit(127)


def _keep(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, log: str, guardian: int, pipe: int, leave: int
) -> None:
    """In the keeper: fork the job once there is leave, tell of its start and end, reap until no child is left."""
    signal.set_wakeup_fd(-1)
    _reset_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _close_others(pipe, leave)
    os.setsid()
    become_subreaper()

    def guardian_gone(number: int, frame: object) -> None:
        _kill_tree()
        os._exit(1)

    signal.signal(signal.SIGTERM, guardian_gone)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != guardian:
        os._exit(1)
    if not os.read(leave, 1):  # closed without a word: there shall be no job
        os._exit(0)
    os.close(leave)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    me = os.getpid()
    leader = os.fork()
    if leader == 0:
        _job(argv, env, cwd, log, me, writer)
    os.close(writer)
    failure = b""
    while chunk := os.read(reader, 4096):
        failure += chunk
    os.close(reader)
    if failure:
        os.waitpid(leader, 0)
        os.write(pipe, b"failed " + failure.replace(b"\n", b" ") + b"\n")
        os._exit(0)
    os.write(pipe, b"started %d\n" % leader)
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            os._exit(0)
        if pid == leader:
            code = os.waitstatus_to_exitcode(status)
            os.write(pipe, b"exit %d %d\n" % ((code, 0) if code >= 0 else (-1, -code)))


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for fd in ends:
        undo.callback(os.close, fd)
    return ends


def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str, log: str) -> tuple[int, int, int]:
    """Fork a keeper that runs ``argv`` once a byte comes through the leave pipe, and ends if that is closed first.
    Returns (its pid, a pipe to read, non-blocking, the leave pipe to write).

    The pipe says ``started <pid>`` or ``failed <why>``, later ``exit <code> <signal>``, and ends with the keeper.
    """
    guardian = os.getpid()
    with contextlib.ExitStack() as undo:
        reader, writer = _pipe(undo)
        leave_reader, leave_writer = _pipe(undo)
        keeper = os.fork()
        undo.pop_all()
    if keeper == 0:
        try:
            _keep(argv, env, cwd, log, guardian, writer, leave_reader)
        finally:
            os._exit(99)
    os.close(writer)
    os.close(leave_reader)
    os.set_blocking(reader, False)
    return keeper, reader, leave_writer
