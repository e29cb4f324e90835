"""Models of others: a picture in, a picture out. Each says what it can take, and the chain treats all alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ModelError, RecipeError
from pipeline.extras import check_extra
from pipeline.redaction import redacted
from pipeline.restoration.local import files_sha256, is_local, local_copy, said, whole
from pipeline.restoration.precision import autocast
from pipeline.restoration.request import Pixels, Request
from pipeline.restoration.tiles import as_floats, cut, plan_tiles

TILE, MARGIN = 512, 32
"""Side of the tiles of models that may see a picture in parts, and what is cut off their inner edges, in pixels."""
WEIGHTS = (".safetensors", ".pth")
"""What runs no code when it is read."""


class PictureModel(ABC):
    """A model that makes of a picture a better one."""

    name: str
    digest: str
    """SHA-256 of its weights."""
    license: str = "unknown"
    scale: int = 1
    """Pixels of the result for one of the input, along each side."""
    fills: bool = False
    """Whether it is told what is lost, and fills it."""

    draws: bool = False
    """Whether what it makes depends on a seed."""
    does: str = "restore"
    """Among the actions of a row's provenance; what fills or enlarges says so besides."""

    @abstractmethod
    def __call__(self, picture: Pixels, request: Request, seed: int) -> Tensor:
        """A better picture.

        Args:
            picture: [H, W, 3], uint8, uint16 or float32 in 0..1: what is to be bettered, maybe not for the first time.
            request: what is asked; its mask has the picture's size, its pixels are those of the original.
            seed: of what it draws at random.

        Returns:
            [3, scale * H, scale * W], float32 in 0..1, on the CPU.
        """


class TiledModel(PictureModel):
    """One that may see a picture in parts: all that it makes of a picture's tile is made of that tile alone."""

    multiple: int = 1
    """Sides of what it sees must be multiples of so many pixels."""
    smallest: int = 1
    """And not be less than this."""
    tiled: bool = True
    """Whether it may see a picture in parts; else it sees it whole, whatever memory that takes."""
    half: bool = False
    """Whether it runs in half precision where the hardware is fast at that; else its results are those of plain
    PyTorch in single precision."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def forward(self, tiles: Tensor, masks: Tensor) -> Tensor:
        """[1, 3, h, w] in 0..1 and [1, 1, h, w] -> [1, 3, scale * h, scale * w]."""

    @torch.inference_mode()
    def __call__(self, picture: Pixels, request: Request, seed: int = 0) -> Tensor:
        """See `PictureModel`; a picture that is no larger than a tile is seen as it is."""
        height, width = picture.shape[:2]
        mask = np.zeros((height, width), np.bool_) if request.mask is None else request.mask
        if not self.tiled or max(height, width) <= TILE:
            return self._run(as_floats(picture), as_floats(mask[..., None]))
        out = torch.empty(3, self.scale * height, self.scale * width)
        for tile in plan_tiles(height, width, (TILE, TILE), MARGIN):
            result = self._run(*(cut(planes, tile, (TILE, TILE)) for planes in (picture, mask[..., None])))
            top, left, bottom, right = (self.scale * edge for edge in tile.keep)
            first, start = self.scale * tile.top, self.scale * tile.left
            out[:, top:bottom, left:right] = result[:, top - first : bottom - first, left - start : right - start]
        return out

    def _run(self, picture: Tensor, mask: Tensor) -> Tensor:
        height, width = picture.shape[-2:]
        padding = [_up_to(length, self.multiple, self.smallest) - length for length in (height, width)]
        edges = (0, padding[1], 0, padding[0])
        planes = torch.cat([picture, mask])[None].to(self.device)
        if any(padding):
            mode = "reflect" if padding[0] < height and padding[1] < width else "replicate"
            planes = F.pad(planes, edges, mode=mode)
        with autocast(self.device, self.half):
            out = self.forward(planes[:, :3], planes[:, 3:])
        return out[0, :, : self.scale * height, : self.scale * width].float().clamp(0, 1).cpu()


class SpandrelModel(TiledModel):
    """Any of the restorers that spandrel knows (over 40 architectures), from .safetensors or, without code, .pth."""

    def __init__(self, file: Path, device: torch.device, half: bool = False) -> None:
        """Load a file; `half`: see `TiledModel`, where the architecture allows it.

        Raises:
            ModelError: spandrel does not know what is in it, or it is for other channels.
            RecipeError: spandrel or torchvision is missing.
        """
        check_extra("a model of spandrel", "spandrel", "spandrel", "torchvision")
        try:
            import spandrel
        except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
            raise RecipeError(
                f"spandrel cannot be used ({said(error)}); its torchvision must be the one that belongs to torch "
                f"{torch.__version__}"
            ) from error

        super().__init__(device)
        try:
            found = spandrel.ModelLoader(device).load_from_file(file)
        except spandrel.UnsupportedModelError as error:
            raise ModelError(f"spandrel knows no architecture that has the weights of {file}") from error
        except Exception as error:  # whatever unpickling and forty architectures raise
            raise ModelError(f"spandrel cannot load {file} ({type(error).__name__}: {error})") from error
        self._masked = isinstance(found, spandrel.MaskedImageModelDescriptor)
        channels = (found.input_channels, found.output_channels)
        if channels not in ((3, 3), (1, 1)):
            raise ModelError(
                f"{file} is for {channels[0]} channels in and {channels[1]} out; it should be colours or grey"
            )
        self._model: Any = found.eval()
        self._grey = channels == (1, 1)
        self.name = f"{found.architecture.name} {file.stem}"
        self.digest = files_sha256([file])
        self.scale, self.fills = found.scale, self._masked
        self.does = "enlarge" if self.scale > 1 else "restore"
        self.tiled = found.tiling == spandrel.ModelTiling.SUPPORTED
        self.half = half and found.supports_bfloat16
        sizes = found.size_requirements
        self.multiple, self.smallest = sizes.multiple_of or 1, sizes.minimum or 1

    def forward(self, tiles: Tensor, masks: Tensor) -> Tensor:
        """Grey models run on each colour."""
        if self._masked:
            out: Tensor = self._model(tiles, (masks > 0).float())
            return out
        if self._grey:
            return torch.cat([self._model(plane[:, None]) for plane in tiles[0][:, None]], dim=1)
        restored: Tensor = self._model(tiles)
        return restored


class Swin2SRModel(TiledModel):
    """Swin2SR (arXiv:2209.11345) as transformers has it."""

    def __init__(self, folder: Path, device: torch.device, half: bool = False) -> None:
        """Load a folder; `half`: see `TiledModel`.

        Raises:
            ModelError: there is no such model in it.
        """
        from transformers import Swin2SRForImageSuperResolution

        super().__init__(device)
        try:
            model = whole(Swin2SRForImageSuperResolution, folder)
        except (ModelError, OSError, ValueError) as error:
            raise ModelError(f"no Swin2SR in {folder}: {error}") from error
        self.half = half
        self._model: Callable[..., Any] = model.to(device).eval()
        self.name = f"Swin2SR {folder.name}"
        self.digest = files_sha256(sorted(folder.glob("*.safetensors")))
        self.scale = int(model.config.upscale)
        self.does = "enlarge" if self.scale > 1 else "restore"
        self.multiple = self.smallest = int(model.config.window_size)

    def forward(self, tiles: Tensor, masks: Tensor) -> Tensor:
        """Tiles larger by the model's scale."""
        out: Tensor = self._model(pixel_values=tiles).reconstruction
        return out


def check_other(place: str) -> None:
    """Whether a model of others is there, if it is on this machine, and the packages that it needs.

    Raises:
        ModelError: it is not.
        RecipeError: a package is missing.
    """
    kind, _, where = place.partition(":")
    if kind == "spandrel":
        check_extra(f"restoration.model {redacted(place)}", "spandrel", "spandrel", "torchvision")
    if kind.startswith("diffusers"):
        check_extra(f"restoration.model {redacted(place)}", "diffusion", "diffusers", "accelerate")
    if is_local(where):
        here(kind, where)


def other_model(place: str, device: torch.device, half: bool = False) -> PictureModel:
    """A model of others.

    Args:
        place: `spandrel:FILE`, `swin2sr:FOLDER` or `diffusers-…:FOLDER`; paths or URIs.
        device: where it is to run.
        half: whether tiled ones may run in half precision; pipelines of diffusers do on GPUs in any case.

    Raises:
        ModelError: there is none, or it cannot be loaded.
        RecipeError: a package is missing.
    """
    kind, _, where = place.partition(":")
    found = here(kind, where)
    if kind == "spandrel":
        return SpandrelModel(found, device, half)
    if kind == "swin2sr":
        return Swin2SRModel(found, device, half)
    from pipeline.restoration.diffusion import DiffusionModel  # takes a while

    return DiffusionModel(kind, found, device)


def here(kind: str, where: str) -> Path:
    """Files of a kind of model, on this machine.

    Raises:
        ModelError: they are not there.
    """
    try:
        found = local_copy(where)
    except Exception as error:  # a driver that is missing, a scheme unknown, or what a store raises
        raise ModelError(f"no model at {redacted(where)!r} ({said(error)})") from error
    if kind.startswith("diffusers") and not (found / "model_index.json").is_file():
        raise ModelError(f"{redacted(where)!r} is no folder with a pipeline of diffusers: it has no model_index.json")
    if kind == "spandrel" and found.suffix.lower() not in WEIGHTS:
        raise ModelError(f"{redacted(where)!r} should be a file of weights: {', '.join(WEIGHTS)}")
    return found


def _up_to(length: int, multiple: int, smallest: int) -> int:
    return -(-max(length, smallest) // multiple) * multiple
