"""Mutual TLS between agents, on plain sockets: contexts from ``TlsFiles``, and who the peer is by its SPIFFE id.

Hostnames prove nothing here: agents are known by the URI in their certificates alone.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from cryptography import x509

from gridkeeper.config import TlsFiles
from gridkeeper.identity.files import TlsError, read_pem
from gridkeeper.identity.spiffe import SCHEME, BadIdentity, Identity, parse_uri
from gridkeeper.identity.tls import stamps_of

log = logging.getLogger("gridkeeper.tls")


class PeerTls:
    """Contexts for both ends. Renewed files are picked up; files that cannot be used are logged, and the old ones stay
    in force. Raises ``TlsError``, ``BadIdentity``."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = stamps_of(files)
        self.trust_domain = _trust_domain(files)
        self._client = _context(files, ssl.PROTOCOL_TLS_CLIENT)
        self._server = _context(files, ssl.PROTOCOL_TLS_SERVER)

    def refresh(self) -> None:
        """Load renewed files into the contexts, for handshakes from now on."""
        stamps = stamps_of(self._files)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            for context in (self._client, self._server):
                _load(context, self._files)
        except TlsError as error:
            log.error("the renewed certificate cannot be used between agents, the old one stays in force: %s", error)

    def client(self) -> ssl.SSLContext:
        self.refresh()
        return self._client

    def server(self) -> ssl.SSLContext:
        return self._server

    def peer_of(self, connection: ssl.SSLObject | None) -> Identity:
        """Who is at the other end of an established connection. Raises ``BadIdentity``."""
        certificate = connection.getpeercert() if connection else None
        names = certificate.get("subjectAltName", ()) if certificate else ()
        found = [name[1] for name in names if name[0] == "URI"]
        if len(found) != 1 or not isinstance(found[0], str):
            raise BadIdentity("the peer's certificate has no SPIFFE id, or several")
        return parse_uri(found[0], self.trust_domain)


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    read_pem("tls.key", files.key, secret=True)  # refuses one that others may read
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"tls: {files.certificate}, {files.key} and {files.authority} do not load: {error}") from error


def _trust_domain(files: TlsFiles) -> str:
    """Of our own certificate: peers must be of the same."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise TlsError(f"tls.certificate: {files.certificate} has no names that can be read: {error}") from error
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(SCHEME):
            return uri[len(SCHEME) :].partition("/")[0]
    raise BadIdentity(f"tls.certificate: {files.certificate} has no SPIFFE id; issue it with 'gridkeeper ca issue'")
