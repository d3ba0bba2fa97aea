"""Repairs by a real agent with real commands: killed in the middle, it says so and never begins one twice."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame, HostCommand, HostReport
from tests.integration.test_agent_process import Control, Host
from tests.integration.waiting import until

RUNNING, DONE = records_pb2.REPAIR_STATE_RUNNING, records_pb2.REPAIR_STATE_DONE
FAILED, LOST = records_pb2.REPAIR_STATE_FAILED, records_pb2.REPAIR_STATE_LOST


class Desk(Control):
    """Keeps the answers on repairs."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, HostReport] = {}
        self.order: HostCommand | None = None

    async def _take(self, context: grpc.aio.ServicerContext[AgentFrame, ControlFrame], frame: AgentFrame) -> None:
        if frame.WhichOneof("frame") == "host":
            self.answers[frame.host.id] = frame.host
            return
        await super()._take(context, frame)
        if self.order is not None and frame.WhichOneof("frame") == "renewal":
            await self._write(context, ControlFrame(host_command=self.order))


class Workshop(Host):
    """A host whose reset writes a line and then does what the file beside it says."""

    def __init__(self, directory: Path) -> None:
        self.desk = Desk()
        super().__init__(directory, self.desk)
        self.log = directory / "resets"
        self.go = directory / "go"

    async def start(self) -> None:
        script = f"echo {{slot}} >> {self.log}; while [ ! -e {self.go} ]; do sleep 0.05; done; echo it is reset"
        connected = len(self.desk.hellos)
        await self.agent(repair_commands={"reset_device": ["/bin/sh", "-c", script]})

        async def hello() -> bool:
            return len(self.desk.hellos) > connected and bool(self.desk.hellos[-1].devices)

        await until(hello, "the agent is connected")

    @property
    def slot(self) -> str:
        return str(self.desk.hellos[-1].devices[0].slot)

    @property
    def begun(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    async def answer(self, repair: str, *states: int, command: str = "") -> HostReport:
        """Order it, again and again as a replica does, until the answer is one of ``states``."""
        self_test = records_pb2.REPAIR_KIND_SELF_TEST
        self.desk.order = HostCommand(
            term=1, id=repair, kind=self_test if command else records_pb2.REPAIR_KIND_RESET_DEVICE, slot=self.slot,
            command=command, timeout_ms=30_000,
        )  # fmt: skip

        async def look() -> HostReport | None:
            found = self.desk.answers.get(repair)
            return found if found is not None and found.state in states else None

        found = await until(look, f"repair {repair} is answered")
        assert found is not None
        self.desk.order = None
        return found


@pytest_asyncio.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    workshop = Workshop(tmp_path)
    await workshop.server.start()
    yield workshop
    await workshop.close()


async def test_an_agent_killed_in_the_middle_of_a_reset_says_lost_and_does_not_begin_it_again(
    workshop: Workshop,
) -> None:
    await workshop.start()
    await workshop.answer("r1", RUNNING)

    async def begun() -> bool:
        return workshop.begun == 1

    await until(begun, "the reset has begun")
    workshop.agents[-1].kill()
    await workshop.agents[-1].communicate()
    workshop.desk.answers.clear()
    await workshop.start()
    lost = await workshop.answer("r1", LOST, DONE, FAILED)
    assert lost.state == LOST and "restarted meanwhile" in lost.detail and workshop.begun == 1
    workshop.go.touch()
    done = await workshop.answer("r2", DONE, FAILED)
    assert done.state == DONE and done.detail == "it is reset" and workshop.begun == 2
    assert (await workshop.answer("r1", LOST, DONE, FAILED)).state == LOST, "the answer stays the same"


async def test_nothing_is_reset_under_a_job_and_a_self_test_runs_in_a_process_of_its_own(workshop: Workshop) -> None:
    await workshop.start()
    line = f"{sys.executable} -m nodeagent.selftest --vendor host --seconds 0 --mib 8"
    passed = await workshop.answer("t1", DONE, FAILED, LOST, command=line)
    assert passed.state == DONE and passed.detail.startswith("passed: ")
    wrong = await workshop.answer("t2", DONE, FAILED, LOST, command="/bin/sh -c 'echo no; exit 1'")
    assert wrong.state == FAILED and "no" in wrong.detail
    await workshop.running(slots=(workshop.slot,))
    refused = await workshop.answer("r1", DONE, FAILED, LOST)
    assert refused.state == FAILED and "job train uses" in refused.detail and not workshop.begun
