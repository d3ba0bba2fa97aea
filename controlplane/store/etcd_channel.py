"""Connections to the members of one etcd cluster: one channel each, rotation, TLS, user and password.

A call is handed to gRPC only on a channel that is READY. That is how "certainly not sent" is known: as long as no
channel is READY no call exists, so nothing can have been sent. Once a call exists, whatever goes wrong with it is in
doubt; error texts such as "failed to connect" are not believed. gRPC's own retries are off for the same reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from controlplane.store.etcd_errors import Verdict, Version, definite, in_doubt, verdict
from gridkeeper.config import StoreConfig
from gridkeeper.identity.files import TlsError, read_file
from gridkeeper.identity.tls import channel_credentials
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import StoreDenied, StoreError, StoreUnavailable

T = TypeVar("T")
pb: Any = rpc_pb2
_stubs: Any = rpc_pb2_grpc

Metadata = tuple[tuple[str, str], ...]

CONNECT_POLL_MS = 5
RETRY_MS = 20
RECEIVE_LIMIT = 512 * 1024 * 1024
"""Far above gRPC's 4 MiB: a transaction may read 128 values of 1.5 MiB, a watch catches up in large responses."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", RECEIVE_LIMIT),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # connections of one store are not shared with another's
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd allows one ping per 5 s; finds hosts that vanished, not paused members
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Endpoint:
    """One member. ``version`` is known after the first ``Status``."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv: Any = _stubs.KVStub(channel)
        self.watch: Any = _stubs.WatchStub(channel)
        self.lease: Any = _stubs.LeaseStub(channel)
        self.auth: Any = _stubs.AuthStub(channel)
        self.maintenance: Any = _stubs.MaintenanceStub(channel)
        self.version: Version | None = None

    def state(self) -> grpc.ChannelConnectivity:
        """The channel's state now; an idle one begins to connect."""
        return self.channel.get_state(try_to_connect=True)


LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


def _target(endpoint: str, *, secure: bool) -> str:
    scheme, mark, rest = endpoint.partition("://")
    if mark and scheme not in ("http", "https"):
        raise StoreError(f"store.endpoints: {endpoint!r} begins with neither http:// nor https://")
    host = (rest if mark else endpoint).rstrip("/").rpartition(":")[0]
    if not secure and host not in LOOPBACK:
        raise StoreError(
            f"store.endpoints: {endpoint!r} would be reached in the clear; configure store.tls (without it only "
            f"{', '.join(LOOPBACK)} are connected to)"
        )
    if not mark:
        return endpoint
    if secure != (scheme == "https"):
        remedy = "write https://" if secure else "configure store.tls, or write http://"
        raise StoreError(f"store.endpoints: {endpoint!r} does not fit store.tls; {remedy}")
    return rest.rstrip("/")


def _password(path: str) -> str:
    field = "store.password_file"
    try:
        return read_file(field, path, secret=True).decode().rstrip("\r\n")
    except TlsError as error:
        raise StoreError(str(error)) from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{field}: {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


class Endpoints:
    """All members of a cluster, and which of them is spoken to now."""

    def __init__(self, config: StoreConfig, clock: Clock, rng: Rng, deadline_ms: int) -> None:
        if not config.endpoints:
            raise StoreError("store.endpoints: is empty; name at least one host:port")
        self.clock = clock
        self.deadline_ms = deadline_ms
        self._user = config.user
        self._password = ""
        if config.user:
            self._password = _password(config.password_file)
        self._token = ""
        self.all = tuple(self._open(config))
        self._current = int(rng.uniform(0, len(self.all))) % len(self.all)
        self.closed = False

    @staticmethod
    def _open(config: StoreConfig) -> list[Endpoint]:
        options = list(_OPTIONS)
        try:
            credentials = channel_credentials(config.tls) if config.tls else None
        except TlsError as error:
            raise StoreError(f"store.{error}") from error
        made = []
        for name in config.endpoints:
            target = _target(name, secure=config.tls is not None)
            if credentials is not None:
                channel = grpc.aio.secure_channel(target, credentials, options=options)
            else:
                channel = grpc.aio.insecure_channel(target, options=options)
            made.append(Endpoint(name, channel))
        return made

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for endpoint in self.all:
            await endpoint.channel.close()

    # -- which member

    def rotate(self, failed: Endpoint) -> None:
        """Speak to the next member, unless that has already happened."""
        if self.all[self._current] is failed:
            self._current = (self._current + 1) % len(self.all)

    async def ready(self, until_ms: int, after: Endpoint | None = None) -> Endpoint:
        """A member with a connection: the current one (or the next after ``after``) if it has one or gets one soon,
        else the first that does. Raises ``StoreUnavailable`` at ``until_ms``: then no call was made."""
        first = self._current if after is None else (self.all.index(after) + 1) % len(self.all)
        patience_ms = self.clock.mono_ms() + self.deadline_ms // 4
        while True:
            self._check_open()
            for step in range(len(self.all)):
                endpoint = self.all[(first + step) % len(self.all)]
                state = endpoint.state()
                if state is grpc.ChannelConnectivity.READY:
                    if after is None:
                        self._current = (first + step) % len(self.all)
                    return endpoint
                # Wait for the preferred one while it is connecting; go on if that has failed or takes long.
                if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE and self.clock.mono_ms() < patience_ms:
                    break
            if self.clock.mono_ms() >= until_ms:
                raise StoreUnavailable(f"no etcd member could be connected to: {await self._why()}")
            await self.clock.sleep(CONNECT_POLL_MS)

    async def _why(self) -> str:
        """What each member's connection says, for a human: asked with a harmless call."""
        reasons = []
        for endpoint in self.all:
            try:
                await endpoint.maintenance.Status(pb.StatusRequest(), timeout=0.1)
                reasons.append(f"{endpoint.address}: answers just now")
            except grpc.aio.AioRpcError as error:
                reasons.append(f"{endpoint.address}: {error.details() or error.code().name}")
        return "; ".join(reasons)

    def _check_open(self) -> None:
        if self.closed:
            raise StoreUnavailable("this store handle is closed; open another")

    # -- calling

    async def call(
        self,
        what: str,
        send: Callable[[Endpoint, float, Metadata], Awaitable[T]],
        *,
        write: bool = False,
    ) -> T:
        """Call ``send(endpoint, timeout in s, metadata)``.

        A read (or anything that may be repeated) is repeated at other members until the deadline. A write is repeated
        only when it certainly was not done: no channel was READY, the token was refused, or the member said that it
        did not propose it. Raises what ``etcd_errors`` makes of the failure.
        """
        until_ms = self.clock.mono_ms() + self.deadline_ms
        refreshed = False
        failure: StoreError | None = None
        while True:
            try:
                endpoint = await self.ready(until_ms)
            except StoreUnavailable as error:
                raise (failure or error) from error
            left_ms = until_ms - self.clock.mono_ms()
            if left_ms <= 0:
                raise failure or StoreUnavailable(f"{what}: no etcd member answered within {self.deadline_ms} ms")
            share_ms = left_ms if write or len(self.all) == 1 else min(left_ms, self.deadline_ms // 2)
            share_s = share_ms / 1_000
            try:
                metadata = await self.metadata(endpoint, share_s)
            except grpc.aio.AioRpcError as error:  # the call itself was not made
                failure = in_doubt(f"authenticate for {what}", endpoint.address, error, write=False)
                self.rotate(endpoint)
                await self.clock.sleep(RETRY_MS)
                continue
            try:
                return await send(endpoint, share_s, metadata)
            except grpc.aio.AioRpcError as error:
                match verdict(error):
                    case Verdict.FINAL:
                        raise definite(what, error) from error
                    case Verdict.TOKEN:
                        if not self._user or refreshed:
                            raise StoreDenied(f"{what}: {error.details()}; configure store.user") from error
                        refreshed = True
                        self._token = ""
                    case Verdict.NOT_DONE:
                        failure = StoreUnavailable(f"{what} at {endpoint.address}: {error.details()}")
                        self.rotate(endpoint)
                        await self.clock.sleep(RETRY_MS)
                    case Verdict.IN_DOUBT:
                        failure = in_doubt(what, endpoint.address, error, write=write)
                        self.rotate(endpoint)
                        if write:
                            raise failure from error
                        await self.clock.sleep(RETRY_MS)

    async def metadata(self, endpoint: Endpoint, timeout: float) -> Metadata:
        """Sent with every call. ``hasleader``: a member without a leader refuses at once instead of keeping us
        waiting. Authenticates if need be; raises ``StoreDenied``, ``AioRpcError``."""
        base: Metadata = (("hasleader", "true"),)
        if not self._user:
            return base
        if not self._token:
            request = pb.AuthenticateRequest(name=self._user, password=self._password)
            try:
                self._token = (await endpoint.auth.Authenticate(request, timeout=timeout, metadata=base)).token
            except grpc.aio.AioRpcError as error:
                if verdict(error) is Verdict.FINAL:
                    raise definite(f"authenticate {self._user!r}", error) from error
                raise
        return (*base, ("token", self._token))

    def drop_token(self) -> bool:
        """Forget the token, if there is one, so that the next call authenticates again."""
        had = bool(self._token)
        self._token = ""
        return had
