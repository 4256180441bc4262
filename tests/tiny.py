"""A world small enough to sum over: 3 proposals, 3 steps, images of 2x2 pixels with 5 grey levels."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.agents import Agents, make_agents
from goalgen.config import ModelConfig

SHAPE = (1, 2, 2)
LEVELS = 5


def tiny_agents(gc_agent: str = "posterior", *, horizon: int = 3, actions: int = 3, seed: int = 0, **changes) -> Agents:
    """Untrained agents whose proposals, policy and likelihood all depend on the canvas."""
    config = ModelConfig(
        horizon=horizon, num_proposals=actions, gc_agent=gc_agent, step_size=0.7, width=16, depth=1, head_width=8,
        **changes,
    )  # fmt: skip
    agents = make_agents(config, SHAPE, LEVELS, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in agents.named_parameters():
            if "logit" in name or "scale_network" in name or name == "s_agent.bias" or name == "s_agent.weight":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return agents


def tiny_goals(count: int = 6, seed: int = 0, levels: int = LEVELS, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randint(0, levels, (count, *shape), generator=generator).float() * 2 / (levels - 1) - 1


def tiny_start(count: int = 6, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.zeros(count, *shape)
