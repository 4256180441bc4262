"""The one number both agents are trained on: an upper bound on -log p(g | x_0), in nats an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen.agents import Agents
from goalgen.errors import GoalgenError
from goalgen.rollout import Trajectory, rollout
from goalgen.task import Task


@dataclass
class Bound:
    """J of every image, split into its terms. (Equation 3)"""

    reconstruction: Tensor
    """-log p(g | x_H), (B,) nats"""
    kl: Tensor
    """KL(q || p) of every step, (H, B) nats"""

    def detach(self) -> Bound:
        """The same without gradients."""
        return Bound(self.reconstruction.detach(), self.kl.detach())

    @property
    def total(self) -> Tensor:
        """J = reconstruction + sum of the KLs, (B,) nats."""
        return self.reconstruction + self.kl.sum(0)


def bits_per_dim(nats: Tensor | float, shape: tuple[int, int, int]) -> Tensor | float:
    """Nats an image as bits per dimension, J / (C height width ln 2). (Equation 14)

    The only place where the unit changes.
    """
    return nats / (math.prod(shape) * math.log(2))


def bound(agents: Agents, trajectory: Trajectory, *, hold_scale: bool = False) -> Bound:
    """J of the goals of a trajectory, one sample of its expectation. (Equation 3)

    Args:
        hold_scale: see :meth:`goalgen.likelihoods.Likelihood.log_prob`.
    """
    log_prob = agents.likelihood.log_prob(trajectory.goals, trajectory.states[-1], hold_scale=hold_scale)
    return Bound(-log_prob, trajectory.kl)


def log_weight(agents: Agents, trajectory: Trajectory) -> Tensor:
    """log p(g, tau) - log q(tau | g), (B,) nats: the integrand of equation 4."""
    return agents.likelihood.log_prob(trajectory.goals, trajectory.states[-1]) + trajectory.log_ratio.sum(0)


@torch.no_grad()
def importance_weighted_bound(agents: Agents, task: Task, noise: Tensor) -> Tensor:
    """The tighter bound from K trajectories, (B,) nats (Burda et al. 2016). (Equation 4)

    Args:
        noise: (K, H, B, ...), independent noise for each trajectory.
    """
    weights = torch.stack([log_weight(agents, rollout(agents, task, n)) for n in noise])
    return math.log(len(weights)) - torch.logsumexp(weights, 0)


def check_finite(nats: Tensor) -> None:
    """Refuse bounds (N,) that are no numbers.

    Raises:
        GoalgenError: naming the first image of which it is none.
    """
    if not bool(torch.isfinite(nats).all()):
        first = int((~torch.isfinite(nats)).nonzero()[0])
        raise GoalgenError(
            f"the bound of image {first} is {nats[first].item()} nats: the weights are damaged; use another checkpoint"
        )
