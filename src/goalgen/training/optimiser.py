"""The optimiser, its schedule and its checks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from goalgen.agents import Agents
from goalgen.bound import Bound
from goalgen.config import TrainingConfig

GC_RATE = {"potential": 1e-2, "temperature": 1e-2, "value": 1e-3}
"""Peak learning rates of the GC-agent's parameters, in proportion to a default rate of 3e-3 for the rest."""


def make_optimizer(agents: Agents, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, and its own rates for the GC-agent.

    A group's ``peak`` is its learning rate at the top of the schedule.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in agents.generative_parameters():
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    scales: list[nn.Parameter] = []
    value: list[nn.Parameter] = []
    for name, parameter in agents.gc_agent.named_parameters():
        if agents.gc_agent.pathwise:  # on the same gradient as the S-agent
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        elif parameter.requires_grad:
            scales_like = "log_sigma" in name or "log_temperature" in name or name == "weight"
            (scales if scales_like else value).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak": config.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": config.learning_rate},
        {"params": scales, "weight_decay": 0.0, "peak": GC_RATE["potential"]},
        {"params": value, "weight_decay": 0.0, "peak": GC_RATE["value"]},
    ]
    # One pass over weights and moments instead of a dozen: a tenth of a training step on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") for p in agents.parameters())
    chosen = [g for g in groups if g["params"]]
    return torch.optim.AdamW(chosen, lr=config.learning_rate, betas=(0.9, 0.99), fused=fused)


def rate(config: TrainingConfig, step: int, done: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        step: optimiser steps taken.
        done: how much of the run lies behind, 0 to 1.
    """
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = min(max(done, 0.0), 1.0)
    if config.decay == "linear":
        return warm * max(0.02, 1 - done)
    if config.decay == "cosine":
        return warm * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
    return warm


def first_bad_tensor(terms: Bound, agents: nn.Module) -> str:
    """Name the first tensor that is not finite, in the order in which a step computes them."""
    named: list[tuple[str, Tensor]] = [("the reconstruction", terms.reconstruction)]
    named = [(f"the KL of step {h}", kl) for h, kl in enumerate(terms.kl)] + named
    named += [(f"the gradient of {n}", p.grad) for n, p in agents.named_parameters() if p.grad is not None]
    named += [(n, p) for n, p in agents.named_parameters()]
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            what = "NaN" if torch.isnan(tensor).any() else "infinite"
            return f"{name} is {what}"
    return "the loss is not finite"
