"""What agent and guardian say to each other: one JSON line per request, one per reply, on a Unix socket.

Standard library only and few imports: the guardian must be up within moments of a restart.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

SOCKET = "guardian.sock"
MAX_LINE = 1 << 20
"""Bytes of one request."""
MAX_REPLY = 16 << 20

TREE_VARIABLE = "GRIDKEEPER_TREE"
"""Environment variable that marks every process of one (job, epoch), so that its tree can be found after the death of
guardian and keeper."""


class BadMessage(ValueError):
    """A line that is no request or reply; names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Start:
    """Run ``argv``: answered before it is known whether that can be run. The guardian ends it
    ``term_before_ms``/``kill_before_ms`` before ``deadline_ms`` (boot time)."""

    job: str
    epoch: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    log: str
    deadline_ms: int
    term_before_ms: int
    kill_before_ms: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Move a deadline, never backwards. Of no effect once the guardian has begun to end the epoch."""

    job: str
    epoch: str
    deadline_ms: int
    term_before_ms: int
    kill_before_ms: int


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM to the leading process now, SIGKILL to the whole tree after ``grace_ms``."""

    job: str
    epoch: str
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """SIGUSR1 to the leading process."""

    job: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop an ended epoch."""

    job: str
    epoch: str


@dataclass(frozen=True, slots=True)
class ListRuns:
    """Everything known."""


@dataclass(frozen=True, slots=True)
class Ping:
    """An agent lives. Without pings and jobs the guardian goes."""


Request = Start | Extend | Stop | Checkpoint | Forget | ListRuns | Ping

_OPS: dict[str, type[Request]] = {
    "start": Start,
    "extend": Extend,
    "stop": Stop,
    "checkpoint": Checkpoint,
    "forget": Forget,
    "list": ListRuns,
    "ping": Ping,
}
_NAMES: dict[type[Any], str] = {kind: name for name, kind in _OPS.items()}


@dataclass(frozen=True, slots=True)
class RunState:
    """One (job, epoch) as the guardian knows it. Times are boot-time ms. ``exit_code`` -1: alive, or ended by a
    signal. ``tree_gone``: no process of it remains. ``reason``: why the command could not be run.
    ``keeper``: its pid and start time in ticks, by which it is known after the guardian's death."""

    job: str
    epoch: str
    alive: bool
    exit_code: int
    exit_signal: int
    tree_gone: bool
    fenced: bool
    stop_asked: bool
    started_ms: int
    ended_ms: int
    deadline_ms: int
    pids: tuple[int, ...] = ()
    reason: str = ""
    keeper: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """``error`` "": done. ``pid``: the guardian's."""

    error: str = ""
    pid: int = 0
    runs: tuple[RunState, ...] = ()


def epoch_number(text: str) -> tuple[int, int]:
    """``"1.7"`` as (1, 7), which compares as epochs do. Raises ``BadMessage``."""
    generation, dot, number = text.partition(".")
    if not dot or not generation.isdecimal() or not number.isdecimal():
        raise BadMessage(f"epoch: {text[:40]!r} is not <generation>.<number>")
    return int(generation), int(number)


def encode_request(request: Request) -> bytes:
    return json.dumps({"op": _NAMES[type(request)], **asdict(request)}).encode() + b"\n"


def encode_reply(reply: Reply) -> bytes:
    """At most ``MAX_REPLY`` bytes: what is more loses its pids, which are for show; then it is an error in words."""
    line = json.dumps(asdict(reply)).encode() + b"\n"
    if len(line) > MAX_REPLY:
        line = json.dumps(asdict(replace(reply, runs=tuple(replace(r, pids=()) for r in reply.runs)))).encode() + b"\n"
    if len(line) > MAX_REPLY:
        error = f"{len(reply.runs)} runs do not fit into one reply; forget those that have ended"
        line = encode_reply(Reply(error, reply.pid))
    return line


def _checked(kind: type[Any], values: dict[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in values:
            continue
        value = values[field.name]
        hint = str(field.type)
        if hint == "str":
            good = isinstance(value, str)
        elif hint == "bool":
            good = isinstance(value, bool)
        elif hint == "int":
            good = isinstance(value, int) and not isinstance(value, bool)
        elif hint == "tuple[tuple[str, str], ...]":
            good = isinstance(value, list) and all(
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
                for pair in value
            )
            value = tuple((pair[0], pair[1]) for pair in value) if good else value
        else:
            item: type = str if hint == "tuple[str, ...]" else int
            good = isinstance(value, list) and all(isinstance(part, item) for part in value)
            value = tuple(value) if good else value
        if not good:
            raise BadMessage(f"{field.name}: {value!r:.80} is not of type {hint}")
        arguments[field.name] = value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise BadMessage(f"{kind.__name__.lower()}: {error}") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise BadMessage(f"line: {line[:80]!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadMessage(f"line: {line[:80]!r} is not a JSON object")
    return values


def decode_request(line: bytes) -> Request:
    """Raises ``BadMessage``."""
    values = _object(line)
    kind = _OPS.get(str(values.pop("op", "")))
    if kind is None:
        raise BadMessage(f"op: unknown in {line[:80]!r}; use one of {', '.join(_OPS)}")
    request: Request = _checked(kind, values)
    if not isinstance(request, (ListRuns, Ping)):
        epoch_number(request.epoch)
    return request


def decode_run(values: dict[str, Any]) -> RunState:
    """Raises ``BadMessage``."""
    run: RunState = _checked(RunState, values)
    epoch_number(run.epoch)
    return run


def decode_reply(line: bytes) -> Reply:
    """Raises ``BadMessage``."""
    values = _object(line)
    runs = values.pop("runs", [])
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise BadMessage("runs: not a list of objects")
    return Reply(str(values.get("error", "")), int(values.get("pid", 0)), tuple(decode_run(run) for run in runs))


def socket_address(directory: int) -> str:
    """Address of the socket in the open directory ``directory``: short, where a path may exceed the 108 bytes that a
    socket address has room for."""
    return f"/proc/{os.getpid()}/fd/{directory}/{SOCKET}"
