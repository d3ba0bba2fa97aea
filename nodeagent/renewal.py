"""The agent's certificate, renewed in time: a new key, the control plane's signature, and both turned to at once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from gridkeeper.config import TlsFiles
from gridkeeper.identity.files import TlsError, read_pem
from gridkeeper.identity.issuing import ms_of, new_key, request_for
from gridkeeper.identity.spiffe import Identity
from gridkeeper.identity.wallet import Wallet
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.link import LinkClosed
from gridkeeper.v1 import identity_pb2

log = logging.getLogger("gridkeeper.agent.renewal")

LOOK_MS = 60_000
DUE = 2 / 3
"""Of its life, after which a certificate is renewed: a third is left for a control plane that is away."""
SPREAD = 0.05
"""Of its life, by which nodes that joined together renew apart."""
TIMEOUT_S = 10.0

Ask = Callable[[bytes], Awaitable[bytes]]
"""A CSR -> the certificate, PEM. Raises ``LinkClosed``."""


@dataclass(frozen=True, slots=True)
class Life:
    """Of a certificate, ms since the Unix epoch."""

    from_ms: int
    until_ms: int

    def due_ms(self, spread: float) -> int:
        """When to renew; ``spread`` in [0, 1)."""
        return self.from_ms + round((self.until_ms - self.from_ms) * (DUE - SPREAD * spread))


def life_of(path: str) -> Life:
    """Raises ``TlsError``."""
    try:
        certificate = x509.load_pem_x509_certificate(read_pem("tls.certificate", path))
    except ValueError as error:
        raise TlsError(f"tls.certificate: {path}: {error}") from error
    return Life(ms_of(certificate.not_valid_before_utc), ms_of(certificate.not_valid_after_utc))


class Renewal:
    """Of the certificate in a wallet; one that lies elsewhere is renewed by whoever put it there."""

    def __init__(self, files: TlsFiles, wallet: Wallet, identity: Identity, ask: Ask, clock: Clock, rng: Rng) -> None:
        self._files = files
        self._wallet = wallet
        self._identity = identity
        self._ask = ask
        self._clock = clock
        self._spread = rng.uniform(0.0, 1.0)

    async def run(self) -> None:
        """For ever. What fails is said, and tried again at the next look."""
        while True:
            try:
                await self.look()
            except (TlsError, LinkClosed, OSError) as error:
                log.error("the certificate cannot be renewed, and is tried again in %d s: %s", LOOK_MS // 1000, error)
            await self._clock.sleep(LOOK_MS)

    async def look(self) -> bool:
        """Renew if it is time. Returns whether it was. Raises ``TlsError``, ``LinkClosed``, ``OSError``."""
        life = life_of(self._files.certificate)
        if self._clock.wall_ms() < life.due_ms(self._spread):
            return False
        key = new_key()
        certificate = await self._ask(request_for(key, self._identity))
        self._wallet.put(key, certificate, Path(self._files.authority).read_bytes())
        log.info("the certificate of %s was renewed", self._identity)
        return True


class AskServers:
    """``Ask`` of the first server that answers."""

    def __init__(self, servers: Sequence[str], credentials: Callable[[], grpc.ChannelCredentials]) -> None:
        self._servers = tuple(servers)
        self._credentials = credentials

    async def __call__(self, csr: bytes) -> bytes:
        failures = []
        for server in self._servers:
            async with grpc.aio.secure_channel(server, self._credentials()) as channel:
                method = channel.unary_unary(
                    "/gridkeeper.v1.Identity/Renew",
                    request_serializer=identity_pb2.RenewRequest.SerializeToString,
                    response_deserializer=identity_pb2.CertificateResponse.FromString,
                )
                try:
                    answer = await method(identity_pb2.RenewRequest(csr=csr), timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    failures.append(f"{server}: {error.code().name}: {error.details()}")
                else:
                    return bytes(answer.certificate)
        raise LinkClosed("; ".join(failures))
