"""The process in which a query runs: ``python -m gridkeeper.query.worker``. It reads one request from standard input,
limits itself, runs it, writes the result and ends. It opens no file and no socket afterwards.

Framing, both ways: 8 bytes of length and so many bytes, again and again. In: a JSON header (``sql``, ``tables``,
limits), then each table as Arrow IPC. Out: one byte (``0`` result as Arrow IPC, ``1`` message), then the body.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from pathlib import Path
from typing import BinaryIO

import polars as pl
from polars.exceptions import PolarsError

LENGTH = 8


def read_part(stream: BinaryIO) -> bytes:
    size = int.from_bytes(stream.read(LENGTH), "big")
    return stream.read(size)


def part(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH, "big") + body


def limit(memory_bytes: int, cpu_s: int) -> None:
    """From here on: so much more address space than there is now, so many more seconds, nothing written to disk."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(sql: str, frames: dict[str, pl.DataFrame], rows: int) -> pl.DataFrame:
    """At most ``rows`` + 1 rows, so that the caller sees whether there were more. Raises ``PolarsError``."""
    context = pl.SQLContext(frames)
    return context.execute(sql, eager=False).head(rows + 1).collect()


def main() -> None:
    header = json.loads(read_part(sys.stdin.buffer))
    frames = {name: pl.read_ipc_stream(io.BytesIO(read_part(sys.stdin.buffer))) for name in header["tables"]}
    limit(header["memory_bytes"], header["cpu_s"])
    try:
        result = run(header["sql"], frames, header["rows"])
        buffer = io.BytesIO()
        result.write_ipc_stream(buffer)
        answer = b"0" + buffer.getvalue()
    except (PolarsError, MemoryError) as error:
        answer = (
            b"1" + str(error).splitlines()[0][:500].encode() if str(error) else b"1" + type(error).__name__.encode()
        )
    sys.stdout.buffer.write(part(answer))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
