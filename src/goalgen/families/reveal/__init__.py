"""Reveals: an action writes the values of a group of pixels. Autoregression at one value a step, parallel decoding at few.

The GC-agent copies the values from its goal, so nothing is left to reconstruct, and the divergence of a step is the negative
log-probability of what it reveals: with a fixed order J is the negative log-likelihood itself, and no bound. (Equation 28)
With a learned order the GC-agent chooses which group comes next, and J is a bound again. (Equation 34)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goalgen.agents import Decision, GCAgent
from goalgen.bound import Bound
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.families.reveal.agents import CopyGCAgent, RevealSAgent, RevealSettings
from goalgen.families.reveal.environment import ChosenOrderEnvironment, RevealEnvironment, Shown
from goalgen.families.reveal.orders import OrderingGCAgent, OrderingSAgent, learn_order, report_order
from goalgen.family import Draws, Family, Plan, Streams, check_least
from goalgen.learning import Clock, Learned
from goalgen.rollout import Trajectory
from goalgen.task import Task

FORESEEN = 4
"""Values that come later of which a step learns for each that it reveals: fewer are cheaper, and more even out what is learned."""


def make_copying(plan: Plan, environment: Environment) -> GCAgent:
    """The GC-agent that copies, and chooses the order where that is learned."""
    if isinstance(environment, ChosenOrderEnvironment):
        return OrderingGCAgent(plan, environment)
    return CopyGCAgent(plan, environment)


class Reveal(Family):
    """One step of each episode is enough to learn from: a masked canvas, and what comes next. The cost is flat in H."""

    name = "reveal"
    Settings = RevealSettings
    gc_agents = {"copy": make_copying}  # noqa: RUF012 - more may be put in
    least_validation = 1024
    environment: RevealEnvironment
    s_agent: RevealSAgent

    def __init__(self, plan: Plan) -> None:
        settings: RevealSettings = plan.settings
        follow = settings.reveal_channels == "follow"
        learned = settings.reveal_order == "learned"
        world = ChosenOrderEnvironment if learned else RevealEnvironment
        environment: Any = world(plan.shape, plan.horizon, settings.reveal_order, follow, settings.reveal_first)
        kind = OrderingSAgent if learned else RevealSAgent
        s_agent = kind(plan.network, settings, plan.levels, environment)
        likelihood = Shown(plan.levels, environment)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)
        chance = environment.sizes.double().sqrt()  # of a step to be visited: more values, more to learn, less for each
        self.register_buffer("chance", chance / chance.sum(), persistent=False)
        self.chance: Tensor
        self.foresight = 0.0 if learned else settings.reveal_foresight

    @property
    def learned(self) -> bool:
        """Whether the order is."""
        return isinstance(self.environment, ChosenOrderEnvironment)

    @property
    def bound_is_exact(self) -> bool:
        return not self.learned

    @classmethod
    def check(cls, plan: Plan) -> None:
        check_least(plan.settings, reveal_modes=1, reveal_foresight=0)
        if not 0 <= plan.settings.reveal_first <= 1:
            raise GoalgenError(f"--reveal-first is a share of the pixels, 0 to 1, not {plan.settings.reveal_first}")

    def draw(self, batch: int, streams: Streams) -> Draws:
        """The step (1, batch) in 0..H-1 that each example visits, evenly spread over the batch; and what a learned order is drawn by."""
        place = torch.rand(1, generator=streams("actions"), dtype=torch.float64) + torch.arange(batch) / batch
        edges = self.chance.cpu().cumsum(0)
        steps = torch.searchsorted(edges, place % 1).clamp(max=self.horizon - 1)
        order = torch.randperm(batch, generator=streams("order of the steps"))
        draws = {"steps": steps[order].unsqueeze(0)}
        if self.learned:
            draws["orders"] = torch.rand(1, batch, self.environment.groups, generator=streams("orders"))
        elif self.foresight:
            draws["later"] = torch.rand(1, batch, *self.environment.shape, generator=streams("later values"))
        return draws

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        """An unbiased estimate of J from one step of each episode, over the chance to visit it. (Equation 28)"""
        if self.learned:
            return learn_order(self, self.chance, task, draws)
        h, goals = draws["steps"][0], task.goal
        seen = self.see(h, self.environment.at(h, goals, task.start), task.label, memory=task.memory)
        features, weight = self.s_agent.look(seen), 1 / self.chance[h].to(goals.dtype)
        decision = Decision(self.s_agent.say_of(self.environment.group(h), features, self.environment.shape))
        cost = weight * self.gc_agent.policy(seen, goals, decision).kl(decision.policy)
        by_step = cost.new_zeros(self.horizon, len(cost)).scatter(0, h.unsqueeze(0), cost.detach().unsqueeze(0))
        loss, share = cost.mean(), self.foresight * (1 - clock.done)
        if share > 0 and torch.is_grad_enabled():
            later = self.some_later(h, draws["later"][0])
            foreseen = self.s_agent.say_of(later, features, self.environment.shape).log_prob(goals)
            loss = loss - share / FORESEEN * (weight * foreseen).mean()
        return Learned(loss, Bound(torch.zeros_like(cost.detach()), by_step))

    def some_later(self, h: Tensor, uniform: Tensor) -> Tensor:
        """Of the values that come after steps ``h`` some, FORESEEN for each that the step reveals, or all. Bool (B, C, height, width)."""
        sizes = self.environment.sizes.to(uniform.dtype)
        left = sizes.sum() - sizes.cumsum(0)
        share = (FORESEEN * sizes / left.clamp(min=1))[h][:, None, None, None]
        drawn = uniform[:, :1] if self.s_agent.joint else uniform  # all channels of a pixel or none
        return (self.environment.step > h[:, None, None, None]) & (drawn < share)

    @torch.no_grad()
    def estimate(self, task: Task, streams: Streams) -> Bound:
        draws = {name: drawn.to(self.device) for name, drawn in self.draw(len(task), streams).items()}
        return self.learn(task, draws, Clock()).bound

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """With a fixed order the bound is the negative log-likelihood itself."""
        if isinstance(self.environment, ChosenOrderEnvironment):
            return report_order(trajectory, self.environment)
        return {"bound_is_exact": True, "values_per_step": self.environment.sizes.tolist()}
