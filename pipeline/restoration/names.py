"""What the names of models stand for in recipes. Imports nothing that takes seconds: drivers do without torch."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "models"
"""Models that come with the package, a folder each."""
JUDGE = "compact"
"""What gives the second opinion on models of others, where no model of ours stands before them."""
KINDS: dict[str, str] = {
    "spandrel": "single-image restorers of over 40 architectures, from .safetensors or .pth",
    "swin2sr": "Swin2SR of transformers, from a folder",
    "diffusers-inpaint": "fills what a mask covers, with the caption as prompt",
    "diffusers-redraw": "image to image, with the caption as prompt",
    "diffusers-enlarge": "four times larger, with the caption as prompt",
}
"""Prefixes of models of others, and what they stand for."""
DIFFUSERS = "diffusers:"
"""Prefix of pipelines of others that make pictures."""


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []


def is_other(place: str) -> bool:
    """Whether a place names a model of others: `spandrel:…`, `swin2sr:…`."""
    return place.partition(":")[0] in KINDS
