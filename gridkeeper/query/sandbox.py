"""Runs a checked query in a process of its own, with limits that the kernel enforces."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Mapping

import polars as pl

from gridkeeper.query.limits import Limits
from gridkeeper.query.sql import BadQuery, Query
from gridkeeper.query.worker import LENGTH, part


class QueryFailed(Exception):
    """The query could not be run within its limits; the message says which one, and the remedy."""


async def run(query: Query, tables: Mapping[str, pl.DataFrame], limits: Limits) -> tuple[pl.DataFrame, bool]:
    """(the result, whether rows beyond ``limits.rows`` were left out). Raises ``BadQuery``, ``QueryFailed``."""
    header = {
        "sql": query.text,
        "tables": list(tables),
        "rows": limits.rows,
        "memory_bytes": limits.memory_bytes,
        "cpu_s": limits.cpu_s,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gridkeeper.query.worker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "POLARS_MAX_THREADS": "1"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(limits.wall_s):
            request = part(json.dumps(header).encode()) + b"".join(part(_stream(frame)) for frame in tables.values())
            out, err = await process.communicate(request)
    except TimeoutError as error:
        raise QueryFailed(
            f"the query was killed after {limits.wall_s:g} s; read fewer rows, or make it simpler"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _result(out, err, process.returncode, limits)


def _stream(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer)
    return buffer.getvalue()


def _result(out: bytes, err: bytes, code: int | None, limits: Limits) -> tuple[pl.DataFrame, bool]:
    body = out[LENGTH:]
    if code == 0 and body[:1] == b"0":
        frame = pl.read_ipc_stream(io.BytesIO(body[1:]))
        return frame.head(limits.rows), len(frame) > limits.rows
    if code == 0 and body[:1] == b"1":
        message = body[1:].decode(errors="replace")
        if "memory" in message.lower():
            raise QueryFailed(_memory(limits))
        raise BadQuery(f"sql: {message}")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise QueryFailed(
            f"the query was killed after {limits.cpu_s} s of computing; read fewer rows, or make it simpler"
        )
    if code == -signal.SIGABRT or b"memory" in err.lower():
        raise QueryFailed(_memory(limits))
    last = err.decode(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
    raise QueryFailed(f"the query's process ended with status {code}: {last[0][:300]}")


def _memory(limits: Limits) -> str:
    return (
        f"the query was killed: it needed more than {limits.memory_bytes // 2**20} MiB; read fewer rows and columns, "
        "or join on what tells the rows apart"
    )
