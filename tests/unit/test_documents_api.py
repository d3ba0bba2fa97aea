"""Protects: contracts and objectives are kept where every region sees them, checked before, with who applied them when
and why, and never over a version that was not seen."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from controlplane.rpc.grid import GridService
from controlplane.rpc.refusal import Refusal
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.sla.document import shipped_text
from gridkeeper.v1 import api_pb2
from tests.fixtures.grid import FakeGrid

AWS = shipped_text("aws")
SLOS = (Path(__file__).parents[1] / "data/sla/slos.yaml").read_text()


class Desk:
    def __init__(self) -> None:
        self.grid = FakeGrid("east")
        self.service = GridService(self.grid, self.grid, SystemClock(), SystemRng())

    async def apply(
        self, text: str, kind: str = "contract", name: str = "", expect: int = -1, dry_run: bool = False
    ) -> api_pb2.ApplyDocumentResponse:
        request = api_pb2.ApplyDocumentRequest(
            kind=kind, name=name, text=text, source="d.yaml", expect_version=expect, reason="because", dry_run=dry_run
        )
        return await self.service.apply_document(request, "user/ann")

    async def shown(self, kind: str = "contract", name: str = "") -> list[tuple[str, int, bool]]:
        answer = await self.service.documents(api_pb2.DocumentsRequest(kind=kind, name=name))
        return [(record.name, record.version, bool(record.text)) for record in answer.records]


async def test_a_contract_is_applied_recorded_and_shown() -> None:
    desk = Desk()
    told = await desk.apply(AWS)
    assert told.version == 1 and told.sentence == "contract aws-compute, version 1, applied by user/ann: because"
    assert "already" in (await desk.apply(AWS)).sentence
    assert (await desk.apply(AWS.replace("USD", "EUR"), dry_run=True)).version == 2
    assert await desk.shown() == [("aws-compute", 1, False)], "a listing has no texts"
    assert (await desk.apply(AWS.replace("USD", "EUR"), expect=1)).version == 2
    answer = await desk.service.documents(api_pb2.DocumentsRequest(kind="contract", name="aws-compute"))
    assert answer.records[0].text == AWS.replace("USD", "EUR") and answer.records[0].applied_by == "user/ann"
    audits = [v.record for key, v in desk.grid.globe.data.items() if "/audit/" in key]
    assert [(a.verb, a.actor, a.object) for a in audits] == [("document.apply", "user/ann", "contract/aws-compute")] * 2


async def test_objectives_have_the_name_they_are_given() -> None:
    desk = Desk()
    assert (await desk.apply(SLOS, "objectives", "api")).version == 1
    assert await desk.shown("objectives") == [("api", 1, False)] and await desk.shown() == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            {"text": AWS.replace("99.5\n", "995\n")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "d.yaml:27: commitments[1].target",
        ),
        ({"text": AWS, "name": "other"}, grpc.StatusCode.INVALID_ARGUMENT, "is not what the contract says"),
        ({"text": AWS, "kind": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "kind: 'x' is none; use contract or objectives"),
        ({"text": AWS, "expect": 3}, grpc.StatusCode.FAILED_PRECONDITION, "is at version 0, not 3"),
        ({"text": SLOS, "kind": "objectives"}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"text": SLOS, "kind": "objectives", "name": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "name"),
        ({"text": "#" * 200_000}, grpc.StatusCode.INVALID_ARGUMENT, "200000 bytes; a document has at most"),
    ],
)
async def test_what_is_wrong_is_refused(arguments: dict[str, object], code: grpc.StatusCode, told: str) -> None:
    desk = Desk()
    with pytest.raises(Refusal, match=told.replace("[", r"\[")) as refused:
        await desk.apply(**arguments)  # type: ignore[arg-type]
    assert refused.value.code is code
    assert await desk.shown() == [] == await desk.shown("objectives")
    with pytest.raises(Refusal, match="there is no contract"):
        await desk.shown(name="aws-compute")
