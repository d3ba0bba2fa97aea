"""Probes between agents over TLS: both ends show their node's certificate, the one that is probed says who it is, and
both hang up. Nothing is asked of it and nothing read from the caller, so there is nothing to attack but the handshake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from gridkeeper.config import TlsFiles
from gridkeeper.identity.peers import PeerTls
from gridkeeper.identity.spiffe import BadIdentity, Kind
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.probe import CannotProbe, Probed
from gridkeeper.v1.agent_pb2 import ProbeAnswer

log = logging.getLogger("gridkeeper.agent.probelink")

MAX_ANSWER = 1_024
MAX_CALLERS = 64
"""Callers at a time, handshakes included: each holds a file descriptor. More are hung up on before they cost more."""
MAX_FROM_ONE = 16
"""Of these from one address, so that one that only holds the line shuts nobody else out. An honest agent probes at
most 8 nodes at a time."""
HANDSHAKE_S = 3
ANSWER_S = 3
AGAIN_MS = 5_000
"""An address that cannot be listened at is tried again after this: probes are no reason for an agent to end."""
LOCAL = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.EPERM})
"""Errors that speak of this host, not of the one that was probed."""


def split_address(address: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port``. Raises ``ValueError``."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class TlsProber:
    """``Prober`` of an agent with the certificate in ``files``. Raises ``TlsError``, ``BadIdentity``."""

    def __init__(self, files: TlsFiles, region: RegionId, clock: Clock) -> None:
        self._tls = PeerTls(files)
        self._region = region
        self._clock = clock

    async def probe(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            host, port = split_address(address)
            async with asyncio.timeout(timeout_ms / 1000):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._tls.client(), server_hostname="", limit=MAX_ANSWER
                )
                try:
                    identity = self._tls.peer_of(writer.get_extra_info("ssl_object"))
                    data = await reader.read(MAX_ANSWER)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            return Probed(False, f"no answer within {timeout_ms} ms")
        except socket.gaierror as error:
            raise CannotProbe(f"{address} does not resolve: {error}") from error
        except BadIdentity as error:
            return Probed(False, f"somebody else answers: {error}", refused=True)
        except (ssl.SSLError, ConnectionError) as error:
            return Probed(False, f"{type(error).__name__}: {error}", refused=True)
        except OSError as error:
            if error.errno in LOCAL:
                raise CannotProbe(f"{address}: {error}") from error
            return Probed(False, str(error))
        except ValueError as error:
            raise CannotProbe(f"{address[:80]!r} is no address: {error}") from error
        if identity.kind is not Kind.NODE or (identity.region, identity.name) != (self._region, node):
            return Probed(False, f"{identity} answers there", refused=True)
        if not data:
            return Probed(False, "its agent hung up without a word", refused=True)
        try:
            answer = ProbeAnswer.FromString(data)
        except ValueError as error:
            return Probed(False, f"its agent answers nonsense: {error}", refused=True)
        return Probed(True, "", round((loop.time() - began) * 1e6), boot_id=answer.boot_id[:80])


class TlsProbeAnswerer:
    """Listens at ``listen`` (host:port) and tells callers with a node's certificate which node and boot this is.
    Raises ``TlsError``, ``BadIdentity``."""

    def __init__(
        self, listen: str, files: TlsFiles, answer: ProbeAnswer, clock: Clock, handshake_s: float = HANDSHAKE_S
    ) -> None:
        self._listen = listen
        self._tls = PeerTls(files)
        self._answer = answer.SerializeToString()
        self._clock = clock
        self._handshake_s = handshake_s
        self._callers: Counter[str] = Counter()
        self.bound: Callable[[int], None] = lambda port: None
        """Told the port once it is listened at."""

    async def run(self) -> None:
        """For ever."""
        host, port = split_address(self._listen)
        while True:
            try:
                server = await asyncio.start_server(self._call, host, port, limit=MAX_ANSWER, backlog=MAX_CALLERS)
            except OSError as error:
                log.error("Probes are not answered at %s: %s; trying again.", self._listen, error)
                await self._clock.sleep(AGAIN_MS)
                continue
            self.bound(server.sockets[0].getsockname()[1])
            async with server:
                await server.serve_forever()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        if self._callers.total() >= MAX_CALLERS or self._callers[address] >= MAX_FROM_ONE:
            writer.transport.abort()
            return
        self._callers[address] += 1
        try:
            self._tls.refresh()
            # Before anything else is waited for: the caller's first words would be read as if they were not of TLS.
            await writer.start_tls(self._tls.server(), ssl_handshake_timeout=self._handshake_s)
            caller = self._tls.peer_of(writer.get_extra_info("ssl_object"))
            if caller.kind is not Kind.NODE:
                return
            async with asyncio.timeout(ANSWER_S):
                writer.write(self._answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (BadIdentity, TimeoutError, OSError) as error:  # ssl.SSLError is an OSError
            log.info("A probe was not answered: %s", error)
        finally:
            self._callers[address] -= 1
            if not self._callers[address]:
                del self._callers[address]
            writer.transport.abort()
