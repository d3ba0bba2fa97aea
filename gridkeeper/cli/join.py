"""``gridkeeper join``: a host makes its key, and gets a certificate for a token."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import grpc

from gridkeeper.cli.text import moment
from gridkeeper.client.errors import ClientError, InvalidRequest, from_rpc
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.files import TlsError, read_file, read_pem
from gridkeeper.identity.issuing import request_for
from gridkeeper.identity.spiffe import BadIdentity
from gridkeeper.identity.tls import entry_credentials
from gridkeeper.identity.wallet import Wallet
from gridkeeper.v1 import identity_pb2

TIMEOUT_S = 20.0
DIRECTORY = Path("/var/lib/gridkeeper/tls")


@click.command()
@click.option("--node", required=True, help="This host's name in the grid.")
@click.option("--server", required=True, metavar="HOST:PORT", help="A replica's entry_listen.")
@click.option("--authority", required=True, metavar="FILE", help="ca.crt of the grid: no secret, but it must be right.")
@click.option("--token-file", required=True, metavar="FILE", help="Holds the token, 0600; - reads it from stdin.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=DIRECTORY, show_default=True, help="Where to."
)
def join(node: str, server: str, authority: str, token_file: str, out: Path) -> int:
    """Get this host its first certificate. The key is made here and never leaves.

    If it dies or the answer is lost, run it again with the same token: it goes on with the same key.
    """
    try:
        token = _token(token_file)
        identity = spiffe.node("any", node)
        wallet = Wallet(out)
        if wallet.holds:
            raise InvalidRequest(f"{out} holds a certificate already; the agent renews it. To join anew, move it away")
        key = wallet.pending_key()
        trusted = read_pem("authority", authority)
        request = identity_pb2.JoinRequest(token=token, node=node, csr=request_for(key, identity))
        credentials = entry_credentials(TlsFiles("", "", authority))
        answer = asyncio.run(_ask(server, credentials, request))
        wallet.put(key, answer.certificate, trusted)
    except (TlsError, BadIdentity) as error:
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise ClientError(f"{error.filename}: {error.strerror}") from error
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    files = wallet.files
    print(f"node {node} of region {answer.region}, certificate until {moment(answer.until_ms)}; in the agent's tls:")
    print(f"  certificate: {files.certificate}\n  key: {files.key}\n  authority: {files.authority}")
    return 0


async def _ask(
    server: str, credentials: grpc.ChannelCredentials, request: identity_pb2.JoinRequest
) -> identity_pb2.CertificateResponse:
    async with grpc.aio.secure_channel(server, credentials) as channel:
        method = channel.unary_unary(
            "/gridkeeper.v1.Identity/Join",
            request_serializer=identity_pb2.JoinRequest.SerializeToString,
            response_deserializer=identity_pb2.CertificateResponse.FromString,
        )
        answer: identity_pb2.CertificateResponse = await method(request, timeout=TIMEOUT_S)
        return answer


def _token(path: str) -> str:
    if path == "-":
        return sys.stdin.readline(1_024).strip()
    return read_file("token-file", path, secret=True).decode("ascii", "replace").strip()
