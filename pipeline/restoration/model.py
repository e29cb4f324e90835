"""The network: a global view once an image, then a stream of tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.damage.record import FADING, SCALES
from pipeline.damage.tone import luma
from pipeline.restoration.coarse import CoarseHead, fusion_of, image_encoder_of, pooled
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.critic import Critic, Opinion
from pipeline.restoration.decoder import Decoded, Guide, TileDecoder
from pipeline.restoration.expert import Router
from pipeline.restoration.image import ProbeEncoder
from pipeline.restoration.judge import JUDGED, SPREAD, USUAL, Judge
from pipeline.restoration.layers import grid_positions
from pipeline.restoration.marks import MarkHead
from pipeline.restoration.painter import Painter, with_painted
from pipeline.restoration.stains import StainHead
from pipeline.restoration.tone import CONFIRMED, LEVELS, Judged, Tone, ToneHead, as_around, levels_of, undone
from pipeline.restoration.views import CELL, cell_positions, filled_in, regions

ROUNDING = 1e-5
"""Less of a thumbnail's pixel is not missing, but was rounded."""

TONES_FOUND = 3
"""Numbers that a tone head tells the judge."""


class GlobalView(NamedTuple):
    """What one look at the whole image yields, for each image of a batch."""

    guide: Guide
    damage: Tensor  # [N, 6], in the order and units of MEASURES; may fall below 0, which means none
    clean: Tensor  # [N], logit that nothing is wrong with the image
    image_feature: Tensor  # [N, agreement_width], unit length
    text_feature: Tensor  # [N, agreement_width], unit length
    trusted: Tensor  # [N, R] bool: references that are there, and show what the image shows
    found: Tensor  # [N, F], all that was found to be wrong, about unit size: for the judge
    routed: Tensor  # [N] bool: images that the expert restores; none without one


class Shown(NamedTuple):
    """What `CompactModel.look` is given, and says of it."""

    thumbnails: Tensor
    probes: Tensor
    text: Tensor
    text_absent: Tensor
    references: Tensor
    references_absent: Tensor
    filled: Tensor | None = None


class CompactModel(nn.Module):
    """Text and image encoders' outputs are fused, and that drives the tile decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder_of(config)
        self.probe_encoder = ProbeEncoder(config)
        self.levels_in = nn.Linear(3 * len(LEVELS), config.width)
        nn.init.zeros_(self.levels_in.weight)
        nn.init.zeros_(self.levels_in.bias)
        self.fusion = fusion_of(config)
        self.coarse_head = CoarseHead(config)
        self.damage_head = nn.Sequential(nn.Linear(2 * config.width, 96), nn.GELU(), nn.Linear(96, len(SCALES) + 1))
        self.image_agreement = nn.Linear(config.encoder_widths[-1], config.agreement_width)
        self.text_agreement = nn.Linear(config.text_width, config.agreement_width)
        self.agreement_scale = nn.Parameter(torch.tensor([1.6, -4.0]))  # log scale and bias, arXiv:2303.15343
        self.decoder = TileDecoder(config)
        self.tone = ToneHead(config.tone_widths) if config.tone_widths else None
        self.marks = MarkHead(config.mark_widths) if config.mark_widths else None
        self.stains = StainHead(config.stain_widths) if config.stain_widths else None
        found = len(SCALES) + 1 + (TONES_FOUND if self.tone is not None else 0)
        self.judge = Judge(config.width, found)
        self.critic = Critic(config.critic_widths, JUDGED + found + config.width) if config.critic_widths else None
        self.expert = TileDecoder(config, told=False) if config.expert else None
        self.router = Router(config.width, found) if config.expert else None
        self.painter = Painter(config) if config.painter else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Shape and weights: some backbones hold hooks, once they have run, that cannot be pickled."""
        return _rebuilt, (self.config, self.state_dict(), self.training)

    def look(
        self,
        thumbnails: Tensor,
        probes: Tensor,
        text: Tensor,
        text_absent: Tensor,
        references: Tensor,
        references_absent: Tensor,
        filled: Tensor | None = None,
    ) -> GlobalView:
        """The global view, of the images with their tone undone.

        Args:
            thumbnails: [N, 4, S, S]: RGB in 0..1 and the share of missing pixels.
            probes: [N, P, 4, s, s]: the same at native resolution.
            text: [N, T, text_width] token features, zeros where there is no caption.
            text_absent: [N, T] bool.
            references: [N, R, 4, S, S] thumbnails; R may be 0.
            references_absent: [N, R] bool.
            filled: [N] bool, images of which nothing but what is missing will be changed, so that it must have their
                tone: where `guide` undoes that, it must be done again; None: none.
        """
        shown = Shown(thumbnails, probes, text, text_absent, references, references_absent, filled)
        nowhere = torch.zeros(len(thumbnails), dtype=torch.bool, device=thumbnails.device)
        judged = self._tone(thumbnails)
        if judged is None:
            return self._seen(shown, None, nowhere)
        used = judged.is_worth_it & ~are_grey(thumbnails[:, :3])  # of greys it is too often certain, and wrong
        if bool(used.any()):  # what sees all of the picture has to see it, too
            with torch.no_grad():
                fading = self._seen(shown, judged, nowhere).damage[:, FADING]
            used = used & (fading > CONFIRMED)
        return self._seen(shown, judged, used)

    def _seen(self, shown: Shown, judged: Judged | None, used: Tensor) -> GlobalView:
        """What `look` says, with the tone undone that was `judged` in the images where it is `used`, [N] bool."""
        thumbnails, probes, text, text_absent, references, references_absent, filled = shown
        tone = Tone.none(len(thumbnails), thumbnails.device)
        if judged is not None:
            tone = judged.tone.where(used)
            thumbnails, probes = _toned(thumbnails, tone), _probes_toned(probes, tone)
        pyramid = self.image_encoder(thumbnails)
        references_absent = references_absent | ~self._trusted(thumbnails, references, references_absent)
        cells = pooled(self.image_encoder, references, references_absent, self.config.encoder_widths[-1])
        small = F.avg_pool2d(thumbnails[:, :3], 4)
        probe = self._probed(probes, small)
        context = self.fusion(text, text_absent, pyramid[-1], probe, cells, references_absent)
        wrong = self.damage_head(torch.cat([context.vector, probe], dim=1)).float()
        scales = wrong.new_tensor(SCALES)
        coarse = self.coarse_head(context.image, pyramid, small)
        grey, lost = are_grey(thumbnails[:, :3]), thumbnails[:, 3:].amax((1, 2, 3)) > ROUNDING
        missing = F.avg_pool2d(thumbnails[:, 3:].float(), 4)
        if self.painter is not None and bool((grey | lost).any()):
            painted = self.painter(thumbnails, probe, text, text_absent, references, references_absent)
            coarse = with_painted(coarse, painted, missing, grey)
        if filled is not None:
            with torch.autocast(coarse.device.type, enabled=False):
                fitting = as_around(coarse.float(), small.float(), missing)
            coarse = torch.where(filled[:, None, None, None], fitting, coarse)
        damage, clean = wrong[:, :-1] * scales, wrong[:, -1]
        if judged is not None:  # the rest has seen what is left of it
            fading = torch.where(used, judged.fading, damage[:, FADING])[:, None]
            damage = torch.cat([damage[:, :FADING], fading, damage[:, FADING + 1 :]], dim=1)
            clean = torch.where(used, torch.minimum(clean, -judged.changed), clean)
        found = _found(damage / scales, clean, judged)
        routed = torch.zeros_like(used)
        if self.router is not None:  # whose own are whole pictures with their own tone and colours
            own = ~used & ~grey & ~lost
            routed = own & (self.router(context.vector, found) > 0)
        weight = (~text_absent).float()[..., None]
        sentence = (text * weight).sum(1) / weight.sum(1).clamp_min(1)
        return GlobalView(
            guide=Guide(context.tokens, context.absent, context.vector, coarse, *tone),
            damage=damage,
            clean=clean,
            image_feature=F.normalize(self.image_agreement(pyramid[-1].mean((2, 3))).float(), dim=1),
            text_feature=F.normalize(self.text_agreement(sentence).float(), dim=1),
            trusted=~references_absent,
            found=found,
            routed=routed,
        )

    def _probed(self, probes: Tensor, small: Tensor) -> Tensor:
        """What an image shows at native resolution, and its levels: [N, width]."""
        out: Tensor = self.probe_encoder(probes) + self.levels_in(2 * levels_of(small) - 1)
        return out

    def paint(self, shown: Shown) -> Tensor:
        """What the painter, which there must be, makes of images: [N, 3, S / 4, S / 4]."""
        assert self.painter is not None
        thumbnails, probes, *told, _ = shown
        out: Tensor = self.painter(thumbnails, self._probed(probes, F.avg_pool2d(thumbnails[:, :3], 4)), *told)
        return out

    @torch.no_grad()
    def _tone(self, thumbnails: Tensor) -> Judged | None:
        """What the tone head says, which learns by itself alone; None without one."""
        if self.tone is None:
            return None
        with torch.autocast(thumbnails.device.type, enabled=False):
            judged: Judged = self.tone(thumbnails.float())
        return judged

    def _trusted(self, thumbnails: Tensor, references: Tensor, absent: Tensor) -> Tensor:
        """Which references [N, R] show what the image shows; of the absent it says nothing."""
        trusted = torch.ones_like(absent)
        if self.config.reference_likeness > 0 and not bool(absent.all()):
            rows, _ = (~absent).nonzero(as_tuple=True)
            alike = self.likeness(thumbnails[rows], references[~absent])
            trusted[~absent] = alike >= self.config.reference_likeness
        return trusted

    def likeness(self, images: Tensor, references: Tensor) -> Tensor:
        """How much of what a reference shows is found in its image: [N], 1 all of it.

        The mean over the reference's regions of the cosine with the most similar region of the image, by the
        encoder's coarsest features of the greys: colours are what an image may lack.

        Args:
            images: [N, 4, S, S], thumbnails.
            references: [N, 4, S, S].
        """

        def regions_of(pictures: Tensor) -> Tensor:
            greys = torch.cat([luma(pictures[:, :3]).expand(-1, 3, -1, -1), pictures[:, 3:]], dim=1)
            return F.normalize(self.image_encoder(greys)[-1].float().flatten(2), dim=1)

        cosines = regions_of(references).transpose(1, 2) @ regions_of(images)
        return cosines.amax(2).mean(1)

    def decode(self, tiles: Tensor, masks: Tensor, guide: Guide, boxes: Tensor, grey: Tensor) -> Decoded:
        """Restore tiles.

        Args:
            tiles: [N, 3, H, W], damaged, 0..1; both sides multiples of 8.
            masks: [N, 1, H, W], 1 where the pixel is missing.
            guide: one entry a tile.
            boxes: [N, 4], where the tile lies in its image: (top, left, bottom, right) in 0..1.
            grey: [N] bool, the image has no colours; it starts from those of the coarse picture.

        Returns:
            Restored tiles, their expected error, and where the picture was found to be lost.
        """
        height, width = tiles.shape[-2:]
        if self.tone is not None:
            tiles = undone(tiles, regions(guide.gain, boxes, height, width), guide.affine, grey)
        coarse = regions(guide.coarse, boxes, height, width)
        colours = (coarse - luma(coarse)) * grey[:, None, None, None]
        base = filled_in(tiles + colours, coarse, masks)
        planes = torch.cat([base, masks, coarse], dim=1).contiguous(memory_format=torch.channels_last)
        decoded: Decoded = self.decoder(planes, guide, cell_positions(boxes, height // CELL, width // CELL))
        return decoded._replace(pixels=base + decoded.pixels)

    def refine(self, tiles: Tensor) -> Decoded:
        """As `decode`, by the expert, which there must be.

        Args:
            tiles: [N, 3, H, W], damaged, 0..1, and beyond where noise was not clipped; both sides multiples of 8.
        """
        assert self.expert is not None
        decoded: Decoded = self.expert(tiles.contiguous(memory_format=torch.channels_last))
        return decoded._replace(pixels=tiles + decoded.pixels)

    def log_error(self, pixels: Tensor, vector: Tensor, found: Tensor) -> Tensor:
        """The logarithm of each result's likely mean squared error: [N].

        Args:
            pixels: [N, 4], by `judge.describe`.
            vector: [N, width], of the guide.
            found: [N, F], of the global view.
        """
        out: Tensor = self.judge(pixels, vector, found)
        return out

    def opinion(self, pairs: Tensor, pixels: Tensor, vector: Tensor, found: Tensor) -> Opinion:
        """What the critic says of results; there must be one.

        Args:
            pairs: [N, 6, S, S], by `critic.pair_of`.
            pixels: with the others as `log_error` takes them.
            vector: of the guide.
            found: of the global view.
        """
        assert self.critic is not None
        out: Opinion = self.critic(pairs, torch.cat([pixels, vector, found], dim=1))
        return out

    def agreement(self, view: GlobalView) -> Tensor:
        """How well caption and picture agree: [N], 0 (not at all) to 1, after SigLIP (arXiv:2303.15343)."""
        scale, bias = self.agreement_scale
        cosine = (view.image_feature * view.text_feature).sum(1)
        return torch.sigmoid(scale.exp() * cosine + bias)


def _toned(thumbnails: Tensor, tone: Tone) -> Tensor:
    """Whole images [N, 4, S, S] with their tone undone; those without colours get none."""
    images, whole = thumbnails[:, :3], thumbnails.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(thumbnails), -1)
    gain = regions(tone.gain, whole, *images.shape[-2:])
    return torch.cat([undone(images, gain, tone.affine, are_grey(images)), thumbnails[:, 3:]], dim=1)


def _probes_toned(probes: Tensor, tone: Tone) -> Tensor:
    """The same of probes [N, P, 4, s, s], each by the light at its centre."""
    count = probes.shape[1]
    side = round(count**0.5)
    centres = grid_positions(side, side, probes.device).repeat(1, 2)
    gain = torch.stack([regions(tone.gain, box.expand(len(probes), -1), 1, 1) for box in centres], dim=1).flatten(0, 1)
    images = probes[:, :, :3].flatten(0, 1)
    grey = are_grey(probes[:, :, :3].transpose(1, 2))
    result = undone(images, gain, tone.affine.repeat_interleave(count, 0), grey.repeat_interleave(count))
    return torch.cat([result.view(len(probes), count, *result.shape[1:]), probes[:, :, 3:]], dim=2)


def are_grey(images: Tensor) -> Tensor:
    """Which of [N, 3, …] have no colours: [N] bool."""
    return (images == images[:, :1]).flatten(1).all(1)


def _found(damage: Tensor, clean: Tensor, tone: Judged | None) -> Tensor:
    """[N, F] from damage in units of SCALES, the logit that there is none, and what is known of the tone."""
    parts = [damage, clean[:, None] / 5]
    if tone is not None:
        errors = (torch.stack([tone.log_error, tone.log_left], dim=1) - USUAL) / SPREAD
        parts += [tone.changed[:, None] / 5, errors]
    return torch.cat(parts, dim=1)


def _rebuilt(config: ModelConfig, weights: dict[str, Tensor], training: bool) -> CompactModel:
    model = CompactModel(config)
    model.load_state_dict(weights)
    rebuilt: CompactModel = model.train(training).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return rebuilt  # as it runs: other layouts round otherwise
