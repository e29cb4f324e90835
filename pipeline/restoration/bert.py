"""BERT's encoder (arXiv:1810.04805) of torch's own parts.

The default text encoder runs on it: importing transformers for that takes each actor some four seconds, as long as all
else at its start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Names of a layer's parts in torch, and in published weights."""


class Bert(nn.Module):
    """Token ids to token features."""

    def __init__(self, folder: Path) -> None:
        """Load `config.json` and `model.safetensors` in the layout of transformers' BertModel.

        Raises:
            OSError: one of them is not there.
            KeyError: it is not of that layout.
        """
        super().__init__()
        shape: dict[str, Any] = json.loads((folder / "config.json").read_text())
        width, epsilon = shape["hidden_size"], shape["layer_norm_eps"]
        layer = nn.TransformerEncoderLayer(
            width,
            shape["num_attention_heads"],
            shape["intermediate_size"],
            dropout=0.0,
            activation=shape["hidden_act"],
            layer_norm_eps=epsilon,
            batch_first=True,
        )
        self.words = nn.Embedding(shape["vocab_size"], width)
        self.positions = nn.Embedding(shape["max_position_embeddings"], width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.layers = nn.TransformerEncoder(layer, shape["num_hidden_layers"], enable_nested_tensor=False)
        weights = load_file(folder / "model.safetensors")
        self.load_state_dict(_renamed(weights, shape["num_hidden_layers"]), assign=True)

    def forward(self, ids: Tensor, present: Tensor) -> Tensor:
        """`ids` [N, T] and `present` [N, T], bool -> [N, T, width]; what is not present is whatever it is."""
        places = torch.arange(ids.shape[1], device=ids.device)
        features = self.norm(self.words(ids) + self.positions(places))
        out: Tensor = self.layers(features, src_key_padding_mask=~present)
        return out


def tokenizer_of(folder: Path, length: int) -> Tokenizer:
    """Texts to `length` token ids, cut off or padded."""
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.enable_truncation(length)
    found.enable_padding(length=length)
    return found


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    there = "embeddings."
    found = {
        "words.weight": weights[there + "word_embeddings.weight"],
        # all tokens are of the first sentence
        "positions.weight": weights[there + "position_embeddings.weight"]
        + weights[there + "token_type_embeddings.weight"][0],
    }
    found |= {f"norm.{kind}": weights[f"{there}LayerNorm.{kind}"] for kind in ("weight", "bias")}
    for number in range(layers):
        ours, theirs = f"layers.layers.{number}.", f"encoder.layer.{number}."
        for kind in ("weight", "bias"):
            parts = [weights[f"{theirs}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{ours}self_attn.in_proj_{kind}"] = torch.cat(parts)
            found |= {f"{ours}{name}.{kind}": weights[f"{theirs}{other}.{kind}"] for name, other in LAYER.items()}
    return found
