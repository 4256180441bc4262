"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from goalgen.family import Family

EVERY, FROM = 4, 1000
"""After step FROM only every so many steps are averaged, with a decay to that power. An average as long as it then is does not
show the difference, and a training step on a CPU is a twentieth shorter."""


class EMA:
    """A second copy of a module whose weights follow the first slowly.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``: the average of a young run is short, so that it
    forgets the untrained weights. (Equation 18)
    """

    def __init__(self, module: Family, decay: float) -> None:
        self.module: Family = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._averages: list[Tensor] = list(self.module.parameters())
        self._sources: tuple[nn.Module, list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, module: Family, step: int) -> None:
        """Move towards ``module`` after optimiser step ``step`` (counted from 1), if this step is averaged; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if step > FROM:
            if step % EVERY:
                return
            decay **= EVERY
        if self._sources is None or self._sources[0] is not module:  # the lists are as long as a step is short
            self._sources = (module, [p.detach() for p in module.parameters()])
        torch._foreach_lerp_(self._averages, self._sources[1], 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
