"""The shape of a model: everything that must be known before its weights can be loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

MAPPINGS = ("attention", "graph")
"""What may map tokens onto each other."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A shape that is stored as `config.json` beside its model's weights."""

    def save(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `save` wrote; keys that this version does not know are refused.

        Raises:
            ValueError: a key is unknown, so the weights belong to another version.
        """
        values: dict[str, Any] = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"config.json has keys that this version does not know: {', '.join(unknown)}; "
                "upgrade conservator, or take weights made for this version"
            )
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclasses.dataclass(frozen=True)
class ModelConfig(Stored):
    """Sizes of the `compact` family. Stored as `config.json` beside the weights."""

    name: str = "compact"
    """What rows and reports call this model."""

    license: str = "unknown"
    """Under which terms the weights may be used; rows tell it."""

    text_encoder: str = "all-MiniLM-L6-v2"
    """What captions went through in training, as `text.text_encoder` takes it."""

    text_sha256: str = ""
    """SHA-256 of its weights: with others the model would not understand a word. Empty: not known."""

    text_tokens: int = 32
    """Tokens kept of a caption; longer captions are cut."""

    text_width: int = 384
    """Features of one text token; 384 is all-MiniLM-L6-v2."""

    image_encoder: str = "compact"
    """What thumbnails go through: `compact`, or the name of a backbone."""

    backbone: dict[str, Any] | None = None
    """The shape of that backbone, as `backbone.Backbone` takes it; its weights are among the model's own."""

    mapping: str = "attention"
    """What maps text, image and reference tokens onto each other: `attention` or `graph`."""

    thumbnail: int = 160
    """Side in pixels of the square global view of an image (aspect ratio is squeezed into it)."""

    probe: int = 64
    """Side in pixels of one native-resolution probe; noise and blocking are gone in a thumbnail."""

    probes: int = 4
    """Probes taken of an image."""

    encoder_widths: tuple[int, ...] = (48, 96, 192)
    """Channels of the image encoder at 1/4, 1/8 and 1/16 of the thumbnail."""

    reference_likeness: float = 0.0
    """References that are less like the image than this (`model.likeness`) are left alone: they show something else.
    Training measures it; 0: all are trusted."""

    width: int = 192
    """Features of one context token and of the global vector."""

    fusion_layers: int = 2
    """Transformer layers that map text, image and reference tokens onto each other."""

    heads: int = 4
    """Attention heads, in the fusion and in the decoder."""

    agreement_width: int = 96
    """Features of the space in which a caption is compared with a picture."""

    decoder_widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the decoder at full resolution, 1/2, 1/4 and 1/8 of the tile."""

    decoder_blocks: tuple[int, ...] = (1, 1, 1, 2)
    """Residual blocks at each of those levels, on the way down and (but for the last) again on the way up."""

    tone_widths: tuple[int, ...] = ()
    """Channels of the tone head at 1/2, 1/4, 1/8 and 1/16 of its thumbnail; none: there is no such head."""

    mark_widths: tuple[int, ...] = ()
    """Channels of the mark head at 1/2, 1/4, 1/8 and 1/16 of its view; none: there is no such head."""

    stain_widths: tuple[int, ...] = ()
    """Channels of the stain head at 1/2, 1/4, 1/8 and 1/16 of its view; none: there is no such head."""

    critic_widths: tuple[int, ...] = ()
    """Channels of the critic at 1/4, 1/8 and 1/16 of its views; none: there is no critic."""

    expert: bool = False
    """Whether there is a second decoder, as large as the first, for images with noise, JPEG artefacts or lack of
    resolution alone."""

    painter: bool = False
    """Whether a second global view paints what is gone: colours and what was missing."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `Stored.from_json`; an unknown mapping is refused, too."""
        config = super().from_json(text)
        if config.mapping not in MAPPINGS:
            raise ValueError(f"config.json has the mapping {config.mapping!r}; known are: {', '.join(MAPPINGS)}")
        return config
