"""Prometheus metrics of a replica, rendered when scraped from what the replica holds anyway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.checkpointmetrics import checkpoint_metrics
from controlplane.shell.replica import Replica
from gridkeeper.decision import Versioned
from gridkeeper.records.jobs import TERMINAL_MIGRATION
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.telemetry import METRICS

SNAPSHOT_S = 5.0


class Closing(Protocol):
    def close(self) -> None: ...


class ReplicaCollector(Collector):
    """Health, incidents, drains and jobs from the mirrors; telemetry of the devices whose nodes report here."""

    def __init__(self, replica: Replica, loop: asyncio.AbstractEventLoop, refusals: Callable[[], int]) -> None:
        self._refusals = refusals
        self._replica = replica
        self._loop = loop

    async def _states(self) -> tuple[RegionState, GlobalState]:
        """On the loop: the mirrors belong to it, the snapshots that they hand out to anyone."""
        return self._replica.front.region(), self._replica.front.world()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._own()
        yield from self._grid()
        yield from self._telemetry()

    def _own(self) -> Iterable[Metric]:
        replica, ingest = self._replica, self._replica.ingest
        info = replica.front.info()
        leader = GaugeMetricFamily("gridkeeper_leader", "1: this replica leads", labels=["of"])
        leader.add_metric(["region"], float(replica.leads_region))
        leader.add_metric(["global"], float(replica.leads_world))
        yield leader
        reach = GaugeMetricFamily("gridkeeper_store_reachable", "1: the store answers", labels=["store"])
        reach.add_metric(["region"], float(info.region_store_reachable))
        reach.add_metric(["global"], float(info.global_store_reachable))
        yield reach
        yield GaugeMetricFamily("gridkeeper_agent_streams", "open agent streams", value=len(ingest.streams))
        yield CounterMetricFamily("gridkeeper_agent_frames", "frames received from agents", value=ingest.frames)
        yield CounterMetricFamily("gridkeeper_events_committed", "events made durable", value=ingest.events_committed)
        yield CounterMetricFamily("gridkeeper_refusals", "calls and streams turned away", value=self._refusals())
        age = replica.view.age_ms
        yield GaugeMetricFamily(
            "gridkeeper_ownership_view_age_seconds", "bound on its age", value=min(age, 10**9) / 1000
        )

    def _grid(self) -> Iterable[Metric]:
        state, world = asyncio.run_coroutine_threadsafe(self._states(), self._loop).result(SNAPSHOT_S)
        region = state.region

        def count(records: Iterable[Versioned[Any]]) -> Counter[str]:
            return Counter(v.record.state.value for v in records)

        tables: tuple[tuple[str, str, Counter[str]], ...] = (
            ("gridkeeper_devices", "devices by health", count(state.health.values())),
            ("gridkeeper_nodes", "nodes by state", count(state.liveness.values())),
            (
                "gridkeeper_incidents",
                "incidents by state",
                count(state.incidents.values()),
            ),
            ("gridkeeper_drains", "drains by state", count(state.drains.values())),
            ("gridkeeper_jobs", "jobs by state", count(world.jobs.values())),
        )
        for name, text, counts in tables:
            family = GaugeMetricFamily(name, text, labels=["region", "state"])
            for state_name, number in sorted(counts.items()):
                family.add_metric([region, state_name], number)
            yield family
        active = sum(v.record.state not in TERMINAL_MIGRATION for v in world.migrations.values())
        yield GaugeMetricFamily("gridkeeper_migrations_active", "migrations under way", value=active)
        yield from checkpoint_metrics(world)

    def _telemetry(self) -> Iterable[Metric]:
        table = self._replica.table
        held = [device for stream in self._replica.ingest.streams.values() for device in stream.devices]
        for metric in METRICS:
            family = GaugeMetricFamily(
                f"gridkeeper_device_{metric.name}", f"{metric.help} ({metric.unit})", labels=["node", "device"]
            )
            for device in held:
                value = table.value(device, metric.name)
                if value == value:
                    family.add_metric([device.partition("/")[0], device], value)
            yield family


def serve_metrics(listen: str, replica: Replica, refusals: Callable[[], int]) -> Closing:
    """Serve ``/metrics`` on ``host:port`` from a thread. ``refusals``: so far."""
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReplicaCollector(replica, asyncio.get_running_loop(), refusals))
    server, _ = start_http_server(int(port), host or "127.0.0.1", registry)

    class _Server:
        def close(self) -> None:
            server.shutdown()
            server.server_close()

    return _Server()
