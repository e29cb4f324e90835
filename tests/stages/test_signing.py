from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from pipeline.imaging.decode import decode_image
from pipeline.imaging.signing import TYPES, Credentials, load_credentials
from pipeline.recipe import load_recipe
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from tests.conftest import encoded
from tests.stages.test_stages import decode

c2pa = pytest.importorskip("c2pa")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate with the one above it, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, public: ec.EllipticCurvePublicKey, is_root: bool) -> bytes:
        names = [
            x509.Name(
                [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Museum"), x509.NameAttribute(NameOID.COMMON_NAME, n)]
            )
            for n in (name, "root")
        ]
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = (
            x509.CertificateBuilder(*names, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9))
            .add_extension(x509.BasicConstraints(is_root, None), True)
            .add_extension(
                x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage), True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False)
        )
        if not is_root:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    folder = tmp_path_factory.mktemp("keys")
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate("archive", key.public_key(), False) + certificate("root", root.public_key(), True))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*pem))
    return chain, secret


def manifest(data: bytes, format: str) -> dict[str, object]:
    """The active one, which must be valid but for the root that nobody knows."""
    found = json.loads(c2pa.Reader(TYPES[format], io.BytesIO(data)).json())
    assert found["validation_state"] in ("Valid", "Trusted")
    active: dict[str, object] = found["manifests"][found["active_manifest"]]
    return active


@pytest.mark.parametrize("format", ["png", "tiff", "webp", "jpeg", "avif", "jpeg2000"])
def test_restored_files_are_signed_and_name_their_original(
    files: tuple[Path, Path], photo: np.ndarray, format: str
) -> None:
    recipe = load_recipe(overrides=[f"output.format={format}"])
    credentials = load_credentials(str(files[0]), str(files[1]), "es256")
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    table = pa.table({"id": ["a", "b"], "image": [encoded(dirty, "PNG"), encoded(photo, "PNG")]})
    restored = RestoreStage(recipe, "cpu")(decode(table, recipe))
    signed, kept = EncodeStage(recipe, "run", credentials=credentials)(restored).to_pylist()
    plain = EncodeStage(recipe, "run")(restored).to_pylist()[0]
    assert np.array_equal(decode_image(signed["image"]).samples, decode_image(plain["image"]).samples)
    assert kept["status"] == "kept" and kept["image_sha256"] == kept["source_sha256"]
    if format == "jpeg2000":
        assert any("not signed" in note for note in signed["notes"])
        return
    found = manifest(signed["image"], format)
    assert "algorithmicallyEnhanced" in json.dumps(found["assertions"]) and "denoise" in json.dumps(found["assertions"])
    assert [part["relationship"] for part in found["ingredients"]] == ["parentOf"]  # type: ignore[attr-defined]


def test_an_original_that_a_manifest_cannot_name_is_not_signed(files: tuple[Path, Path], photo: np.ndarray) -> None:
    recipe = load_recipe()
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    table = decode(pa.table({"id": ["a"], "image": [encoded(dirty, "BMP")]}), recipe)
    stage = EncodeStage(recipe, "run", credentials=load_credentials(str(files[0]), str(files[1]), "es256"))
    (row,) = stage(RestoreStage(recipe, "cpu")(table)).to_pylist()
    assert any("not signed" in note and "BMP" in note for note in row["notes"])


def test_what_cannot_sign_is_said_before_anything_starts(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_credentials(str(tmp_path / "none.pem"), str(files[1]), "es256")
    with pytest.raises(RecipeError, match="cannot sign with"):
        load_credentials(str(files[0]), str(files[0]), "es256")


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Credentials("chain", "secret", "es256"))
