"""How stores are reached: options of the recipe, with secrets taken from the environment.

The same few names serve every library; each has its own for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import RecipeError
from pipeline.redaction import sounds_secret

Options = Mapping[str, str | int | bool]

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_WITH_PASSWORD = re.compile(r"://[^/@\s]*:(?!\$\{\w+\}@)(?!\d*/)[^@\s]*@")
"""A URL with a password in it that is no reference; after a colon may also stand a port."""
_ICEBERG = {
    "key": "s3.access-key-id",
    "secret": "s3.secret-access-key",
    "token": "s3.session-token",
    "endpoint_url": "s3.endpoint",
    "region": "s3.region",
    "profile": "client.profile-name",
    "anon": "s3.anonymous",
}
_DELTA = {
    "key": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
    "profile": "AWS_PROFILE",
    "anon": "AWS_SKIP_SIGNATURE",
}
_RETRIES = {"mode": "standard", "total_max_attempts": 10}
"""Of S3's client: about a minute until it gives up a store that is away."""


def check_options(options: Options, key: str) -> None:
    """Refuse secrets that are written out.

    Raises:
        RecipeError: the value of an option that sounds secret is no reference.
    """
    for name, value in options.items():
        is_secret = sounds_secret(name) and not _REFERENCE.search(str(value))
        if value not in ("", None) and (is_secret or _WITH_PASSWORD.search(str(value))):
            raise RecipeError(
                f"{key}.{name} is written out, and the recipe is kept beside the output; put it in an environment "
                f"variable, and its name here: {key}.{name}=${{NAME}}"
            )


def resolved(options: Options, key: str = "storage") -> dict[str, Any]:
    """The options with the values of the environment variables that they name.

    Raises:
        RecipeError: one of them is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RecipeError(f"the environment variable {name}, which {key} names, is not set")
        return os.environ[name]

    return {
        name: _REFERENCE.sub(value, option) if isinstance(option, str) else option for name, option in options.items()
    }


def for_fsspec(protocol: str, options: Options) -> dict[str, Any]:
    """As the fsspec driver of a protocol wants them."""
    given = resolved(options)
    if protocol in ("s3", "s3a"):
        region = given.pop("region", None)
        given.setdefault("config_kwargs", {"retries": _RETRIES})
        if region:
            given["client_kwargs"] = {"region_name": region}
    return given


def for_iceberg(options: Options) -> dict[str, str]:
    """As pyiceberg wants them; what the recipe does not say comes from the environment."""
    names = {"AWS_ENDPOINT_URL": "s3.endpoint", "AWS_REGION": "s3.region", "AWS_DEFAULT_REGION": "s3.region"}
    found = {key: os.environ[name] for name, key in names.items() if name in os.environ}
    return found | {_ICEBERG.get(name, name): str(value) for name, value in resolved(options).items()}


def open_catalog(catalog: Options, storage: Options, key: str) -> Any:
    """pyiceberg's catalog; its property `name` is the catalog's name, which SQL catalogs want to know.

    Raises:
        RecipeError: an environment variable that it names is not set.
    """
    from pyiceberg.catalog import load_catalog

    properties = {name: str(value) for name, value in resolved(catalog, key).items()}
    return load_catalog(properties.pop("name", "default"), **(for_iceberg(storage) | properties))


def for_delta(options: Options) -> dict[str, str]:
    """As deltalake wants them; what the recipe does not say comes from the environment."""
    found = {_DELTA.get(name, name): str(value) for name, value in resolved(options).items()}
    endpoint = found.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))
    if endpoint.startswith("http://"):
        found["AWS_ALLOW_HTTP"] = "true"
    return found
