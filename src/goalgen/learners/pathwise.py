"""Learning through the whole episode: for Gaussian actions in a differentiable world both agents follow one gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.agents.latent import frame
from goalgen.bound import Bound, bound
from goalgen.learners.base import Learned, Learner
from goalgen.rollout import Trajectory, rollout


class PathwiseLearner(Learner):
    """J differentiated through actions and states (Kingma and Welling 2014; stochastic value gradients, Heess et al. 2015).

    With the noise held, an episode is a function of all weights. So its gradient is that of (3) itself, in both
    agents at once, without a score function and without a critic.
    """

    recompute = False

    def forward(
        self,
        start: Tensor,
        goals: Tensor,
        noise: Tensor,
        interrupt: Tensor | None = None,
        label: Tensor | None = None,
        steps: Tensor | None = None,
        kl_weight: float = 1.0,
    ) -> Learned:
        trajectory = rollout(self.agents, start, goals, noise, label=label, recompute=self.recompute, weigh=False)
        terms = bound(self.agents, trajectory, hold_scale=True)
        loss = (terms.reconstruction + kl_weight * terms.kl.sum(0)).mean()
        return Learned(loss, Bound(terms.reconstruction.detach(), terms.kl.detach()), {}, None)


@torch.no_grad()
def active_units(trajectory: Trajectory, threshold: float = 0.01) -> Tensor:
    """Numbers of every step's action that tell goals apart, (H,) int64: how much of a latent is in use.

    A number is active when its posterior mean, in standard deviations of the prior and measured from the prior's mean (scale
    and center of a mixture), varies over the goals by more than ``threshold`` (variance; after Burda et al. 2016, section 4).
    """
    counts = []
    for q, decision in zip(trajectory.q, trajectory.decisions, strict=True):
        center, scale = frame(decision.policy)
        offset = (q.mean - center) / scale
        counts.append((offset.flatten(1).var(0, correction=0) > threshold).sum())
    return torch.stack(counts)
