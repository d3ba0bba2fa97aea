"""The chain of evidence as a page: each step, how long after the first, and its sentence."""

from __future__ import annotations

from collections.abc import Sequence

from gridkeeper.v1.api_pb2 import Link
from tui.viewmodel.text import NONE, Span, Spans, Tone, clock_time, duration, span


def lines(chain: Sequence[Link], partial: Sequence[str]) -> list[Spans]:
    """Oldest first."""
    out: list[Spans] = [(span(f"may be incomplete: {sentence}", Tone.WARN),) for sentence in partial]
    if not chain:
        return [*out, (Span("there is no evidence behind it", Tone.DIM),)]
    start = next((link.at_ms for link in chain if link.at_ms > 0), 0)
    for index, link in enumerate(chain):
        last = index + 1 == len(chain)
        after = f"+{duration(max(0, link.at_ms - start))}" if link.at_ms > 0 else NONE
        out.append(
            (
                Span("└─● " if last else "├─● ", Tone.DIM),
                Span(f"{clock_time(link.at_ms):>8} {after:>10}  ", Tone.DIM),
                span(link.step, Tone.STRONG),
                span(f"  {link.object}", Tone.KEY),
            )
        )
        out.append((Span("    " if last else "│   ", Tone.DIM), Span(" " * 21), span(link.sentence)))
    return out
