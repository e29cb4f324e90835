"""Pipelines of diffusers, small ones with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.errors import ModelError, PermanentRowError
from pipeline.restoration.diffusion import _smaller
from pipeline.restoration.loading import check_generator, check_models, load_restorer, picture_maker
from pipeline.restoration.others import other_model
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from tests.conftest import noise

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")


def parts(folder: Path, channels: int, classes: int | None = None) -> dict[str, Any]:
    """What a Stable Diffusion pipeline is made of; `channels` go into its U-Net."""
    torch.manual_seed(0)
    (folder / "vocabulary").mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocabulary/vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "vocabulary/merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "vocabulary"), model_max_length=16)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **sizes))
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        num_class_embeds=classes,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8, 8, 8, 8] if classes is None else [8, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * (4 if classes is None else 3),
        up_block_types=["UpDecoderBlock2D"] * (4 if classes is None else 3),
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100)
    return {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diffusion")
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts(root / "a", 4), **none).save_pretrained(root / "plain")
    diffusers.StableDiffusionInpaintPipeline(**parts(root / "b", 9), **none).save_pretrained(root / "inpaint")
    low = diffusers.DDPMScheduler(num_train_timesteps=100)
    larger = parts(root / "c", 7, classes=100) | {"low_res_scheduler": low}
    diffusers.StableDiffusionUpscalePipeline(**larger, max_noise_level=50).save_pretrained(root / "enlarge")
    return root


def test_only_what_a_mask_covers_is_filled(folder: Path) -> None:
    chain = load_restorer(f"diffusers-inpaint:{folder / 'inpaint'}", "cpu")
    picture, mask = noise(70, 90), np.zeros((70, 90), bool)
    mask[20:50, 30:70] = True
    one, same, other = (
        chain.restore_batch([Request(picture, caption=caption, mask=mask)])[0]
        for caption in ("a red dog", "a red dog", "an old town")
    )
    assert np.array_equal(one.pixels[~mask], picture[~mask]) and not np.array_equal(one.pixels[mask], picture[mask])
    assert np.array_equal(one.array, same.array) and one.seed == same.seed is not None
    assert not np.array_equal(one.array, other.array) and one.seed != other.seed
    whole = chain.restore_batch([Request(picture, mask=np.zeros_like(mask))])[0]
    assert np.array_equal(whole.pixels, picture) and whole.seed is None  # nothing to fill, and it is not asked


def test_the_thinnest_scratch_stays_in_a_smaller_mask() -> None:
    mask = np.zeros((900, 1300), bool)
    mask[:, 700] = mask[450] = True
    small = np.asarray(_smaller(mask, (64, 48)))
    assert small.shape == (48, 64) and small.any(0).all() and small.any(1).all() and small.mean() < 0.1


@pytest.mark.slow
def test_pictures_are_redrawn_at_their_size(folder: Path) -> None:
    chain = load_restorer(f"diffusers-redraw:{folder / 'plain'}", "cpu")
    for size in ((70, 90), (200, 40), (7, 9)):
        picture = noise(*size)
        result = chain.restore_batch([Request(picture, caption="a red dog")])[0]
        assert result.array.shape == picture.shape and np.isfinite(result.array).all() and result.enlarged is None


@pytest.mark.slow
def test_pictures_are_enlarged_four_times(folder: Path) -> None:
    chain = load_restorer(["compact", f"diffusers-enlarge:{folder / 'enlarge'}"], "cpu")
    result = chain.restore_batch([Request(noise(10, 12), caption="a red dog")])[0]
    assert result.enlarged is not None and result.enlarged.shape == (40, 48, 3)
    assert ("enlarge", 4.0) in result.others


class Echo:
    """Stands in for a pipeline: gives back what it was shown, enlarged, and remembers its size."""

    vae_scale_factor = 8

    def __init__(self, scale: int, blocks: bool = False) -> None:
        self.scale, self.blocks, self.seen = scale, blocks, list[tuple[int, int]]()

    def __call__(self, image: Image.Image, **given: Any) -> Any:
        self.seen.append(image.size)
        large = image.resize((self.scale * image.width, self.scale * image.height), Image.Resampling.NEAREST)
        return SimpleNamespace(images=[np.asarray(large) / 255], nsfw_content_detected=[self.blocks])


@pytest.mark.parametrize(("kind", "scale"), [("redraw", 1), ("enlarge", 4)])
def test_a_picture_larger_than_a_pipeline_keeps_its_detail(folder: Path, kind: str, scale: int) -> None:
    place = folder / ("plain" if scale == 1 else "enlarge")
    model = other_model(f"diffusers-{kind}:{place}", CPU)
    echo = Echo(scale)
    model._pipe = echo  # type: ignore[attr-defined]
    picture = noise(700, 1030)
    made = model(picture, Request(picture), 0)
    wanted = picture.repeat(scale, 0).repeat(scale, 1) / 255
    assert len(echo.seen) > 3 and max(max(size) for size in echo.seen) <= 512
    assert np.abs(made.permute(1, 2, 0).numpy() - wanted).max() < 0.01


def test_what_a_safety_checker_blocks_fails_its_row(folder: Path) -> None:
    model = other_model(f"diffusers-redraw:{folder / 'plain'}", CPU)
    model._pipe = Echo(1, blocks=True)  # type: ignore[attr-defined]
    picture = noise(40, 40)
    with pytest.raises(PermanentRowError, match="safety"):
        model(picture, Request(picture), 0)


def test_a_found_hole_alone_is_drawn_anew(folder: Path) -> None:
    """Also where the mask comes from the file and the rest may change."""
    chain = load_restorer(f"diffusers-inpaint:{folder / 'inpaint'}", "cpu")
    picture, mask = noise(70, 90), np.zeros((70, 90), bool)
    mask[20:50, 30:70] = True
    result = chain.restore_batch([Request(picture, mask=mask, only_mask=False)])[0]
    there = result.lost
    assert there[mask].all() and not there.all()
    assert np.array_equal(result.pixels[~there], picture[~there])
    assert not np.array_equal(result.pixels[mask], picture[mask])


def test_folders_with_half_precision_alone_are_loaded(folder: Path, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(folder / "plain"), local_files_only=True)
    pipe.to(dtype=torch.float16).save_pretrained(tmp_path / "plain", variant="fp16")
    assert other_model(f"diffusers-redraw:{tmp_path / 'plain'}", CPU).scale == 1


def test_pictures_are_made_of_captions_and_seeds(folder: Path) -> None:
    maker = picture_maker(f"diffusers:{folder / 'plain'}", Restorer.from_pretrained(device="cpu"))
    one, other, again = maker(["a red dog", "a red dog", "a red dog"], [1, 2, 1])
    assert one.pixels.shape == (64, 64, 3) and one.agreement is not None and 0 <= one.agreement <= 1
    assert np.array_equal(one.pixels, again.pixels) and not np.array_equal(one.pixels, other.pixels)


def test_what_is_no_pipeline_is_named(folder: Path, tmp_path: Path) -> None:
    for place in (f"diffusers-inpaint:{tmp_path}", f"diffusers-inpaint:{folder / 'vocabulary'}"):
        with pytest.raises(ModelError, match=r"model_index\.json|no model at"):
            load_restorer(place, "cpu")
    with pytest.raises(ModelError, match="nowhere"):
        check_models("diffusers-redraw:nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        check_generator("diffusers:nowhere")
    check_generator(f"diffusers:{folder / 'plain'}")
