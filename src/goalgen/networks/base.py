"""What all networks share: a trunk reads a canvas, a top turns what it found into features to draw from.

Between the two an action may enter: a latent that the canvas alone has not decided. So the prior of a latent is read from
the trunk, and what is drawn depends on both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.likelihoods import full_precision

LARGEST_LOG_STD = 5.0
"""Log standard deviations stay within this of their reference, smoothly: no divergence can be infinite. (Equation 24)"""


def bounded(log_std: Tensor) -> Tensor:
    """A log standard deviation (any shape), smoothly held within +- :data:`LARGEST_LOG_STD`. (Equation 24)"""
    return LARGEST_LOG_STD * torch.tanh(log_std / LARGEST_LOG_STD)


@dataclass(frozen=True)
class NetworkSpec:
    """Kind and size of a network, and what it must tell apart."""

    kind: str
    """mlp, unet or transformer"""
    shape: tuple[int, int, int]
    """(C, height, width) of the images it draws"""
    horizon: int
    """H: steps that it is told"""
    width: int
    depth: int
    head_width: int
    dropout: float
    patch: int
    num_labels: int = 0
    """classes that it is told; 0: none"""
    memory: int = 0
    """numbers that it is told, of stages before; 0: none"""

    @property
    def pixels(self) -> int:
        """Numbers in one image."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass
class Middle:
    """What a trunk makes of a canvas."""

    tokens: Tensor
    """(B, P, M): M numbers at each of P positions (one position in an mlp)"""
    condition: Tensor
    """what the top is told about step and label"""
    skips: list[Tensor]
    """finer maps that the top reads again"""


class Trunk(nn.Module):
    """First half of a network: an image in, a :class:`Middle` out."""

    positions: int
    """P"""
    width: int
    """M"""

    def forward(self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None) -> Middle:
        """Read images (B, channels, height, width) at steps ``h``, (B,) or (1,), with labels (B,)."""
        raise NotImplementedError


class Top(nn.Module):
    """Second half of a network: features to draw from."""

    num_features: int
    """F"""
    num_context: int
    """numbers in the summary of the whole image"""
    grid: tuple[int, int]
    """rows and columns of positions"""
    patch: int
    """side of the square of pixels that one position draws; 0 where one position draws the whole image"""

    def forward(self, middle: Middle, injected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, F, positions) and context (B, num_context).

        Args:
            injected: (B, P, M) or (B, 1, M), added to the tokens.
        """
        raise NotImplementedError


class Torso(nn.Module):
    """A trunk and a top."""

    def __init__(self, spec: NetworkSpec, trunk: Trunk, top: Top) -> None:
        super().__init__()
        self.trunk = trunk
        self.top = top
        self.num_features, self.num_context = top.num_features, top.num_context
        self.position_pixels = spec.pixels if top.patch == 0 else spec.shape[0] * top.patch**2

    def forward(
        self, h: Tensor, image: Tensor, label: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, F, positions) and context (B, num_context)."""
        return self.top(self.trunk(h, image, label, memory))

    def assemble(self, pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Pixels (..., position_pixels, positions) as images (..., C, height, width)."""
        lead = pixels.shape[:-2]
        if self.top.patch == 0:
            return pixels.reshape(*lead, *shape)
        maps = pixels.reshape(-1, self.position_pixels, *self.top.grid)
        return F.pixel_shuffle(maps, self.top.patch).reshape(*lead, *shape)


def draw(features: Tensor, weight: Tensor) -> Tensor:
    """Pixels (B, count, D, P), linear by ``weight`` (count, D, F) in the ``features`` (B, F, P) of their position."""
    # One product of two matrices: a batched one, with the weights broadcast, is ten times slower on a CPU.
    rows = features.transpose(1, 2).flatten(0, 1)  # (B P, F)
    flat = F.linear(rows, weight.flatten(0, 1))  # (B P, count D)
    return flat.unflatten(1, weight.shape[:2]).unflatten(0, (len(features), -1)).permute(0, 2, 3, 1)


class ImageHead(nn.Module):
    """``count`` images that are linear in a torso's features, each with an image of its own at every step.

    ``scale`` is the size of the images when training begins, 0 for none.
    """

    matrices = ("weight",)

    def __init__(self, torso: Torso, spec: NetworkSpec, count: int, scale: float) -> None:
        super().__init__()
        self.shape, self.count = spec.shape, count
        std = scale / torso.num_features**0.5
        self.weight = nn.Parameter(torch.randn(count, torso.position_pixels, torso.num_features) * std)
        self.bias = nn.Parameter(torch.zeros(spec.horizon, count, *spec.shape))

    def forward(self, torso: Torso, h: Tensor, features: Tensor) -> Tensor:
        """Images (B, count, C, height, width) at steps ``h``, (B,) or (1,)."""
        return full_precision(torso.assemble(draw(features, self.weight), self.shape)) + self.bias[h]


def layer_weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights of linear and convolutional layers."""
    layers = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    return [layer.get_parameter("weight") for layer in layers]


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """:func:`layer_weights`, and those of :class:`ImageHead` and its like (``matrices``)."""
    return layer_weights(module) + [
        part.get_parameter(name) for part in module.modules() for name in getattr(part, "matrices", ())
    ]


class Recall(nn.Module):
    """Memory (B, numbers) as a map (B, *shape), linear in it; of many channels, a mixture of a few maps at every place.

    Args:
        most: maps that are linear in memory, at most.
    """

    def __init__(self, memory: int, shape: tuple[int, ...], most: int | None = None) -> None:
        super().__init__()
        channels = shape[0] if most is None else min(shape[0], most)
        self.shape = (channels, *shape[1:])
        self.map = nn.Linear(memory, math.prod(self.shape))
        self.mix = nn.Conv2d(channels, shape[0], 1) if channels < shape[0] else None

    def forward(self, memory: Tensor) -> Tensor:
        maps: Tensor = self.map(memory).unflatten(1, self.shape)
        return maps if self.mix is None else self.mix(maps)


class Conditioning(nn.Module):
    """Step, label and memory as one vector (B, width)."""

    def __init__(self, spec: NetworkSpec, width: int) -> None:
        super().__init__()
        self.step = nn.Embedding(spec.horizon, width)
        self.label = nn.Embedding(spec.num_labels, width) if spec.num_labels else None
        self.mix = nn.Linear(width, width)
        self.memory = nn.Linear(spec.memory, width) if spec.memory else None

    def forward(self, h: Tensor, label: Tensor | None, memory: Tensor | None) -> Tensor:
        vector = self.step(h)
        if self.label is not None:
            vector = vector + self.label(label)
        if self.memory is not None:
            vector = vector + self.memory(memory)
        return F.silu(self.mix(F.silu(vector)))
