"""Proposals that are never chosen get a second life as variations of proposals that are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goalgen.families.proposals.s_agent import ProposalsSAgent

JITTER = 0.1
"""Size of the variation, in standard deviations of the copied weights."""


def dead_proposals(usage: Tensor, below: float) -> Tensor:
    """Indices of proposals chosen less often, over all steps and cells, than ``below`` of an equal share.

    Args:
        usage: (H, cells, A), rows summing to one.
    """
    share = usage.mean((0, 1))
    return (share < below / usage.shape[-1]).nonzero().flatten()


@torch.no_grad()
def revive(
    s_agent: ProposalsSAgent,
    averaged: ProposalsSAgent,
    usage: Tensor,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    below: float,
) -> int:
    """Turn every dead proposal into a variation of a popular one, which gives it half its probability.

    Weights, averaged weights and the optimiser's moments are treated alike; ``usage`` (H, cells, A) is brought up to date.

    Returns:
        The number of proposals revived.
    """
    dead = dead_proposals(usage, below)
    if not len(dead):
        return 0
    share = usage.mean((0, 1)).cpu().clamp(min=0)
    share[dead.cpu()] = 0
    alive = int((share > 0).sum())
    sources = torch.multinomial(share, len(dead), replacement=len(dead) > alive, generator=generator).to(dead.device)
    for name, dimension in s_agent.rows().items():
        parameter, average = s_agent.get_parameter(name), averaged.get_parameter(name)
        rows = parameter.index_select(dimension, sources)
        noise = torch.zeros_like(rows)
        if not name.startswith("logit"):
            noise = torch.randn(rows.shape, generator=generator).to(rows) * rows.std() * JITTER
        for tensor in (parameter, average):
            tensor.index_copy_(dimension, dead, tensor.index_select(dimension, sources) + noise)
        for moment in optimizer.state.get(parameter, {}).values():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moment.index_copy_(dimension, dead, moment.index_select(dimension, sources))
    for module in (s_agent, averaged):
        for proposal in torch.cat([dead, sources]).unique():
            # A proposal copied n times shares its probability among n + 1.
            origin = sources[dead == proposal][0] if (dead == proposal).any() else proposal
            module.logit_bias[proposal] -= math.log(1 + int((sources == origin).sum()))
    for i, source in zip(dead.tolist(), sources.tolist(), strict=True):
        usage[..., i] = usage[..., source] / 2
        usage[..., source] /= 2
    return len(dead)
