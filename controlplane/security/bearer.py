"""Bearer tokens: JWTs of the operator's identity provider, checked against its published keys.

Only asymmetric signatures are taken, so that nobody can sign with a public key; issuer, audience and times must be
there. The keys come from a file or an https URL; they are read anew when they change, and when a token names one that
is not among them (at most once in ``REFETCH_MS``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.request
from collections.abc import Callable
from typing import Any

import jwt

from gridkeeper.config import BearerConfig
from gridkeeper.identity.files import TlsError, read_file
from gridkeeper.identity.spiffe import BadIdentity, Identity, Kind, checked_role
from gridkeeper.ids import RegionId
from gridkeeper.ports.clock import Clock

log = logging.getLogger("gridkeeper.bearer")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 30
"""By how much the provider's clock and ours may differ."""
MAX_TOKEN = 16 * 1024
MAX_KEYS = 64
MAX_NAME = 128
MAX_NAMESPACES = 64
KEYS_MS = 300_000
REFETCH_MS = 10_000
FETCH_S = 5.0
PREFIX = "oidc:"
"""No certificate can carry a name with a colon, so that nobody with one passes for the other."""


class JwtBearer:
    """``read`` gives the key set's text (a JWKS); tests give their own."""

    def __init__(self, config: BearerConfig, clock: Clock, read: Callable[[], bytes] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._read = read or (lambda: _fetch(config.jwks))
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_ms: int | None = None
        self._reading = asyncio.Lock()

    async def verify(self, token: str) -> tuple[Identity, int]:
        """Raises ``BadIdentity``."""
        if len(token) > MAX_TOKEN:
            raise BadIdentity(f"the token has {len(token)} characters; at most {MAX_TOKEN} are taken")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise BadIdentity(f"the bearer token is no JWT: {error}") from error
        key = await self._key(str(header.get("kid", ""))[:256])
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False,
                         "verify_iat": False},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise BadIdentity(f"the bearer token is not accepted: {error}") from error
        return self._identity(claims), self._until_ms(claims)

    def _until_ms(self, claims: dict[str, Any]) -> int:
        """The times are judged by our clock port, not by the library's."""
        now_s = self._clock.wall_ms() / 1000
        ends, begins = claims["exp"], claims.get("nbf", 0)
        if not all(isinstance(at, (int, float)) and 0 <= at < 1e11 for at in (ends, begins)):
            raise BadIdentity("the token's exp or nbf is no time in seconds")
        if begins > now_s + LEEWAY_S:
            raise BadIdentity("the token is not valid yet (nbf); check the clocks")
        if ends + LEEWAY_S <= now_s:
            raise BadIdentity("the token has expired; get a new one")
        return int((ends + LEEWAY_S) * 1000)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        name, role = claims.get(self._config.user_claim), claims.get(self._config.role_claim)
        spaces = claims.get(self._config.namespaces_claim, [])
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isascii() or not _plain(name):
            raise BadIdentity(
                f"the token's claim {self._config.user_claim} is no name of 1 to {MAX_NAME} printable ASCII characters "
                "without blanks and slashes"
            )
        if not isinstance(role, str):
            raise BadIdentity(f"the token's claim {self._config.role_claim} names no role; let the provider add it")
        if not isinstance(spaces, list) or len(spaces) > MAX_NAMESPACES or not all(isinstance(s, str) for s in spaces):
            raise BadIdentity(
                f"the token's claim {self._config.namespaces_claim} is no list of at most {MAX_NAMESPACES} names"
            )
        return Identity(Kind.USER, RegionId(""), PREFIX + name, *checked_role(role, tuple(sorted(set(spaces)))))

    async def _key(self, kid: str) -> jwt.PyJWK:
        async with self._reading:
            age = None if self._read_ms is None else self._clock.mono_ms() - self._read_ms
            if age is None or age >= KEYS_MS or (kid not in self._keys and age >= REFETCH_MS):
                self._read_ms = self._clock.mono_ms()
                try:
                    self._keys = _parsed(await asyncio.to_thread(self._read))
                except (OSError, ValueError) as error:  # the keys that are known stay good
                    log.error("bearer.jwks: %s cannot be read: %s", self._config.jwks, error)
        if kid not in self._keys:
            raise BadIdentity(f"the bearer token is signed with a key {kid[:80]!r} that its issuer does not publish")
        return self._keys[kid]


def _plain(name: str) -> bool:
    return name.isprintable() and " " not in name and "/" not in name


def _parsed(text: bytes) -> dict[str, jwt.PyJWK]:
    """The keys that can check a signature of ours. Raises ``ValueError`` if there is none."""
    try:
        found = json.loads(text)["keys"]
        listed = [key for key in found if isinstance(key, dict)][:MAX_KEYS]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no JWKS: {error}") from error
    keys: dict[str, jwt.PyJWK] = {}
    for key in listed:
        if key.get("kty") not in ("RSA", "EC", "OKP") or key.get("use", "sig") != "sig":
            continue
        try:
            keys[str(key.get("kid", ""))] = jwt.PyJWK(key)
        except jwt.PyJWTError as error:
            log.warning("a key of the JWKS is left out: %s", error)
    if not keys:
        raise ValueError("it holds no RSA, EC or OKP key for signatures")
    return keys


def _fetch(place: str) -> bytes:
    """Raises ``OSError``."""
    if not place.startswith("https://"):
        try:
            return read_file("bearer.jwks", os.fspath(place))
        except TlsError as error:
            raise OSError(str(error)) from error
    with urllib.request.urlopen(place, timeout=FETCH_S) as answer:  # https alone, by the check above
        return bytes(answer.read(1 << 20))
