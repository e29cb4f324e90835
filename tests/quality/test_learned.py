"""Scores and detectors with weights of their own; those whose packages are extras run where these are installed."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import ModelError
from pipeline.quality.clip import ClipScore
from pipeline.quality.perceptual import LARGEST, STAGES, WIDTHS, Dists, Lpips, fits
from pipeline.quality.scorer import Scorer
from pipeline.quality.subjects import SubjectFinder
from pipeline.recipe import Scoring
from tests.quality.test_scores import DAMAGES, noisy

CPU = torch.device("cpu")


def _vgg(prefix: str) -> dict[str, torch.Tensor]:
    """Random weights, the same on every machine, under the names that the packages give them."""
    dice, tensors, channels = torch.Generator().manual_seed(0), {}, 3
    for stage, (layers, width) in enumerate(zip(STAGES, WIDTHS, strict=True), 1):
        for layer in layers:
            spread = (2 / (9 * channels)) ** 0.5
            tensors[f"{prefix}{stage}.{layer}.weight"] = torch.randn(width, channels, 3, 3, generator=dice) * spread
            tensors[f"{prefix}{stage}.{layer}.bias"] = torch.randn(width, generator=dice) * 0.05
            channels = width
    if prefix == "net.slice":
        for stage, width in enumerate(WIDTHS):
            tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=dice)
    else:
        for name in ("alpha", "beta"):
            tensors[name] = torch.rand(1, 3 + sum(WIDTHS), 1, 1, generator=dice)
    return tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_file(_vgg("net.slice"), folder / "lpips.safetensors")
    save_file(_vgg("stage"), folder / "dists.safetensors")
    return folder


# lpips 0.1.4 and DISTS_pytorch 0.1 with these very weights, on the same pairs.
PUBLISHED = {
    "noisy": {"lpips": 0.164104, "dists": 0.033544},
    "blocky": {"lpips": 0.099578, "dists": 0.036943},
    "tinted": {"lpips": 0.092182, "dists": 0.062892},
    "blurred": {"lpips": 0.329174, "dists": 0.081570},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_lpips_and_dists_are_those_of_their_authors_packages(name: str, photo: np.ndarray, weights: Path) -> None:
    small = np.ascontiguousarray(photo[:96, :128])
    scorer = Scorer(CPU, Scoring(lpips=str(weights / "lpips.safetensors"), dists=str(weights / "dists.safetensors")))
    ((scores,),) = scorer.against_truth([[DAMAGES[name](small)]], [small])
    for score, value in PUBLISHED[name].items():
        assert scores[score] == pytest.approx(value, rel=1e-3)


def test_learned_distances_are_left_out_of_images_that_are_too_large_or_small() -> None:
    assert fits(16, 16) and not fits(15, 400) and not fits(LARGEST // 1000 + 1, 1000)


@pytest.mark.parametrize("kind", [Lpips, Dists])
def test_other_weights_are_refused_with_what_is_missing(kind: type, tmp_path: Path, weights: Path) -> None:
    other = "dists" if kind is Lpips else "lpips"
    with pytest.raises(ModelError, match="does not hold the weights"):
        kind(str(weights / f"{other}.safetensors"), CPU)
    (tmp_path / "broken.safetensors").write_bytes(b"pickle?")
    with pytest.raises(ModelError, match="not safetensors"):
        kind(str(tmp_path / "broken.safetensors"), CPU)
    with pytest.raises(ModelError, match="cannot be read"):
        kind(str(tmp_path / "absent.safetensors"), CPU)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two small layers with random weights, as transformers saves it."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": len(words) - 1}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def test_clip_score_is_a_hundred_times_the_cosine_of_what_the_model_sees_and_reads(
    clip: Path, photo: np.ndarray
) -> None:
    captions = ["a bear", "a bear in the grass that goes on and on and on and on"]
    model = CLIPModel.from_pretrained(clip)
    tokenizer, processor = CLIPTokenizer.from_pretrained(clip), CLIPImageProcessorPil.from_pretrained(clip)
    expected = []
    for caption in captions:
        text = tokenizer([caption], truncation=True, max_length=16, return_tensors="pt")
        pixels = processor(images=[Image.fromarray(photo)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = model(pixel_values=pixels, **text)
        cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        expected.append(100 * max(0.0, float(cosine)))
    score = ClipScore(str(clip), CPU)
    assert [score(photo, caption) for caption in captions] == pytest.approx(expected, rel=1e-3)
    scores = Scorer(CPU, Scoring(clip=str(clip))).blind([photo, photo], [captions[0], None])
    assert scores[0]["clip_score"] == pytest.approx(expected[0], rel=1e-3)
    assert "clip_score" not in scores[1]


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scoring\.clip"):
        ClipScore(str(tmp_path), CPU)


def test_brisque_tells_noise_from_none(photo: np.ndarray) -> None:
    pytest.importorskip("brisque", reason="pip install '.[brisque]'")
    scorer = Scorer(CPU, Scoring(brisque=True))
    clean, worse, flat, small = scorer.blind(
        [photo, noisy(photo), np.full((64, 64, 3), 90, np.uint8), photo[:20, :20]], [None] * 4
    )
    assert clean["brisque"] < 40 < worse["brisque"]
    assert "brisque" not in flat and "brisque" not in small


def test_faces_are_found_where_they_are(archive: pa.Table) -> None:
    row = next(row for row in archive.to_pylist() if row["id"] == "coco-8690")
    girls = np.asarray(Image.open(io.BytesIO(row["truth"])).convert("RGB"))
    (face,) = SubjectFinder()(girls, None)
    assert face.kind == "face" and face.box is not None
    top, left, bottom, right = face.box
    assert 60 < top < 80 and 240 < left < 260 and 40 < bottom - top < 80 and 40 < right - left < 80
    large = np.asarray(Image.fromarray(girls).resize((1600, 1200)))
    expected = pytest.approx(tuple(4 * side for side in face.box), abs=60)
    assert any(again.box == expected for again in SubjectFinder()(large, None))


def test_several_may_look_for_faces_at_a_time(archive: pa.Table) -> None:
    pictures = [np.asarray(Image.open(io.BytesIO(row["truth"])).convert("RGB")) for row in archive.to_pylist()[:8]]
    finder = SubjectFinder()
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(finder, pictures, [None] * len(pictures)))
    assert found == [finder(picture, None) for picture in pictures]


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("A portrait of an old man", {"face"}),
        ("Handwritten letter, 1864", {"text"}),
        ("Two women read a newspaper", {"face", "text"}),
        ("Manchester seen from the hills", set()),
        (None, set()),
    ],
)
def test_captions_tell_of_faces_and_text(caption: str | None, kinds: set[str]) -> None:
    found = SubjectFinder()(np.full((40, 40, 3), 128, np.uint8), caption)
    assert {subject.kind for subject in found} == kinds
    assert all(subject.box is None for subject in found)


def test_text_is_found_where_it_is() -> None:
    pytest.importorskip("rapidocr", reason="pip install '.[text]'")
    picture = Image.new("RGB", (1000, 700), (210, 200, 180))
    ImageDraw.Draw(picture).text((100, 200), "Paris 1889 Exposition", (20, 20, 20), ImageFont.load_default(60))
    found = SubjectFinder(find_text=True)(np.asarray(picture), None)
    assert [subject.kind for subject in found] == ["text"]
    top, left, bottom, right = found[0].box or (0, 0, 0, 0)
    assert 180 < top < 230 and 80 < left < 120 and 230 < bottom < 300 and 500 < right < 800
