"""A PixelCNN of grey images (van den Oord et al. 2016), each pixel a mixture of discretised logistics (Salimans et al. 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from peers import Peer
from torch import Tensor, nn

from goalgen.likelihoods import discretised_logistic_log_prob, full_precision
from goalgen.networks import NetworkSpec, bounded

LAYERS = 7
"""Residual blocks."""


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees pixels above, and to the left of, the one in its middle; with ``itself`` that one too."""

    mask: Tensor

    def __init__(self, before: int, after: int, size: int, itself: bool) -> None:
        super().__init__(before, after, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + itself :] = 0
        mask[size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Block(nn.Module):
    """Half the channels, a masked 3x3 convolution, all of them again; added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, half, 1), nn.SiLU(), MaskedConv2d(half, half, 3, True), nn.SiLU(), nn.Conv2d(half, width, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PixelCNN(Peer):
    """Pixels row by row, one evaluation for each: its likelihood is exact, and its samples are dear."""

    samplers = ("PixelCNN",)

    def __init__(self, spec: NetworkSpec, levels: int, modes: int = 10) -> None:
        super().__init__(spec)
        if spec.shape[0] != 1:
            raise ValueError("this PixelCNN is for grey images")
        self.levels, self.modes = levels, modes
        self.input = MaskedConv2d(1, spec.width, 7, False)
        self.blocks = nn.Sequential(*(Block(spec.width) for _ in range(LAYERS)))
        self.head = nn.Sequential(
            nn.SiLU(), nn.Conv2d(spec.width, spec.width, 1), nn.SiLU(), nn.Conv2d(spec.width, 3 * modes, 1)
        )
        self.places = nn.Parameter(torch.linspace(-1, 1, modes).view(1, modes, 1, 1))

    def mixture(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales (B, modes, height, width) of every pixel, given those before it."""
        weight, mean, log_scale = full_precision(self.head(self.blocks(self.input(image)))).chunk(3, 1)
        return weight.log_softmax(1), self.places + mean, bounded(log_scale - 2)

    def nats(self, goals: Tensor) -> Tensor:
        """-log p of goals (B, 1, height, width), (B,)."""
        weight, mean, log_scale = self.mixture(goals)
        each = discretised_logistic_log_prob(goals, mean, log_scale, self.levels)
        return -torch.logsumexp(weight + each, 1).sum((1, 2))

    def loss(self, goals: Tensor, generator: torch.Generator, step: int) -> Tensor:
        return self.nats(goals).mean()

    def can_draw(self, sampler: str, evaluations: int) -> bool:
        return evaluations == math.prod(self.shape)

    def draw(self, sampler: str, evaluations: int, noise: Tensor, generator: torch.Generator) -> Tensor:
        image = torch.zeros_like(noise)
        for row in range(noise.shape[2]):
            for column in range(noise.shape[3]):
                weight, mean, log_scale = (part[:, :, row, column] for part in self.mixture(image))
                mode = torch.multinomial(weight.exp(), 1, generator=generator)
                uniform = torch.rand(len(noise), 1, generator=generator).clamp(1e-6, 1 - 1e-6).to(noise.device)
                value = mean.gather(1, mode) + log_scale.gather(1, mode).exp() * torch.logit(uniform)
                level = ((value.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round()
                image[:, :, row, column] = level / (self.levels - 1) * 2 - 1
        return image
