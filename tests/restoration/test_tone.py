from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import Restorer
from pipeline.damage import tone as damages
from pipeline.quality.scores import psnr
from pipeline.restoration.assembly import assemble, with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.tone import CELLS, Judged, Tone, ToneHead, as_around, redone, undone
from pipeline.restoration.views import probes, thumbnails
from pipeline.training.data import Photo
from pipeline.training.team import Team
from pipeline.training.toning import draw
from tests.conftest import noise

CPU = torch.device("cpu")
DICE = torch.Generator().manual_seed(0)


def as_planes(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def as_pixels(planes: torch.Tensor) -> np.ndarray:
    return (planes[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def test_no_tone_changes_no_bit() -> None:
    images = torch.rand(2, 3, 16, 16, generator=DICE)
    nothing = Tone.none(2, CPU)
    result = undone(images, torch.zeros(2, 3, 16, 16), nothing.affine, torch.zeros(2, dtype=torch.bool))
    assert torch.equal(result, images)


def test_what_is_known_exactly_is_undone_exactly() -> None:
    images = torch.rand(1, 3, 16, 16, generator=DICE)
    gains, strength = torch.tensor([[0.9, 0.7, 0.5]]), torch.tensor([0.4])
    faded = damages.cast(damages.fade(images, strength), gains)
    share = 1 - float(strength)
    colours = torch.eye(3) * 0.72 + torch.tensor(damages.LUMA) * 0.28  # 0.7 * 0.4 of the colours are gone
    affine = torch.cat([torch.linalg.inv(colours * share), torch.full((3, 1), -0.72 * (1 - share) / share)], dim=1)
    light = -gains.log()[:, :, None, None].expand(1, 3, 16, 16)
    result = undone(faded, light, affine[None], torch.tensor([False]))
    assert torch.allclose(result, images, atol=1e-4)


def test_a_grey_picture_stays_grey() -> None:
    grey = torch.rand(1, 1, 16, 16, generator=DICE).expand(1, 3, 16, 16)
    affine = torch.rand(1, 3, 4, generator=DICE)
    result = undone(grey, torch.rand(1, 3, 16, 16, generator=DICE), affine, torch.tensor([True]))
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])


def test_a_head_that_has_learned_nothing_touches_nothing() -> None:
    judged = ToneHead((8, 8, 8, 8))(torch.rand(3, 4, 160, 160, generator=DICE))
    assert not judged.is_worth_it.any()
    assert judged.tone.gain.shape == (3, 3, CELLS, CELLS)


def test_a_model_that_gets_a_tone_head_restores_as_before(photo: np.ndarray) -> None:
    model = assemble(sizes=ModelConfig(decoder_widths=(8, 8, 16, 16)))
    for weights in model.judge.parameters():
        torch.nn.init.normal_(weights, std=0.1, generator=DICE)
    assert model.tone is None
    larger = with_head(model, "tone")
    assert isinstance(larger, CompactModel) and larger.tone is not None and with_head(larger, "tone") is larger
    before, after = (Restorer(one, device="cpu").restore(photo[:96, :128]) for one in (model, larger))
    assert np.array_equal(before.array, after.array)
    assert before.expected_psnr == pytest.approx(after.expected_psnr, abs=1e-3)


def test_new_models_have_a_tone_head() -> None:
    assert assemble().tone is not None


def test_pictures_to_learn_from_are_the_same_whoever_draws_them() -> None:
    photos = [Photo(torch.from_numpy(noise(230, 260, seed)).permute(2, 0, 1), ()) for seed in range(3)]
    whole, again = draw(photos, "1/2", 6, CPU), draw(photos, "1/2", 6, CPU)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    for rank in range(2):  # one of two workers
        shared = draw(photos, "1/2", 6, CPU, Team(rank, 2))
        assert all(torch.equal(one[rank::2], other) for one, other in zip(whole, shared, strict=True))
    unlike = whole.damaged[:, :3] - whole.truth
    told_clean = (whole.changed == 0) & (unlike.abs().amax((1, 2, 3)) < 1e-6)
    assert (told_clean <= (whole.fading == 0)).all()


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


@pytest.mark.parametrize(
    ("what", "gain"),
    [
        (lambda image: damages.yellow(image, torch.tensor([0.4])), 5),
        (lambda image: damages.cast(image, torch.tensor([[1.1, 0.9, 0.55]])), 3),
        (lambda image: damages.fade(image, torch.tensor([0.5])), 6),
    ],
    ids=["yellowed", "cast", "faded"],
)
def test_what_is_plainly_off_is_undone(restorer: Restorer, photo: np.ndarray, what: object, gain: float) -> None:
    assert callable(what)
    changed = as_pixels(what(as_planes(photo)))
    result = restorer.restore(changed)
    assert psnr(result.pixels, photo) > psnr(changed, photo) + gain
    assert result.damage.fading > 0.1
    assert result.clean < 0.5


def test_tone_stays_where_only_a_mask_is_filled(restorer: Restorer, photo: np.ndarray) -> None:
    yellow = as_pixels(damages.yellow(as_planes(photo), torch.tensor([0.5])))
    mask = np.zeros(photo.shape[:2], bool)
    mask[60:100, 60:120] = True
    result = restorer.restore(yellow, mask=mask)
    assert np.array_equal(result.pixels[~mask], yellow[~mask])
    filled, there = (pixels[mask].astype(float).mean(0) for pixels in (result.pixels, yellow))
    assert np.abs(filled - there).max() < 16  # its blue is 60 darker than the photo's


def test_what_was_undone_can_be_done_again() -> None:
    images, gain = torch.rand(2, 3, 9, 9, generator=DICE), 0.3 * torch.randn(2, 3, 9, 9, generator=DICE)
    affine = torch.eye(3, 4).repeat(2, 1, 1) + 0.1 * torch.randn(2, 3, 4, generator=DICE)
    there = undone(images, gain, affine, torch.zeros(2, dtype=torch.bool))
    assert torch.allclose(redone(there, gain, affine), images, atol=1e-5)


def test_a_fill_has_the_tone_of_what_lies_around_it() -> None:
    picture = torch.rand(1, 3, 40, 40, generator=DICE)
    lost = torch.zeros(1, 1, 40, 40)
    lost[..., 12:20, 15:30] = 1
    matrix, added = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.6, 0.1], [0.1, 0.0, 0.3]]), torch.tensor([0.2, 0.1, 0.05])
    original = torch.einsum("ij,njhw->nihw", matrix, picture) + added[:, None, None]
    hidden = torch.where(lost > 0, 0.5, original)
    assert torch.allclose(as_around(picture, hidden, lost), original, atol=0.05)
    assert torch.equal(as_around(picture, hidden, torch.ones_like(lost)), picture)  # nothing is known


def test_a_large_image_has_its_tone_undone_alike_in_every_tile(restorer: Restorer, photo: np.ndarray) -> None:
    large = np.asarray(np.kron(photo, np.ones((3, 3, 1), np.uint8)))[:700, :900]
    yellow = as_pixels(damages.yellow(as_planes(large), torch.tensor([0.4])))
    result = restorer.restore(yellow)
    assert psnr(result.pixels, large) > psnr(yellow, large) + 4


def test_what_is_looked_at_twice_is_learned_from_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.restoration.model.CONFIRMED", -1e9)
    monkeypatch.setattr(Judged, "is_worth_it", property(lambda judged: judged.changed > -1e9))
    model = with_head(assemble(sizes=ModelConfig(decoder_widths=(8, 8, 16, 16))), "tone")
    config, pictures = model.config, torch.rand(2, 3, 96, 96)
    nothing = torch.zeros(2, 1, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        view = model.look(
            thumbnails(pictures, nothing, config.thumbnail),
            probes(pictures, nothing, config.probe, config.probes),
            torch.zeros(2, config.text_tokens, config.text_width),
            torch.ones(2, config.text_tokens, dtype=torch.bool),
            torch.zeros(2, 0, 4, config.thumbnail, config.thumbnail),
            torch.zeros(2, 0, dtype=torch.bool),
        )
        (view.guide.coarse.square().mean() + view.damage.square().mean()).backward()
    weights = [weight for weight in model.image_encoder.parameters() if weight.ndim > 1]
    assert all(weight.grad is not None for weight in weights)
