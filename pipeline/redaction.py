"""Addresses as they may stand in messages, logs and tables: without user names, passwords and signatures."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}://[^\s'\"<>]+")
_PAIR = re.compile(r"[^\s'\"/@:]+:[^\s'\"/@]+@(?=[A-Za-z0-9])")
"""A user's name with a password, as libraries repeat them without the rest of their URL."""
LONGEST_MESSAGE = 4000
"""Characters of what a library says that are shown."""


def redacted(uri: str) -> str:
    """A URI without user name, password or query, as it may stand in messages and tables."""
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
