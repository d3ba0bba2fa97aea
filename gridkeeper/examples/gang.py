"""A job on several nodes that Gridkeeper can stop, move and resume without losing or repeating a step. Standard library
only; copy it.

Its ranks work on one value: each step every rank adds its share, and all of them go on with the same sum, as after an
all-reduce. The exchange is one TCP connection from each rank to rank 0. What makes such a job movable (docs/gangs.md):

  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   who is in the gang, and where rank 0 is met
  GRIDKEEPER_RENDEZVOUS      differs from epoch to epoch: who shows another one is turned away
  GRIDKEEPER_CHECKPOINT_DIR  each rank writes its own files into its own directory step-<n>; names differ by rank
  GRIDKEEPER_RESUME_FROM     the files of all ranks, side by side
  SIGTERM                    reaches the ranks at different moments, so they tell each other with the next step: all of
                             them write a checkpoint after the same one, and exit 0
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

PATIENCE_S = 60.0
"""For the others to come. Then this rank gives up, and the gang is started anew."""
PEER_LOST = 3


class PeerLost(Exception):
    """A rank has gone, or never came: this one cannot go on."""


class Line:
    """One JSON document a line, over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file: TextIO = connection.makefile("rw", encoding="ascii", newline="\n")

    def send(self, document: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(document) + "\n")
            self._file.flush()
        except OSError as error:
            raise PeerLost(str(error)) from error

    def receive(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError as error:
            raise PeerLost(str(error)) from error
        if not line:
            raise PeerLost("the connection was closed")
        document: dict[str, Any] = json.loads(line)
        return document


class Ranks:
    """All ranks of one epoch, met. ``others``: of rank 0, by rank; else the one connection to rank 0."""

    def __init__(self, rank: int, others: tuple[Line, ...]) -> None:
        self._rank = rank
        self._others = others

    def exchange(self, step: int, share: float, stop: bool) -> tuple[float, bool]:
        """The sum of all shares, always added in the order of ranks, and whether anybody was told to stop."""
        if self._rank:
            self._others[0].send({"step": step, "share": share.hex(), "stop": stop})
            answer = self._others[0].receive()
            return float.fromhex(answer["sum"]), bool(answer["stop"])
        total = share
        for other in self._others:
            told = other.receive()
            if told["step"] != step:
                raise PeerLost(f"a rank is at step {told['step']}, rank 0 at {step}")
            total += float.fromhex(told["share"])
            stop = stop or bool(told["stop"])
        for other in self._others:
            other.send({"sum": total.hex(), "stop": stop})
        return total, stop


@contextmanager
def meet(rank: int, count: int, address: str, port: int, run_id: str) -> Iterator[Ranks]:
    """Until all ranks are there. Raises ``PeerLost`` when they are not in time."""
    with ExitStack() as stack:
        end = time.monotonic() + PATIENCE_S
        if rank:
            yield Ranks(rank, (_call(stack, rank, address, port, run_id, end),))
            return
        server = stack.enter_context(socket.create_server((address, port)))
        here: dict[int, Line] = {}
        while len(here) < count - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError as error:
                raise PeerLost(f"{len(here) + 1} of {count} ranks came within {PATIENCE_S:g} s") from error
            line = Line(connection)
            told = line.receive()
            if told["run"] != run_id:
                connection.close()  # of another epoch
                continue
            here[int(told["rank"])] = line
        for line in here.values():
            line.send({"run": run_id})
        yield Ranks(0, tuple(here[number] for number in range(1, count)))


def _call(stack: ExitStack, rank: int, address: str, port: int, run_id: str, end: float) -> Line:
    while True:
        try:
            connection = stack.enter_context(socket.create_connection((address, port), timeout=5.0))
            line = Line(connection)
            line.send({"run": run_id, "rank": rank})
            line.receive()  # all are there
            return line
        except (OSError, PeerLost) as error:
            if time.monotonic() >= end:
                raise PeerLost(f"rank 0 was not met at {address}:{port}: {error}") from error
            time.sleep(0.1)


def write_checkpoint(root: Path, rank: int, step: int, value: float) -> None:
    """``root/step-<n>`` with this rank's file: there whole, or not at all."""
    scratch = root / f".writing-{step}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with open(scratch / f"rank-{rank}.json", "w") as file:
        json.dump({"step": step, "value": value.hex()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(scratch, root / f"step-{step}")


def read_checkpoint(directory: Path, rank: int, count: int) -> tuple[int, float]:
    """Raises ``ValueError`` unless every rank's file is there, and of the same step."""
    found = [json.loads((directory / f"rank-{number}.json").read_text()) for number in range(count)]
    if len({entry["step"] for entry in found}) != 1:
        raise ValueError(f"{directory}: ranks are at steps {[entry['step'] for entry in found]}")
    return int(found[rank]["step"]), float.fromhex(found[rank]["value"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Steps together with the other ranks; stops and resumes exactly.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--checkpoint-every", type=int, default=20)
    options = parser.parse_args(arguments)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    rank, count = int(os.environ.get("NODE_RANK", "0")), int(os.environ.get("NNODES", "1"))
    root, resume = os.environ.get("GRIDKEEPER_CHECKPOINT_DIR", ""), os.environ.get("GRIDKEEPER_RESUME_FROM", "")
    step, value = read_checkpoint(Path(resume), rank, count) if resume else (0, 0.0)
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    progress = os.environ.get("GRIDKEEPER_PROGRESS", os.devnull)
    epoch = os.environ.get("GRIDKEEPER_EPOCH", "")
    try:
        with (
            meet(rank, count, address, port, os.environ.get("GRIDKEEPER_RENDEZVOUS", "")) as ranks,
            open(progress, "ab", buffering=0) as told,
        ):
            stop = False
            while step < options.steps and not stop:
                step += 1
                total, stop = ranks.exchange(step, (rank + 1) / step, bool(asked))
                value = value * 0.75 + total
                time.sleep(options.step_ms / 1000)
                line = {"step": step, "loss": value, "loss_hex": value.hex(), "epoch": epoch, "pid": os.getpid()}
                line["wall_ms"] = time.time_ns() // 1_000_000
                told.write(json.dumps(line).encode() + b"\n")
                if root and (stop or step % options.checkpoint_every == 0 or step == options.steps):
                    write_checkpoint(Path(root), rank, step, value)
    except PeerLost as error:
        print(f"rank {rank} cannot go on after step {step}: {error}", file=sys.stderr, flush=True)
        return PEER_LOST
    print(f"{'stopped' if stop else 'done'}: rank {rank}, {step} steps, {value.hex()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
