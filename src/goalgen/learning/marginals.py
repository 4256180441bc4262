"""Learning from closed-form marginals: one step of every episode, drawn directly, at a cost that does not grow with H."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_steps(batch: int, horizon: int, generator: torch.Generator) -> Tensor:
    """One step in 0..H-1 for each of ``batch`` examples, (batch,) int64: uniform each, and evenly spread together.

    Example i takes floor(H ((u + i / batch) mod 1)) with one uniform u for the batch, in a random order (Kingma et al. 2021, appendix I.1).
    (Equation 26)
    """
    place = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(batch) / batch) % 1
    steps = (place * horizon).long().clamp(max=horizon - 1)
    return steps[torch.randperm(batch, generator=generator)]
