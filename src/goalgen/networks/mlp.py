"""All pixels in one vector: the network for images up to about 16x16, and for small budgets beyond."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.networks.base import Middle, NetworkSpec, Recall, Top, Trunk


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 norm(x) + e_h): one hidden layer, told the step by an embedding."""

    def __init__(self, width: int, horizon: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.step = nn.Embedding(horizon, width)
        self.dropout = dropout
        nn.init.normal_(self.step.weight, std=0.02)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # x (B, width), h (B,)
        hidden = F.silu(self.inner(self.norm(x)) + self.step(h))
        return x + self.outer(F.dropout(hidden, self.dropout, self.training))


class MLPTrunk(Trunk):
    """Pixels into one vector, then ``depth`` residual blocks."""

    def __init__(self, spec: NetworkSpec, channels: int, depth: int) -> None:
        super().__init__()
        self.positions, self.width = 1, spec.width
        self.input = nn.Linear(channels * spec.shape[1] * spec.shape[2], spec.width)
        self.step = nn.Embedding(spec.horizon, spec.width)
        nn.init.normal_(self.step.weight, std=0.1)
        self.label = nn.Embedding(spec.num_labels, spec.width) if spec.num_labels else None
        self.blocks = nn.ModuleList(ResidualBlock(spec.width, spec.horizon, spec.dropout) for _ in range(depth))
        self.recall = Recall(spec.memory, (spec.width,)) if spec.memory else None

    def forward(self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None) -> Middle:
        x = self.input(image.flatten(1)) + self.step(h)  # (B, width)
        if self.label is not None:
            x = x + self.label(label)
        if self.recall is not None:
            x = x + self.recall(memory)
        for block in self.blocks:
            x = block(x, h)
        return Middle(x.unsqueeze(1), h, [])


class MLPOpening(Trunk):
    """Stands for a trunk where there is nothing to read, as every canvas is the same: a vector (for every label)."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.positions, self.width = 1, spec.width
        self.vector = nn.Parameter(torch.randn(max(spec.num_labels, 1), spec.width) * 0.1)
        self.recall = Recall(spec.memory, (spec.width,)) if spec.memory else None

    def forward(self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None) -> Middle:
        rows = self.vector.expand(len(image), -1) if label is None else self.vector[label]
        if self.recall is not None:
            rows = rows + self.recall(memory)
        return Middle(rows.unsqueeze(1), h, [])


class MLPTop(Top):
    """``depth`` residual blocks, and one layer of features."""

    def __init__(self, spec: NetworkSpec, depth: int) -> None:
        super().__init__()
        self.num_features, self.num_context = spec.head_width, spec.width
        self.grid, self.patch, self.dropout = (1, 1), 0, spec.dropout
        self.blocks = nn.ModuleList(ResidualBlock(spec.width, spec.horizon, spec.dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, spec.head_width)

    def forward(self, middle: Middle, injected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = middle.tokens if injected is None else middle.tokens + injected
        x = x.squeeze(1)
        for block in self.blocks:
            x = block(x, middle.condition)
        context = F.silu(self.norm(x))
        features = F.dropout(F.silu(self.head(context)), self.dropout / 2, self.training)
        return features.unsqueeze(-1), context
