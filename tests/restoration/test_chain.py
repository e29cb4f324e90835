"""Models of others, alone and behind compact: what they may do, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pipeline import Restorer
from pipeline.errors import ModelError
from pipeline.imaging.xmp import ENHANCED
from pipeline.quality.appraise import Appraiser, Case
from pipeline.recipe import Recipe
from pipeline.restoration import others
from pipeline.restoration.chain import Chain
from pipeline.restoration.loading import check_models, load_restorer
from pipeline.restoration.others import PictureModel, TiledModel, other_model
from pipeline.restoration.request import Pixels, Request
from pipeline.restoration.tiles import as_floats
from pipeline.stages.provenance import actions, digital_source
from tests.conftest import noise

CPU = torch.device("cpu")


class Fixed(PictureModel):
    """Gives back what it was told to."""

    name, digest, license = "fixed", "0", "MIT"

    def __init__(self, answer: Tensor, fills: bool = False) -> None:
        self.answer, self.fills, self.asked = answer, fills, list[Request]()

    def __call__(self, picture: Pixels, request: Request, seed: int) -> Tensor:
        self.picture = picture
        self.asked.append(request)
        return self.answer.clone()


class Blur(TiledModel):
    """A mean of 5 x 5 pixels, enlarged if wanted."""

    name, digest, half = "blur", "1", False

    def __init__(self, scale: int = 1, multiple: int = 1) -> None:
        super().__init__(CPU)
        self.scale, self.multiple = scale, multiple

    def forward(self, tiles: Tensor, masks: Tensor) -> Tensor:
        assert not tiles.shape[2] % self.multiple and not tiles.shape[3] % self.multiple
        smooth = F.avg_pool2d(F.pad(tiles, (2, 2, 2, 2), mode="replicate"), 5, 1)
        return F.interpolate(smooth, scale_factor=self.scale, mode="nearest")


@pytest.fixture(scope="module")
def judge() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def noisy(photo: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, photo.shape)
    return (photo + noise).clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "swin"
    torch.manual_seed(0)
    sizes = {"image_size": 64, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2}
    Swin2SRForImageSuperResolution(Swin2SRConfig(**sizes)).save_pretrained(folder)
    return folder


def covered(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a black part, and the mask of that."""
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:90, 30:120] = True
    hidden = photo.copy()
    hidden[mask] = 0
    return hidden, mask


def verdict(request: Request, chain: Chain) -> tuple[str, dict[str, float | None]]:
    result = chain.restore_batch([request])[0]
    (found,) = Appraiser(Recipe(), CPU)([Case(before=request.pixels, result=result)])
    return found.status, found.scores


def test_the_truth_is_taken_and_worse_results_are_not(judge: Restorer, photo: np.ndarray, noisy: np.ndarray) -> None:
    truth = as_floats(photo)
    dice = torch.Generator().manual_seed(0)
    answers = {
        "truth": truth,
        "noise": torch.rand(truth.shape, generator=dice),
        "the input": as_floats(noisy),
        "another picture": truth.flip(2),
        "black": torch.zeros_like(truth),
    }
    found = {name: verdict(Request(noisy), Chain(judge, [Fixed(answer)], False)) for name, answer in answers.items()}
    assert found["truth"][0] == "restored"
    assert all(found[name][0] != "restored" for name in answers if name != "truth")
    expected = {name: scores["expected_psnr"] for name, (_, scores) in found.items()}
    gains = {name: scores["expected_gain"] for name, (_, scores) in found.items()}
    assert expected["truth"] > 24 > expected["the input"] + 2 > expected["black"] + 2
    assert gains["truth"] > 3 and abs(gains["the input"]) < 0.5 and gains["noise"] < -3


def test_an_undamaged_picture_is_kept_whatever_a_model_makes_of_it(judge: Restorer, photo: np.ndarray) -> None:
    assert verdict(Request(photo), Chain(judge, [Blur()], False))[0] == "kept"


def test_the_first_step_takes_what_compact_gives_or_the_original(
    judge: Restorer, photo: np.ndarray, noisy: np.ndarray
) -> None:
    step = Fixed(as_floats(photo))
    own = judge.restore_batch([Request(noisy)])[0]
    Chain(judge, [step], True).restore_batch([Request(noisy)])
    assert np.array_equal(step.picture, own.array)
    Chain(judge, [step], True, undamaged_above=own.clean / 2).restore_batch([Request(noisy)])
    assert step.picture is noisy
    chain = Chain(judge, [step], False)
    chain.restore_batch([Request(noisy)])
    assert step.picture is noisy
    assert chain.name == "fixed" and chain.license == "MIT"
    assert Chain(judge, [step], True).digest != chain.digest


def test_what_a_request_forbids_is_forbidden_to_others_too(judge: Restorer, photo: np.ndarray) -> None:
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:90, 30:200] = True
    white = Fixed(torch.ones(3, *photo.shape[:2]))
    masked = Chain(judge, [white], False).restore_batch([Request(photo, mask=mask)])[0]
    assert np.array_equal(masked.pixels[~mask], photo[~mask]) and (masked.pixels[mask] == 255).all()
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    coloured = Fixed(as_floats(photo))
    result = Chain(judge, [coloured], False).restore_batch([Request(grey)])[0].pixels
    assert np.array_equal(result[..., 0], result[..., 1]) and np.array_equal(result[..., 0], result[..., 2])
    half = Chain(judge, [white], False).restore_batch([Request(photo, strength=0.5)])[0].array
    assert np.abs(half - (photo / 255 + 1) / 2).max() < 0.01


def test_a_model_that_fills_is_asked_where_something_is_lost_only(judge: Restorer, photo: np.ndarray) -> None:
    step = Fixed(torch.ones(3, *photo.shape[:2]), fills=True)
    chain = Chain(judge, [step], True)
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:90, 30:200] = True
    chain.restore_batch([Request(photo, mask=mask)])
    assert np.array_equal(step.asked[0].mask, mask)
    chain.restore_batch([Request(photo, mask=np.zeros_like(mask))])
    assert len(step.asked) == 1


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(37, 50), (300, 130), (97, 301)])
def test_tiles_of_a_local_model_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, scale: int, size: tuple[int, int]
) -> None:
    picture = noise(*size)
    whole = Blur(scale)(picture, Request(picture))
    monkeypatch.setattr(others, "TILE", 96)
    monkeypatch.setattr(others, "MARGIN", 16)
    tiled = Blur(scale, multiple=8)(picture, Request(picture))
    assert tiled.shape == (3, scale * size[0], scale * size[1])
    assert torch.allclose(whole[:, : -3 * scale, : -3 * scale], tiled[:, : -3 * scale, : -3 * scale], atol=1e-6)


def test_an_enlarged_result_is_judged_at_the_originals_size(
    judge: Restorer, photo: np.ndarray, noisy: np.ndarray
) -> None:
    chain = Chain(judge, [Blur(2), Blur(2)], True)
    assert chain.scale == 4
    request = Request(noisy)
    result = chain.restore_batch([request])[0]
    height, width = photo.shape[:2]
    assert result.enlarged is not None and result.enlarged.shape == (4 * height, 4 * width, 3)
    assert result.array.shape == photo.shape and result.samples(np.uint16, full=True).shape == (
        4 * height,
        4 * width,
        3,
    )
    again = result.enlarged.reshape(height, 4, width, 4, 3).mean((1, 3))
    assert np.abs(again - result.array).max() < 1e-4
    (found,) = Appraiser(Recipe(), CPU)([Case(before=noisy, result=result)])
    assert found.status == "restored" and found.reasons == ["it was enlarged"]
    black = Chain(judge, [Blur(2), Fixed(torch.zeros(3, 2 * height, 2 * width))], True).restore_batch([request])[0]
    (found,) = Appraiser(Recipe(), CPU)([Case(before=noisy, result=black)])
    assert found.status == "review"


def test_an_enlarged_picture_outside_a_mask_is_the_originals(judge: Restorer, photo: np.ndarray) -> None:
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:90, 30:200] = True
    result = Chain(judge, [Blur(2)], False).restore_batch([Request(photo, mask=mask)])[0]
    assert result.enlarged is not None
    plain = (
        F.interpolate(as_floats(photo)[None], scale_factor=2, mode="bicubic")[0].clamp(0, 1).permute(1, 2, 0).numpy()
    )
    outside = ~mask.repeat(2, 0).repeat(2, 1)
    assert np.array_equal(result.enlarged[outside], plain[outside])


def test_swin2sr_gives_what_it_gives_alone(swin2sr: Path) -> None:
    picture = noise(40, 56)
    model = other_model(f"swin2sr:{swin2sr}", CPU)
    assert model.scale == 2 and isinstance(model, TiledModel)
    plain = Swin2SRForImageSuperResolution.from_pretrained(swin2sr).eval()
    with torch.inference_mode():
        wanted = plain(as_floats(picture)[None]).reconstruction[0].clamp(0, 1)
    assert torch.equal(model(picture, Request(picture)), wanted)
    assert model(picture[:37, :51], Request(picture[:37, :51])).shape == (3, 74, 102)


def test_what_cannot_be_loaded_is_named(swin2sr: Path, tmp_path: Path) -> None:
    for place, said in (
        (["swin2sr:nowhere"], "nowhere"),
        ([f"swin2sr:{tmp_path}"], "Swin2SR"),
        ([f"swin2sr:{swin2sr}", "compact"], "first"),
        (["compact", "compact"], "first"),
    ):
        with pytest.raises(ModelError, match=said):
            load_restorer(place, "cpu")
    check_models(["compact", f"swin2sr:{swin2sr}"])
    with pytest.raises(ModelError, match="first"):
        check_models(["compact", "compact"])
    with pytest.raises(ModelError, match="nowhere"):
        check_models("swin2sr:nowhere")
    assert isinstance(load_restorer([f"swin2sr:{swin2sr}"], "cpu"), Chain)
    assert isinstance(load_restorer(["compact"], "cpu"), Restorer)


def test_what_a_mask_asks_for_is_done_ahead_of_the_others_even_if_the_rest_is_undamaged(
    judge: Restorer, photo: np.ndarray
) -> None:
    hidden, mask = covered(photo)
    step = Fixed(as_floats(photo))
    Chain(judge, [step], True, undamaged_above=0.0).restore_batch([Request(hidden, mask=mask)])
    assert not np.array_equal(step.picture[mask], hidden[mask])


@pytest.mark.parametrize("repairs", [True, False])
def test_a_grey_picture_gets_its_colours_whoever_restores_it(judge: Restorer, photo: np.ndarray, repairs: bool) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    chain = Chain(judge, [Blur(2)], repairs, undamaged_above=0.0)
    result = chain.restore_batch([Request(grey, caption="a brown bear", colourise=True)])[0]
    assert result.enlarged is not None
    for array in (result.array, result.enlarged):
        assert np.abs(array[..., 0] - array[..., 2]).max() > 0.02
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:90, 30:120] = True
    masked = chain.restore_batch([Request(grey, mask=mask, colourise=True)])[0]
    assert masked.enlarged is not None
    assert np.abs(masked.enlarged[..., 0] - masked.enlarged[..., 2]).max() < 1e-5


def test_without_a_model_that_fills_compact_fills_what_a_mask_covers_and_is_named(
    judge: Restorer, photo: np.ndarray
) -> None:
    hidden, mask = covered(photo)
    result = Chain(judge, [Blur()], False).restore_batch([Request(hidden, mask=mask)])[0]
    assert result.helper == judge.name and not result.repaired and result.damage.missing == pytest.approx(mask.mean())
    filled, hole = (np.square(one[mask] / 255.0 - photo[mask] / 255.0).mean() for one in (result.pixels, hidden))
    assert filled < hole / 2
    assert [action["name"] for action in actions(result, False, repaired=True)] == ["restore", "fill"]


def test_what_was_found_and_not_filled_is_not_said_to_be(judge: Restorer, photo: np.ndarray) -> None:
    torn = photo.copy()
    torn[60:140, 80:200] = 255
    own = judge.restore_batch([Request(torn)])[0]
    assert own.damage.missing > 0.001  # else this shows nothing
    result = Chain(judge, [Fixed(as_floats(torn))], False).restore_batch([Request(torn)])[0]
    assert result.damage.missing == 0 and not result.lost.any() and result.helper is None
    assert [action["name"] for action in actions(result, False, repaired=True)] == ["restore"]
    assert digital_source(result, False) == ENHANCED
    both = Chain(judge, [Fixed(as_floats(own.pixels))], True).restore_batch([Request(torn)])[0]
    assert both.damage.missing > 0.001
    assert {"fill", "restore"} <= {action["name"] for action in actions(both, False, repaired=True)}
