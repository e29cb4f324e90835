"""Content credentials: a C2PA manifest in each restored file, signed with the operator's key."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pipeline.errors import RecipeError
from pipeline.extras import check_extra
from pipeline.imaging.xmp import ENHANCED, GENERATED, SOURCES, Provenance

TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "tiff": "image/tiff",
    "webp": "image/webp",
    "avif": "image/avif",
    "gif": "image/gif",
}
"""Formats that can hold a manifest."""


class Credentials(NamedTuple):
    """With what is signed. Travels to Ray's workers."""

    certificates: str
    """The signer's certificate and those above it, PEM."""
    key: str
    """The private key, PEM."""
    algorithm: str
    """`es256` and so on."""

    def __repr__(self) -> str:
        return f"Credentials({self.algorithm})"


def load_credentials(certificates: str, key: str, algorithm: str) -> Credentials:
    """Read certificates and key, and try them.

    Raises:
        RecipeError: a file cannot be read, the two are not accepted, or the package is missing.
    """
    check_extra("output.signing", "c2pa", "c2pa")
    texts = dict[str, str]()
    for name, path in (("certificates", certificates), ("key", key)):
        try:
            texts[name] = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"output.signing.{name}: {path} cannot be read: {error}") from error
    credentials = Credentials(**texts, algorithm=algorithm)
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    told = Provenance("0" * 64, None, ENHANCED, "conservator", [])
    try:
        signed(file.getvalue(), "png", file.getvalue(), "png", told, credentials)
    except Exception as error:
        said = str(error)[:300]
        raise RecipeError(f"output.signing: {certificates} and {key} cannot sign with {algorithm}: {said}") from error
    return credentials


def signed(
    data: bytes,
    format: str,
    original: bytes | None,
    original_format: str | None,
    told: Provenance,
    credentials: Credentials,
) -> bytes | None:
    """An image file with a manifest that names its original, if there is one; None if a format has no place for it.

    The signature is another one each time.

    Raises:
        Exception: the certificate or the key is not accepted.
    """
    import c2pa

    if format not in TYPES or (original is not None and original_format not in TYPES):
        return None
    manifest = {
        "claim_generator_info": [{"name": "conservator"}],
        "title": "generated" if original is None else f"restored from {told.source_uri or told.source_sha256}",
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [_action(told)]}}],
    }
    context = c2pa.Context(c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}}))
    builder = c2pa.Builder(json.dumps(manifest), context)
    if original is None or original_format is None:
        source = c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
        builder.set_intent(c2pa.C2paBuilderIntent.CREATE, source)
    else:
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        ingredient = {"title": told.source_uri or "original", "relationship": "parentOf"}
        builder.add_ingredient(json.dumps(ingredient), TYPES[original_format], io.BytesIO(original))
    info = c2pa.C2paSignerInfo(credentials.algorithm, credentials.certificates.encode(), credentials.key.encode(), None)
    out = io.BytesIO()
    builder.sign(c2pa.Signer.from_info(info), TYPES[format], io.BytesIO(data), out)
    return out.getvalue()


def _action(told: Provenance) -> dict[str, Any]:
    return {
        "action": "c2pa.created" if told.digital_source == GENERATED else "c2pa.edited",
        "softwareAgent": told.software,
        "digitalSourceType": SOURCES + told.digital_source,
        "parameters": {"org.conservator.actions": list(told.actions)},
    }
