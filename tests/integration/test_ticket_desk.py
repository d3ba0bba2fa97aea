"""Tickets over real HTTP: what is sent, and which answers mean yes, no and later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controlplane.shell.tickets import HttpDesk
from gridkeeper.ports.tickets import TicketRefused, TicketUnavailable


class Server(HTTPServer):
    status, answer = 201, b'{"id": "T-7"}'

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/tickets"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_ticket_carries_its_key_and_the_token_and_comes_back_with_a_name(
    server: Server, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    assert await HttpDesk(str(token)).open_ticket(server.url, "r1", b"{}") == "T-7"
    (headers, body) = server.seen[0]
    assert (headers["idempotency-key"], headers["authorization"], body) == ("r1", "Bearer secret", b"{}")
    server.answer = b"thank you"
    assert await HttpDesk().open_ticket(server.url, "r2", b"{}") == ""
    assert "authorization" not in server.seen[1][0]


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, TicketRefused), (403, TicketRefused), (429, TicketUnavailable), (503, TicketUnavailable)],
)
async def test_which_answers_mean_no_and_which_later(server: Server, status: int, error: type[Exception]) -> None:
    server.status = status
    with pytest.raises(error, match=str(status)):
        await HttpDesk().open_ticket(server.url, "r1", b"{}")


async def test_nobody_there_or_no_token_is_later() -> None:
    with pytest.raises(TicketUnavailable):
        await HttpDesk().open_ticket("http://127.0.0.1:9/tickets", "r1", b"{}")
    with pytest.raises(TicketUnavailable, match="no-such-file"):
        await HttpDesk("/no-such-file").open_ticket("http://127.0.0.1:9/tickets", "r1", b"{}")
