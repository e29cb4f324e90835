"""The Restorer: damaged images in, restored images out, one at a time or in batches of mixed sizes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.restoration.canvas import Canvas, Restored
from pipeline.restoration.colour import STRIP, is_grey
from pipeline.restoration.decoder import Guide
from pipeline.restoration.judge import describe
from pipeline.restoration.model import CompactModel
from pipeline.restoration.request import Pixels, Request, as_caption, as_mask, as_pixels, as_references
from pipeline.restoration.text import MiniLMEncoder
from pipeline.restoration.tiles import Tile, as_floats, cut, plan_tiles
from pipeline.restoration.views import CELL, probe_corners, thumbnails
from pipeline.restoration.weights import autocast, load_model, save_model

IMAGES_A_LOOK = 4
"""Images in one run of the global view; always so many (padded), so that none depends on its company."""
TILES_A_BATCH = {"cpu": 4, "cuda": 32}
"""Tiles in one run of the decoder; always so many (padded), for the same reason."""


class Restorer:
    """A model with its text encoder on a device.

    The same request on the same kind of device gives the same bits, whatever else is in its batch.
    """

    def __init__(
        self,
        model: CompactModel,
        digest: str = "",
        device: str | torch.device = "auto",
        tile: int = 272,
        margin: int = 8,
    ) -> None:
        """Put a model on a device.

        Args:
            model: the network.
            digest: SHA-256 of its weights, for the record.
            device: "auto" takes a GPU if there is one.
            tile: side of a tile in pixels, a multiple of 8, margins included.
            margin: pixels cut off each inner edge of a tile.

        Raises:
            ValueError: the tile is no multiple of 8, or has nothing left inside its margins.
        """
        if tile % CELL or tile <= 2 * margin or margin < 0:
            raise ValueError(
                f"tile must be a multiple of {CELL} larger than twice the margin, not {tile} with {margin}"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.tile, self.margin = tile, margin
        self.digest = digest
        self.config = model.config
        self.name = model.config.name
        self._source = model
        self._model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._text = MiniLMEncoder(model.config.text_tokens, self.device)

    @classmethod
    def from_pretrained(cls, place: str | Path = "compact", **options: Any) -> Restorer:
        """Load a shipped model by name, or one from a folder or URI; `options` as for `Restorer`.

        Raises:
            ModelError: there is no model, or it cannot be loaded.
        """
        model, digest = load_model(place)
        return cls(model, digest, **options)

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write `config.json`, `model.safetensors` and `MODEL_CARD.md`."""
        save_model(self._source, folder, card)

    def restore(
        self,
        image: Image.Image | Pixels,
        caption: str | Sequence[str] | None = None,
        mask: Image.Image | Pixels | None = None,
        references: Iterable[Image.Image | Pixels] | Image.Image | Pixels | None = (),
        colourise: bool = False,
        strength: float = 1.0,
    ) -> Restored:
        """Restore one image.

        Args:
            image: a PIL image (turned upright as its EXIF says, brought to sRGB by its profile, without its alpha), a
                uint8 or uint16 array [H, W, 3] (or [H, W]), or a float32 array with 0..1 as black to white; values
                outside that range are taken as they are (noise).
            caption: what the picture shows, if known; of several texts the first that is not blank.
            mask: nonzero where the picture is lost; [H, W]. Then no pixel outside it is changed.
            references: other pictures of the same subject, or one.
            colourise: give a grey picture colours; its luminance stays as it is.
            strength: how much of the change is made, 0..1; less leaves grain. What is lost is always filled.

        Raises:
            TypeError: an image is neither a PIL image nor an array.
            ValueError: an array has another shape or type, is empty, holds NaN, the mask has another size, or the
                strength lies outside 0..1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must lie in 0..1, not be {strength}")
        pixels = as_pixels(image)
        request = Request(
            pixels=pixels,
            caption=as_caption(caption),
            mask=None if mask is None else as_mask(mask, pixels.shape[:2]),
            references=as_references(references),
            colourise=colourise,
            strength=strength,
        )
        return self.restore_batch([request])[0]

    @torch.inference_mode()
    def bare_speed(self) -> float:
        """Megapixels of result a second that the decoder alone makes of tiles in memory; takes about a second."""
        batch, side = TILES_A_BATCH.get(self.device.type, 4), self.tile
        tiles = torch.rand(batch, 3, side, side, device=self.device)
        absent = torch.zeros(batch, 1, side, side, device=self.device)
        (view,) = self._look([Request(np.zeros((side, side, 3), np.uint8))])
        guide = Guide(*(torch.stack([part] * batch) for part in view.guide))
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * batch, device=self.device)
        grey = torch.zeros(batch, dtype=torch.bool, device=self.device)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            with autocast(self.device):
                float(self._model.decode(tiles, absent, guide, boxes, grey).pixels.sum())  # waits for a GPU
            seconds.append(time.perf_counter() - started)
        return batch * (side - 2 * self.margin) ** 2 / min(seconds) / 1e6

    @torch.inference_mode()
    def restore_batch(self, requests: Sequence[Request]) -> list[Restored]:
        """Restore images of any sizes together: their tiles share the decoder's batches.

        Images with equally many references go together, so that all contexts of a batch are of one length.
        """
        results: dict[int, Restored] = {}
        for places in sorted({len(request.references) for request in requests}):
            rows = [row for row, request in enumerate(requests) if len(request.references) == places]
            results.update(zip(rows, self._restore_alike([requests[row] for row in rows]), strict=True))
        return [results[row] for row in range(len(requests))]

    def _restore_alike(self, requests: Sequence[Request]) -> list[Restored]:
        views: list[_View] = []
        for start in range(0, len(requests), IMAGES_A_LOOK):
            views += self._look(requests[start : start + IMAGES_A_LOOK])
        canvases = [Canvas(request, view.damage) for request, view in zip(requests, views, strict=True)]
        tiles = [
            (index, tile)
            for index, request in enumerate(requests)
            for tile in plan_tiles(request.pixels.shape[0], request.pixels.shape[1], self.tile, self.margin)
        ]
        batch = TILES_A_BATCH.get(self.device.type, 4)
        for start in range(0, len(tiles), batch):
            self._decode(tiles[start : start + batch], batch, requests, views, canvases)
        return [
            canvas.finish(view.damage, view.clean, view.agreement, self._likely_error(canvas, view))
            for canvas, view in zip(canvases, views, strict=True)
        ]

    def _likely_error(self, canvas: Canvas, view: _View) -> float:
        """What the mean squared error of a result is likely to be; of a fill the mean of what its pixels expect."""
        if canvas.masked:
            return canvas.means[0]
        pixels = describe(*torch.tensor(canvas.means)[:, None].to(self.device))
        log_error = self._model.log_error(pixels, view.guide.vector[None], view.findings[None], view.logit[None])
        return float(log_error.exp())

    def _look(self, requests: Sequence[Request]) -> list[_View]:
        """The global view of at most IMAGES_A_LOOK images; all have equally many references."""
        config = self.config
        text = self._text([r.caption for r in requests] + [None] * (IMAGES_A_LOOK - len(requests)))
        small = _padded([_thumbnail(r.pixels, r.mask, config.thumbnail)[0] for r in requests])
        native = _padded([_probes(r.pixels, r.mask, config.probe, config.probes) for r in requests])
        places = len(requests[0].references)
        references = small.new_zeros(len(small), places, 4, config.thumbnail, config.thumbnail)
        for row, request in enumerate(requests):
            for place, reference in enumerate(request.references):
                references[row, place] = _thumbnail(reference, None, config.thumbnail)[0]
        with autocast(self.device):
            view = self._model.look(
                small.to(self.device),
                native.to(self.device),
                text.tokens,
                text.absent,
                references.to(self.device),
                torch.zeros(len(small), places, dtype=torch.bool, device=self.device),
            )
        agreement = self._model.agreement(view).tolist()
        damages, clean = view.damage.tolist(), torch.sigmoid(view.clean).tolist()
        captioned = (~text.absent).any(1).tolist()
        return [
            _View(
                guide=Guide(*(part[row] for part in view.guide)),
                findings=view.damage[row],
                logit=view.clean[row],
                damage=Damage.from_vector(damages[row], is_grey(requests[row].pixels)),
                clean=clean[row],
                agreement=agreement[row] if captioned[row] else None,
            )
            for row in range(len(requests))
        ]

    def _decode(
        self,
        tiles: Sequence[tuple[int, Tile]],
        batch: int,
        requests: Sequence[Request],
        views: Sequence[_View],
        canvases: Sequence[Canvas],
    ) -> None:
        """Run one batch of tiles and paint what is kept of them."""
        side = self.tile
        padded = list(tiles) + [tiles[0]] * (batch - len(tiles))
        pixels = torch.stack([cut(requests[index].pixels, tile, side) for index, tile in padded]).to(self.device)
        masks = torch.stack([_cut_mask(requests[index], tile, side) for index, tile in padded]).to(self.device)
        shapes = [requests[index].pixels.shape for index, _ in padded]
        boxes = torch.tensor(
            [t.box(side, s[0], s[1]) for (_, t), s in zip(padded, shapes, strict=True)], device=self.device
        )
        guide = Guide(*(torch.stack(parts) for parts in zip(*(views[index].guide for index, _ in padded), strict=True)))
        grey = torch.tensor([views[index].damage.grey for index, _ in padded], device=self.device)
        with autocast(self.device):
            decoded = self._model.decode(pixels, masks, guide, boxes, grey)
        restored, log_error = decoded.pixels.float().cpu(), decoded.log_error.float().clamp(-14, 2).cpu()
        lost = decoded.lost.cpu() > 0  # a logit
        for row, (index, tile) in enumerate(tiles):
            canvases[index].paint(tile, restored[row], log_error[row, 0], lost[row, 0])


@dataclasses.dataclass(frozen=True)
class _View:
    """One image's share of a GlobalView."""

    guide: Guide
    findings: Tensor  # [6], as the network gave them
    logit: Tensor  # [], that nothing is wrong
    damage: Damage
    clean: float
    agreement: float | None


def _cut_mask(request: Request, tile: Tile, side: int) -> Tensor:
    if request.mask is None:
        return torch.zeros(1, side, side)
    return cut(request.mask[..., None], tile, side)


def _padded(images: list[Tensor]) -> Tensor:
    """A batch of IMAGES_A_LOOK, the first image standing in for those that are not there."""
    return torch.stack(images + images[:1] * (IMAGES_A_LOOK - len(images)))


def _planes(pixels: Pixels, mask: Pixels | None) -> tuple[Tensor, Tensor]:
    """[H, W, 3] and [H, W] -> floats [1, 3, H, W] and [1, 1, H, W]."""
    image = as_floats(pixels)[None]
    lost = torch.zeros_like(image[:, :1])
    if mask is not None:
        lost = torch.from_numpy(mask.copy()).float()[None, None]
    return image, lost


def _thumbnail(pixels: Pixels, mask: Pixels | None, side: int) -> Tensor:
    """[1, 4, side, side]; large images are averaged strip by strip first, so that they never stand in floats whole."""
    height, width = pixels.shape[:2]
    factor = 1
    while min(height, width) // (2 * factor) >= 2 * side:
        factor *= 2
    if factor == 1:
        return thumbnails(*_planes(pixels, mask), side)
    images, masks = [], []
    for top in range(0, height - factor + 1, STRIP):
        rows = slice(top, min(top + STRIP, height - height % factor))
        image, lost = _planes(pixels[rows], None if mask is None else mask[rows])
        present = F.avg_pool2d(1 - lost, factor)
        images.append(F.avg_pool2d(image * (1 - lost), factor) / present.clamp_min(1e-3))
        masks.append(1 - present)
    return thumbnails(torch.cat(images, 2), torch.cat(masks, 2), side)


def _probes(pixels: Pixels, mask: Pixels | None, side: int, count: int) -> Tensor:
    """[count, 4, side, side] without turning the whole image into floats."""
    height, width = (max(length, side) for length in pixels.shape[:2])
    lost = np.zeros((*pixels.shape[:2], 1), np.bool_) if mask is None else mask[..., None]
    corners = [Tile(top, left, (0, 0, 0, 0)) for top, left in probe_corners(height, width, side, count)]
    return torch.stack([torch.cat([cut(pixels, corner, side), cut(lost, corner, side)]) for corner in corners])
