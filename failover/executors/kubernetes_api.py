"""Calls to a Kubernetes API server through ``kubernetes_asyncio``: time limits, throttling, pages and errors in words.

Answers are taken as JSON, not as the client's models: what a newer server adds must not make an answer unreadable.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes_asyncio import config as access
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.client.exceptions import OpenApiException

from gridkeeper.ports.clock import Clock

TIMEOUT_MS = 15_000
PAGE = 250
MAX_BODY = 16 << 20
"""Bytes of one answer: a page of pods is about 2 MiB."""
MAX_WAIT_MS = 60_000
"""A server may ask for any pause; who waits longer than this would not notice that it is well again."""
RESTARTS = 3
"""Of a listing whose continuation has expired (410) while it was read."""

Json = Mapping[str, Any]


class ApiAway(Exception):
    """No answer, or none now: nothing is known of what was asked. The message says why."""


class ApiRefusal(Exception):
    """An answer: no. ``status``: of HTTP. ``budget``: it is a PodDisruptionBudget that does not allow it now."""

    def __init__(self, status: int, message: str, budget: bool = False) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.budget = budget


async def client_of(kubeconfig: str) -> ApiClient:
    """By a kubeconfig file, or as a pod's service account if that is "". Raises ``ApiAway``."""
    settings = Configuration()
    try:
        if kubeconfig:
            await access.load_kube_config(config_file=kubeconfig, client_configuration=settings)
        else:
            access.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except (access.ConfigException, OSError) as error:
        where = kubeconfig or "this is not a pod with a service account"
        raise ApiAway(f"no access to Kubernetes: {error} ({where}); set kubernetes.kubeconfig") from error
    return ApiClient(settings)


class KubernetesApi:
    """``connect``: makes the client, once, when it is first needed. One answer that asks for a pause (429, 503 with
    Retry-After) holds up all calls until that has passed."""

    def __init__(self, connect: Callable[[], Awaitable[ApiClient]], clock: Clock) -> None:
        self._connect = connect
        self._clock = clock
        self._client: ApiClient | None = None
        self._pause_until_ms = 0

    async def client(self) -> ApiClient:
        """Raises ``ApiAway``."""
        if self._client is None:
            self._client = await self._connect()
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def ask(self, call: Callable[..., Awaitable[Any]], *arguments: object, **more: object) -> Json:
        """One request. Raises ``ApiAway`` and ``ApiRefusal``."""
        left = self._pause_until_ms - self._clock.mono_ms()
        if left > 0:
            raise ApiAway(f"it has asked for a pause, of which {left} ms are left")
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                answer = await call(*arguments, **more, _preload_content=False)
                body = await _read(answer)
        except (aiohttp.ClientError, OpenApiException, OSError, TimeoutError) as error:
            raise ApiAway(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        found = _object(body, answer.status)
        if 200 <= answer.status < 300:
            return found
        message = str(found.get("message") or found.get("reason") or answer.reason)[:500]
        budget = answer.status == 429 and _by_budget(found)
        if not budget and (answer.status in (429, 503) or answer.status >= 500):
            self._pause(answer.headers.get("Retry-After", ""))
            raise ApiAway(f"{answer.status}: {message}")
        raise ApiRefusal(answer.status, message, budget)

    def _pause(self, seconds: str) -> None:
        wait_ms = int(seconds) * 1000 if seconds.isdecimal() and len(seconds) < 9 else 1_000
        self._pause_until_ms = self._clock.mono_ms() + min(wait_ms, MAX_WAIT_MS)

    async def items(self, call: Callable[..., Awaitable[Any]], *arguments: object, **more: object) -> tuple[Json, ...]:
        """All of a listing, page by page; anew if its continuation expires. Raises as ``ask``."""
        for left in reversed(range(RESTARTS)):
            found: list[Json] = []
            onward = ""
            try:
                while True:
                    page = {"limit": PAGE, **({"_continue": onward} if onward else {})}
                    answer = await self.ask(call, *arguments, **more, **page)
                    found.extend(item for item in answer.get("items") or () if isinstance(item, dict))
                    onward = part(answer, "metadata").get("continue") or ""
                    if not onward:
                        return tuple(found)
            except ApiRefusal as refusal:
                if refusal.status != 410 or not left:
                    raise
        raise AssertionError("the last turn returns or raises")


def part(value: Json, *names: str) -> Json:
    """A group of fields within; empty if it is not there."""
    for name in names:
        found = value.get(name)
        value = found if isinstance(found, dict) else {}
    return value


def name_of(item: Json) -> str:
    return str(part(item, "metadata").get("name", ""))


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while data := await answer.content.read(1 << 16):
            size += len(data)
            if size > MAX_BODY:
                raise ApiAway(f"its answer is longer than {MAX_BODY} bytes")
            parts.append(data)
    finally:
        answer.release()
    return b"".join(parts)


def _object(body: bytes, status: int) -> dict[str, Any]:
    try:
        found = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        if status >= 300:  # a proxy's words
            return {"message": body[:200].decode(errors="replace")}
        raise ApiAway(f"its answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiAway(f"its answer is not a JSON object: {body[:80]!r}")
    return found


def _by_budget(found: Json) -> bool:
    causes = part(found, "details").get("causes") or ()
    return any(isinstance(cause, dict) and cause.get("reason") == "DisruptionBudget" for cause in causes)
