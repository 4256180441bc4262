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
        error = F.huber_loss(predicted, targets, delta=5.0)
        return loss + error, {"value_error": (predicted - targets).detach().square().mean().sqrt()}
