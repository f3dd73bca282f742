"""Small networks for the engine's tests, one for every kind of method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TRANSFORMERS_ONLY = {"legrad", "rollout"}


class Attention(nn.Module):
    """Self-attention in the ways that libraries write it."""

    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        if way == "module":
            self.inner = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "module":
            return self.inner(x, x, x, need_weights=False)[0]
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            mixed = (scores.softmax(-1) if self.way == "method" else functional.softmax(scores, dim=-1)) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, way)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small ViT with any number of leading tokens; the first is read, or the patches' mean where there is none."""

    def __init__(self, extra: int = 1, way: str = "fused", patch: int = 4, classes: int = 3, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, patch, patch)
        self.tokens = nn.Parameter(torch.randn(1, extra, 8))
        self.blocks = nn.Sequential(*[Block(8, 2, way) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, classes)
        with torch.no_grad():  # fresh attention is almost uniform
            for parameter in self.blocks.parameters():
                parameter *= 3

    def features(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.features(images))
        return self.head(x[:, 0] if self.tokens.shape[1] else x.mean(1))


class Staged(nn.Module):
    """Two grids, then a global average and a linear layer, which the original CAM asks for; ReLUs for guidance."""

    def __init__(self, classes: int = 3, axes: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv, norm, pool = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
        stem = nn.Sequential(conv(3, 6, 3, padding=1), norm(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(stem, nn.Sequential(conv(6, 8, 3, 2, 1), nn.ReLU()), nn.Dropout(dropout))
        self.pool, self.head = pool(1), nn.Linear(8, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))


def network_for(method: str, **options: Any) -> nn.Module:
    """A network on which a method gives maps, in evaluation mode."""
    return (ViT(**options) if method in TRANSFORMERS_ONLY else Staged(**options)).eval()
