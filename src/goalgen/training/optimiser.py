"""The optimiser, its schedule and its checks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from goalgen.bound import Bound
from goalgen.config import TrainingConfig
from goalgen.family import Family
from goalgen.training.muon import Muon


def make_optimizer(family: Family, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW or Muon with the family's groups of parameters. A group's ``peak`` is its learning rate at the top of the schedule."""
    # One pass over weights and moments instead of a dozen: a tenth of a training step on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") for p in family.parameters())
    config = config.plain()
    rate = config.learning_rate or 0.0
    groups = family.parameter_groups(rate, config.weight_decay)
    given: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.99), "fused": fused}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **given)
    own = family.rates()
    return Muon(groups, [weight for weight in family.layers() if weight not in own], **given)


def rate(config: TrainingConfig, step: int, done: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        step: optimiser steps taken.
        done: how much of the run lies behind, 0 to 1.
    """
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = min(max(done, 0.0), 1.0)
    falls = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return warm * max(0.02, falls.get(config.decay, 1.0))


def first_bad_tensor(terms: Bound, family: nn.Module) -> str:
    """Name the first tensor that is not finite, in the order in which a step computes them."""
    named: list[tuple[str, Tensor]] = [(f"the KL of step {h}", kl) for h, kl in enumerate(terms.kl)]
    named += [("the reconstruction", terms.reconstruction)]
    named += [(f"the gradient of {n}", p.grad) for n, p in family.named_parameters() if p.grad is not None]
    named += [(n, p) for n, p in family.named_parameters()]
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            return f"{name} is {'NaN' if torch.isnan(tensor).any() else 'infinite'}"
    return "the loss is not finite"
