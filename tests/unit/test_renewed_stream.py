"""Protects: when a node's certificate is renewed, its new stream is open before the old one closes, and nothing is lost
or interrupted in between."""

from __future__ import annotations

from chaos.simulate.network import SimControlSession
from tests.unit.agentbench import Bench, on_bench


@on_bench
async def test_the_new_stream_is_open_before_the_old_one_closes(bench: Bench) -> None:
    version, open_now, most = [1], [0], [0]
    opened: list[SimControlSession] = []
    serve = bench.a.serve

    async def counted(session: SimControlSession) -> None:
        open_now[0] += 1
        opened.append(session)
        most[0] = max(most[0], open_now[0])
        try:
            await serve(session)
        finally:
            open_now[0] -= 1

    bench.network.listen("a", counted)
    bench.credentials = lambda: version[0]
    bench.start_agent()
    await bench.until(lambda: len(bench.a.hellos) == 1 and bench.a.renewals, "connected")
    for number in (2, 3):
        version[0], heard = number, len(bench.a.renewals)
        most[0] = open_now[0]
        began = bench.clock.mono_ms()
        await bench.until(lambda wanted=number: len(bench.a.hellos) == wanted, "a new stream")  # type: ignore[misc]
        assert most[0] == 2, "both are open for a moment"
        await bench.until(lambda: open_now[0] == 1, "the old stream closes")
        await bench.until(lambda had=heard: len(bench.a.renewals) > had + 2, "renewals go on")  # type: ignore[misc]
        assert bench.clock.mono_ms() - began < 10_000


@on_bench
async def test_a_certificate_that_does_not_connect_leaves_the_old_stream_alone(bench: Bench) -> None:
    version = [1]
    bench.credentials = lambda: version[0]
    agent = bench.start_agent()
    await bench.until(lambda: bench.a.renewals, "connected")
    bench.network._handlers.pop("a")  # nothing new connects; what is open stays
    version[0], heard = 2, len(bench.a.renewals)
    await bench.until(lambda: len(bench.a.renewals) > heard + 5, "the old stream goes on")
    assert agent.uplink is not None and agent.uplink.counters.reconnects == 0 and len(bench.a.hellos) == 1
    bench.network.listen("a", bench.a.serve)
    await bench.until(lambda: len(bench.a.hellos) == 2, "moved")
    assert agent.uplink.counters.reconnects == 0
