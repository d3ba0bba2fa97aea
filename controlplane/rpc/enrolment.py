"""First certificates for tokens, and the next one for each node: the ``Identity`` service.

A token is used up in the store before anything is signed. Whoever dies in between, or loses the answer, asks again with
the same key and gets a certificate; with another key nobody does.
"""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any, NoReturn

import grpc

from controlplane.rpc.identity_intents import UNWELCOME, NoEntry, use_token
from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.sources import Acts, Conflict, Views
from controlplane.security.gate import NoLonger
from controlplane.security.guards import Guards
from controlplane.security.origin import ORIGIN, host_of
from gridkeeper.decision import Decision
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CertificateAuthority
from gridkeeper.identity.files import TlsError
from gridkeeper.identity.issuing import BadCsr, digest_of, public_key_of, until_ms_of
from gridkeeper.identity.spiffe import BadIdentity, Identity, Kind
from gridkeeper.ids import NodeId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import StoreError
from gridkeeper.v1 import identity_pb2, identity_pb2_grpc
from gridkeeper.v1.identity_pb2 import CertificateResponse

log = logging.getLogger("gridkeeper.enrolment")

Context = grpc.aio.ServicerContext[Any, Any]
ATTEMPTS = 4
MAX_TOKEN = 256


class Issuer:
    """Signs with the authority in a directory, which is read for each certificate: a key that was replaced is taken at
    once, and none stays in memory longer than it is used."""

    def __init__(self, directory: str, hours: int, clock: Clock) -> None:
        self._directory = directory
        self._hours = hours
        self._clock = clock

    def sign(self, identity: Identity, csr: bytes) -> bytes:
        """PEM. Raises ``Refusal``."""
        if not self._directory:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "this replica signs no certificates; set issuer_dir")
        try:
            authority = CertificateAuthority.load(Path(self._directory), self._clock)
            return authority.sign(identity, public_key_of(csr), datetime.timedelta(hours=self._hours))
        except BadCsr as error:
            raise invalid(str(error)) from error
        except (TlsError, BadIdentity) as error:
            log.error("issuer_dir: no certificate for %s: %s", identity, error)
            raise Refusal(grpc.StatusCode.INTERNAL, "this replica cannot sign now; its log says why") from error


class Enrolment(identity_pb2_grpc.IdentityServicer):
    """``entry``: served to those without a certificate, who can but ``Join``; else to nodes, who can but ``Renew``."""

    def __init__(self, views: Views, acts: Acts, guards: Guards, issuer: Issuer, *, entry: bool) -> None:
        self._views = views
        self._acts = acts
        self._guards = guards
        self._issuer = issuer
        self._entry = entry

    async def Join(self, request: identity_pb2.JoinRequest, context: Context) -> CertificateResponse:
        ORIGIN.set(host_of(context.peer()))
        try:
            return await self._join(request)
        except (Refusal, StoreError) as error:
            await self._refuse("identity.join", f"node/{request.node[:80]}", "?", context, error)

    async def Renew(self, request: identity_pb2.RenewRequest, context: Context) -> CertificateResponse:
        ORIGIN.set(host_of(context.peer()))
        who = "?"
        try:
            if self._entry:
                raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "renew at the replicas' own address, with a certificate")
            caller = self._guards.gate.certified(context)
            who = str(caller)
            return await self._renew(caller.identity, request)
        except (Refusal, StoreError) as error:
            await self._refuse("identity.renew", who, who, context, error)

    async def _join(self, request: identity_pb2.JoinRequest) -> CertificateResponse:
        if not self._entry:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "join at entry_listen; who has a certificate renews it")
        wait_ms = self._guards.joins.admit(ORIGIN.get())
        if wait_ms:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many attempts to join; again in {wait_ms} ms")
        token, dot, secret = request.token.partition(".")
        if not dot or len(request.token) > MAX_TOKEN:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, UNWELCOME)
        identity = self._node(request.node)
        key = self._key(request.csr)
        for _ in range(ATTEMPTS):
            if not self._views.info().region_store_reachable:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "the region store does not answer; try again")
            try:
                decision = use_token(token, secret, NodeId(identity.name), key, self._views.region(), self._views.now())
            except NoEntry as error:
                log.warning("%s from %s: %s", request.node[:80], ORIGIN.get(), error)
                raise Refusal(grpc.StatusCode.PERMISSION_DENIED, UNWELCOME) from error
            if decision is None:
                return self._signed(identity, request.csr)
            self._not_revoked(identity)
            try:
                await self._acts.apply_region(decision, f"token/{token}")
            except Conflict:
                continue  # somebody used or cancelled it meanwhile: look again
            return self._signed(identity, request.csr)
        raise Refusal(grpc.StatusCode.ABORTED, "the token is being used elsewhere; look and try again")

    async def _renew(self, identity: Identity, request: identity_pb2.RenewRequest) -> CertificateResponse:
        if identity.kind is not Kind.NODE or identity.region != self._views.info().region:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED, f"{identity} is no node of this region; only those renew here"
            )
        wait_ms = self._guards.joins.admit(str(identity))
        if wait_ms:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{identity} renews too often; again in {wait_ms} ms")
        key = self._key(request.csr)
        answer = self._signed(identity, request.csr)
        sentence = f"{identity} renewed its certificate, key {key[:16]}"
        await self._acts.apply_region(
            Decision("identity.renew", sentence, (), subject=f"node/{identity.name}"), str(identity)
        )
        return answer

    def _node(self, name: str) -> Identity:
        try:
            return spiffe.node(self._views.info().region, name)
        except BadIdentity as error:
            raise invalid(str(error)) from error

    @staticmethod
    def _key(csr: bytes) -> str:
        try:
            return digest_of(public_key_of(csr))
        except BadCsr as error:
            raise invalid(str(error)) from error

    def _not_revoked(self, identity: Identity) -> None:
        why = self._guards.gate.revoked(identity)
        if why:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, why)

    def _signed(self, identity: Identity, csr: bytes) -> CertificateResponse:
        self._not_revoked(identity)
        certificate = self._issuer.sign(identity, csr)
        return CertificateResponse(certificate=certificate, region=identity.region, until_ms=until_ms_of(certificate))

    async def _refuse(
        self, verb: str, subject: str, who: str, context: Context, error: Refusal | StoreError
    ) -> NoReturn:
        if isinstance(error, StoreError):
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store does not answer; try again ({error})")
        who = error.who if isinstance(error, NoLonger) else who
        trace = self._guards.book.note(who, ORIGIN.get(), verb, subject, str(error))
        log.warning("refused %s to %s at %s, trace %s: %s", verb, who, context.peer(), trace, error)
        await context.abort(error.code, str(error))
