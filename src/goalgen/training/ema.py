"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """A second copy of a module whose weights follow the first slowly.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``: the average of a young run is short, so that it
    forgets the untrained weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimiser step ``step`` (counted from 1); buffers are copied."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages, values = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(averages, [v.detach() for v in values], weight)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
