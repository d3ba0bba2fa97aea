"""Mutual TLS for gRPC from ``TlsFiles``, and who the peer is."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gridkeeper.config import TlsFiles
from gridkeeper.identity.files import InsecureKey, TlsError, read_pem
from gridkeeper.identity.spiffe import BadIdentity, Identity, parse_uri

__all__ = ["InsecureKey", "TlsError", "channel_credentials", "entry_credentials", "peer_identity", "server_credentials"]

log = logging.getLogger("gridkeeper.tls")

PEER_ID = "peer_spiffe_id"
"""What gRPC core sets iff the verified certificate has exactly one URI name and it is a SPIFFE id."""


def _load(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """(authority, key, certificate). Raises ``TlsError``, also when key and certificate are not a pair: gRPC would only
    fail each handshake without a word."""
    authority = read_pem("tls.authority", files.authority)
    certificate = read_pem("tls.certificate", files.certificate)
    key = read_pem("tls.key", files.key, secret=True)
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise TlsError(f"tls.certificate: {files.certificate} does not parse: {error}") from error
    try:
        x509.load_pem_x509_certificates(authority)
    except ValueError as error:
        raise TlsError(f"tls.authority: {files.authority} does not parse: {error}") from error
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise TlsError(f"tls.key: {files.key} does not parse, or has a passphrase: {error}") from error
    if private.public_key() != leaf.public_key():
        raise TlsError(f"tls.key: {files.key} is not the key of {files.certificate}; issue both again")
    return authority, key, certificate


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For a client. Raises ``TlsError``, ``InsecureKey``."""
    authority, key, certificate = _load(files)
    return grpc.ssl_channel_credentials(root_certificates=authority, private_key=key, certificate_chain=certificate)


def entry_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For a client without a certificate: it only checks the server's. Raises ``TlsError``."""
    return grpc.ssl_channel_credentials(root_certificates=read_pem("tls.authority", files.authority))


def server_credentials(files: TlsFiles, *, clients: bool = True) -> grpc.ServerCredentials:
    """For a server that requires a certificate of its clients (``clients`` False: takes none). Renewed files are picked
    up at the next handshake; files that cannot be used are logged, and the old ones stay in force. Raises ``TlsError``,
    ``InsecureKey``."""
    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], _Reload(files))  # the stubs forget None
    return grpc.dynamic_ssl_server_credentials(_configuration(files), fetch, require_client_authentication=clients)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    authority, key, certificate = _load(files)
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


class _Reload:
    """gRPC asks before each handshake, on threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = stamps_of(files)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:  # None: as before
        with self._lock:
            stamps = stamps_of(self._files)
            if stamps == self._seen:
                return None
            self._seen = stamps
            try:
                configuration = _configuration(self._files)
            except TlsError as error:
                log.error("the renewed certificate cannot be used, the old one stays in force: %s", error)
                return None
            log.info("certificate %s was renewed", self._files.certificate)
            return configuration


def stamps_of(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """What changes when files are renewed."""
    stamps = []
    for path in (files.authority, files.certificate, files.key):
        try:
            status = os.stat(path)
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_mode))
    return tuple(stamps)


def peer_identity(auth_context: Mapping[str, Iterable[bytes]], trust_domain: str) -> Identity:
    """Who is at the other end, from ``context.auth_context()``. Raises ``BadIdentity``."""
    found = tuple(auth_context.get(PEER_ID, ()))
    if len(found) != 1:
        raise BadIdentity(
            "the peer's certificate has no SPIFFE id, or several; use one issued by 'gridkeeper ca issue'"
        )
    try:
        uri = found[0].decode("ascii")
    except UnicodeDecodeError:
        raise BadIdentity(f"the identity in the peer's certificate is not ASCII: {found[0][:80]!r}") from None
    return parse_uri(uri, trust_domain)
