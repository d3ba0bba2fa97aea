"""Prometheus metrics of the agent, read from what it holds anyway when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gridkeeper.ports.clock import Clock
from nodeagent.agent import Agent

PREFIX = "gridkeeper_agent_"


class AgentCollector(Collector):
    """Reads plain attributes only, so the scraper's thread disturbs nobody."""

    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._spool()
        yield from self._link()
        yield from self._devices()
        supervisor = self._agent.supervisor
        yield _gauge("jobs_running", "jobs with a live process", supervisor.running)
        yield _gauge(
            "renewal_age_seconds",
            "since the oldest acknowledged renewal that a live job rests on was sent",
            supervisor.renewal_age_ms / 1000,
        )

    def _spool(self) -> Iterable[Metric]:
        spool = self._agent.spool
        if spool is None:
            return
        yield _gauge("spool_depth", "events that are not acknowledged yet", spool.depth)
        yield _gauge("spool_bytes", "bytes of the spool", spool.log.size_bytes)
        yield _gauge("spool_oldest_age_seconds", "age of the oldest event in the spool", spool.oldest_age_ms / 1000)
        yield _gauge("spool_unwritable", "1: the disk does not take events", float(bool(spool.unwritable)))
        yield _counter("events_spooled", "events appended to the spool", spool.counters.appended)
        yield _counter("events_acknowledged", "events durable at the control plane", spool.counters.acknowledged)
        yield _counter("events_dropped", "sightings dropped because the spool was full", spool.counters.dropped)

    def _link(self) -> Iterable[Metric]:
        uplink = self._agent.uplink
        if uplink is None:
            return
        counters = uplink.counters
        yield _gauge("connected", "1: a stream to a replica is open", float(counters.connected))
        yield _counter("reconnects", "streams opened anew", counters.reconnects)
        yield _counter("events_sent", "events sent, repetitions included", counters.events_sent)
        yield _counter("frames_sent", "frames sent", counters.frames_sent)

    def _devices(self) -> Iterable[Metric]:
        age = GaugeMetricFamily(PREFIX + "sample_age_seconds", "age of the newest sample", labels=["backend"])
        hang = GaugeMetricFamily(PREFIX + "driver_hang", "1: a driver call has not come back", labels=["backend"])
        count = GaugeMetricFamily(PREFIX + "devices", "devices in the inventory", labels=["backend"])
        for watch in self._agent.devices.watches:
            name = watch.backend.name
            latest = watch.latest()
            if latest is not None:
                age.add_metric([name], (self._clock.mono_ms() - latest[1]) / 1000)
            hang.add_metric([name], float(bool(watch.hung)))
            count.add_metric([name], len(watch.devices))
        return (age, hang, count)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def serve(listen: str, agent: Agent, clock: Clock) -> None:
    """``/metrics`` on ``host:port``, in a thread of its own. Raises ``OSError`` and ``ValueError``."""
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry()
    registry.register(AgentCollector(agent, clock))
    start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
