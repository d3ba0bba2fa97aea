"""What regions ask each other goes over mutual TLS, and a replica asks for its own region only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from controlplane.rpc.regionlink import GrpcRegions, RegionLinkServicer
from controlplane.security.gate import Gate
from controlplane.security.guards import guards_of
from controlplane.security.refusals import RefusalBook
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.config import LimitsConfig
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CaError, CertificateAuthority
from gridkeeper.identity.spiffe import Identity
from gridkeeper.identity.tls import channel_credentials, server_credentials
from gridkeeper.ids import Extent, RegionId, ReplicaId
from gridkeeper.ports.peers import Answer, Ask, NoAnswer
from gridkeeper.records.books import AuditRecord
from gridkeeper.v1 import regions_pb2_grpc

DOMAIN = "grid.test"
WEST = RegionId("west")
ASK = Ask(RegionId("east"), ReplicaId("east-r1"), Extent(2, 77), True)


@dataclass
class West:
    """A replica of the other region, and the authority of the grid."""

    authority: CertificateAuthority
    root: Path
    address: str = ""
    says: str = ""
    heard: list[Ask] = field(default_factory=list)
    revoked: dict[str, str] = field(default_factory=dict)
    book: RefusalBook | None = None

    async def answer(self, ask: Ask) -> str:
        self.heard.append(ask)
        return self.says

    async def note(self, entries: Sequence[AuditRecord]) -> None:
        """Refusals are counted by the book itself."""

    async def asked_by(self, identity: Identity, ask: Ask = ASK) -> Answer:
        files = self.authority.issue(identity, self.root / identity.name)
        regions = GrpcRegions(channel_credentials(files), DOMAIN)
        try:
            return await regions.ask(WEST, self.address, ask, 5_000)
        finally:
            await regions.close()


@pytest.fixture
def west_authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", DOMAIN, SystemClock())


@pytest.fixture
async def west(
    tmp_path: Path, west_authority: CertificateAuthority, request: pytest.FixtureRequest
) -> AsyncIterator[West]:
    authority = west_authority
    west = West(authority, tmp_path)
    server = grpc.aio.server()
    clock, rng = SystemClock(), SystemRng()
    book = west.book = RefusalBook(west.note, clock, rng)
    certificate = getattr(request, "param", spiffe.replica("west", "west-r1"))
    guards = guards_of(Gate(DOMAIN, lambda target: west.revoked.get(target, ""), clock), book, LimitsConfig(), clock)
    regions_pb2_grpc.add_RegionLinkServicer_to_server(RegionLinkServicer(WEST, west.answer, guards), server)
    files = authority.issue(certificate, tmp_path / "west")
    west.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', server_credentials(files))}"
    await server.start()
    yield west
    await server.stop(None)


async def test_a_question_and_its_answer_arrive_whole(west: West) -> None:
    assert await west.asked_by(spiffe.replica("east", "east-r1")) == Answer(WEST, "")
    west.says = "west has raised its fence"
    assert await west.asked_by(spiffe.replica("east", "east-r1")) == Answer(WEST, "west has raised its fence")
    assert west.heard == [ASK, ASK]


@pytest.mark.parametrize(
    "identity",
    [
        spiffe.replica("north", "east-r1"),
        spiffe.replica("east", "east-r2"),
        spiffe.node("east", "east-r1"),
        spiffe.user("east-r1", "admin"),
        spiffe.store("east-r1"),
    ],
    ids=str,
)
async def test_nobody_asks_in_the_name_of_another(west: West, identity: Identity) -> None:
    """Protects: rule 4.10; a refusal is no promise."""
    with pytest.raises(NoAnswer, match="PERMISSION_DENIED"):
        await west.asked_by(identity)
    assert west.heard == []
    assert west.book and west.book.total == 1


@pytest.mark.parametrize(
    "west", [spiffe.replica("north", "west-r1"), spiffe.store("west"), spiffe.node("west", "west-r1")], indirect=True
)
async def test_only_a_replica_of_the_region_can_promise_for_it(west: West) -> None:
    """Protects: a promise in the name of a region by anybody else of the grid at its replica's address."""
    with pytest.raises(NoAnswer, match="UNAVAILABLE"):
        await west.asked_by(spiffe.replica("east", "east-r1"))
    assert west.heard == []


def test_no_certificate_is_issued_under_the_name_of_a_regions_replicas(west_authority: CertificateAuthority) -> None:
    for host in ("west.replica.grid.test", "WEST.replica.GRID.test."):
        with pytest.raises(CaError, match="stands for the replicas of a region"):
            west_authority.issue(spiffe.store("s"), west_authority.directory, hosts=[host])


async def test_a_replica_that_was_revoked_is_promised_nothing(west: West) -> None:
    west.revoked["replica/east/east-r1"] = "its host was stolen"
    with pytest.raises(NoAnswer, match="its host was stolen"):
        await west.asked_by(spiffe.replica("east", "east-r1"))
    assert west.heard == []


async def test_who_does_not_answer_has_promised_nothing(west: West) -> None:
    west.address = "127.0.0.1:1"
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1"):
        await west.asked_by(spiffe.replica("east", "east-r1"))
