"""OpenTelemetry spans, exported over OTLP when an endpoint is configured; else nothing happens.

A trace is born with an event at the agent, a rule's finding or a human's act (a W3C ``traceparent`` string in the
record) and goes through every record that follows from it, so spans of different processes join without any context but
the record itself. The first step's span (``root``) is the one that the record names; all others are its children.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context, use_span

Attributes = Mapping[str, str | int | float | bool]

EXPORT_TIMEOUT_S = 2
"""A collector that is away delays the end of a daemon by no more than this; an agent's jobs live on its renewals."""


class _Ids(RandomIdGenerator):
    """Random ids, except that the next span gets the ids of ``given`` if that is set."""

    given: SpanContext | None = None

    def generate_span_id(self) -> int:
        return self.given.span_id if self.given else super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.given.trace_id if self.given else super().generate_trace_id()


_ids = _Ids()
_provider: TracerProvider | None = None


def setup(service: str, endpoint: str, exporter: SpanExporter | None = None) -> None:
    """Start exporting as ``service`` to the OTLP/gRPC ``endpoint`` (or a given exporter); "" and None: stay off."""
    global _provider
    if not endpoint and exporter is None:
        return
    provider = TracerProvider(resource=Resource.create({"service.name": service}), id_generator=_ids)
    target = exporter or OTLPSpanExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT_S
    )
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
def span(name: str, traceparent: str, attributes: Attributes) -> Iterator[None]:
    """A span of the trace in ``traceparent`` around the block. Without exporter or trace: nothing."""
    context = parse(traceparent) if _provider else None
    if _provider is None or context is None:
        yield
        return
    parent = set_span_in_context(NonRecordingSpan(context))
    tracer = _provider.get_tracer("gridkeeper")
    with tracer.start_as_current_span(name, parent, SpanKind.INTERNAL, dict(attributes)):
        yield


@contextmanager
def root(name: str, traceparent: str, attributes: Attributes) -> Iterator[None]:
    """The first span of the trace that is born with ``traceparent``: the span that it names, and the parent of every
    ``span`` with it. To be used once for each."""
    context = parse(traceparent) if _provider else None
    if _provider is None or context is None:
        yield
        return
    tracer = _provider.get_tracer("gridkeeper")
    _ids.given = context
    try:
        first = tracer.start_span(name, Context(), SpanKind.INTERNAL, dict(attributes))
    finally:
        _ids.given = None
    with use_span(first, end_on_exit=True):
        yield


@contextmanager
def spans(name: str, traceparents: Iterable[str], attributes: Attributes) -> Iterator[None]:
    """One step that belongs to several traces, around the block: a span in each."""
    with ExitStack() as stack:
        if _provider is not None:
            for traceparent in traceparents:
                stack.enter_context(span(name, traceparent, attributes))
        yield
