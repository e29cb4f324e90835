"""Models that spandrel loads. `make test-spandrel` puts spandrel and torchvision beside the rest and runs this."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

if importlib.util.find_spec("spandrel") is None:
    pytest.skip("spandrel is not installed", allow_module_level=True)
for operator in ("nms", "qnms"):  # a torchvision whose compiled part does not fit this torch still has all that is used
    with contextlib.suppress(RuntimeError):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")

from spandrel import ModelLoader  # noqa: E402
from spandrel.architectures.DnCNN import DnCNN  # noqa: E402
from spandrel.architectures.LaMa import LaMa  # noqa: E402
from spandrel.architectures.SAFMN import SAFMN  # noqa: E402
from spandrel.architectures.SPAN import SPAN  # noqa: E402

from pipeline.errors import ModelError  # noqa: E402
from pipeline.quality.gate import Decision  # noqa: E402
from pipeline.recipe import load_recipe  # noqa: E402
from pipeline.restoration.loading import load_restorer  # noqa: E402
from pipeline.restoration.others import SpandrelModel, other_model  # noqa: E402
from pipeline.restoration.request import Request  # noqa: E402
from pipeline.restoration.tiles import as_floats  # noqa: E402
from pipeline.stages.decode import DecodeStage  # noqa: E402
from pipeline.stages.encode import EncodeStage  # noqa: E402
from pipeline.stages.restore import RestoreStage  # noqa: E402
from tests.conftest import encoded, noise  # noqa: E402

CPU = torch.device("cpu")
MODELS: dict[str, Any] = {
    "DnCNN": lambda: DnCNN(in_nc=3, out_nc=3, nc=64, nb=17, act_mode="R"),
    "grey DnCNN": lambda: DnCNN(in_nc=1, out_nc=1, nc=64, nb=17, act_mode="R"),
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
    "SAFMN": lambda: SAFMN(dim=16, n_blocks=2, ffn_scale=2.0, upscaling_factor=4),
}


@pytest.fixture(scope="module", params=list(MODELS))
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in MODELS[request.param]().state_dict().items()}, path)
    return path


def plain(file: Path, picture: np.ndarray) -> torch.Tensor:
    """What spandrel makes of it in plain PyTorch."""
    model = ModelLoader("cpu").load_from_file(file).eval()
    image = as_floats(picture)[None]
    with torch.inference_mode():
        if model.input_channels == 1:
            return torch.cat([model(image[:, [channel]]) for channel in range(3)], dim=1)[0]
        return model(image)[0]


def test_results_are_those_of_plain_pytorch_bit_for_bit(file: Path) -> None:
    picture = noise(61, 83)
    model = other_model(f"spandrel:{file}", CPU)
    assert torch.equal(model(picture, Request(picture)), plain(file, picture))
    chain = load_restorer(f"spandrel:{file}", "cpu")
    result = chain.restore_batch([Request(picture)])[0]
    made = result.array if result.enlarged is None else result.enlarged
    assert np.array_equal(made, plain(file, picture).permute(1, 2, 0).numpy())


def test_it_works_in_the_pipeline(file: Path) -> None:
    recipe = load_recipe(overrides=[f"restoration.model='spandrel:{file}'", "output.format=png"])
    picture = noise(40, 56)
    table = pa.table({"id": ["one"], "image": [encoded(picture)]})
    passed = pa.schema([("id", pa.string())])
    (decoded,) = DecodeStage(recipe, recipe.columns, passed, lambda uri: b"")(table)
    (row,) = EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu")(decoded)).to_pylist()
    accepted = {row["result_id"]: Decision(True, "a person")}  # the gate does not take what random weights make
    (row,) = EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu", decisions=accepted)(decoded)).to_pylist()
    assert row["status"] == "restored" and file.stem in row["model"], row["reasons"]
    made = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
    assert np.array_equal(made, (plain(file, picture) * 255).round().byte().permute(1, 2, 0).numpy())


def test_pickled_weights_load_without_running_code(file: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "weights.pth"
    torch.save(load_file(file), pickled)
    picture = noise(40, 40)
    one, other = (other_model(f"spandrel:{path}", CPU)(picture, Request(picture)) for path in (file, pickled))
    assert torch.equal(one, other)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/conservator-was-here",)


def test_code_in_weights_is_not_run(tmp_path: Path) -> None:
    harmful = tmp_path / "harmful.pth"
    torch.save({"weight": Harmful()}, harmful)
    with pytest.raises(ModelError, match=r"harmful\.pth"):
        other_model(f"spandrel:{harmful}", CPU)
    assert not Path("/tmp/conservator-was-here").exists()


def test_a_model_that_fills_gets_the_mask(tmp_path: Path) -> None:
    path = tmp_path / "lama.safetensors"
    torch.manual_seed(0)
    tensors = {name: tensor.contiguous() for name, tensor in LaMa(in_nc=4, out_nc=3).state_dict().items()}
    save_file(tensors, path)
    model = other_model(f"spandrel:{path}", CPU)
    assert isinstance(model, SpandrelModel) and model.fills
    picture, mask = noise(64, 72), np.zeros((64, 72), bool)
    mask[10:30, 20:50] = True
    result = load_restorer(f"spandrel:{path}", "cpu").restore_batch([Request(picture, mask=mask)])[0]
    assert np.array_equal(result.pixels[~mask], picture[~mask])
    with torch.inference_mode():
        found = ModelLoader("cpu").load_from_file(path).eval()
        alone = found(as_floats(picture)[None], torch.from_numpy(mask)[None, None].float())[0]
    assert np.array_equal(result.array[mask], alone.permute(1, 2, 0).numpy()[mask])


@pytest.mark.skipif("BASELINES" not in os.environ, reason="BASELINES names a folder with published weights")
def test_published_weights_denoise(photo: np.ndarray) -> None:
    file = Path(os.environ["BASELINES"]) / "dncnn_color_blind.safetensors"
    noisy = (photo + np.random.default_rng(0).normal(0, 25, photo.shape)).clip(0, 255).round().astype(np.uint8)
    result = load_restorer(f"spandrel:{file}", "cpu").restore_batch([Request(noisy)])[0]
    assert np.array_equal(result.array, plain(file, noisy).permute(1, 2, 0).numpy())
    errors = [np.square(image.astype(float) - photo).mean() for image in (noisy, result.pixels)]
    assert errors[1] < errors[0] / 4
