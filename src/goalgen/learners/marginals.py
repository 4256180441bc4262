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


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 of images (B, C, height, width), (B,)."""
    return (a - b).square().sum((1, 2, 3))


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
        with environment.held():
            return self._learn(environment, gc_agent, s_agent, start, goals, noise[0], label, steps)

    def _learn(
        self,
        environment: BridgeEnvironment,
        gc_agent: BridgeGCAgent,
        s_agent: BridgeSAgent,
        start: Tensor,
        goals: Tensor,
        noise: Tensor,
        label: Tensor | None,
        steps: Tensor,
    ) -> Learned:
        horizon = environment.horizon
        zero, h = torch.zeros_like(steps[:1]), steps + 1
        # Rows at the last canvas take no further step; that of the canvas before keeps their numbers finite.
        step = h.clamp(max=max(horizon - 1, 1))
        seen = gc_agent.look(goals, start, label)
        state = environment.initial(start)
        opened = s_agent.open(state, label)
        mean, std = gc_agent.marginal(h, environment, goals, start, seen)
        canvas = mean + std * noise  # x_h
        after = torch.cat([canvas, start], 1)
        look = s_agent.look(h, after, label)
        last = h == horizon
        at_last = last.nonzero().flatten()  # one row in H: the likelihood is not asked about the others
        reconstruction = torch.zeros(len(goals), device=goals.device, dtype=look.guess.dtype)
        if len(at_last):
            log_prob = self.agents.likelihood.log_prob(goals[at_last], look.guess[at_last], hold_scale=True)
            reconstruction = reconstruction.index_put((at_last,), -log_prob)
        if gc_agent.follows_schedule and not s_agent.free:  # the squared error that (10) and (25) come down to
            schedule = environment.schedule
            first = 0.5 * schedule.gain(zero, zero + 1) * squared_error(goals, opened.guess)
            kl = squared_error(goals, look.guess)
            kl = 0.5 * schedule.gain(step, (step + 1).clamp(max=horizon)) * kl
        else:
            q = gc_agent.first_step(environment, goals, start, seen)
            first = kl_divergence(q, s_agent.act(zero, zero + 1, state, opened))  # (B,), without a network
            kl = torch.zeros_like(first)
            if horizon > 1:
                q = gc_agent.step(step, environment, canvas, goals, start, seen, before=(mean, std))
                kl = kl_divergence(q, s_agent.act(step, step + 1, after, look))
        kl = kl.masked_fill(last, 0.0)
        loss = (first + horizon * (reconstruction + kl)).mean()
        by_step = torch.zeros(horizon + 1, len(kl), device=kl.device, dtype=kl.dtype)
        by_step = by_step.scatter(0, h.unsqueeze(0), horizon * kl.detach().unsqueeze(0))
        by_step[0] = first.detach()
        return Learned(loss, Bound(horizon * reconstruction.detach(), by_step[:horizon]), {}, None)
