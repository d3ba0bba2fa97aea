"""Who calls, and whether they may still: a certificate or a bearer token, its expiry, and what was revoked.

TLS has checked the chain and the dates at the handshake. A stream outlives its handshake, so whoever carries one asks
``trouble`` again with each message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from cryptography import x509

from controlplane.rpc.refusal import Refusal
from controlplane.security.origin import host_of
from gridkeeper.identity.spiffe import BadIdentity, Identity
from gridkeeper.identity.tls import peer_identity
from gridkeeper.ports.clock import Clock

MOST_PARSED = 4_096
"""Certificates whose serial and end are remembered."""
PEM = "x509_pem_cert"
AUTHORIZATION = "authorization"


@dataclass(frozen=True, slots=True)
class Caller:
    """``until_ms``: the end of the certificate or token, ms since the Unix epoch. ``serial``: of the certificate, lower
    case hex; "" for a token."""

    identity: Identity
    origin: str
    until_ms: int
    serial: str = ""
    name: str = field(init=False, compare=False, default="")
    targets: tuple[str, ...] = field(init=False, compare=False, default=())  # by which they may be revoked

    def __post_init__(self) -> None:
        """Put together once: a stream asks with each message."""
        object.__setattr__(self, "name", str(self.identity))
        serials = (f"serial/{self.serial}",) if self.serial else ()
        object.__setattr__(self, "targets", (self.name, *serials))

    def __str__(self) -> str:
        return self.name


class NoLonger(Refusal):
    """``who`` is known, and may not come in any more."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(grpc.StatusCode.UNAUTHENTICATED, why)
        self.who = who


class Bearer(Protocol):
    """Who a bearer token speaks for."""

    async def verify(self, token: str) -> tuple[Identity, int]:
        """The identity, and until when (ms since the Unix epoch). Raises ``BadIdentity``."""
        ...


class Call(Protocol):
    """What the gate looks at of a gRPC call's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


Revoked = Callable[[str], str]
"""Why a target (``node/east/east-1``, ``serial/<hex>``) is revoked; "": it is not."""


class Gate:
    def __init__(self, trust_domain: str, revoked: Revoked, clock: Clock, bearer: Bearer | None = None) -> None:
        self._trust_domain = trust_domain
        self._revoked = revoked
        self._clock = clock
        self._bearer = bearer

    def certified(self, call: Call) -> Caller:
        """The owner of the certificate of the call's connection. Raises ``Refusal``."""
        context = call.auth_context()
        try:
            identity = peer_identity(context, self._trust_domain)
            serial, until_ms = _parsed(*context.get(PEM, ()))
        except (BadIdentity, ValueError, TypeError, x509.InvalidVersion) as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
        return self._checked(Caller(identity, host_of(call.peer()), until_ms, serial))

    async def borne(self, call: Call) -> Caller:
        """Who the call's bearer token speaks for. Raises ``Refusal``."""
        given = [value for key, value in call.invocation_metadata() or () if key == AUTHORIZATION]
        try:
            if self._bearer is None:
                raise BadIdentity("this replica takes no bearer tokens; configure 'bearer', or use a certificate")
            if len(given) != 1 or not isinstance(given[0], str) or not given[0].startswith("Bearer "):
                raise BadIdentity("the call has no 'authorization: Bearer …'; give a token, or use a certificate")
            identity, until_ms = await self._bearer.verify(given[0].removeprefix("Bearer ").strip())
        except BadIdentity as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
        return self._checked(Caller(identity, host_of(call.peer()), until_ms))

    def _checked(self, caller: Caller) -> Caller:
        trouble = self.trouble(caller)
        if trouble:
            raise NoLonger(str(caller), trouble)
        return caller

    def trouble(self, caller: Caller) -> str:
        """Why ``caller`` may no longer come in; "": they may."""
        if self._clock.wall_ms() >= caller.until_ms:
            what = "certificate" if caller.serial else "token"
            return f"the {what} of {caller} has expired; renew it"
        for target in caller.targets:
            why = self._revoked(target)
            if why:
                return f"{target} is revoked: {why}"
        return ""

    def revoked(self, identity: Identity) -> str:
        """Why nobody may be ``identity`` here; "": somebody may."""
        why = self._revoked(str(identity))
        return f"{identity} is revoked: {why}" if why else ""


@functools.lru_cache(maxsize=MOST_PARSED)
def _parsed(pem: bytes) -> tuple[str, int]:
    """Serial and end of a certificate. Raises ``ValueError``."""
    certificate = x509.load_pem_x509_certificate(pem)
    return f"{certificate.serial_number:x}", int(certificate.not_valid_after_utc.timestamp() * 1000)
