"""Certificates for keys that others hold: what a CSR is checked for, and what is signed.

Of a CSR only its public key counts. Who it is for is decided by whoever calls, never by the CSR.
"""

from __future__ import annotations

import datetime
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gridkeeper.identity.spiffe import Identity

MAX_CSR = 8 * 1024


class BadCsr(ValueError):
    """A CSR that is not signed for; says what was expected."""


def public_key_of(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 or P-384 key of a DER CSR that is signed with it. Raises ``BadCsr``."""
    if len(csr) > MAX_CSR:
        raise BadCsr(f"csr: {len(csr)} bytes; at most {MAX_CSR}")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise BadCsr(f"csr: it is no PKCS #10 request in DER: {str(error)[:120]}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise BadCsr("csr: its key is not on P-256 or P-384; make a new one")
    if not valid:
        raise BadCsr("csr: it is not signed with its own key")
    return key


def digest_of(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key, in hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request_for(key: ec.EllipticCurvePrivateKey, identity: Identity) -> bytes:
    """A CSR in DER."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def until_ms_of(certificate: bytes) -> int:
    """The end of a PEM certificate, ms since the Unix epoch. Raises ``ValueError``."""
    return ms_of(x509.load_pem_x509_certificate(certificate).not_valid_after_utc)


def ms_of(moment: datetime.datetime) -> int:
    return int(moment.timestamp() * 1000)
