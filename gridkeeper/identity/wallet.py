"""Where a host keeps its key and certificate, so that both change together or not at all.

``<directory>/current`` is a link to a folder with ``tls.key`` (0600), ``tls.crt`` and ``ca.crt``. A new pair goes into
a new folder, and then the link is turned: whoever dies in between leaves the old pair in force, and a folder that the
next turn removes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gridkeeper.config import TlsFiles
from gridkeeper.identity.files import TlsError, read_pem, write_pem

CURRENT = "current"
KEY, CERTIFICATE, AUTHORITY = "tls.key", "tls.crt", "ca.crt"
PENDING = "joining.key"


class Wallet:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def of(cls, files: TlsFiles) -> Wallet | None:
        """The wallet that ``files`` lie in; None: they are kept by somebody else, who renews them."""
        folder = Path(files.certificate).parent
        inside = all(Path(path).parent == folder for path in (files.key, files.authority))
        return cls(folder.parent) if inside and folder.name == CURRENT and folder.is_symlink() else None

    @property
    def files(self) -> TlsFiles:
        """The paths to configure: they stay the same whatever is renewed."""
        folder = self._directory / CURRENT
        return TlsFiles(str(folder / CERTIFICATE), str(folder / KEY), str(folder / AUTHORITY))

    @property
    def holds(self) -> bool:
        return (self._directory / CURRENT).is_symlink()

    def pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key to ask for a first certificate with: made durable before it is used, so that a host which dies while
        it joins asks again with the same one. Raises ``TlsError``, ``OSError``."""
        path = self._directory / PENDING
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_pem(path, pem_of(ec.generate_private_key(ec.SECP256R1())), secret=True)
        key = serialization.load_pem_private_key(read_pem("tls.key", path, secret=True), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TlsError(f"{path}: it is no key of ours; remove it and join again")
        return key

    def put(self, key: ec.EllipticCurvePrivateKey, certificate: bytes, authority: bytes) -> None:
        """Turn to a new pair. Raises ``TlsError`` when it is none, ``OSError``."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
        except ValueError as error:
            raise TlsError(f"the certificate that was issued does not parse: {error}") from error
        if parsed.public_key() != key.public_key():
            raise TlsError("the certificate that was issued is not for the key that was sent; look at the authority")
        name = f"{parsed.serial_number:x}"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = self._directory / CURRENT
        folder = self._directory / name
        if link.is_symlink() and os.readlink(link) == name:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        write_pem(folder / KEY, pem_of(key), secret=True)
        write_pem(folder / CERTIFICATE, certificate)
        write_pem(folder / AUTHORITY, authority)
        scratch = self._directory / f".{CURRENT}.{os.getpid()}"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(name)
        os.replace(scratch, link)
        _durable(self._directory)
        for old in self._directory.iterdir():
            if old.is_dir() and not old.is_symlink() and old.name != name and (old / KEY).exists():
                shutil.rmtree(old, ignore_errors=True)
        (self._directory / PENDING).unlink(missing_ok=True)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _durable(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
