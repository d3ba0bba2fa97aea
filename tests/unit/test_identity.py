"""Protects: a certificate's identity is read exactly or not at all; keys that others can read are refused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CaError, CertificateAuthority
from gridkeeper.identity.spiffe import BadIdentity, Identity, Kind, UserRole, format_uri, parse_uri
from gridkeeper.identity.tls import (
    InsecureKey,
    TlsError,
    channel_credentials,
    peer_identity,
    server_credentials,
)

DOMAIN = "grid.test"
names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True)
identities = st.one_of(
    st.builds(spiffe.node, names, names),
    st.builds(spiffe.replica, names, names),
    st.builds(spiffe.user, names, st.sampled_from([UserRole.VIEWER, UserRole.OPERATOR, UserRole.ADMIN])),
    st.builds(spiffe.user, names, st.just(UserRole.JOB_OWNER), names),
    st.builds(spiffe.store, names),
)


@given(identities)
def test_an_identity_survives_its_uri(identity: Identity) -> None:
    assert parse_uri(format_uri(identity, DOMAIN), DOMAIN) == identity


@given(st.text(max_size=200))
def test_text_from_outside_is_an_identity_or_a_clear_error(text: str) -> None:
    for uri in (text, f"spiffe://{DOMAIN}{text}", f"spiffe://{DOMAIN}/{text}"):
        try:
            identity = parse_uri(uri, DOMAIN)
        except BadIdentity as error:
            assert len(str(error)) < 400
        else:
            assert format_uri(identity, DOMAIN) == uri


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("", "no SPIFFE id"),
        ("https://grid.test/store/a", "no SPIFFE id"),
        ("spiffe://other.test/store/a", "'other.test' is not this grid's"),
        ("spiffe://grid.test", "names nobody"),
        ("spiffe://grid.test/region/east/node", "names nobody"),
        ("spiffe://grid.test/region/east/node/a/b", "names nobody"),
        ("spiffe://grid.test/region//node/a", "region: ''"),
        ("spiffe://grid.test/region/east/node/a\n", "node: 'a\\n'"),
        ("spiffe://grid.test/region/east/node/..", "node: '..'"),
        ("spiffe://grid.test/region/east/node/A", "node: 'A'"),
        ("spiffe://grid.test/role/root/user/a", "role: 'root'"),
        ("spiffe://grid.test/role/admin/user/", "user: ''"),
        ("spiffe://grid.test/role/job-owner/user/a", "for the role job-owner; name one"),
        ("spiffe://grid.test/role/admin/namespace/vision/user/a", "leave it out"),
        ("spiffe://grid.test/role/job-owner/namespace/../user/a", "namespace: '..'"),
        ("spiffe://grid.test/region/east/node/a/../../role/admin/user/a", "names nobody"),
        ("spiffe://grid.test/region/east%2Fnode%2Fb/node/a", "region: 'east%2Fnode%2Fb'"),
        ("spiffe://grid.test/region/east/node/a?role=admin", "role=admin' is not a name"),
        ("spiffe://grid.test//region/east/node/a", "names nobody"),
        ("spiffe://grid.test/store/" + "a" * 3000, "3025 characters"),
    ],
)
def test_what_is_wrong_with_a_uri_is_named(uri: str, part: str) -> None:
    with pytest.raises(BadIdentity, match=part.replace("\\", "\\\\").replace(".", "\\.")):
        parse_uri(uri, DOMAIN)


def test_a_role_is_for_users_only() -> None:
    with pytest.raises(BadIdentity, match="only a user has one"):
        format_uri(Identity(Kind.NODE, spiffe.node("east", "a").region, "a", UserRole.ADMIN), DOMAIN)


def test_peer_identity_needs_exactly_one_id() -> None:
    uri = format_uri(spiffe.user("ann", "viewer"), DOMAIN).encode()
    assert peer_identity({"peer_spiffe_id": [uri]}, DOMAIN) == spiffe.user("ann", "viewer")
    for context in ({}, {"peer_spiffe_id": []}, {"peer_spiffe_id": [uri, uri]}, {"peer_spiffe_id": [b"spiffe://\xff"]}):
        with pytest.raises(BadIdentity):
            peer_identity(context, DOMAIN)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", DOMAIN, SystemClock())


def test_keys_are_private_from_the_start_and_a_wider_one_is_refused(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    files = authority.issue(spiffe.user("ann", "admin"), tmp_path / "out")
    for key in (authority.directory / "ca.key", Path(files.key)):
        assert key.stat().st_mode & 0o777 == 0o600
    channel_credentials(files)
    for mode in (0o640, 0o604, 0o660):
        os.chmod(files.key, mode)
        with pytest.raises(InsecureKey, match=f"chmod 600 {files.key}"):
            channel_credentials(files)
        with pytest.raises(InsecureKey):
            server_credentials(files)
    os.chmod(authority.directory / "ca.key", 0o644)
    with pytest.raises(InsecureKey):
        CertificateAuthority.load(authority.directory, SystemClock())


def test_key_material_that_does_not_fit_is_named(authority: CertificateAuthority, tmp_path: Path) -> None:
    one = authority.issue(spiffe.user("ann", "admin"), tmp_path)
    two = authority.issue(spiffe.user("bob", "admin"), tmp_path)
    junk = tmp_path / "junk"
    junk.write_text("hello")
    junk.chmod(0o600)
    torn = tmp_path / "torn"
    torn.write_bytes(Path(one.certificate).read_bytes()[:200])
    torn.chmod(0o600)
    for files, part in (
        (TlsFiles(one.certificate, two.key, one.authority), "is not the key of"),
        (TlsFiles(str(junk), one.key, one.authority), "tls.certificate: .*junk is no PEM"),
        (TlsFiles(str(torn), one.key, one.authority), "tls.certificate: .*torn does not parse"),
        (TlsFiles(one.certificate, str(torn), one.authority), "tls.key: .*torn does not parse"),
        (TlsFiles(one.certificate, one.key, str(tmp_path / "gone")), "tls.authority: .*gone: No such file"),
        (TlsFiles(one.certificate, one.key, str(tmp_path)), "no regular file"),
        (TlsFiles(one.certificate, "", one.authority), "tls.key: no file is given"),
    ):
        with pytest.raises(TlsError, match=part):
            channel_credentials(files)


def test_an_authority_is_kept_and_never_overwritten(authority: CertificateAuthority) -> None:
    clock = SystemClock()
    before = authority.authority.read_bytes()
    with pytest.raises(CaError, match=r"ca\.key exists"):
        CertificateAuthority.create(authority.directory, DOMAIN, clock)
    assert CertificateAuthority.open(authority.directory, DOMAIN, clock).trust_domain == DOMAIN
    assert authority.authority.read_bytes() == before
    with pytest.raises(CaError, match=r"of trust domain 'grid\.test', not 'other'"):
        CertificateAuthority.open(authority.directory, "other", clock)


def test_arguments_of_issue_are_checked(authority: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(CaError, match="hosts: 'a b'"):
        authority.issue(spiffe.store("s"), tmp_path, hosts=["a b"])
    with pytest.raises(CaError, match="not connected to"):
        authority.issue(spiffe.node("east", "n"), tmp_path, hosts=["h"])
    with pytest.raises(CaError, match="days: 0"):
        authority.issue(spiffe.store("s"), tmp_path, days=0)
    assert list(tmp_path.glob("*.key")) == []


async def _who(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    try:
        return str(peer_identity(context.auth_context(), DOMAIN)).encode()
    except BadIdentity as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        raise AssertionError from error


@pytest.fixture
async def server(authority: CertificateAuthority, tmp_path: Path) -> AsyncIterator[tuple[int, TlsFiles]]:
    files = authority.issue(spiffe.replica("east", "east-r1"), tmp_path / "server")
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("t.T", {"Who": grpc.unary_unary_rpc_method_handler(_who)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    await server.start()
    yield port, files
    await server.stop(None)


async def _ask(host: str, port: int, credentials: grpc.ChannelCredentials) -> str:
    # A subchannel is shared between channels with equal arguments: a number of its own makes each dial anew.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"{host}:{port}", credentials, options=options) as channel:
        return (await channel.unary_unary("/t.T/Who")(b"", timeout=5)).decode()


async def test_the_server_knows_its_peer_and_takes_no_stranger(
    authority: CertificateAuthority, server: tuple[int, TlsFiles], tmp_path: Path
) -> None:
    port, _ = server
    node = authority.issue(spiffe.node("east", "east-1"), tmp_path)
    assert await _ask("127.0.0.1", port, channel_credentials(node)) == "node/east/east-1"
    user = authority.issue(spiffe.user("ann", "viewer"), tmp_path)
    assert await _ask("localhost", port, channel_credentials(user)) == "user/ann"

    other = CertificateAuthority.create(tmp_path / "other", DOMAIN, SystemClock())
    stranger = other.issue(spiffe.user("mallory", "admin"), tmp_path)
    trusting = TlsFiles(stranger.certificate, stranger.key, node.authority)
    anonymous = grpc.ssl_channel_credentials(root_certificates=Path(node.authority).read_bytes())
    for credentials in (channel_credentials(trusting), channel_credentials(stranger), anonymous):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _ask("127.0.0.1", port, credentials)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_serves_the_next_handshake(
    authority: CertificateAuthority, server: tuple[int, TlsFiles], tmp_path: Path
) -> None:
    port, files = server
    renewed = CertificateAuthority.create(tmp_path / "new-ca", DOMAIN, SystemClock())
    user = renewed.issue(spiffe.user("ann", "viewer"), tmp_path / "user")
    with pytest.raises(grpc.aio.AioRpcError):
        await _ask("127.0.0.1", port, channel_credentials(user))
    Path(files.authority).write_bytes(renewed.authority.read_bytes())
    renewed.issue(spiffe.replica("east", "east-r1"), tmp_path / "server")
    assert await _ask("127.0.0.1", port, channel_credentials(user)) == "user/ann"
    Path(files.certificate).write_text("broken")
    assert await _ask("127.0.0.1", port, channel_credentials(user)) == "user/ann"
