"""Protects: from the event below the agent to the finished move there is one trace, exported by every process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from gridkeeper.cli.local.plan import GridOptions
from gridkeeper.cli.local.training import Training, job_spec
from gridkeeper.v1 import records_pb2
from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

PATH = {
    "backend.events", "dedupe.admit", "spool.append", "uplink.send", "ingest.commit", "ack", "detect.classify",
    "health.step", "drain.plan", "migrate.plan", "place.reserve", "migrate.precopy", "executor.stop",
    "verify.manifest", "fence.bump_epoch", "executor.start", "migrate.confirm",
}  # fmt: skip
"""Names of the steps on the path of one fault that moves a job."""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector: spans by trace id, each with the service that made it."""

    def __init__(self) -> None:
        self.traces: dict[str, list[tuple[str, trace_pb2.Span]]] = {}

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces.setdefault(span.trace_id.hex(), []).append((service, span))
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """And its address."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


async def test_one_trace_from_the_event_to_the_finished_move(stage: Stage, collector: tuple[Collector, str]) -> None:
    spans, endpoint = collector
    async with stage(GridOptions(nodes=1, otlp_endpoint=endpoint)) as (grid, seen):
        await seen.client.submit_job(job_spec("traced", Training(steps=100_000, step_ms=20, checkpoint_every=20), 2))
        job = await seen.until("the job runs", lambda: seen.running("traced"))
        node, device = job.ownership.node, job.ownership.devices[0]
        await seen.until("it has a checkpoint", lambda: (s := grid.steps("traced")) and s[-1].step > 20)
        grid.xid(node, int(device[-1]), 48)
        (move,) = await seen.until(
            "the move is done",
            lambda: [
                m
                for m in seen.migrations("traced")
                if m.kind != records_pb2.MIGRATION_KIND_START and m.state == records_pb2.MIGRATION_STATE_DONE
            ],
        )
        before = grid.steps("traced")[-1].step
        await seen.until("it makes checkpoints there", lambda: grid.steps("traced")[-1].step > before + 60)
    # The daemons have ended, and so exported everything.
    trace = spans.traces[move.trace.split("-")[1]]
    names = [span.name for _, span in trace]
    assert set(names) >= PATH, PATH - set(names)
    assert {service for service, _ in trace} >= {
        "gridkeeper-agent",
        "gridkeeper-controlplane-east-r1",
        "gridkeeper-controlplane-west-r1",
    }
    roots = [span for _, span in trace if not span.parent_span_id]
    assert [span.name for span in roots] == ["backend.events"]
    assert {span.parent_span_id for _, span in trace if span.parent_span_id} == {roots[0].span_id}
    # What the job does after its move is no part of that fault.
    done = max(span.end_time_unix_nano for _, span in trace if span.name == "migrate.confirm")
    assert "verify.manifest" not in {span.name for _, span in trace if span.start_time_unix_nano > done}
