"""URLs of checkpoint stores in object storage. Pure.

``s3://bucket/prefix?endpoint=https://…&region=…``, ``gs://bucket/prefix``, ``az://account/container/prefix``.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit, urlunsplit

SCHEMES = ("s3", "gs", "az")
OPTIONS = ("endpoint", "region", "virtual_hosted_style_request", "allow_http", "timeout_s", "retry_s")
"""What may follow the "?" of a URL. The first three: S3 only."""


def checked_url(url: str) -> tuple[str, dict[str, str]]:
    """The URL without its options, and these. Raises ``ValueError`` naming what is wrong."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{url!r}: scheme {parts.scheme!r} is none of {', '.join(SCHEMES)}, and no absolute path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL of a checkpoint store holds no credentials; set the cloud's environment variables")
    if not parts.hostname:
        raise ValueError(f"{url!r} names no bucket")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key, value in options.items():
        if key not in OPTIONS:
            raise ValueError(f"{url!r}: option {key!r} is none of {', '.join(OPTIONS)}")
        if key in OPTIONS[:3] and parts.scheme != "s3":
            raise ValueError(f"{url!r}: option {key!r} is for s3:// only")
        if key in ("virtual_hosted_style_request", "allow_http") and value not in ("true", "false"):
            raise ValueError(f"{url!r}: {key} is {value!r}, neither true nor false")
        if key in ("timeout_s", "retry_s") and not (value.isascii() and value.isdigit() and 1 <= int(value) <= 3600):
            raise ValueError(f"{url!r}: {key} is {value!r}, not between 1 and 3600")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "")), options
