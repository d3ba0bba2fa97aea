"""``gridkeeper record``."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import aclosing
from pathlib import Path

import click

from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.client.errors import ClientError, InvalidRequest
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock
from gridkeeper.recorder import KINDS, MAX_ROWS, Recorder
from gridkeeper.recording import BadRecording

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LOOK_MS = 250


def span_ms(text: str) -> int:
    """``90s``, ``15m``, ``1h``, ``7d``. Raises ``click.BadParameter``."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if not found:
        raise click.BadParameter(f"{text!r} is no duration; for example 90s, 15m, 1h, 7d")
    return int(found[1]) * _UNITS[found[2]]


def _span(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    return span_ms(value) if value else 0


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to write to.")
@click.option("--for", "for_ms", callback=_span, metavar="TIME", help="Stop after 90s, 15m, 1h, 7d; else at Ctrl-C.")
@click.option("--every", "period_ms", default="10s", callback=_span, show_default=True, help="Telemetry per device.")
@click.option("--rotate", "rotate_ms", default="1m", callback=_span, show_default=True, help="A new file this often.")
@client_options
@pass_session
def record(session: Session, out: Path, for_ms: int, period_ms: int, rotate_ms: int) -> int:
    """Write what happens to Parquet files, for 'gridkeeper backtest' and for your own analysis.

    Inventory, events, telemetry, which job has which devices, findings, health, incidents and drains of all regions,
    from now on and as they stand (docs/recording.md). A directory that holds a recording is continued. A file is there
    whole or not at all: a crash costs what came since the last one (--rotate).

    \b
    Examples:
      gridkeeper record --out /data/grid --for 1h
      gridkeeper record --out /data/grid --every 1s
    """
    try:
        recorder = Recorder(out)
    except BadRecording as error:
        raise InvalidRequest(str(error)) from error
    try:
        rows = call(session, lambda grid: run(grid, recorder, for_ms, period_ms, rotate_ms))
    except OSError as error:
        raise ClientError(f"--out {out}: {error}; free some space or name another directory") from error
    print(f"{rows} rows written to {out}", file=sys.stderr)
    return 0


async def run(grid: GridClient, recorder: Recorder, for_ms: int, period_ms: int, rotate_ms: int) -> int:
    """Record for ``for_ms`` (0: until cancelled); what has come is written at the end, however it ends. The number of
    rows written."""
    clock = SystemClock()

    async def changes() -> None:
        async with aclosing(grid.watch(KINDS)) as told:
            async for change in told:
                recorder.take(change, clock.wall_ms())

    async def samples() -> None:
        async with aclosing(grid.samples(period_ms)) as blocks:
            async for block in blocks:
                recorder.sample(block)

    tasks = [asyncio.create_task(changes()), asyncio.create_task(samples())]
    rows, begun_ms = 0, clock.mono_ms()
    written_ms = begun_ms
    try:
        while not for_ms or clock.mono_ms() - begun_ms < for_ms:
            await clock.sleep(LOOK_MS)
            for task in tasks:
                if task.done():
                    task.result()  # it never ends but by an error
            if clock.mono_ms() - written_ms >= rotate_ms or recorder.waiting >= MAX_ROWS:
                rows, written_ms = rows + recorder.write(), clock.mono_ms()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rows += recorder.write()
    return rows
