"""A convolutional U-Net (Ronneberger et al. 2015; Ho et al. 2020), cut at its coarsest map.

With ``patch`` above 1 its finest map holds one position for every square of that many pixels, which is what makes it
affordable on a CPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.networks.base import Conditioning, Middle, NetworkSpec, Recall, Top, Trunk
from goalgen.networks.transformer import number_of_heads, patch_grid

FINE_MAPS = 8
"""Maps of a memory at the finest size, which channels mix."""


def level_sizes(spec: NetworkSpec) -> tuple[list[tuple[int, int]], list[int]]:
    """Rows and columns, and channels, of the maps from the finest to the coarsest.

    The sides are halved while both are even and above 4, twice at most; there are ``width`` channels at the finest, twice as
    many below.
    """
    sides = [patch_grid(spec)]
    while len(sides) < 3 and all(side % 2 == 0 and side > 4 for side in sides[-1]):
        sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
    return sides, [spec.width, *(2 * spec.width for _ in sides[1:])]


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of about 8 channels."""
    return nn.GroupNorm(math.gcd(channels, max(channels // 8, 1)), channels)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions around a scale and a shift that depend on the condition, added to the input."""

    def __init__(self, before: int, after: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(before), group_norm(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.dropout = dropout
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # x (B, channels, rows, columns)
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        y = F.silu(self.norm2(y) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(F.dropout(y, self.dropout, self.training))


def conv_blocks(before: int, after: int, depth: int, spec: NetworkSpec) -> nn.ModuleList:
    """``depth`` blocks, the first of which changes the number of channels."""
    return nn.ModuleList(ConvBlock(after if i else before, after, 2 * spec.width, spec.dropout) for i in range(depth))


class Attention(nn.Module):
    """Self-attention over all positions of a map, added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = number_of_heads(channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).permute(1, 0, 2, 4, 3)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, P, d)
        return x + self.project(y.transpose(2, 3).reshape(x.shape))


class UNetTrunk(Trunk):
    """From the finest map down: ``depth`` blocks at every size, attention at the coarsest."""

    def __init__(self, spec: NetworkSpec, channels: int, depth: int) -> None:
        super().__init__()
        sides, widths = level_sizes(spec)
        self.positions, self.width = math.prod(sides[-1]), widths[-1]
        self.condition = Conditioning(spec, 2 * spec.width)
        self.input = nn.Conv2d(channels, spec.width, spec.patch + 2, stride=spec.patch, padding=1)
        self.place = nn.Parameter(torch.randn(spec.width, *sides[0]) * 0.1)
        pairs = zip([spec.width, *widths[:-1]], widths, strict=True)
        self.levels = nn.ModuleList(conv_blocks(before, width, depth, spec) for before, width in pairs)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.attention = Attention(self.width)
        # Memory as maps, finest and coarsest; at the finest all channels would hold most of the weights.
        maps = [((spec.width, *sides[0]), FINE_MAPS), ((self.width, *sides[-1]), None)] if spec.memory else []
        self.recall = nn.ModuleList(Recall(spec.memory, shape, most) for shape, most in maps)

    def forward(self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None) -> Middle:
        condition = self.condition(h, label, memory)
        x = self.input(image)
        x = x + self.place.to(x.dtype)  # in autocast a sum with float32 would leave half precision for good
        if memory is not None:
            x = x + self.recall[0](memory)
        skips = []
        for i, blocks in enumerate(self.levels):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            if i < len(self.down):
                skips.append(x)
                x = self.down[i](x)
        x = self.attention(x if memory is None else x + self.recall[1](memory))
        return Middle(x.flatten(2).transpose(1, 2), condition, skips)


class UNetTop(Top):
    """From the coarsest map up, each size with the trunk's map of that size beside it."""

    def __init__(self, spec: NetworkSpec, depth: int) -> None:
        super().__init__()
        sides, widths = level_sizes(spec)
        self.sides, self.grid, self.patch = sides[-1], sides[0], spec.patch
        self.num_features, self.num_context, self.dropout = spec.head_width, spec.width, spec.dropout
        self.middle = ConvBlock(widths[-1], widths[-1], 2 * spec.width, spec.dropout)
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.levels = nn.ModuleList(conv_blocks(coarse + fine, fine, depth, spec) for coarse, fine in pairs)
        self.norm = group_norm(widths[0])
        self.head = nn.Conv2d(widths[0], spec.head_width, 1)

    def forward(self, middle: Middle, injected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tokens = middle.tokens if injected is None else middle.tokens + injected
        x = self.middle(tokens.transpose(1, 2).unflatten(2, self.sides), middle.condition)
        for blocks, skip in zip(self.levels, reversed(middle.skips), strict=True):
            x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, middle.condition)
        x = F.silu(self.norm(x))
        features = F.dropout(F.silu(self.head(x)), self.dropout / 2, self.training)
        return features.flatten(2), x.mean((2, 3))
