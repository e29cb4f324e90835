"""Pipelines of diffusers, with the caption as prompt: filling, redrawing, enlarging, and pictures from nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.extras import check_extra
from pipeline.restoration.generation import Picture
from pipeline.restoration.local import files_sha256, said
from pipeline.restoration.others import PictureModel
from pipeline.restoration.request import Pixels, Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.tiles import as_floats

CLASSES = {
    "diffusers-inpaint": "AutoPipelineForInpainting",
    "diffusers-redraw": "AutoPipelineForImage2Image",
    "diffusers-enlarge": "StableDiffusionUpscalePipeline",
    "diffusers": "AutoPipelineForText2Image",
}
ENLARGED = 4
"""What Stable Diffusion's upscaler does."""
LONGEST = 512
"""Longest side that a pipeline sees, if it does not say what it was made for."""
REDRAWN = 0.3
"""How far from the picture a redrawn one may go, 0..1."""


class DiffusionModel(PictureModel):
    """One that fills, redraws or enlarges."""

    def __init__(self, kind: str, folder: Path, device: torch.device) -> None:
        """Load a folder; `kind` is one of CLASSES.

        Raises:
            ModelError: there is no such pipeline in it.
            RecipeError: diffusers is missing.
        """
        self._kind = kind
        self._pipe = _loaded(kind, folder, device)
        self._device = device
        self.name = f"{type(self._pipe).__name__} {folder.name}"
        self.digest = _digest(folder)
        self.fills, self.draws = kind == "diffusers-inpaint", True
        self.scale = ENLARGED if kind == "diffusers-enlarge" else 1

    def __call__(self, picture: Pixels, request: Request, seed: int) -> Tensor:
        """See `PictureModel`. A picture that is larger than the pipeline was made for is seen smaller, and what is made
        of it is enlarged again."""
        height, width = picture.shape[:2]
        image = Image.fromarray(np.rint(as_floats(picture).clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        size = self._size(width, height)
        given: dict[str, Any] = {"prompt": request.caption or "", "generator": _generator(seed), "output_type": "np"}
        if self._kind == "diffusers-enlarge":
            image = image.resize(size, Image.Resampling.BICUBIC)
            out = self._pipe(image=image, **given).images[0]
        else:
            image = image.resize(size, Image.Resampling.LANCZOS)
            if self._kind == "diffusers-inpaint":
                assert request.mask is not None
                given |= {"mask_image": _smaller(request.mask, size), "width": size[0], "height": size[1]}
            else:
                given |= {"strength": REDRAWN}
            out = self._pipe(image=image, **given).images[0]
        made = torch.from_numpy(np.asarray(out, np.float32)).permute(2, 0, 1)
        return _resized(made, (self.scale * height, self.scale * width)).clamp(0, 1)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the pipeline sees: multiples of what its latents need."""
        step, longest = _step(self._pipe), _longest(self._pipe)
        share = min(1.0, longest / max(width, height))
        return max(step, round(width * share / step) * step), max(step, round(height * share / step) * step)


class DiffusionMaker:
    """Stands in for `generation.PictureMaker`: any text-to-image pipeline."""

    license = "unknown"

    def __init__(self, folder: Path, restorer: Restorer) -> None:
        """Load a folder; the restorer says how well captions and pictures agree.

        Raises:
            ModelError: there is no such pipeline in it.
            RecipeError: diffusers is missing.
        """
        self._pipe = _loaded("diffusers", folder, restorer.device)
        self._restorer = restorer
        self.name = f"{type(self._pipe).__name__} {folder.name}"
        self.digest = _digest(folder)

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """As `PictureMaker.__call__`."""
        made = []
        for caption, seed in zip(captions, seeds, strict=True):
            out = self._pipe(prompt=caption, generator=_generator(seed), output_type="np").images[0]
            pixels = np.rint(np.asarray(out).clip(0, 1) * 255).astype(np.uint8)
            agreement = self._restorer.agreement(Request(pixels, caption=caption))
            made.append(Picture(pixels, agreement))
        return made


def _loaded(kind: str, folder: Path, device: torch.device) -> Any:
    check_extra(f"{kind}:{folder}", "diffusion", "diffusers", "accelerate")
    import diffusers

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        pipe = getattr(diffusers, CLASSES[kind]).from_pretrained(
            str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # whatever diffusers raises
        raise ModelError(f"no {CLASSES[kind]} in {folder} ({said(error)})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _digest(folder: Path) -> str:
    return files_sha256(sorted(folder.rglob("*.safetensors")))


def _step(pipe: Any) -> int:
    return int(getattr(pipe, "vae_scale_factor", 8))


def _longest(pipe: Any) -> int:
    with contextlib.suppress(AttributeError, TypeError):
        network = getattr(pipe, "unet", None) or pipe.transformer
        return int(network.config.sample_size) * (1 if hasattr(pipe, "low_res_scheduler") else _step(pipe))
    return LONGEST


def _smaller(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """A mask at another size (width, height), of which nothing is lost, however thin it is."""
    planes = torch.from_numpy(mask)[None, None].float()
    covered = torch.nn.functional.adaptive_max_pool2d(planes, size[::-1])
    return Image.fromarray((covered[0, 0] > 0).numpy())


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[1:] == size:
        return picture
    return torch.nn.functional.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0]
