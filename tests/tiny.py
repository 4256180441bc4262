"""A world small enough to sum over: 3 proposals, 3 steps, images of 2x2 pixels with 5 grey levels."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.families import make
from goalgen.family import Family
from goalgen.settings import configure

SHAPE = (1, 2, 2)
LEVELS = 5


def tiny_agents(gc_agent: str = "posterior", *, horizon: int = 3, actions: int = 3, seed: int = 0, **changes) -> Family:
    """Untrained agents whose proposals, policy and likelihood all depend on the canvas."""
    config = configure(
        environment="proposals", horizon=horizon, num_proposals=actions, gc_agent=gc_agent, step_size=0.7, width=16, depth=1, head_width=8,
        **changes,
    )  # fmt: skip
    agents = make(config, SHAPE, LEVELS, seed, num_labels=3)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in agents.named_parameters():
            spread = 0.5 if "logit" in name or name in ("s_agent.bias", "s_agent.weight") else 0.0
            spread = 0.1 if "scale_network" in name else spread
            spread = 1.0 if "torso.trunk.label" in name else spread
            if spread:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return agents


def tiny_goals(count: int = 6, seed: int = 0, levels: int = LEVELS, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randint(0, levels, (count, *shape), generator=generator).float() * 2 / (levels - 1) - 1


def tiny_start(count: int = 6, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.zeros(count, *shape)
