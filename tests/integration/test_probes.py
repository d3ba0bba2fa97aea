"""Probes between agents over real TLS: only the node's own certificate counts as having reached it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.peers import PeerTls
from gridkeeper.identity.tls import channel_credentials, server_credentials
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.ports.probe import CannotProbe, Probed
from gridkeeper.v1.agent_pb2 import ProbeAnswer
from nodeagent.probelink import HANDSHAKE_S, MAX_CALLERS, MAX_FROM_ONE, TlsProbeAnswerer, TlsProber

EAST = RegionId("east")
CLOCK = SystemClock()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"), "grid.example", CLOCK)


def node(authority: CertificateAuthority, where: Path, name: str) -> TlsFiles:
    return authority.issue(spiffe.node("east", name), where / name)


@asynccontextmanager
async def answering(files: TlsFiles, name: str = "east-2", handshake_s: float = HANDSHAKE_S) -> AsyncIterator[str]:
    """The address of an answerer that is listened at."""
    told = ProbeAnswer(node=name, boot_id="boot-7")
    answerer = TlsProbeAnswerer("127.0.0.1:0", files, told, CLOCK, handshake_s)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answerer.bound = port.set_result
    task = asyncio.ensure_future(answerer.run())
    try:
        yield f"127.0.0.1:{await port}"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def probe(files: TlsFiles, address: str, name: str = "east-2", timeout_ms: int = 5_000) -> Probed:
    return await TlsProber(files, EAST, CLOCK).probe(NodeId(name), address, timeout_ms)


async def test_a_peer_reaches_the_agent_and_learns_its_boot(authority: CertificateAuthority, tmp_path: Path) -> None:
    """Protects: the way of an honest probe."""
    async with answering(node(authority, tmp_path, "east-2")) as address:
        found = await probe(node(authority, tmp_path, "east-1"), address)
    assert found.reached and found.boot_id == "boot-7" and found.rtt_us > 0


async def test_another_node_at_the_address_is_not_the_one_asked_for(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Protects: an address that was given to somebody else keeps nobody alive."""
    async with answering(node(authority, tmp_path, "east-3"), "east-2") as address:
        found = await probe(node(authority, tmp_path, "east-1"), address)
    assert not found.reached and found.refused and "east-3" in found.detail


async def test_a_stranger_neither_passes_for_a_node_nor_learns_anything(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Protects: certificates of another authority, of users, and none at all."""
    strange = CertificateAuthority.create(tmp_path / "other", "grid.example", CLOCK)
    mine, foreign = node(authority, tmp_path, "east-1"), strange.issue(spiffe.node("east", "east-2"), tmp_path / "f")
    async with answering(foreign) as address:
        found = await probe(mine, address)
        assert not found.reached and found.refused
    user = authority.issue(spiffe.user("ann", "admin"), tmp_path / "user")
    async with answering(node(authority, tmp_path, "east-2")) as address:
        for files in (foreign, user):
            found = await probe(files, address)
            assert not found.reached and found.refused
        host, _, port = address.rpartition(":")
        bare = ssl.create_default_context(cafile=mine.authority)
        bare.check_hostname = False
        reader, writer = await asyncio.open_connection(host, int(port), ssl=bare)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            assert await reader.read() == b""
            raise ConnectionError("hung up without a word")
        writer.transport.abort()
        assert (await probe(mine, address)).reached, "it goes on answering"


async def test_callers_that_only_hold_the_line_are_few_and_shut_nobody_out(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Protects: the agent's file descriptors, which its jobs and its telemetry need, and the probes of honest peers."""
    mine = node(authority, tmp_path, "east-1")
    held: list[asyncio.StreamWriter] = []
    async with answering(node(authority, tmp_path, "east-2"), handshake_s=3_600) as address:
        port = int(address.rpartition(":")[2])

        async def hold(source: str, count: int) -> list[asyncio.Task[bytes]]:
            reading = []
            for _ in range(count):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
                held.append(writer)
                reading.append(asyncio.ensure_future(reader.read(1)))
            return reading

        async def hung_up(reading: list[asyncio.Task[bytes]], most: int) -> None:
            """All but ``most`` of them, and no more."""
            while sum(task.done() for task in reading) < len(reading) - most:
                await asyncio.wait([t for t in reading if not t.done()], return_when=asyncio.FIRST_COMPLETED)
            assert sum(not task.done() for task in reading) == most

        try:
            async with asyncio.timeout(30):
                await hung_up(await hold("127.0.0.2", 3 * MAX_FROM_ONE), MAX_FROM_ONE)
                assert (await probe(mine, address)).reached, "one address holds its own share alone"
                sources = [f"127.0.0.{3 + i}" for i in range(MAX_CALLERS // MAX_FROM_ONE)]
                more = [task for source in sources for task in await hold(source, MAX_FROM_ONE)]
                await hung_up(more, MAX_CALLERS - MAX_FROM_ONE)
                for writer in held:
                    writer.transport.abort()
                while not (await probe(mine, address)).reached:
                    pass  # the lines that were let go are noticed meanwhile
        finally:
            for writer in held:
                writer.transport.abort()


async def test_nothing_there_hanging_and_impossible_are_told_apart(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Protects: a refused connection proves a living host, silence does not, and what this host cannot even try proves
    nothing."""
    mine = node(authority, tmp_path, "east-1")
    hung = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = hung.sockets[0].getsockname()[1]
    found = await probe(mine, f"127.0.0.1:{port}", timeout_ms=200)
    assert not found.reached and not found.refused and "no answer within 200 ms" in found.detail
    hung.close()
    await hung.wait_closed()
    found = await probe(mine, f"127.0.0.1:{port}")
    assert not found.reached and found.refused
    for address in ("no-such-host.invalid:1", "nonsense"):
        with pytest.raises(CannotProbe):
            await probe(mine, address)


async def test_a_renewed_certificate_is_used_without_a_restart(authority: CertificateAuthority, tmp_path: Path) -> None:
    """Protects: certificates are short-lived."""
    files = node(authority, tmp_path, "east-1")
    tls = PeerTls(files)
    before = tls.client().cert_store_stats()
    node(authority, tmp_path, "east-1")
    async with answering(node(authority, tmp_path, "east-2")) as address:
        assert (await probe(files, address)).reached
    assert tls.client().cert_store_stats() == before, "the same authority is not added again"


async def test_a_nodes_certificate_cannot_pose_as_a_replica(authority: CertificateAuthority, tmp_path: Path) -> None:
    """Protects: a node may serve probes, but agents and users connect to replicas by host name, and a node has none."""
    server = grpc.aio.server()
    files = authority.issue(spiffe.node("east", "localhost"), tmp_path / "poser")
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    await server.start()
    refused = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}
    try:
        for host in ("localhost", "127.0.0.1"):
            credentials = channel_credentials(node(authority, tmp_path, "east-1"))
            channel = grpc.aio.secure_channel(f"{host}:{port}", credentials)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/gridkeeper.v1.AgentLink/Connect")(b"", timeout=5)
            assert caught.value.code() in refused, "not one byte of a call reaches it"
            await channel.close()
    finally:
        await server.stop(None)
