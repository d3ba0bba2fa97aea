"""Client credentials from files that somebody renews."""

from __future__ import annotations

import logging

import grpc

from gridkeeper.config import TlsFiles
from gridkeeper.identity.tls import TlsError, channel_credentials, stamps_of

log = logging.getLogger("gridkeeper.tls")


class RenewedCredentials:
    """Raises ``TlsError`` at first; later, files that cannot be used are logged, and the old ones stay in force."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = stamps_of(files)
        self._bad: tuple[tuple[int, int, int], ...] = ()
        self._credentials = channel_credentials(files)
        self._version = 1

    def version(self) -> int:
        """Grows when other files come into force."""
        stamps = stamps_of(self._files)
        if stamps in (self._stamps, self._bad):
            return self._version
        try:
            self._credentials = channel_credentials(self._files)
        except TlsError as error:  # perhaps half of it is written: its next change is looked at again
            log.error("the renewed certificate cannot be used, the old one stays in force: %s", error)
            self._bad = stamps
            return self._version
        self._stamps, self._bad = stamps, ()
        self._version += 1
        return self._version

    def __call__(self) -> grpc.ChannelCredentials:
        self.version()
        return self._credentials
