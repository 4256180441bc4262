"""A transformer over patches (Dosovitskiy et al. 2021), told the step by adaptive norms (Peebles and Xie 2023)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.errors import GoalgenError
from goalgen.networks.base import Conditioning, Middle, NetworkSpec, Recall, Top, Trunk


def patch_grid(spec: NetworkSpec) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        GoalgenError: the patch does not divide the image.
    """
    _, height, width = spec.shape
    if height % spec.patch or width % spec.patch:
        raise GoalgenError(
            f"--patch {spec.patch} does not divide an image of {height}x{width}; choose a divisor of both sides"
        )
    return height // spec.patch, width // spec.patch


class TransformerBlock(nn.Module):
    """Attention, then one hidden layer; both scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # x (B, P, width), condition (B, width)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        y = self.norm(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, P, d) each
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        # The gates begin at 1 rather than 0: an action that enters in the middle must reach the canvas at once.
        x = x + (1 + gate1) * self.project(y)
        y = F.silu(self.inner(self.norm(x) * (1 + scale2) + shift2))
        return x + (1 + gate2) * self.outer(F.dropout(y, self.dropout, self.training))


def number_of_heads(width: int) -> int:
    """Heads of about 32 numbers each."""
    return next(n for n in range(max(width // 32, 1), 0, -1) if width % n == 0)


class TransformerTrunk(Trunk):
    """Patches into tokens (each sees its neighbours' borders), then ``depth`` blocks."""

    def __init__(self, spec: NetworkSpec, channels: int, depth: int) -> None:
        super().__init__()
        self.positions, self.width = math.prod(patch_grid(spec)), spec.width
        self.input = nn.Conv2d(channels, spec.width, spec.patch + 2, stride=spec.patch, padding=1)
        self.place = nn.Parameter(torch.randn(self.positions, spec.width) * 0.1)
        self.condition = Conditioning(spec, spec.width)
        heads = number_of_heads(spec.width)
        self.blocks = nn.ModuleList(TransformerBlock(spec.width, heads, spec.dropout) for _ in range(depth))
        self.recall = Recall(spec.memory, (self.positions, spec.width)) if spec.memory else None

    def forward(self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None) -> Middle:
        condition = self.condition(h, label, memory)
        x = self.input(image).flatten(2).transpose(1, 2)  # (B, P, width)
        x = x + self.place.to(x.dtype)  # in autocast a sum with float32 would leave half precision for good
        if self.recall is not None:
            x = x + self.recall(memory)
        for block in self.blocks:
            x = block(x, condition)
        return Middle(x, condition, [])


class TransformerTop(Top):
    """``depth`` blocks, and one layer of features at every patch."""

    def __init__(self, spec: NetworkSpec, depth: int) -> None:
        super().__init__()
        self.num_features, self.num_context = spec.head_width, spec.width
        self.grid, self.patch, self.dropout = patch_grid(spec), spec.patch, spec.dropout
        heads = number_of_heads(spec.width)
        self.blocks = nn.ModuleList(TransformerBlock(spec.width, heads, spec.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, spec.head_width)

    def forward(self, middle: Middle, injected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = middle.tokens if injected is None else middle.tokens + injected
        for block in self.blocks:
            x = block(x, middle.condition)
        x = F.silu(self.norm(x))
        features = F.dropout(F.silu(self.head(x)), self.dropout / 2, self.training)
        return features.transpose(1, 2), x.mean(1)
