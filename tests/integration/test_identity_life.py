"""Protects: a host joins with a token that is good once, its key stays with it, its certificate is renewed in time and
without a gap; and every certificate that should open nothing opens nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from controlplane.rpc.agentlink import AgentLinkServicer
from controlplane.rpc.enrolment import Enrolment, Issuer
from controlplane.rpc.server import Desk
from controlplane.security.bearer import JwtBearer
from controlplane.security.gate import Gate
from controlplane.security.guards import guards_of
from controlplane.security.refusals import RefusalBook
from gridkeeper.client import GridClient
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.config import ClientConfig, LimitsConfig, RegionEndpoints, TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.files import InsecureKey
from gridkeeper.identity.issuing import new_key, request_for
from gridkeeper.identity.renewed import RenewedCredentials
from gridkeeper.identity.spiffe import Identity
from gridkeeper.identity.tls import channel_credentials, entry_credentials, server_credentials
from gridkeeper.identity.wallet import Wallet, pem_of
from gridkeeper.ids import RegionId
from gridkeeper.ports.clock import Clock
from gridkeeper.records.books import AuditRecord
from gridkeeper.v1 import agent_pb2, agent_pb2_grpc, api_pb2, identity_pb2, identity_pb2_grpc
from nodeagent.renewal import AskServers, Renewal
from tests.fixtures.filled import fleet
from tests.unit.test_security import ISSUER, HandClock, jwks, token

DOMAIN = "grid.test"
HOUR = datetime.timedelta(hours=1)


class Shifted:
    """The system's clock, put forward or back."""

    def __init__(self, ms: int) -> None:
        self._clock = SystemClock()
        self.ms = ms

    def mono_ms(self) -> int:
        return self._clock.mono_ms()

    def wall_ms(self) -> int:
        return self._clock.wall_ms() + self.ms

    async def sleep(self, ms: int) -> None:
        await self._clock.sleep(ms)


class NoIngest:
    """Takes a stream and listens until it ends."""

    async def serve(self, link: object) -> None:
        from gridkeeper.ports.link import LinkClosed

        try:
            while True:
                await link.receive()  # type: ignore[attr-defined]
        except LinkClosed:
            return


class Region:
    """A replica's two doors over a ``FakeGrid``, with an authority."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Shifted(0)
        self.authority = CertificateAuthority.create(directory / "ca", DOMAIN, SystemClock())
        self.grid = fleet()
        self.grid.now_ms = SystemClock().wall_ms()
        self.book = RefusalBook(self.grid.record, SystemClock(), SystemRng())
        self.servers: list[grpc.aio.Server] = []
        self.address = self.entry = ""

    async def start(self) -> None:
        clock, files = self.clock, self.files(spiffe.replica("east", "east-r1"))
        token_clock = HandClock()
        gate = Gate(DOMAIN, self.grid.revoked, clock, JwtBearer(ISSUER, token_clock, jwks))
        guards = guards_of(gate, self.book, LimitsConfig(), clock)
        issuer = Issuer(str(self.authority.directory), 1, SystemClock())
        desk = Desk(self.grid, self.grid, guards, clock, SystemRng())
        for entry in (False, True):
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            enrolment = Enrolment(self.grid, self.grid, guards, issuer, entry=entry)
            identity_pb2_grpc.add_IdentityServicer_to_server(enrolment, server)
            server.add_generic_rpc_handlers((desk.handlers(certified=not entry),))
            if not entry:
                agents = AgentLinkServicer(NoIngest(), guards, clock)  # type: ignore[arg-type]
                agent_pb2_grpc.add_AgentLinkServicer_to_server(agents, server)
            port = server.add_secure_port("127.0.0.1:0", server_credentials(files, clients=not entry))
            await server.start()
            self.servers.append(server)
            self.address, self.entry = (self.address, f"127.0.0.1:{port}") if entry else (f"127.0.0.1:{port}", "")

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop(0) for server in self.servers))

    def files(self, identity: Identity, authority: CertificateAuthority | None = None) -> TlsFiles:
        return (authority or self.authority).issue(identity, self.directory / "out")

    def client(self, identity: Identity) -> GridClient:
        return GridClient(ClientConfig((RegionEndpoints(RegionId("east"), (self.address,)),), self.files(identity)))

    async def refusals(self) -> list[AuditRecord]:
        await self.book.flush()
        prefix = self.grid.keys.prefix("audit")
        trail = [held.record for key, held in self.grid.local.data.items() if key.startswith(prefix)]
        return [entry for entry in trail if entry.result == "refused"]


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    made = Region(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def _join(region: Region, token: str, node: str, key: object = None) -> identity_pb2.CertificateResponse:
    own = key or new_key()
    request = identity_pb2.JoinRequest(token=token, node=node, csr=request_for(own, spiffe.node("x", node)))  # type: ignore[arg-type]
    credentials = entry_credentials(TlsFiles("", "", str(region.authority.authority)))
    async with grpc.aio.secure_channel(region.entry, credentials) as channel:
        stub: identity_pb2_grpc.IdentityAsyncStub = identity_pb2_grpc.IdentityStub(channel)  # type: ignore[assignment]
        return await stub.Join(request, timeout=10)


async def test_a_token_is_good_once_for_one_key_and_the_host_it_names(region: Region, tmp_path: Path) -> None:
    async with region.client(spiffe.user("adm", "admin")) as admin:
        made = await admin.identities.create_token("east", "gpu-1", 0, "new host")
        stored = str(region.grid.local.data)
        assert made.token.partition(".")[2] not in stored, "the secret is hashed at rest"
        key = new_key()
        for bad, node in ((made.token, "gpu-2"), (made.token[:-1] + "x", "gpu-1"), ("nope.nope", "gpu-1")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await _join(region, bad, node)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        first = await _join(region, made.token, "gpu-1", key)
        again = await _join(region, made.token, "gpu-1", key)  # as if the first answer had been lost
        assert first.region == again.region == "east" and first.certificate != again.certificate
        with pytest.raises(grpc.aio.AioRpcError, match="not good here"):
            await _join(region, made.token, "gpu-1")
        short = await admin.identities.create_token("east", "", 60_000, "")
        region.grid.now_ms += 61_000
        with pytest.raises(grpc.aio.AioRpcError, match="not good here"):
            await _join(region, short.token, "gpu-3")
        revoked = await admin.identities.create_token("east", "", 0, "")
        await admin.identities.revoke("node/east/gpu-4", "stolen")
        with pytest.raises(grpc.aio.AioRpcError, match="revoked: stolen"):
            await _join(region, revoked.token, "gpu-4")
        left = {record.id: record.used_by for _, record in (await admin.identities.tokens()).records}
        assert left[made.record.id] == "gpu-1" and left[revoked.record.id] == ""
    assert {entry.verb for entry in await region.refusals()} == {"identity.join"}


async def test_the_command_line_joins_and_the_key_never_leaves(region: Region, tmp_path: Path) -> None:
    async with region.client(spiffe.user("adm", "admin")) as admin:
        made = await admin.identities.create_token("east", "", 0, "")
    out = tmp_path / "wallet"
    command = (
        sys.executable, "-m", "gridkeeper.cli.main", "join", "--node", "gpu-1", "--server", region.entry,
        "--authority", str(region.authority.authority), "--token-file", "-", "--out", str(out),
    )  # fmt: skip
    told = b""
    for attempt in range(2):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, complained = await process.communicate(made.token.encode())
        assert (process.returncode == 0) == (attempt == 0), complained
        told += said
    assert b"holds a certificate already" in complained
    wallet = Wallet(out)
    assert os.stat(wallet.files.key).st_mode & 0o777 == 0o600
    assert str(wallet.files.certificate).encode() in told
    channel_credentials(wallet.files)
    os.chmod(wallet.files.key, 0o640)
    with pytest.raises(InsecureKey):
        channel_credentials(wallet.files)


async def test_a_certificate_is_renewed_in_time_with_a_new_key_and_comes_into_force(
    region: Region, tmp_path: Path
) -> None:
    identity = spiffe.node("east", "gpu-1")
    wallet, key = Wallet(tmp_path / "wallet"), new_key()
    wallet.put(key, region.authority.sign(identity, key.public_key(), HOUR), region.authority.authority.read_bytes())
    assert Wallet.of(wallet.files) is not None and Wallet.of(region.files(identity)) is None
    credentials = RenewedCredentials(wallet.files)
    asked: list[bytes] = []
    servers = AskServers([region.address], credentials)

    async def ask(csr: bytes) -> bytes:
        asked.append(csr)
        return await servers(csr)

    clock = Shifted(0)
    renewal = Renewal(wallet.files, wallet, identity, ask, clock, SystemRng())
    assert not await renewal.look() and credentials.version() == 1
    clock.ms = 50 * 60_000
    assert await renewal.look() and credentials.version() == 2
    assert Path(wallet.files.key).read_bytes() != pem_of(key) and pem_of(key) not in asked
    assert len([folder for folder in (tmp_path / "wallet").iterdir() if not folder.is_symlink()]) == 1
    actors = [
        h.record.actor for k, h in region.grid.local.data.items() if k.startswith(region.grid.keys.prefix("audit"))
    ]
    assert actors == ["node/east/gpu-1"]


def test_a_host_that_dies_while_it_renews_keeps_a_whole_pair(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", DOMAIN, SystemClock())
    identity, wallet = spiffe.node("east", "gpu-1"), Wallet(tmp_path / "wallet")
    assert pem_of(wallet.pending_key()) == pem_of(wallet.pending_key()), "it joins again with the same key"
    for torn in range(3):  # died with: nothing, the key, or both written and the link not turned
        key = new_key()
        wallet.put(key, authority.sign(identity, key.public_key(), HOUR), authority.authority.read_bytes())
        half = tmp_path / "wallet" / "abc"
        half.mkdir()
        for name in ("tls.key", "tls.crt")[:torn]:
            (half / name).write_bytes(b"half")
        channel_credentials(wallet.files)
        assert Path(wallet.files.key).read_bytes() == pem_of(key)
        if torn == 0:
            half.rmdir()
    with pytest.raises(ValueError, match="not for the key that was sent"):
        wallet.put(new_key(), authority.sign(identity, new_key().public_key(), HOUR), b"")


async def _connect(region: Region, files: TlsFiles) -> grpc.StatusCode:
    """How a stream of an agent with this certificate ends; OK: it did not within half a second."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(region.address, channel_credentials(files), options=options) as channel:
        call = agent_pb2_grpc.AgentLinkStub(channel).Connect()
        try:
            async with asyncio.timeout(0.5):
                await call.write(agent_pb2.AgentFrame(heartbeat=agent_pb2.Heartbeat()))
                await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        except TimeoutError:
            return grpc.StatusCode.OK
        return await call.code()


def _files(region: Region, identity: Identity, clock: Clock, name: str) -> TlsFiles:
    authority = CertificateAuthority.load(region.authority.directory, clock)
    key = new_key()
    wallet = Wallet(region.directory / name)
    wallet.put(key, authority.sign(identity, key.public_key(), HOUR), region.authority.authority.read_bytes())
    return wallet.files


async def test_certificates_that_should_open_nothing_open_nothing(region: Region, tmp_path: Path) -> None:
    """What TLS refuses ends the handshake (UNAVAILABLE, before there is a call that could be written down); what we
    refuse has its own status and an entry in the trail."""
    node, day = spiffe.node("east", "east-1"), 86_400_000
    assert await _connect(region, region.files(node)) is grpc.StatusCode.OK
    stranger = CertificateAuthority.create(tmp_path / "other", DOMAIN, SystemClock())
    forged = dataclasses.replace(stranger.issue(node, tmp_path / "forged"), authority=str(region.authority.authority))
    for files in (
        _files(region, node, Shifted(-day), "expired"),
        _files(region, node, Shifted(day), "early"),
        forged,
    ):
        assert await _connect(region, files) is grpc.StatusCode.UNAVAILABLE
    assert await region.refusals() == []

    elsewhere = CertificateAuthority.load(region.authority.directory, SystemClock())
    elsewhere.trust_domain = "other.test"
    key = new_key()
    foreign = Wallet(tmp_path / "foreign")
    foreign.put(key, elsewhere.sign(node, key.public_key(), HOUR), region.authority.authority.read_bytes())
    assert await _connect(region, foreign.files) is grpc.StatusCode.UNAUTHENTICATED
    for other in (spiffe.user("ann", "admin"), spiffe.replica("east", "east-r2"), spiffe.store("etcd")):
        assert await _connect(region, region.files(other)) is grpc.StatusCode.PERMISSION_DENIED
    async with region.client(spiffe.user("adm", "admin")) as admin:
        await admin.identities.revoke("node/east/east-1", "stolen")
    assert await _connect(region, region.files(node)) is grpc.StatusCode.UNAUTHENTICATED
    entries = await region.refusals()
    assert len(entries) == 5 and {entry.verb for entry in entries} == {"agentlink.connect"}
    assert any("other.test" in entry.sentence for entry in entries)


async def test_a_live_stream_ends_when_its_certificate_is_revoked_or_over(region: Region) -> None:
    for trouble in ("revoked", "expired"):
        node = spiffe.node("east", f"gpu-{trouble}")
        async with grpc.aio.secure_channel(region.address, channel_credentials(region.files(node))) as channel:
            call = agent_pb2_grpc.AgentLinkStub(channel).Connect()
            await call.write(agent_pb2.AgentFrame(heartbeat=agent_pb2.Heartbeat()))
            if trouble == "revoked":
                async with region.client(spiffe.user("adm", "admin")) as admin:
                    await admin.identities.revoke(str(node), "stolen")
            else:
                region.clock.ms = 91 * 86_400_000
            await call.write(agent_pb2.AgentFrame(heartbeat=agent_pb2.Heartbeat()))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert trouble in (ended.value.details() or "")


async def test_a_user_with_a_bearer_token_comes_in_by_the_other_door(region: Region, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token(HandClock()))
    path.chmod(0o600)
    region.clock.ms = 1_790_000_000_000 - SystemClock().wall_ms()
    endpoints = (RegionEndpoints(RegionId("east"), (region.entry,)),)
    files = TlsFiles("unused", "unused", str(region.authority.authority))
    async with GridClient(ClientConfig(endpoints, files, str(path))) as client:
        (status,) = await client.info()
        assert status.info is not None and status.info.identity == "user/oidc:ann@example.com"
        await client.cordon("east-1", "by token")
        path.write_text("a.b.c")
        with pytest.raises(Exception, match="no JWT"):
            await client.list(api_pb2.KIND_NODE)
    path.write_text(token(HandClock()))
    async with GridClient(ClientConfig(endpoints, files, str(path))) as client:
        (status,) = await client.info()
        assert status.info is not None and status.info.role == "operator"


async def test_a_door_for_those_with_a_certificate_takes_nobody_without(region: Region) -> None:
    credentials = entry_credentials(TlsFiles("", "", str(region.authority.authority)))
    async with grpc.aio.secure_channel(region.address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/gridkeeper.v1.Grid/Info")(b"", timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.secure_channel(region.entry, credentials) as channel:
        for path, code in (
            ("/gridkeeper.v1.Grid/Info", grpc.StatusCode.UNAUTHENTICATED),
            ("/gridkeeper.v1.Identity/Renew", grpc.StatusCode.UNAUTHENTICATED),
            ("/gridkeeper.v1.AgentLink/Connect", grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(path)(b"", timeout=5)
            assert refused.value.code() is code
