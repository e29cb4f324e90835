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

from pipeline.errors import ModelError, PermanentRowError
from pipeline.extras import check_extra
from pipeline.restoration.generation import Picture
from pipeline.restoration.local import files_sha256, said
from pipeline.restoration.others import PictureModel
from pipeline.restoration.request import Pixels, Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.tiles import as_floats, cut, plan_tiles

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
MARGIN = 8
"""Parts of a larger picture overlap by a quarter of their side: each by an eighth on either edge."""
HALF = "fp16"
"""What files are called that hold half precision alone."""
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
        self.does = "enlarge" if self.scale > 1 else "redraw"

    def __call__(self, picture: Pixels, request: Request, seed: int) -> Tensor:
        """See `PictureModel`. Of a picture that is larger than the pipeline was made for, what is to be filled is made
        at a smaller size and enlarged; redrawn or enlarged it is in parts of that size, which run into each other.

        Raises:
            PermanentRowError: the pipeline's safety checker has blocked what it made.
        """
        if self.fills:
            return self._filled(picture, request, seed)
        height, width = picture.shape[:2]
        longest = max(_longest(self._pipe) // _step(self._pipe), 2) * _step(self._pipe)
        if max(height, width) <= longest:
            return self._part(as_floats(picture), request.caption, seed)
        total = torch.zeros(3, self.scale * height, self.scale * width)
        weight = torch.zeros(1, *total.shape[1:])
        for tile in plan_tiles(height, width, (longest, longest), longest // MARGIN):
            made = self._part(cut(picture, tile, (longest, longest)), request.caption, seed)
            top, left = self.scale * tile.top, self.scale * tile.left
            made = made[:, : total.shape[1] - top, : total.shape[2] - left]
            there = (slice(None), slice(top, top + made.shape[1]), slice(left, left + made.shape[2]))
            share = _ramp(self.scale * longest)[None, : made.shape[1], : made.shape[2]]
            total[there] += share * made
            weight[there] += share
        return total / weight

    def _part(self, planes: Tensor, caption: str | None, seed: int) -> Tensor:
        """What the pipeline makes of [3, h, w] that it can see as they are."""
        height, width = planes.shape[1:]
        size = self._size(width, height)
        how = Image.Resampling.BICUBIC if self.scale > 1 else Image.Resampling.LANCZOS
        given: dict[str, Any] = {} if self.scale > 1 else {"strength": REDRAWN}
        made = self._run(caption, seed, image=_as_image(planes).resize(size, how), **given)
        return _resized(made, (self.scale * height, self.scale * width)).clamp(0, 1)

    def _filled(self, picture: Pixels, request: Request, seed: int) -> Tensor:
        assert request.mask is not None
        height, width = picture.shape[:2]
        size = self._size(width, height)
        image = _as_image(as_floats(picture)).resize(size, Image.Resampling.LANCZOS)
        sizes = {"width": size[0], "height": size[1]}
        made = self._run(request.caption, seed, image=image, mask_image=_smaller(request.mask, size), **sizes)
        return _resized(made, (height, width)).clamp(0, 1)

    def _run(self, caption: str | None, seed: int, **given: Any) -> Tensor:
        out = _unblocked(self._pipe(prompt=caption or "", generator=_generator(seed), output_type="np", **given))
        return torch.from_numpy(np.asarray(out, np.float32)).permute(2, 0, 1)

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
        """As `PictureMaker.__call__`.

        Raises:
            PermanentRowError: the pipeline's safety checker has blocked what it made.
        """
        made = []
        for caption, seed in zip(captions, seeds, strict=True):
            out = _unblocked(self._pipe(prompt=caption, generator=_generator(seed), output_type="np"))
            pixels = np.rint(np.asarray(out).clip(0, 1) * 255).astype(np.uint8)
            agreement = self._restorer.agreement(Request(pixels, caption=caption))
            made.append(Picture(pixels, agreement))
        return made


def _loaded(kind: str, folder: Path, device: torch.device) -> Any:
    check_extra(f"{kind}:{folder}", "diffusion", "diffusers", "accelerate")
    import diffusers

    options: dict[str, Any] = {"torch_dtype": torch.float16 if device.type == "cuda" else torch.float32}
    files = [file.name for file in folder.rglob("*.safetensors")]
    if files and all(f".{HALF}." in name or f".{HALF}-" in name for name in files):
        options["variant"] = HALF
    try:
        pipe = getattr(diffusers, CLASSES[kind]).from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, **options
        )
    except Exception as error:  # whatever diffusers raises
        raise ModelError(f"no {CLASSES[kind]} in {folder} ({said(error)})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _unblocked(out: Any) -> Any:
    """The one picture that a pipeline has made; where its safety checker has seen something, that would be black."""
    if any(getattr(out, "nsfw_content_detected", None) or ()):
        raise PermanentRowError("the pipeline's safety checker has blocked what it made")
    return out.images[0]


def _as_image(planes: Tensor) -> Image.Image:
    return Image.fromarray(np.rint(planes.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def _ramp(side: int) -> Tensor:
    """[side, side]: how much a part counts, least at its edges, so that parts run into each other."""
    line = torch.minimum(torch.arange(side), torch.arange(side).flip(0)).float() + 1
    return torch.outer(line, line)


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
