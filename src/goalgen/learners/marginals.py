"""Learning from closed-form marginals: one step of every episode, drawn directly, at a cost that does not grow with H."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.kl import kl_divergence

from goalgen.agents import BridgeGCAgent, BridgeSAgent
from goalgen.bound import Bound
from goalgen.environments import BridgeEnvironment
from goalgen.learners.base import Learned, Learner


def spread_steps(batch: int, horizon: int, generator: torch.Generator) -> Tensor:
    """One step in 0..H-1 for each of ``batch`` examples, (batch,) int64: uniform each, and evenly spread together.

    Example i takes floor(H ((u + i / batch) mod 1)) with one uniform u for the batch, in a random order (Kingma et al. 2021, appendix I.1).
    (Equation 26)
    """
    place = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(batch) / batch) % 1
    steps = (place * horizon).long().clamp(max=horizon - 1)
    return steps[torch.randperm(batch, generator=generator)]


class MarginalLearner(Learner):
    """An unbiased estimate of (3) from one step of each episode. (Equation 26)"""

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
        """Loss of one batch.

        Args:
            start: x_0 as canvases (B, C, height, width).
            goals: (B, C, height, width) in [-1, 1].
            noise: (1, B, C, height, width), of the canvas at the step.
            interrupt: not used.
            label: (B,) int64, of a model that is conditioned on labels.
            steps: (B,) int64 in 0..H-1, from :func:`spread_steps`; step s stands for canvas x_{s+1}.
            kl_weight: not used.
        """
        environment, gc_agent, s_agent = self.agents.environment, self.agents.gc_agent, self.agents.s_agent
        assert isinstance(environment, BridgeEnvironment)
        assert isinstance(gc_agent, BridgeGCAgent)
        assert isinstance(s_agent, BridgeSAgent)
        assert steps is not None
        horizon = environment.horizon
        zero, h = torch.zeros_like(steps[:1]), steps + 1
        seen = gc_agent.look(goals, start, label)
        state = environment.initial(start)
        q = gc_agent.step(zero, environment, start, goals, start, seen)
        p = s_agent.act(zero, zero + 1, state, s_agent.open(state, label))
        first = kl_divergence(q, p)  # (B,), without a network
        mean, std = gc_agent.marginal(h, environment, goals, start, seen)
        canvas = mean + std * noise[0]  # x_h
        state = torch.cat([canvas, start], 1)
        look = s_agent.look(h, state, label)
        last = h == horizon
        log_prob = self.agents.likelihood.log_prob(goals, look.guess, hold_scale=True)
        kl = torch.zeros_like(log_prob)
        if horizon > 1:
            # Rows at the last canvas take no further step; that of the canvas before keeps their numbers finite.
            step = h.clamp(max=horizon - 1)
            q = gc_agent.step(step, environment, canvas, goals, start, seen)
            kl = kl_divergence(q, s_agent.act(step, step + 1, state, look))
        loss = (first + horizon * torch.where(last, -log_prob, kl)).mean()
        by_step = torch.zeros(horizon + 1, len(kl), device=kl.device, dtype=kl.dtype)
        by_step = by_step.scatter(0, h.unsqueeze(0), horizon * kl.detach().unsqueeze(0))
        by_step[0] = first.detach()
        reconstruction = torch.where(last, -horizon * log_prob.detach(), 0.0)
        return Learned(loss, Bound(reconstruction, by_step[:horizon]), {}, None)
