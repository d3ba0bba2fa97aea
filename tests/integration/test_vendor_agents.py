"""Protects: a fault that a vendor's tool or a driver's kernel line tells of reaches the control plane as one event of
the right device, from a real agent process with a real tool process, over a real mTLS stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from chaos.nvml.kernel_log import KernelLogFile
from gridkeeper.catalogue.codes import HostCode
from gridkeeper.records.fleet import EventKind
from gridkeeper.v1.agent_pb2 import AgentEvent
from tests.fixtures.faketool import DATA, fake_amd, fake_ascend
from tests.integration.test_agent_process import Host
from tests.integration.waiting import until


@pytest_asyncio.fixture
async def vendor_host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    await host.server.start()
    yield host
    for agent in host.agents:
        if agent.returncode is None:
            agent.terminate()
        await agent.communicate()
    await host.server.stop(None)


async def told(host: Host, kind: EventKind, code: int) -> AgentEvent:
    async def look() -> AgentEvent | None:
        for event in host.control.events:
            if (event.kind, event.code) == (kind_number(kind), code):
                return event
        return None

    found = await until(look, f"an event {kind.value} {code}")
    assert found is not None
    return found


def kind_number(kind: EventKind) -> int:
    from gridkeeper.v1 import records_pb2

    return records_pb2.EventKind.Value(f"EVENT_KIND_{kind.name}")


async def connected(host: Host, devices: int) -> None:
    async def look() -> bool:
        return any(len(hello.devices) == devices for hello in host.control.hellos)

    await until(look, f"a hello with {devices} devices")


async def test_a_fault_told_by_amd_smi_and_by_the_kernel_log_is_one_event(vendor_host: Host) -> None:
    host = vendor_host
    tool = fake_amd(host.directory / "tool")
    kernel_log = KernelLogFile(host.directory / "kern.log")
    kernel_log.write("amdgpu 0000:26:00.0: amdgpu: loading")
    await host.agent(backends=[f"amd:{tool.path}"])
    await connected(host, devices=2)
    assert [device.slot for device in host.control.hellos[-1].devices] == ["gpu0", "gpu1"]
    kernel_log.write("amdgpu 0000:26:00.0: amdgpu: ring sdma0 timeout, signaled seq=11425, emitted seq=11427")
    timeout = await told(host, EventKind.AMD, 1130)
    assert (timeout.slot, list(timeout.sources)) == ("gpu1", ["kmsg"])
    kernel_log.write("amdgpu 0000:26:00.0: amdgpu: 1 uncorrectable hardware errors detected in umc block")
    error = await told(host, EventKind.AMD, 1001)
    assert (error.slot, list(error.sources), error.count) == ("gpu1", ["kmsg"], 1)
    tool.say("metric --json", (DATA / "amd/metric-ecc.json").read_text())  # the same error, and a correctable one
    corrected = await told(host, EventKind.AMD, 1041)
    assert (corrected.slot, list(corrected.sources)) == ("gpu1", ["amd"])
    codes = [event.code for event in host.control.events if event.kind == kind_number(EventKind.AMD)]
    assert codes.count(1001) == 1, "told by both, it is one"


async def test_a_fault_code_of_npu_smi_and_an_out_of_memory_kill(vendor_host: Host) -> None:
    host = vendor_host
    tool = fake_ascend(host.directory / "tool")
    kernel_log = KernelLogFile(host.directory / "kern.log")
    kernel_log.write("Linux version 6.8.0")
    await host.agent(backends=[f"ascend:{tool.path}", "host"])
    await connected(host, devices=3)
    tool.say("info -t health -i 1 -c 0", (DATA / "ascend/health-alarm.txt").read_text())
    tool.say("info", (DATA / "ascend/info-alarm.txt").read_text())
    fault = await told(host, EventKind.ASCEND, 0x80E01801)
    assert fault.slot == "npu0"
    assert "80E01801" in fault.message
    kernel_log.write("Memory cgroup out of memory: Killed process 4711 (python3) total-vm:1kB, anon-rss:1kB, UID:0")
    kill = await told(host, EventKind.HOST, int(HostCode.OOM_KILL_CGROUP))
    assert (kill.slot, kill.pid) == ("", 4711)


async def test_a_tool_that_hangs_is_itself_an_event(vendor_host: Host) -> None:
    host = vendor_host
    tool = fake_amd(host.directory / "tool")
    await host.agent(backends=[f"amd:{tool.path}"], kernel_log="", driver_timeout_ms=1_000)
    await connected(host, devices=2)
    tool.hang(True)
    hang = await told(host, EventKind.DRIVER_HANG, 0)
    assert "amd" in hang.message
    tool.hang(False)
