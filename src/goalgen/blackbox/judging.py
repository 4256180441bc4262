"""What a state is worth to the GC-agent: a judge, and what it learns from soft returns."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, Seen
from goalgen.learning import LAMBDA, soft_returns
from goalgen.rollout import advance
from goalgen.task import Task

TOLERANCE = 5.0
"""Errors of values up to so many nats count by their square, larger ones by their size."""


class Judge(nn.Module, ABC):
    """V_h(x, g), nats: what a state is worth to the GC-agent. At the last step it is what it is paid: log p(g | x_H)."""

    @abstractmethod
    def value(self, seen: Seen, goal: Tensor) -> Tensor:
        """V_h of what is seen, (B,), with a gradient where it learns; ``seen.step`` may be H."""

    def look(self, agents: Agents, seen: Seen, goal: Tensor, decision: Decision, actions: Tensor) -> Tensor:
        """V_{h+1} of the states that actions (K, B, ...) lead to, (K, B). Override it where there is a quicker way."""
        return torch.stack([self.value(next_of(agents, seen, advance(seen, a, decision.offer)), goal) for a in actions])


def fit_values(visits: list[tuple[int, Tensor, Tensor]], log_ratio: Tensor, paid: Tensor) -> tuple[Tensor, Tensor]:
    """Regression of values on the soft returns of the episodes they were asked in, and its error, nats. (Equation 16)

    Args:
        visits: step, rows and values (with gradients) of the states that were not over.
        log_ratio: log p - log q of what was done, or V_h - V_{h+1} where the improved policy did it, (H, B).
        paid: what the episodes were paid at their end, (B,).
    """
    horizon = len(log_ratio)
    values = paid.expand(horizon, -1).clone()
    for h, live, value in visits:
        values[h, live] = value.detach()
    # soft_returns has the targets of V_1 and later; that of V_0 is one step more of the same.
    later = soft_returns(log_ratio, values[1:], paid)
    first = log_ratio[0] + ((1 - LAMBDA) * values[1] + LAMBDA * later[0] if horizon > 1 else paid)
    targets = torch.cat([first.unsqueeze(0), later]) if horizon > 1 else first.unsqueeze(0)
    errors = torch.cat([value - targets[h, live] for h, live, value in visits])
    loss = F.huber_loss(errors, torch.zeros_like(errors), delta=TOLERANCE)
    return loss, errors.detach().square().mean().sqrt()


def rows_of(agents: Agents, h: int, state: Tensor, task: Task, rows: Tensor) -> tuple[Seen, Tensor]:
    """What is seen in some of the episodes, and their goals."""
    label, memory = (None if x is None else x[rows] for x in (task.label, task.memory))
    return agents.see(h, state[rows], label, memory=memory), task.goal[rows]


def next_of(agents: Agents, seen: Seen, state: Tensor) -> Seen:
    """What is seen one step on."""
    return agents.see(seen.step + 1, state, seen.label, memory=seen.memory)
