"""Reveals: an action writes the values of a group of pixels. Autoregression at one value a step, parallel decoding at few.

The GC-agent copies the values from its goal, so nothing is left to reconstruct, and the divergence of a step is the negative
log-probability of what it reveals: with a fixed order J is the negative log-likelihood itself, and no bound. (Equation 28)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.bound import Bound
from goalgen.families.reveal.environment import Order, RevealEnvironment, Shown
from goalgen.families.reveal.policies import Copy, Levels, Logistics, Pixels
from goalgen.family import Draws, Family, Plan, Streams, check_least
from goalgen.learning import Clock, Learned
from goalgen.likelihoods import full_precision
from goalgen.networks import NetworkSpec, bounded, draw, make_torso
from goalgen.rollout import Trajectory
from goalgen.task import Task


@dataclass(frozen=True)
class RevealSettings(config.Settings):
    """An action writes the values of a group of pixels; --horizon is the number of groups, 1 to all pixels."""

    reveal_order: Order = "spread"
    """spread: evenly over the image, from a few pixels to many; raster: row by row; random: a fixed random order."""
    reveal_channels: Literal["follow", "together"] = "follow"
    """follow: the channels of a group one after the other, a step each, so that each sees those before; together: all in one step;
    of logistics, those of a pixel then have their mode in common, and their means follow the channels before."""
    reveal_values: Literal["logistics", "levels"] = "logistics"
    """The S-agent's policy for a value: a mixture of logistics cut into grey levels, or a chance for each level (images with few
    colours)."""
    reveal_modes: int = 10
    """Logistics in a mixture."""


class RevealSAgent(SAgent):
    """What values the hidden pixels have, all at once, from those that are revealed: one evaluation of the network."""

    matrices = ("weight",)

    def __init__(
        self, spec: NetworkSpec, settings: RevealSettings, levels: int, environment: RevealEnvironment
    ) -> None:
        super().__init__()
        self.levels, self.modes = levels, settings.reveal_modes if settings.reveal_values == "logistics" else 0
        self.torso = make_torso(dataclasses.replace(spec, horizon=environment.horizon), 3 * spec.shape[0])
        self.joint = bool(self.modes) and spec.shape[0] > 1 and settings.reveal_channels == "together"
        more = spec.shape[0] if self.joint else 0  # how a mean leans on the channels before
        count = (3 + more) * self.modes if self.modes else levels
        weight = torch.randn(count, self.torso.position_pixels, self.torso.num_features)
        self.weight = nn.Parameter(weight * 0.1 / self.torso.num_features**0.5)
        bias = torch.zeros(count, *spec.shape)
        if self.modes:  # from black to white, each about as wide as the gap to the next
            bias[self.modes : 2 * self.modes] = torch.linspace(-1, 1, self.modes)[:, None, None, None]
            bias[2 * self.modes : 3 * self.modes] = -(float(max(self.modes, 2)) ** 0.5)
        self.bias = nn.Parameter(bias)

    def decide(self, seen: Seen) -> Decision:
        environment = seen.environment
        assert isinstance(environment, RevealEnvironment)
        canvas, known, start = seen.state.chunk(3, 1)
        features, _ = self.torso(seen.h, torch.cat([canvas * known, known, start], 1), seen.label, seen.memory)
        images = self.torso.assemble(draw(features, self.weight), environment.shape)
        numbers = full_precision(images) + self.bias  # (B, count, C, height, width)
        group = environment.group(seen.h)
        if not self.modes:
            return Decision(Levels(group, numbers))
        logits, mean, log_scale = numbers[:, : 3 * self.modes].chunk(3, 1)
        log_scale = bounded(log_scale + 2) - 2
        if not self.joint:
            return Decision(Logistics(group, self.levels, logits, mean, log_scale))
        lean = (
            numbers[:, 3 * self.modes :].unflatten(1, (self.modes, -1)).transpose(2, 3)
        )  # (B, M, C, C, height, width)
        return Decision(Pixels(group, self.levels, logits.sum(2), mean, log_scale, lean.tanh()))


class CopyGCAgent(GCAgent):
    """Writes what its goal has."""

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Copy:
        return Copy(goal)


class Reveal(Family):
    """One step of each episode is enough to learn from: a masked canvas, and what comes next. The cost is flat in H."""

    name = "reveal"
    Settings = RevealSettings
    gc_agents = {"copy": CopyGCAgent}  # noqa: RUF012 - more may be put in
    least_validation = 1024
    environment: RevealEnvironment

    def __init__(self, plan: Plan) -> None:
        settings: RevealSettings = plan.settings
        follow = settings.reveal_channels == "follow"
        environment = RevealEnvironment(plan.shape, plan.horizon, settings.reveal_order, follow)
        s_agent = RevealSAgent(plan.network, settings, plan.levels, environment)
        likelihood = Shown(plan.levels, environment)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)
        chance = environment.sizes.double().sqrt()  # of a step to be visited: more values, more to learn, less for each
        self.register_buffer("chance", chance / chance.sum(), persistent=False)
        self.chance: Tensor

    @classmethod
    def check(cls, plan: Plan) -> None:
        check_least(plan.settings, reveal_modes=1)

    def draw(self, batch: int, streams: Streams) -> Draws:
        """The step (1, batch) in 0..H-1 that each example visits, evenly spread over the batch."""
        place = torch.rand(1, generator=streams("actions"), dtype=torch.float64) + torch.arange(batch) / batch
        edges = self.chance.cpu().cumsum(0)
        steps = torch.searchsorted(edges, place % 1).clamp(max=self.horizon - 1)
        order = torch.randperm(batch, generator=streams("order of the steps"))
        return {"steps": steps[order].unsqueeze(0)}

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        """An unbiased estimate of J from one step of each episode, over the chance to visit it. (Equation 28)"""
        h, goals = draws["steps"][0], task.goal
        seen = self.see(h, self.environment.at(h, goals, task.start), task.label, memory=task.memory)
        decision = self.s_agent.decide(seen)
        cost = self.gc_agent.policy(seen, goals, decision).kl(decision.policy) / self.chance[h].to(goals.dtype)
        by_step = cost.new_zeros(self.horizon, len(cost)).scatter(0, h.unsqueeze(0), cost.detach().unsqueeze(0))
        return Learned(cost.mean(), Bound(torch.zeros_like(cost.detach()), by_step))

    @torch.no_grad()
    def estimate(self, task: Task, streams: Streams) -> Bound:
        draws = {name: drawn.to(self.device) for name, drawn in self.draw(len(task), streams).items()}
        return self.learn(task, draws, Clock()).bound

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """With a fixed order the bound is the negative log-likelihood itself."""
        return {"bound_is_exact": True, "values_per_step": self.environment.sizes.tolist()}
