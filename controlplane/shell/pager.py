"""``Pager`` over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from gridkeeper.ports.notify import PagerUnavailable

ANSWER_S = 10.0
MAX_ANSWER = 4_096


class HttpPager:
    """``token_file``: its content goes along as a bearer token; "": none. Read anew each time, so that it can be
    changed; it is in no store and in no log."""

    def __init__(self, token_file: str = "") -> None:
        self._token_file = token_file

    async def post(self, url: str, key: str, body: bytes) -> None:
        await asyncio.to_thread(self._post, url, key, body)

    def _post(self, url: str, key: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        try:
            if self._token_file:
                headers["Authorization"] = f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                answer.read(MAX_ANSWER)
        except urllib.error.HTTPError as error:
            raise PagerUnavailable(f"{url} answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise PagerUnavailable(f"{url}: {error}") from error
