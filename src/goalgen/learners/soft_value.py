"""Soft value learning: V regressed on the soft return of the GC-agent's own episodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from goalgen.agents import ValueGCAgent
from goalgen.bound import Bound
from goalgen.learners.base import Learner, canvases, choice_environment
from goalgen.learners.potential import potential_loss
from goalgen.rollout import Trajectory

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


class SoftValueLearner(Learner):
    """Learns V of :class:`goalgen.agents.ValueGCAgent` from the episodes it acts in. (Equations 5, 6 and 8)"""

    def gc_loss(self, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        agent = self.agents.gc_agent
        assert isinstance(agent, ValueGCAgent)
        environment = choice_environment(self.agents)
        states, goals = canvases(self.agents, trajectory), trajectory.goals
        loss = potential_loss(agent, states, goals)
        if not len(states):
            return loss, {}
        values = []
        for h in range(1, self.agents.horizon):
            canvas = states[h - 1].unsqueeze(1)  # (B, 1, C, height, width)
            with torch.no_grad():
                phi = agent.potential.by_cell(h, canvas, goals, environment, self.agents.likelihood)
            values.append(agent.values(h, canvas, goals, environment, phi).sum((1, 2)))
        predicted = torch.stack(values)  # (H - 1, B)
        terminal = -terms.reconstruction.detach()
        targets = soft_returns(trajectory.log_ratio.detach(), predicted.detach(), terminal)
        error = within_goals(predicted - targets, self.episodes)
        value_loss = F.huber_loss(error, torch.zeros_like(error), delta=5.0)
        return loss + value_loss, {"value_error": error.detach().square().mean().sqrt()}
