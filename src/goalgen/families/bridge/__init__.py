"""Bridges: the action is the next canvas, through ever less noise. Diffusion is the case of a fixed GC-agent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen import config
from goalgen.agents import Seen
from goalgen.bound import Bound
from goalgen.errors import GoalgenError
from goalgen.families.bridge.agents import (
    BridgeGCAgent,
    BridgeSAgent,
    FixedBridgeGCAgent,
    LearnedBridgeGCAgent,
    Look,
    Told,
    column,
)
from goalgen.families.bridge.environment import BridgeEnvironment, Reading, Schedule, even_schedule
from goalgen.family import Draws, Family, Plan, Streams
from goalgen.learning import Clock, Learned, spread_steps
from goalgen.likelihoods import PixelLikelihood
from goalgen.policies import Gaussian
from goalgen.task import Task

__all__ = [
    "Bridge",
    "BridgeEnvironment",
    "BridgeGCAgent",
    "BridgeSAgent",
    "BridgeSettings",
    "FixedBridgeGCAgent",
    "LearnedBridgeGCAgent",
    "Look",
    "Reading",
    "Schedule",
    "Told",
    "even_schedule",
]


@dataclass(frozen=True)
class BridgeSettings(config.Settings):
    """The action is the next canvas."""

    log_snr: tuple[float, float] = (-3.0, 5.0)
    """Logarithm of the signal-to-noise ratio after the first step and after the last (their middle, if there is
    only one)."""
    learn_snr: bool = True
    """Learn the signal-to-noise ratios, starting from even steps between the two of --log-snr."""
    learn_variance: bool | None = None
    """The S-agent learns mean and variance of every pixel of its action; unset: when the GC-agent is learned."""
    first_look: bool | None = None
    """The S-agent's network acts at the first step, too, where it sees the initial state and what stages before have left;
    unset: after stages that leave something."""
    clamp_guess: bool = False
    """The S-agent's guess of the goal stays within the range of grey levels."""
    discount: float | None = config.of_training(None)
    """What steps with little noise count in training: step h's cost is weighed by 1 / (1 + SNR_h / e^DISCOUNT), so that those
    beyond this log SNR hardly count. It costs bits/dim and gains looks. J is reported undiscounted; unset: no discount."""


class Bridge(Family):
    """Marginals are in closed form, so that one step of each episode is enough to learn from."""

    name = "bridge"
    Settings = BridgeSettings
    gc_agents = {"learned": LearnedBridgeGCAgent, "fixed": FixedBridgeGCAgent}  # noqa: RUF012 - more may be put in
    pathwise = True
    least_validation = 1024
    settings: BridgeSettings
    environment: BridgeEnvironment
    s_agent: BridgeSAgent
    gc_agent: BridgeGCAgent

    def __init__(self, plan: Plan) -> None:
        settings: BridgeSettings = plan.settings
        environment = BridgeEnvironment(plan.shape, even_schedule(plan.horizon, *settings.log_snr, settings.learn_snr))
        free = settings.learn_variance if settings.learn_variance is not None else plan.gc_agent != "fixed"
        first = settings.first_look if settings.first_look is not None else plan.network.memory > 0
        s_agent = BridgeSAgent(plan.network, free, first, settings.clamp_guess)
        likelihood = PixelLikelihood(plan.shape, plan.levels, canvas=environment.canvas)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)

    @classmethod
    def check(cls, plan: Plan) -> None:
        discount = plan.settings.discount
        if discount is not None and not math.isfinite(discount):
            raise GoalgenError(f"--discount must be a finite log SNR, such as 2, not {discount}")

    @property
    def can_skip(self) -> bool:
        """Steps that are skipped are gone in one by what the S-agent guesses; with a learned GC-agent its learned departure from that
        is the one of a single step."""
        return True

    @property
    def drafts(self) -> bool:
        return self.s_agent.looks_first

    @property
    def can_correlate(self) -> bool:
        return True

    def weight(self, h: Tensor) -> Tensor:
        """What steps ``h`` in 0..H (B,) count in the loss: it does not rise with h. (Kingma and Gao 2023)"""
        if self.settings.discount is None:
            return torch.ones_like(h, dtype=torch.float32)
        table = torch.cat([torch.zeros(1, device=h.device), self.environment.schedule.log_snr.detach().exp()])
        return 1 / (1 + table[h] * math.exp(-self.settings.discount))

    def draw(self, batch: int, streams: Streams) -> Draws:
        """Noise of one canvas (1, batch, C, height, width), and the step (1, batch) that each example visits: in 1..H, or 0..H."""
        generator = streams("actions")
        noise = self.environment.action_space.noise(batch, generator)
        visited = spread_steps(batch, self.visited, generator) + self.s_agent.after_first
        return {"noise": noise.unsqueeze(0), "steps": visited.unsqueeze(0)}

    @property
    def visited(self) -> int:
        """Steps of which each example visits one."""
        return self.horizon + 1 - self.s_agent.after_first

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        """An unbiased estimate of (3) from one step of each episode. (Equation 26)"""
        with self.environment.held():
            return self._learn(task, draws["noise"][0], draws["steps"][0])

    def _learn(self, task: Task, noise: Tensor, h: Tensor) -> Learned:
        environment, gc_agent, s_agent, horizon, goals = (
            self.environment, self.gc_agent, self.s_agent, self.horizon, task.goal,
        )  # fmt: skip
        opening = self.see(torch.zeros_like(h[:1]), environment.initial(task.start), task.label, memory=task.memory)
        told = gc_agent.look(opening, goals)
        before = mean, std = gc_agent.marginal(h.clamp(min=1), told)
        canvas = torch.where(column(h > 0), mean + std * noise, task.start)  # x_h
        seen = self.see(h, torch.cat([canvas, task.start], 1), task.label, memory=task.memory)
        look = s_agent.look(seen)
        last = h == horizon
        at_last = last.nonzero().flatten()  # one row in H: the likelihood is not asked about the others
        reconstruction = torch.zeros(len(goals), device=goals.device, dtype=look.guess.dtype)
        if len(at_last):
            shown = torch.cat([look.guess, task.start], 1)[at_last]
            log_prob = self.likelihood.log_prob(goals[at_last], shown, hold_scale=True)
            reconstruction = reconstruction.index_put((at_last,), -log_prob)
        # Rows at the last canvas take no further step; that of the canvas before keeps their numbers finite.
        acting = self.see(h.clamp(max=horizon - 1), seen.state, task.label, memory=task.memory)
        kl = self.divergence(acting, look, told, before).masked_fill(last, 0.0)
        times = self.visited
        loss = times * self.weight(h) * (reconstruction + kl)
        by_step = torch.zeros(horizon + 1, len(kl), device=kl.device, dtype=kl.dtype)
        by_step = by_step.scatter(0, h.unsqueeze(0), times * kl.detach().unsqueeze(0))
        if not s_agent.looks_first:  # what needs no network is not drawn
            first = self.divergence(opening, s_agent.open(opening), told, before)
            loss, by_step[0] = loss + first, first.detach()
        return Learned(loss.mean(), Bound(times * reconstruction.detach(), by_step[:horizon]))

    def divergence(self, seen: Seen, look: Look, told: Told, before: tuple[Tensor, Tensor]) -> Tensor:
        """KL(q || p) at steps 0..H-1, (B,) nats.

        Args:
            before: mean and standard deviation of q's canvas at steps above 0.
        """
        if self.gc_agent.follows_schedule and not self.s_agent.free:  # what (10) and (25) come down to
            return 0.5 * self.environment.schedule.gain(seen.h, seen.to) * squared_error(told.goal, look.guess)
        q = self.gc_agent.first_step(told)
        if (seen.h > 0).any():
            onward = self.gc_agent.step(seen.h.clamp(min=1), self.environment.canvas(seen.state), told, before)
            at_first = column(seen.h == 0)
            q = Gaussian(torch.where(at_first, q.mean, onward.mean), torch.where(at_first, q.std, onward.std))
        return q.kl(self.s_agent.act(seen, look))

    @torch.no_grad()
    def estimate(self, task: Task, streams: Streams) -> Bound:
        """J from one step of each episode; it may differ a little from the mean over whole episodes. (Equation 26)"""
        draws = {name: drawn.to(self.device) for name, drawn in self.draw(len(task), streams).items()}
        return self.learn(task, draws, Clock()).bound


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 of images (B, C, height, width), (B,)."""
    return (a - b).square().sum((1, 2, 3))
