"""Addresses as they may stand in messages, logs and tables: without user names, passwords and signatures."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}://[^\s'\"<>]+")
_PAIR = re.compile(r"[^\s'\"/@:]+:[^\s'\"/@]+@(?=[A-Za-z0-9])")
"""A user's name with a password, as libraries repeat them without the rest of their URL."""
_SECRET = re.compile(
    r"secret|token|pass(word|phrase|wd)|authorization|cookie|(^|_|-|\.)(key|credential|sas)|connection_string|account_key",
    re.IGNORECASE,
)
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci")
"""Protocols whose addresses begin with a bucket, never with a host and its port."""
_HOST = re.compile(r"[^:]*:\d*|\[.*")
"""A host's name with its port, or an address of IPv6."""
LONGEST_MESSAGE = 4000
"""Characters of what a library says that are shown."""


def sounds_secret(name: str) -> bool:
    """Whether an option of this name holds what nobody may see."""
    return _SECRET.search(name) is not None


def redacted(uri: str) -> str:
    """A URI without user name, password or query, as it may stand in messages and tables."""
    scheme, separator, rest = uri.partition("://")
    first = re.split(r"[/?#]", rest, maxsplit=1)[0]
    with_port = scheme not in _BUCKETS and _HOST.fullmatch(first)
    if separator and ":" in first and "@" not in first and "@" in rest and not with_port:
        uri = f"{scheme}://{rest.rpartition('@')[2]}"  # a password with a slash in it, as keys of S3 may have
    try:
        parts = urlsplit(uri)
    except ValueError:  # no address has such brackets
        return f"{uri.partition('://')[0]}://…"
    if "://" not in uri or ("@" not in parts.netloc and not parts.query):
        return uri
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_secrets(text: str) -> str:
    """What a library said, with every URL in it redacted."""

    def shown(found: re.Match[str]) -> str:
        url = found.group()
        bare = url.rstrip(")],;:.")
        return redacted(bare) + url[len(bare) :]

    return _PAIR.sub("…@", _URL.sub(shown, text[:LONGEST_MESSAGE]))
