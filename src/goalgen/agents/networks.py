"""Torsos of the S-agent: a canvas and a step in, features out.

Both return ``(features, context)``: features (B, F, P) at P positions, from which proposals are read, and
context (B, width), from which the policy is read. At an mlp P is 1; at a conv network P is the number of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.errors import GoalgenError


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


class MLPTorso(nn.Module):
    """All pixels into one vector, ``depth`` residual blocks, one position.

    Args:
        shape: (C, height, width) of a canvas.
        horizon: H, the number of steps it is told apart.
        width: units of a layer.
        depth: residual blocks.
        head_width: features F that the proposals are read from.
        dropout: in every block and on the features.
    """

    def __init__(
        self, shape: tuple[int, int, int], horizon: int, width: int, depth: int, head_width: int, dropout: float
    ) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.num_positions = 1
        self.position_pixels = pixels
        self.num_features = head_width
        self.num_context = width
        self.dropout = dropout
        self.input = nn.Linear(pixels, width)
        self.step = nn.Embedding(horizon, width)
        nn.init.normal_(self.step.weight, std=0.1)
        self.blocks = nn.ModuleList(ResidualBlock(width, horizon, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, head_width)

    def forward(self, h: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input(canvas.flatten(1)) + self.step(h)  # (B, width)
        for block in self.blocks:
            x = block(x, h)
        context = F.silu(self.norm(x))
        features = F.dropout(F.silu(self.head(context)), self.dropout / 2, self.training)
        return features.unsqueeze(-1), context

    def assemble(self, pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Pixels (..., D, 1) of the one position as images (..., C, height, width)."""
        return pixels.reshape(*pixels.shape[:-2], *shape)


class MixerBlock(nn.Module):
    """Mix positions, then channels (Tolstikhin et al. 2021), told the step by an embedding."""

    def __init__(self, width: int, positions: int, horizon: int, dropout: float) -> None:
        super().__init__()
        self.norm_positions = nn.LayerNorm(width)
        self.mix_in = nn.Linear(positions, 2 * positions)
        self.mix_out = nn.Linear(2 * positions, positions)
        self.channels = ResidualBlock(width, horizon, dropout)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # x (B, P, width)
        mixed = self.mix_out(F.silu(self.mix_in(self.norm_positions(x).transpose(1, 2))))
        return self.channels(x + mixed.transpose(1, 2), h.unsqueeze(1))


class ConvTorso(nn.Module):
    """Patches as positions: a strided convolution in, ``depth`` mixer blocks, features at every patch.

    Proposals are read patch by patch, so that their cost grows with the features of a patch, not with
    the whole image times the whole vector.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        horizon: int,
        width: int,
        depth: int,
        head_width: int,
        dropout: float,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, image_width = shape
        if height % patch or image_width % patch:
            raise GoalgenError(
                f"--patch {patch} does not divide an image of {height}x{image_width}; choose a divisor of both sides"
            )
        self.patch = patch
        self.rows, self.columns = height // patch, image_width // patch
        self.num_positions = self.rows * self.columns
        self.position_pixels = channels * patch * patch
        self.num_features = head_width
        self.num_context = width
        self.dropout = dropout
        # An overlapping window lets a patch see its neighbours' borders at once.
        self.input = nn.Conv2d(channels, width, 2 * patch + 1, stride=patch, padding=(patch + 1) // 2 + patch // 2)
        self.place = nn.Parameter(torch.randn(self.num_positions, width) * 0.1)
        self.step = nn.Embedding(horizon, width)
        nn.init.normal_(self.step.weight, std=0.1)
        self.blocks = nn.ModuleList(MixerBlock(width, self.num_positions, horizon, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, head_width)

    def forward(self, h: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input(canvas)[:, :, : self.rows, : self.columns].flatten(2).transpose(1, 2)  # (B, P, width)
        x = x + self.place + self.step(h).unsqueeze(1)
        for block in self.blocks:
            x = block(x, h)
        x = F.silu(self.norm(x))
        features = F.dropout(F.silu(self.head(x)), self.dropout / 2, self.training)
        return features.transpose(1, 2), x.mean(1)

    def assemble(self, pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Pixels (..., C patch^2, P) of every patch as images (..., C, height, width)."""
        lead = pixels.shape[:-2]
        maps = pixels.reshape(-1, self.position_pixels, self.rows, self.columns)
        return F.pixel_shuffle(maps, self.patch).reshape(*lead, *shape)


Torso = MLPTorso | ConvTorso


def make_torso(
    kind: str,
    shape: tuple[int, int, int],
    horizon: int,
    width: int,
    depth: int,
    head_width: int,
    dropout: float,
    patch: int,
) -> Torso:
    """The torso called ``kind`` ("mlp" or "conv")."""
    if kind == "mlp":
        return MLPTorso(shape, horizon, width, depth, head_width, dropout)
    if kind == "conv":
        return ConvTorso(shape, horizon, width, depth, head_width, dropout, patch)
    raise GoalgenError(f"no network is called {kind!r}; there are: mlp, conv")
