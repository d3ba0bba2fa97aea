"""Protects: spans of several processes join into one trace with one first span, by the record's traceparent alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gridkeeper import tracing

TRACE, FIRST = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{FIRST}-01"
OTHER = f"00-{'1' * 32}-{'2' * 16}-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.setup("test", "", exporter)
    yield exporter
    tracing.shutdown()


def finish(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """What was exported, by name."""
    tracing.shutdown()
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def test_the_first_span_is_the_one_that_the_record_names_and_the_others_are_its_children(
    exported: InMemorySpanExporter,
) -> None:
    with tracing.root("backend.events", PARENT, {"node": "east-1"}):
        pass
    with tracing.span("health.step", PARENT, {}), tracing.span("drain.plan", PARENT, {}):
        pass
    found = finish(exported)
    (first,), (health,), (drain,) = found["backend.events"], found["health.step"], found["drain.plan"]
    assert first.parent is None
    assert (f"{first.context.trace_id:032x}", f"{first.context.span_id:016x}") == (TRACE, FIRST)
    for child in (health, drain):
        assert child.parent is not None and child.parent.span_id == first.context.span_id
        assert child.context.trace_id == first.context.trace_id
    assert len({s.context.span_id for s in (first, health, drain)}) == 3


def test_a_step_of_several_events_is_in_the_trace_of_each(exported: InMemorySpanExporter) -> None:
    with tracing.spans("ingest.commit", (PARENT, OTHER, "", "garbage"), {"events": 4}):
        pass
    committed = finish(exported)["ingest.commit"]
    assert {f"{s.context.trace_id:032x}" for s in committed} == {TRACE, "1" * 32}


def test_a_step_that_fails_is_exported_as_failed_and_raises(exported: InMemorySpanExporter) -> None:
    for make in (tracing.root, tracing.span):
        with pytest.raises(ValueError, match="disk"), make("spool.append", PARENT, {}):
            raise ValueError("disk")
    assert [s.status.is_ok for s in finish(exported)["spool.append"]] == [False, False]


@pytest.mark.parametrize("text", ["", "00", "00-xyz", f"00-{'0' * 32}-{FIRST}-01", f"00-{TRACE}-{'0' * 16}-01"])
def test_without_a_trace_there_is_no_span(exported: InMemorySpanExporter, text: str) -> None:
    with tracing.root("a", text, {}), tracing.span("b", text, {}), tracing.spans("c", (text,), {}):
        pass
    assert finish(exported) == {}
