"""The built-in certificate authority: ECDSA P-256, one root, certificates with a SPIFFE identity.

For a site without a PKI of its own; certificates of any other authority work as well, as long as they carry the URIs of
``gridkeeper.identity.spiffe``.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gridkeeper.config import TlsFiles
from gridkeeper.identity.files import TlsError, read_pem, write_pem
from gridkeeper.identity.spiffe import (
    SCHEME,
    BadIdentity,
    Identity,
    Kind,
    checked_trust_domain,
    format_uri,
    replica_host,
)
from gridkeeper.identity.wallet import pem_of
from gridkeeper.ports.clock import Clock

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
CA_DAYS = 3650
LEAF_DAYS = 90
BACKDATE = datetime.timedelta(minutes=5)
"""Validity begins this long ago, so that a host whose clock is a little behind accepts a new certificate."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"^(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\Z")


class CaError(TlsError):
    """The authority cannot be made, loaded or used for this; says what to do."""


class CertificateAuthority:
    """A root certificate with its key. Make one with ``create``, ``load`` or ``open``."""

    def __init__(
        self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock
    ) -> None:
        self.directory = directory
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self.trust_domain = _trust_domain(certificate, directory / CA_CERTIFICATE)

    @property
    def authority(self) -> Path:
        """The root certificate's file: ``TlsFiles.authority`` of everybody."""
        return self.directory / CA_CERTIFICATE

    @classmethod
    def create(cls, directory: Path, trust_domain: str, clock: Clock) -> CertificateAuthority:
        """A new root in ``directory`` (made 0700). Raises ``CaError`` when there is one already, ``BadIdentity``."""
        checked_trust_domain(trust_domain)
        if (directory / CA_KEY).exists():
            raise CaError(f"{directory / CA_KEY} exists; use that authority, or move it away to make another one")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Gridkeeper CA {trust_domain}"[:64])])
        start = _now(clock)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE)
            .not_valid_after(start + datetime.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SCHEME + trust_domain)]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        write_pem(directory / CA_KEY, pem_of(key), secret=True)
        write_pem(directory / CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(directory, certificate, key, clock)

    @classmethod
    def load(cls, directory: Path, clock: Clock) -> CertificateAuthority:
        """The root in ``directory``. Raises ``InsecureKey``, ``TlsError``."""
        pem = read_pem("ca certificate", directory / CA_CERTIFICATE)
        key_pem = read_pem("ca key", directory / CA_KEY, secret=True)
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as error:
            raise CaError(f"{directory}: {CA_CERTIFICATE} or {CA_KEY} does not parse: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CaError(
                f"{directory / CA_KEY}: not the key of {CA_CERTIFICATE} beside it; restore both from a backup"
            )
        return cls(directory, certificate, key, clock)

    @classmethod
    def open(cls, directory: Path, trust_domain: str, clock: Clock) -> CertificateAuthority:
        """``load`` if there is one, else ``create``. Raises ``CaError`` when the one there is of another domain."""
        if not (directory / CA_KEY).exists():
            return cls.create(directory, trust_domain, clock)
        found = cls.load(directory, clock)
        if found.trust_domain != trust_domain:
            raise CaError(
                f"{directory}: the authority there is of trust domain {found.trust_domain!r}, not {trust_domain!r}; "
                "use another directory"
            )
        return found

    def issue(
        self, identity: Identity, directory: Path, hosts: Iterable[str] = (), days: int = LEAF_DAYS, stem: str = ""
    ) -> TlsFiles:
        """Write ``<stem>.crt`` and ``<stem>.key`` (0600) into ``directory``, replacing older ones. ``hosts``: DNS names
        and addresses under which a replica or store member is reached, besides localhost. ``stem``: default
        ``<kind>-<name>``. Raises ``CaError``, ``BadIdentity``."""
        hosts = tuple(hosts)
        if hosts and not _serves(identity):
            raise CaError(f"hosts: {hosts[0]!r} is given, but a {identity.kind} is not connected to; leave it out")
        if not 1 <= days <= CA_DAYS:
            raise CaError(f"days: {days} is not between 1 and {CA_DAYS}")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign(identity, key.public_key(), datetime.timedelta(days=days), hosts)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stem = stem or f"{identity.kind}-{identity.name}"
        if os.sep in stem:
            raise CaError(f"stem: {stem!r} has a {os.sep!r} in it; give a file name without one")
        write_pem(directory / f"{stem}.key", pem_of(key), secret=True)
        write_pem(directory / f"{stem}.crt", certificate)
        return TlsFiles(
            certificate=str(directory / f"{stem}.crt"),
            key=str(directory / f"{stem}.key"),
            authority=str(self.authority),
        )

    def sign(
        self,
        identity: Identity,
        key: ec.EllipticCurvePublicKey,
        life: datetime.timedelta,
        hosts: Iterable[str] = (),
    ) -> bytes:
        """A certificate in PEM for a key that somebody else may hold. Raises ``CaError``, ``BadIdentity``."""
        uri = format_uri(identity, self.trust_domain)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        if _serves(identity):
            hosts = tuple(hosts)
            for host in hosts:
                if host.lower().rstrip(".").endswith(replica_host("", self.trust_domain)):
                    raise CaError(f"hosts: {host[:80]!r} stands for the replicas of a region; leave it out")
            names += [_general_name(host) for host in dict.fromkeys((*LOCAL_HOSTS, *hosts))]
        if identity.kind is Kind.REPLICA:
            names.append(x509.DNSName(replica_host(identity.region, self.trust_domain)))
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if _serves(identity) or identity.kind is Kind.NODE:
            uses.append(
                ExtendedKeyUsageOID.SERVER_AUTH
            )  # a node answers its peers' probes, with no host name to pose as
        start = _now(self._clock)
        end = min(start + life, self._certificate.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _serves(identity: Identity) -> bool:
    return identity.kind in (Kind.REPLICA, Kind.STORE)


def _now(clock: Clock) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(clock.wall_ms() // 1000, datetime.UTC)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.match(host):
            raise CaError(f"hosts: {host[:80]!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(host)


def _trust_domain(certificate: x509.Certificate, path: Path) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CaError(f"{path}: the certificate names no trust domain; make one with 'gridkeeper ca init'") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(SCHEME):
        raise CaError(f"{path}: the certificate names no trust domain; make one with 'gridkeeper ca init'")
    try:
        return checked_trust_domain(uris[0][len(SCHEME) :])
    except BadIdentity as error:
        raise CaError(f"{path}: {error}") from error
