"""URLs of checkpoint stores: what is accepted, and what a refusal says."""

from __future__ import annotations

import pytest

from failover.checkpoint.store import open_store
from gridkeeper.ports.jobs import CheckpointError
from gridkeeper.storeurl import checked_url

OSS = "https://oss-cn-hangzhou.aliyuncs.com"


@pytest.mark.parametrize(
    ("url", "plain", "options"),
    [
        ("s3://bucket", "s3://bucket", {}),
        ("s3://bucket/a/b/?region=eu-central-1", "s3://bucket/a/b", {"region": "eu-central-1"}),
        (
            f"s3://bucket/p?endpoint={OSS}&virtual_hosted_style_request=true",
            "s3://bucket/p",
            {"endpoint": OSS, "virtual_hosted_style_request": "true"},
        ),
        ("gs://bucket/p?timeout_s=5", "gs://bucket/p", {"timeout_s": "5"}),
        ("az://account/container/p", "az://account/container/p", {}),
    ],
)
def test_urls_and_options_are_read(url: str, plain: str, options: dict[str, str]) -> None:
    assert checked_url(url) == (plain, options)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/x", "scheme 'ftp'"),
        ("https://host/x", "scheme 'https'"),
        ("s3:///x", "names no bucket"),
        ("s3://key:secret@bucket/x", "no credentials"),
        ("s3://bucket?secret_access_key=x", "option 'secret_access_key'"),
        ("s3://bucket?allow_http=yes", "neither true nor false"),
        ("gs://bucket?region=x", "s3:// only"),
        ("s3://bucket?timeout_s=0", "between 1 and 3600"),
        ("s3://bucket?retry_s=٣", "between 1 and 3600"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_is_repeated(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        checked_url(url)
    assert "key:secret" not in str(refused.value)
    with pytest.raises(CheckpointError, match=why):
        open_store(url)
