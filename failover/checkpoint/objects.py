"""``Blobs`` in an object store: S3 and what speaks like it (Alibaba OSS, MinIO, R2), Google Cloud Storage, Azure.

The objects are small (a chunk at most), so each is sent by one request that the store takes whole or not at all; the
parts of a large file travel in parallel as chunks, and those that arrived before an interruption are not sent again.
Credentials come from the environment, instance or workload identity, as each cloud's own tools take them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from failover.checkpoint.blobs import Blob, BlobMissing, Staged
from gridkeeper.ports.jobs import CheckpointError
from gridkeeper.storeurl import checked_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

TIMEOUT_S = 60
"""Of one request: a chunk of 4 MiB at 0.6 Mbit/s."""
RETRY_S = 60
"""How long a request is repeated (5xx such as SlowDown, lost connections; exponential pauses with jitter)."""
LISTED_AT_ONCE = 1000


class ObjectBlobs:
    """Implements ``Blobs``. ``url``: ``s3://bucket/prefix?endpoint=https://…&region=…``, ``gs://bucket/prefix``,
    ``az://account/container/prefix``. Raises ``CheckpointError`` for one that cannot be understood."""

    def __init__(self, url: str) -> None:
        self._url, self._store = _open(url)

    def __str__(self) -> str:
        return self._url

    def _failed(self, name: str, what: str, error: Exception) -> CheckpointError:
        kind = BlobMissing if isinstance(error, FileNotFoundError) else CheckpointError
        first = str(error).strip().split("\n", 1)[0][:500]
        return kind(f"{self._url}/{name}: cannot be {what}: {type(error).__name__}: {first}")

    def prepare(self) -> None:
        """Buckets are made by their owners."""

    def read(self, name: str, limit: int) -> bytes:
        try:
            found = obstore.get(self._store, name)
            if found.meta["size"] > limit:
                return bytes(obstore.get_range(self._store, name, start=0, end=limit + 1))
            return bytes(found.bytes())
        except (BaseError, OSError) as error:
            raise self._failed(name, "read", error) from error

    def size(self, name: str) -> int:
        try:
            return obstore.head(self._store, name)["size"]
        except FileNotFoundError:
            return -1
        except (BaseError, OSError) as error:
            raise self._failed(name, "looked at", error) from error

    def stage(self, name: str, data: bytes) -> Staged:
        """It is sent, and there, at once."""
        try:
            obstore.put(self._store, name, data, use_multipart=False)
        except (BaseError, OSError) as error:
            raise self._failed(name, "stored", error) from error
        return Staged(name)

    def publish(self, staged: Sequence[Staged]) -> None:
        """They were when they were sent."""

    def discard(self, staged: Sequence[Staged]) -> None:
        """They are inert until a manifest names them."""

    def settle(self, names: Iterable[str]) -> None:
        """An object that was acknowledged is durable."""

    def move(self, name: str, to: str) -> None:
        try:
            obstore.copy(self._store, name, to)
            obstore.delete(self._store, name)
        except (BaseError, OSError) as error:
            raise self._failed(name, f"moved to {to}", error) from error

    def remove(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._failed(name, "removed", error) from error

    def tidy(self) -> None:
        """Nothing is staged."""

    def walk(self, prefix: str) -> Iterator[Blob]:
        try:
            for page in obstore.list(self._store, prefix, chunk_size=LISTED_AT_ONCE):
                for item in page:
                    yield Blob(item["path"], item["size"])
        except (BaseError, OSError) as error:
            raise self._failed(prefix, "listed", error) from error


def _open(url: str) -> tuple[str, ObjectStore]:
    try:
        plain, options = checked_url(url)
        timeout, again = int(options.get("timeout_s", TIMEOUT_S)), int(options.get("retry_s", RETRY_S))
        client: ClientConfig = {
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=min(10, timeout)),
            "allow_http": options.get("allow_http") == "true",
        }
        retry: RetryConfig = {"retry_timeout": timedelta(seconds=again)}
        if not plain.startswith("s3://"):
            return plain, from_url(plain, client_options=client, retry_config=retry)
        config: S3Config = {"virtual_hosted_style_request": options.get("virtual_hosted_style_request") == "true"}
        if "endpoint" in options:
            config["endpoint"] = options["endpoint"]
        if "region" in options:
            config["region"] = options["region"]
        return plain, from_url(plain, config=config, client_options=client, retry_config=retry)
    except (ValueError, BaseError) as error:
        raise CheckpointError(f"checkpoint store: {str(error).strip()}") from error
