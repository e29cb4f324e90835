"""Fusion by a graph network: words, regions of the image and of references are nodes that tell each other."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.extras import check_extra
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.fusion import Fusion, Layout

NEAREST = 6
"""Nodes of another kind that a node is told of: those whose features are most alike."""
NEXT, LIKE, WHOLE = range(3)
"""Kinds of edges: to a neighbour, to what is alike, from and to the summary."""


class GraphFusion(Fusion):
    """Graph attention (GATv2, arXiv:2105.14491) with skips and norms as the transformer has them.

    Edges lead both ways between neighbouring regions of the picture (eight each) and of a reference, between
    neighbouring words, between what is most alike of different kinds (word and region, region and reference), and
    between a summary and everything. What is absent has none. A layer so costs some tens of edges a node, where
    attention costs all nodes.
    """

    def __init__(self, config: ModelConfig) -> None:
        """For a model of these sizes.

        Raises:
            RecipeError: torch_geometric is missing.
        """
        check_extra("the mapping `graph`", "graph", "torch_geometric")
        super().__init__(config)
        self.layers = nn.ModuleList(_GraphLayer(config.width, config.heads) for _ in range(config.fusion_layers))

    def fuse(self, tokens: Tensor, absent: Tensor, layout: Layout) -> Tensor:
        """Nodes are told of those that edges lead from."""
        with torch.no_grad():
            edges, kinds = _edges(tokens.float(), absent, layout)
        nodes = tokens.flatten(0, 1)
        for layer in self.layers:
            nodes = layer(nodes, edges, kinds)
        return nodes.view(tokens.shape)


class _GraphLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        from torch_geometric.nn import GATv2Conv

        super().__init__()
        self.kind = nn.Embedding(3, width // 4)
        self.norm = nn.LayerNorm(width)
        self.attend = GATv2Conv(width, width // heads, heads=heads, edge_dim=width // 4, add_self_loops=False)
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, nodes: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        """`nodes` [N * L, width], `edges` [2, E] from and to, `kinds` [E]."""
        with torch.autocast(nodes.device.type, enabled=False):  # sums over many edges want whole precision
            told: Tensor = self.attend(self.norm(nodes.float()), edges, self.kind(kinds))
        nodes = nodes + told
        out: Tensor = nodes + self.body(nodes)
        return out


def _edges(tokens: Tensor, absent: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Edges [2, E] of all graphs of a batch, numbered through, and their kinds [E].

    `tokens` are [N, L, width], of which some are `absent` [N, L].
    """
    count, length, _ = tokens.shape
    device = tokens.device
    regions, words, references, cells = layout
    picture, text = 1, 1 + regions * regions
    shown = text + words
    near = _neighbours(regions, regions) + picture
    line = torch.arange(words - 1)
    near = torch.cat([near, torch.stack([line, line + 1]) + text, torch.stack([line + 1, line]) + text], dim=1)
    for place in range(references):
        near = torch.cat([near, _neighbours(cells, cells) + shown + place * cells * cells], dim=1)
    every = torch.arange(1, length)
    summary = torch.zeros_like(every)
    whole = torch.cat([torch.stack([summary, every]), torch.stack([every, summary]), torch.zeros(2, 1).long()], dim=1)
    fixed = torch.cat([near, whole], dim=1).to(device)
    fixed_kinds = torch.cat([torch.full((near.shape[1],), NEXT), torch.full((whole.shape[1],), WHOLE)]).to(device)

    # each region is told of the words and the reference regions most like it, and they of it
    features = F.normalize(tokens - tokens.mean(1, keepdim=True), dim=2)
    parts = [(text, words)] + ([(shown, references * cells * cells)] if references else [])
    alike = [torch.zeros(count, 2, 0, dtype=torch.long, device=device)]
    for start, size in parts:
        if not size:
            continue
        others = slice(start, start + size)
        likeness = features[:, picture:text] @ features[:, others].transpose(1, 2)
        likeness = likeness.masked_fill(absent[:, None, others], -torch.inf)
        for values, offset, towards in ((likeness, start, picture), (likeness.transpose(1, 2), picture, start)):
            found = values.topk(min(NEAREST, values.shape[2]), dim=2).indices + offset
            to = torch.arange(values.shape[1], device=device)[None, :, None] + towards
            alike.append(torch.stack([found, to.expand_as(found)], dim=1).flatten(2))
    like = torch.cat(alike, dim=2)
    both = torch.cat([fixed.expand(count, -1, -1), like], dim=2)
    kinds = torch.cat([fixed_kinds, torch.full((like.shape[2],), LIKE, device=device)]).expand(count, -1)
    present = ~absent.gather(1, both[:, 0]) & ~absent.gather(1, both[:, 1])
    offsets = (torch.arange(count, device=device) * length)[:, None, None]
    numbered = (both + offsets).transpose(1, 2)[present].T.contiguous()
    return numbered, kinds[present]


@functools.lru_cache(maxsize=8)
def _neighbours(height: int, width: int) -> Tensor:
    """Edges [2, E] between all cells of a grid that touch each other, corners included."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    touch = ((y[:, None] - y).abs() <= 1) & ((x[:, None] - x).abs() <= 1)
    touch.fill_diagonal_(False)
    return touch.nonzero().T.contiguous()
