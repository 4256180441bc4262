"""Soft value learning: V regressed on the soft return of the GC-agent's own episodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LAMBDA = 0.9
"""Weight of the sampled return against the one-step soft Bellman value in the targets."""


def soft_returns(log_ratio: Tensor, values: Tensor, terminal: Tensor, weight: float = LAMBDA) -> Tensor:
    """Targets of V_1 .. V_{H-1}, (H - 1, B) nats. (Equation 16)

    For a policy q proportional to p exp V the one-step soft value, log sum_a p exp V (equation 5), is
    V(x_{h+1}) + log p(a) - log q(a) at *any* action: the sampled action gives it exactly. ``weight`` 0 is that
    value; 1 is the whole sampled soft return, log p(g, tau) - log q(tau | g) from the state on; between, their
    geometric mixture as in TD(lambda).

    Args:
        log_ratio: log p(a_h | x_h) - log q(a_h | x_h, g), (H, B).
        values: V_1(x_1) .. V_{H-1}(x_{H-1}), (H - 1, B).
        terminal: V_H = log p(g | x_H), (B,).
    """
    target, ahead, targets = terminal, terminal, []
    for h in range(len(log_ratio) - 1, 0, -1):
        target = log_ratio[h] + (1 - weight) * ahead + weight * target
        targets.append(target)
        ahead = values[h - 1]
    return torch.stack(targets[::-1]) if targets else values


def within_goals(error: Tensor, episodes: int) -> Tensor:
    """Errors (H - 1, B) less their mean over the episodes of the same goal. (Equation 20)

    What all episodes of a goal have in common, how hard it is to reach, is most of the variance of the returns, and no
    policy depends on it: q compares the next states of one goal. So with several episodes a goal only their
    differences are learned from, and V is right up to a constant for each goal and step.
    """
    if episodes == 1:
        return error
    grouped = error.unflatten(1, (-1, episodes))
    return (grouped - grouped.mean(-1, keepdim=True)).flatten(1) * (episodes / (episodes - 1)) ** 0.5


def value_loss(values: Tensor, log_ratio: Tensor, terminal: Tensor, episodes: int) -> tuple[Tensor, Tensor]:
    """Regression of V_1 .. V_{H-1} on the soft returns of the episodes they were asked in, and its error, nats (scalars).

    Args:
        values: (H - 1, B), with gradient; H is at least 2.
        log_ratio: (H, B).
        terminal: (B,).
        episodes: consecutive rows that share their goal.
    """
    targets = soft_returns(log_ratio.detach(), values.detach(), terminal.detach())
    error = within_goals(values - targets, episodes)
    loss = F.huber_loss(error, torch.zeros_like(error), delta=5.0)
    return loss, error.detach().square().mean().sqrt()
