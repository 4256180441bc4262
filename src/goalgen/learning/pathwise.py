"""Learning through the whole episode: for Gaussian actions in a differentiable world both agents follow one gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.agents import Agents
from goalgen.bound import bound
from goalgen.learning.base import Learned
from goalgen.rollout import Trajectory, rollout
from goalgen.task import Task


def learn_pathwise(
    agents: Agents, task: Task, noise: Tensor, kl_weight: float = 1.0, recompute: bool = False
) -> Learned:
    """J differentiated through actions and states (Kingma and Welling 2014; stochastic value gradients, Heess et al. 2015).

    With the noise held, an episode is a function of all weights. So its gradient is that of (3) itself, in both
    agents at once, without a score function and without a critic.

    Args:
        noise: (H, B, ...), see :func:`goalgen.rollout.draw_noise`.
        kl_weight: weight of the KL in the loss, for a run that warms it up.
        recompute: see :func:`goalgen.rollout.rollout`.
    """
    trajectory = rollout(
        agents, task, noise, through_q=True, through_actions=True, recompute=recompute, weigh=False
    )  # fmt: skip
    terms = bound(agents, trajectory, hold_scale=True)
    loss = (terms.reconstruction + kl_weight * terms.kl.sum(0)).mean()
    return Learned(loss, terms.detach())


@torch.no_grad()
def active_units(trajectory: Trajectory, threshold: float = 0.01) -> Tensor:
    """Numbers of every step's action that tell goals apart, (H,) int64: how much of a latent is in use.

    A number is active when its posterior mean, in standard deviations of the prior and measured from the prior's mean (scale
    and center of a mixture), varies over the goals by more than ``threshold`` (variance; after Burda et al. 2016, section 4).
    Both policies must have a ``center`` and a ``scale``, as :class:`goalgen.policies.Gaussian` has.
    """
    counts = []
    for q, decision in zip(trajectory.q, trajectory.decisions, strict=True):
        p = decision.policy
        offset = (q.center - p.center) / p.scale  # type: ignore[attr-defined]
        counts.append((offset.flatten(1).var(0, correction=0) > threshold).sum())
    return torch.stack(counts)
