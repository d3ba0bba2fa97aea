"""OpenTelemetry spans, exported over OTLP when an endpoint is configured; else nothing happens.

A trace is born with an event at the agent (a W3C ``traceparent`` string in the record) and goes through every record
that follows from it, so spans of different processes join without any context but the record itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

_provider: TracerProvider | None = None


def setup(service: str, endpoint: str, exporter: SpanExporter | None = None) -> None:
    """Start exporting as ``service`` to the OTLP/gRPC ``endpoint`` (or a given exporter); "" and None: stay off."""
    global _provider
    if not endpoint and exporter is None:
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    target = exporter or OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(target))
    _provider = provider


def shutdown() -> None:
    """Flush and stop."""
    global _provider
    if _provider:
        _provider.shutdown()
        _provider = None


def parse(traceparent: str) -> SpanContext | None:
    """The span context of ``00-<32 hex>-<16 hex>-<2 hex>``; None if it is not one."""
    parts = traceparent.split("-")
    if len(parts) != 4 or [len(p) for p in parts] != [2, 32, 16, 2]:
        return None
    try:
        trace, span, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    if not trace or not span:
        return None
    return SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags))


@contextmanager
def span(name: str, traceparent: str, attributes: Mapping[str, str | int | float | bool]) -> Iterator[None]:
    """A span of the trace in ``traceparent`` around the block. Without exporter or trace: nothing."""
    context = parse(traceparent) if _provider else None
    if _provider is None or context is None:
        yield
        return
    parent = set_span_in_context(NonRecordingSpan(context))
    tracer = _provider.get_tracer("gridkeeper")
    with tracer.start_as_current_span(name, parent, SpanKind.INTERNAL, dict(attributes)):
        yield
