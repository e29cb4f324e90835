"""The Restorer: damaged images in, restored images out, one at a time or in batches of mixed sizes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.restoration.canvas import Band, Canvas, Expected, Restored
from pipeline.restoration.critic import Opinion, pair_of
from pipeline.restoration.decoder import Guide
from pipeline.restoration.engine import Engine, Job
from pipeline.restoration.judge import describe
from pipeline.restoration.marks import Marked, Marks, find_marks
from pipeline.restoration.model import CompactModel
from pipeline.restoration.overview import view_of
from pipeline.restoration.precision import autocast
from pipeline.restoration.request import Pixels, Request, as_captions, as_mask, as_pixels, as_references
from pipeline.restoration.rows import Rows, Whole
from pipeline.restoration.sight import Sight, thumbnail_of
from pipeline.restoration.stains import Stains, Unstained, find_stains
from pipeline.restoration.text import TextEncoder, text_encoder_of
from pipeline.restoration.tiles import Size, Tile, covering, plan_tiles, spans
from pipeline.restoration.tuning import Tuning, alone, device_key, memory_pixels, remember, remembered, tune
from pipeline.restoration.views import CELL
from pipeline.restoration.weights import load_model, save_model

IMAGES_A_LOOK = 4
"""Images in one run of the global view; always so many (padded), so that none depends on its company."""
SIDES = (272, 336, 400, 480)
"""Sides of square tiles in pixels, beside the one that is asked for, where every size of tiles costs something: on a
GPU, which runs many of a size together, and where each size is compiled."""
LEAST, STEP = 64, 32
"""Elsewhere tiles are of any height and width from LEAST pixels to the one that is asked for, in such steps."""
LARGEST_SIDES = (400, 560, 816, 1072)
"""Between these the search may choose, where it is asked to."""
TILE = 560
BATCH_PIXELS = {"cpu": LEAST**2, "cuda": 32 * min(SIDES) ** 2}
"""Of tiles in one run of the decoder, as long as nothing was measured."""


class RestoresBatches(ABC):
    """What restores requests, and so single images."""

    device: torch.device
    name: str
    license: str
    digest: str
    """SHA-256 of the weights."""
    scale: int
    """Pixels of a result for one of the image, along each side."""

    @abstractmethod
    def restore_batch(self, requests: Sequence[Request]) -> list[Restored]:
        """Restore images of any sizes."""

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
            caption: what the picture shows, if known; of several texts the first five that are not blank.
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
        pixels, captions = as_pixels(image), as_captions(caption)
        request = Request(
            pixels=pixels,
            caption=captions[0] if captions else None,
            further_captions=captions[1:],
            mask=None if mask is None else as_mask(mask, pixels.shape[:2]),
            references=as_references(references),
            colourise=colourise,
            strength=strength,
        )
        return self.restore_batch([request])[0]


class Restorer(RestoresBatches):
    """A model with its text encoder on a device.

    The same request on the same kind of CPU gives the same bits, whatever else is in its batch, where one tile runs at
    a time, as it does there by default. Else, and on a GPU, it does but for rounding: kernels are chosen by how many
    tiles run together, and torch_geometric (the mapping `graph`) sums in any order on a GPU.
    """

    def __init__(
        self,
        model: CompactModel,
        digest: str = "",
        device: str | torch.device = "auto",
        tile: int = TILE,
        margin: int = 48,
        skip_undamaged: float | None = None,
        compiled: bool = False,
        text_encoder: str | TextEncoder | None = None,
        downloads: bool = False,
    ) -> None:
        """Put a model on a device.

        Args:
            model: the network.
            digest: SHA-256 of its weights, for the record.
            device: "auto" takes a GPU if there is one.
            tile: side in pixels of the largest tiles, a multiple of 8, margins included; an image has those up to
                this size that cover it with the fewest pixels.
            margin: pixels cut off each inner edge of a tile.
            skip_undamaged: images that the global view takes for undamaged with at least this probability are not
                decoded: their result is the original.
            compiled: run the decoder through torch.compile.
            text_encoder: the one that the model was trained with, or where it lies, if not where it lay then.
            downloads: a text encoder that has a name on the Hugging Face hub may be fetched from there.

        Raises:
            ModelError: there is no such text encoder, or it is another than the model was trained with.
            ValueError: the tile is no multiple of 8, or has nothing left inside its margins.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.margin = margin
        self._skip_undamaged = skip_undamaged
        self._any_size = self.device.type == "cpu" and not compiled
        self._set_tile(tile)
        self.digest = digest
        self.config = model.config
        self.name, self.license = model.config.name, model.config.license
        self.scale = 1
        self._source = model
        self._model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not isinstance(text_encoder, TextEncoder):
            text_encoder = text_encoder_of(model.config, self.device, text_encoder, downloads)
        self.text = text_encoder
        self._engine = Engine(self._model, self.device, BATCH_PIXELS.get(self.device.type, LEAST**2), compiled)

    def _set_tile(self, tile: int) -> None:
        if tile % CELL or tile <= 2 * self.margin or self.margin < 0:
            raise ValueError(
                f"tile must be a multiple of {CELL} larger than twice the margin, not {tile} with {self.margin}"
            )
        self.tile = tile
        smaller = range(LEAST, tile, STEP) if self._any_size else SIDES
        self._sides = (*(side for side in smaller if side < tile), tile)

    def tune(self, tile: int | Literal["auto"] = TILE, memory_mb: int | None = None) -> Tuning:
        """Find out how many tiles best run together here; what was found is remembered for the device and the model.

        A CPU is as fast with any number (docs/performance.md): there it is done only if a side is looked for, or a
        memory given.

        Args:
            tile: the largest tiles' side, or "auto" to choose that, too. Another one changes results a little (their
                last digit), more tiles at a time do not on a CPU.
            memory_mb: what a run of the decoder may take, about; None: half of the GPU's free memory, 1 GB on a CPU.

        Returns:
            What is used from now on.
        """
        if self.device.type == "cpu" and tile != "auto" and memory_mb is None:
            self._set_tile(tile)
            self._engine.warm_up((side, side) for side in self._sides)
            return Tuning(tile, self._engine.batch_pixels)
        memory = memory_pixels(self.device, self.config.decoder_widths[0], memory_mb)
        sides = [side for side in LARGEST_SIDES if side > 2 * self.margin] if tile == "auto" else [tile]
        key = (self.digest, device_key(self.device), sides, self.margin, memory_mb)
        with alone(key):
            found = remembered(key) if self.digest else None
            if found is None:
                found = tune(self._engine, sides, self.margin, min(SIDES), memory)
                if self.digest:
                    remember(key, found)
        self._engine.batch_pixels = found.batch_pixels
        self._set_tile(found.tile)
        self._engine.warm_up((side, side) for side in self._sides)
        return found

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

    def bare_speed(self) -> float:
        """Megapixels of result a second that the decoder alone makes of tiles in memory; takes about a second."""
        batch = self._engine.batch_pixels
        try:
            rounds = 3 if self.device.type == "cuda" else 1  # of a second each, and it has settled when it is asked
            return self._engine.speed_within((self.tile, self.tile), rounds) * (1 - 2 * self.margin / self.tile) ** 2
        finally:
            self._engine.batch_pixels = batch  # a GPU's results follow from it

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
        found = self._look_for_marks([Whole(request.pixels, request.mask) for request in requests], requests)
        requests = [_prepared(request, *both) for request, both in zip(requests, found, strict=True)]
        self.text([request.caption for request in requests])  # in full batches; from now on they are remembered
        views: list[View] = []
        for start in range(0, len(requests), IMAGES_A_LOOK):
            some = requests[start : start + IMAGES_A_LOOK]
            views += self._views(some, [Whole(request.seen, request.mask) for request in some])
        views = [view.without(stains) for view, (stains, _) in zip(views, found, strict=True)]
        canvases = [Canvas(request, view.damage) for request, view in zip(requests, views, strict=True)]
        skipped = [self._skips(request, view) for request, view in zip(requests, views, strict=True)]
        for canvas, skip in zip(canvases, skipped, strict=True):
            if skip:
                canvas.leave()
        sizes = [self._tile_size(*_size(request)) for request in requests]
        jobs: dict[tuple[Size, bool], list[Iterator[Job]]] = {}
        for request, view, canvas, skip, size in zip(requests, views, canvases, skipped, sizes, strict=True):
            if not skip:
                jobs.setdefault((size, view.routed), []).append(self._jobs(request, view, canvas, size))
        with autocast(self.device):  # around all of them: weights are brought to half precision once
            for (size, by_expert), tiles in sorted(jobs.items(), key=lambda item: item[0]):
                self._engine.run(size, itertools.chain.from_iterable(tiles), by_expert)
        results = []
        for canvas, view, request, skip in zip(canvases, views, requests, skipped, strict=True):
            both = Whole(request.pixels), None if skip else Whole(canvas.array)
            expected = self.expect(*both, canvas.means, view, request)
            results.append(canvas.finish(view.damage, view.clean, view.agreement, expected, view.references_ignored))
        return results

    def _jobs(self, request: Request, view: View, canvas: Canvas, size: Size) -> Iterator[Job]:
        """The tiles of an image."""
        for tile in plan_tiles(*_size(request), size, self.margin):
            yield Job(request, tile, tile.box(size, *_size(request)), view.guide, view.damage.grey, canvas)

    def _look_for_marks(
        self, images: Sequence[Rows], requests: Sequence[Request]
    ) -> list[tuple[Stains | None, Marks | None]]:
        """What stains and what covers each image; None where nothing does, or a mask says what alone may change.

        Marks lie above stains, and are looked for in what is left without.
        """
        found: list[tuple[Stains | None, Marks | None]] = [(None, None)] * len(images)
        finders = self._model.stains, self._model.marks
        rows = [row for row, request in enumerate(requests) if any(finders) and not request.keeps_outside]
        views = [view_of(images[row], self.device) for row in rows]
        sizes = [images[row].size for row in rows]
        stains: list[Stains | None] = [None] * len(rows)
        marks: list[Marks | None] = [None] * len(rows)
        if self._model.stains is not None:
            stains = find_stains(self._model.stains, views, sizes)
            views = [
                view if one is None else view_of(Unstained(images[row], one), self.device)
                for row, view, one in zip(rows, views, stains, strict=True)
            ]
        if self._model.marks is not None:
            marks = find_marks(self._model.marks, views, sizes)
        for row, both in zip(rows, zip(stains, marks, strict=True), strict=True):
            found[row] = both
        return found

    def _skips(self, request: Request, view: View) -> bool:
        """Whether an image needs no decoding: it is certainly undamaged, and nothing else is asked for."""
        if self._skip_undamaged is None or view.clean < self._skip_undamaged:
            return False
        return request.mask is None and not (request.colourise and view.damage.grey)

    def agreement(self, request: Request) -> float | None:
        """How well caption and picture agree, 0..1; None without a caption."""
        with torch.inference_mode():
            sight = Sight.of(Whole(request.pixels, request.mask), self.config, self.device)
            return self._look([request], [sight])[0].agreement

    def look_at(self, image: Rows, request: Request) -> View:
        """The global view of an image that is read band by band; what is asked of it stands in `request`."""
        with torch.inference_mode():
            ((stains, marks),) = self._look_for_marks([image], [request])
            seen = image if stains is None else Unstained(image, stains)
            (view,) = self._views([request], [seen if marks is None else Marked(seen, marks)])
            return dataclasses.replace(view.without(stains), marks=marks)

    def restore_rows(self, image: Rows, request: Request, view: View) -> Iterator[Band]:
        """Restore an image that is read band by band, from top to bottom; the pixels are those of `restore_batch`.

        Args:
            image: gives the rows of the image.
            request: what is asked, without pixels and mask.
            view: of `look_at`.

        Yields:
            Restored rows, one band of tiles at a time.
        """
        height, width = image.size
        size = self._tile_size(height, width)
        for top, keep_top, keep_bottom in spans(height, size[0], self.margin):
            bottom = min(height, top + size[0])
            pixels, mask = image.rows(top, bottom)
            here = dataclasses.replace(request, pixels=pixels, mask=mask)
            if view.stains is not None:
                here = dataclasses.replace(here, unstained=view.stains.undone(pixels, top, view.damage.grey))
            if view.marks is not None:
                here = _masked(here, view.marks.rows(top, bottom))
            with torch.inference_mode():
                canvas = Canvas(here, view.damage)
                if self._skips(here, view):
                    canvas.leave()
                else:
                    self._engine.run(
                        size,
                        (
                            Job(
                                here,
                                Tile(0, left, (keep_top - top, keep_left, keep_bottom - top, keep_right)),
                                Tile(top, left, (0, 0, 0, 0)).box(size, height, width),
                                view.guide,
                                view.damage.grey,
                                canvas,
                            )
                            for left, keep_left, keep_right in spans(width, size[1], self.margin)
                        ),
                        view.routed,
                    )
            yield canvas.band(keep_top, slice(keep_top - top, keep_bottom - top))

    def expect(
        self, before: Rows, after: Rows | None, means: Sequence[float], view: View, request: Request
    ) -> Expected:
        """How far from the truth a result is likely to be, and how probably farther than the image was.

        By the critic, which sees both; without one, or without a result, by the judge. Where a mask says what is to
        change, it is what the pixels expect, and nobody asks whether that is worse. Each is judged alone, so that it
        does not depend on its company.

        Args:
            before: the image; it may be a smaller one, if `after` is so, too.
            after: the result; None if nothing was done.
            means: those of `Canvas.means`, over all of its bands.
            view: of the image.
            request: what was asked.
        """
        *known, _, withheld = means
        if request.keeps_outside:
            return Expected(known[0] + withheld)
        opinion = None if after is None else self.opinion(before, after, known, view)
        if opinion is None:
            with torch.inference_mode():
                return Expected(float(self._model.log_error(*self._known(known, view)).exp()) + withheld)
        return Expected(float(opinion.log_error.exp()), float(torch.sigmoid(opinion.worse)))

    def opinion(self, before: Rows, after: Rows, known: Sequence[float], view: View) -> Opinion | None:
        """What the critic says of a result, if there is one; `known` of the pixels, as `judge.describe` wants it."""
        if self._model.critic is None:
            return None
        with torch.inference_mode():
            pair = pair_of(before, after, view.damage.grey, self.device)[None]
            with autocast(self.device):
                said: Opinion = self._model.opinion(pair, *self._known(known, view))
        return said

    def _known(self, known: Sequence[float], view: View) -> tuple[Tensor, Tensor, Tensor]:
        """What judge and critic are told of an image."""
        pixels = describe(*torch.tensor(known)[:, None].to(self.device))
        return pixels, view.guide.vector[None], view.found[None]

    def _views(self, requests: Sequence[Request], images: Sequence[Rows]) -> list[View]:
        """The global view of at most IMAGES_A_LOOK images by all of their captions; each image is read once."""
        sights = [Sight.of(image, self.config, self.device) for image in images]
        views = self._look(requests, sights)
        return [self._as_all_tell(*told) for told in zip(views, requests, sights, strict=True)]

    def _as_all_tell(self, view: View, request: Request, sight: Sight) -> View:
        """The view of a grey picture with the mean of the colours that its captions speak for, one by one.

        Means of several guesses are nearer to the truth than each of them; of the five captions of 200 photographs by
        0.15 dB. Nothing else that a view tells of depends on the caption as much.
        """
        if not (request.further_captions and request.colourise and view.damage.grey):
            return view
        others = [dataclasses.replace(request, caption=caption) for caption in request.further_captions]
        coarse = [view.guide.coarse]
        for start in range(0, len(others), IMAGES_A_LOOK):
            some = others[start : start + IMAGES_A_LOOK]
            coarse += [other.guide.coarse for other in self._look(some, [sight] * len(some))]
        return dataclasses.replace(view, guide=view.guide._replace(coarse=torch.stack(coarse).mean(0)))

    def _look(self, requests: Sequence[Request], sights: Sequence[Sight]) -> list[View]:
        """The global view of at most IMAGES_A_LOOK images; all have equally many references."""
        config = self.config
        text = self.text([r.caption for r in requests] + [None] * (IMAGES_A_LOOK - len(requests)))
        small = _padded([sight.thumbnail for sight in sights])
        native = _padded([sight.probes for sight in sights])
        filled = [request.keeps_outside for request in requests] + [False] * (IMAGES_A_LOOK - len(requests))
        places = len(requests[0].references)
        references = small.new_zeros(len(small), places, 4, config.thumbnail, config.thumbnail)
        for row, request in enumerate(requests):
            for place, reference in enumerate(request.references):
                references[row, place] = thumbnail_of(Whole(reference), config.thumbnail, self.device)[0]
        with autocast(self.device):
            view = self._model.look(
                small,
                native.to(self.device),
                text.tokens,
                text.absent,
                references,
                torch.zeros(len(small), places, dtype=torch.bool, device=self.device),
                torch.tensor(filled, device=self.device) if any(filled) else None,
            )
        agreement = self._model.agreement(view).tolist()
        damages, clean = view.damage.tolist(), torch.sigmoid(view.clean).tolist()
        captioned = (~text.absent).any(1).tolist()
        ignored = (~view.trusted).sum(1).tolist()
        routed = view.routed.tolist()
        return [
            View(
                guide=Guide(*(part[row] for part in view.guide)),
                found=view.found[row],
                routed=routed[row] and request.mask is None and not request.keeps_outside,
                damage=Damage.from_vector(damages[row], sights[row].grey),
                clean=clean[row],
                agreement=agreement[row] if captioned[row] else None,
                references_ignored=ignored[row],
            )
            for row, request in enumerate(requests)
        ]

    def _tile_size(self, height: int, width: int) -> Size:
        """Of the tiles of an image: that with the fewest pixels in all."""

        def decoded(length: int, side: int) -> float:
            fits = side >= length or side > 2 * self.margin
            return covering(length, side, self.margin) * side if fits else math.inf

        if self._any_size:
            tall, wide = (min(self._sides, key=partial(decoded, length)) for length in (height, width))
            return tall, wide
        side = min(self._sides, key=lambda side: decoded(height, side) * decoded(width, side))
        return side, side


@dataclasses.dataclass(frozen=True)
class View:
    """What the global view tells of one image."""

    guide: Guide
    found: Tensor  # [F], as the network gave it
    routed: bool
    """The expert restores it."""
    damage: Damage
    clean: float
    agreement: float | None
    references_ignored: int
    stains: Stains | None = None
    """That were taken away before."""
    marks: Marks | None = None
    """Of an image that is read band by band."""

    def without(self, stains: Stains | None) -> View:
        """The same of an image of which stains were taken away before it was looked at: it was not undamaged."""
        if stains is None:
            return self
        damage = dataclasses.replace(self.damage, stained=stains.area)
        return dataclasses.replace(self, stains=stains, damage=damage, clean=min(self.clean, 1 - stains.probability))


def _masked(request: Request, found: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]) -> Request:
    """The request, with covered pixels in its mask, and how probable they are."""
    covered, probable = found
    if request.mask is not None:
        covered, probable = covered | request.mask, np.where(request.mask, np.float16(1), probable)
    return dataclasses.replace(request, mask=covered, only_mask=False, certainty=probable)


def _prepared(request: Request, stains: Stains | None, marks: Marks | None) -> Request:
    """The request for a whole image, with what was found in it."""
    height = len(request.pixels)
    if stains is not None:
        pixels, _ = Unstained(Whole(request.pixels), stains).rows(0, height)
        request = dataclasses.replace(request, unstained=pixels)
    return request if marks is None else _masked(request, marks.rows(0, height))


def _size(request: Request) -> tuple[int, int]:
    """Height and width."""
    return request.pixels.shape[0], request.pixels.shape[1]


def _padded(images: list[Tensor]) -> Tensor:
    """A batch of IMAGES_A_LOOK, the first image standing in for those that are not there."""
    return torch.stack(images + images[:1] * (IMAGES_A_LOOK - len(images)))
