"""A bearer token from a file, for each call anew: whoever renews it only writes the file."""

from __future__ import annotations

import grpc

from gridkeeper.identity.files import TlsError, read_file


class _FromFile(grpc.AuthMetadataPlugin):
    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            token = read_file("token_file", self._path, secret=True).decode("ascii").strip()
        except (TlsError, UnicodeDecodeError) as error:
            callback((), error)
        else:
            callback((("authorization", f"Bearer {token}"),), None)


def bearer_credentials(path: str) -> grpc.CallCredentials:
    """The file must be 0600. Raises ``TlsError`` at once if it cannot be read now."""
    read_file("token_file", path, secret=True)
    return grpc.metadata_call_credentials(_FromFile(path), name="gridkeeper-bearer")
