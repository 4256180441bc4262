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
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.family import Draws, Family, Plan, Streams, check_least
from goalgen.learning import Clock, Learned
from goalgen.likelihoods import Likelihood, discretised_logistic_log_prob, full_precision
from goalgen.networks import NetworkSpec, bounded, draw, make_torso
from goalgen.policies import Policy
from goalgen.rng import generator
from goalgen.rollout import Trajectory
from goalgen.task import Task

Order = Literal["spread", "raster", "random"]


@dataclass(frozen=True)
class RevealSettings(config.Settings):
    """An action writes the values of a group of pixels; --horizon is the number of groups, 1 to all pixels."""

    reveal_order: Order = "spread"
    """spread: evenly over the image, from a few pixels to many; raster: row by row; random: a fixed random order."""
    reveal_channels: Literal["follow", "together"] = "follow"
    """follow: the channels of a group one after the other, a step each, so that each sees those before; together: all in one."""
    reveal_values: Literal["logistics", "levels"] = "logistics"
    """The S-agent's policy for a value: a mixture of logistics cut into grey levels, or a chance for each level (images with few
    colours)."""
    reveal_modes: int = 10
    """Logistics in a mixture."""


# The world


def position_order(order: Order, height: int, width: int) -> Tensor:
    """Positions in the order in which they are revealed, (height * width,) int64, each a row times the width plus a column."""
    count = height * width
    if order == "raster":
        return torch.arange(count)
    if order == "random":
        return torch.randperm(count, generator=generator(0, "reveal order"))
    rank = torch.zeros(1, 1, dtype=torch.int64)  # ordered dither (Bayer 1973): every beginning of it is spread evenly
    while min(rank.shape) < max(height, width):
        rank = torch.cat([torch.cat([4 * rank, 4 * rank + 2], 1), torch.cat([4 * rank + 3, 4 * rank + 1], 1)])
    return rank[:height, :width].flatten().argsort()


def group_ends(order: Order, count: int, groups: int) -> list[int]:
    """How many of ``count`` positions are revealed after each group; groups grow geometrically unless in raster order.

    Raises:
        GoalgenError: there are not so many positions.
    """
    if not 1 <= groups <= count:
        raise GoalgenError(f"--horizon must be 1 to {count}, the number of pixels, not {groups}")
    ends: list[int] = []
    for h in range(1, groups + 1):
        wanted = count * h / groups if order == "raster" else count ** (h / groups)
        least = ends[-1] + 1 if ends else 1
        ends.append(min(max(round(wanted), least), count - (groups - h)))
    return ends


@dataclass(frozen=True)
class Values:
    """An image of values, of which those of the group in question count. Action: (B, C, height, width) in [-1, 1]."""

    shape: tuple[int, int, int]
    normal = False

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Two uniform numbers a value, (batch, 2, C, height, width)."""
        return torch.rand(batch, 2, *self.shape, generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[:, 0] * 2 - 1


class RevealEnvironment(Environment):
    """x_{h+1} shows what x_h shows, and the values of group h as the action has them. (Equation 28)

    A state is the canvas, what of it is revealed (1 or 0), and the initial state: (B, 3 C, height, width).

    Args:
        shape: (C, height, width) of a canvas.
        groups: of positions.
        follow: the channels of a group are revealed one after the other.
    """

    action_space: Values

    def __init__(self, shape: tuple[int, int, int], groups: int, order: Order = "spread", follow: bool = True) -> None:
        super().__init__()
        channels, height, width = shape
        positions = position_order(order, height, width)
        group = torch.empty(height * width, dtype=torch.int64)  # in which each position is revealed
        begin = 0
        for h, end in enumerate(group_ends(order, height * width, groups)):
            group[positions[begin:end]] = h
            begin = end
        self.horizon = groups * channels if follow else groups
        step = group.expand(channels, -1)
        if follow:
            step = step * channels + torch.arange(channels)[:, None]
        self.shape, self.state_shape, self.action_space = shape, (3 * channels, height, width), Values(shape)
        self.register_buffer("step", step.reshape(shape), persistent=False)  # of every value
        self.step: Tensor

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def sizes(self) -> Tensor:
        """Values revealed at every step, (H,)."""
        return torch.bincount(self.step.flatten(), minlength=self.horizon)

    def group(self, h: Tensor) -> Tensor:
        """Which values are revealed at steps ``h``, (B,) or (1,): bool (B, C, height, width)."""
        return self.step == h[:, None, None, None]

    def initial(self, canvas: Tensor) -> Tensor:
        return torch.cat([canvas, torch.zeros_like(canvas), canvas], 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, : self.shape[0]]

    def at(self, h: Tensor, image: Tensor, start: Tensor) -> Tensor:
        """The state at steps ``h`` of an episode from ``start`` that has revealed ``image``, (B, 3 C, height, width)."""
        known = self.step < h[:, None, None, None]
        return torch.cat([torch.where(known, image, start), known.to(image.dtype).expand_as(image), start], 1)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        canvas, known, start = state.chunk(3, 1)
        group = self.group(h)
        return torch.cat([torch.where(group, action, canvas), torch.where(group, 1.0, known), start], 1)


class Shown(Likelihood):
    """p(g | x_H): all of the goal is on the canvas, and nothing left to chance."""

    def __init__(self, levels: int, environment: RevealEnvironment) -> None:
        super().__init__()
        self.levels, self.canvas = levels, environment.canvas

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        off = (goal - self.canvas(state)).abs().flatten(1).amax(1) > 1 / (self.levels - 1)
        return torch.where(off, -torch.inf, 0.0).to(state.dtype)

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return self.canvas(state)


# What agents say of values


class Logistics(Policy):
    """Independent values of a group, each a mixture of logistics cut into grey levels (Salimans et al. 2017).

    Args:
        group: which values count, bool broadcastable to (B, C, height, width).
        levels: grey levels.
        logits: (B, M, C, height, width), weights of the logistics; they need no normalisation.
        mean: likewise.
        log_scale: likewise.
    """

    def __init__(self, group: Tensor, levels: int, logits: Tensor, mean: Tensor, log_scale: Tensor) -> None:
        self.group, self.levels = group, levels
        self.log_weight, self.mean, self.log_scale = logits.log_softmax(1), mean, log_scale

    def sample(self, noise: Tensor) -> Tensor:
        """Values at their levels, from two uniform numbers each: one chooses a logistic, one a value."""
        cumulative = self.log_weight.exp().cumsum(1)
        mode = (cumulative <= noise[:, :1] * cumulative[:, -1:]).sum(1, keepdim=True).clamp(max=cumulative.shape[1] - 1)
        mean, log_scale = self.mean.gather(1, mode)[:, 0], self.log_scale.gather(1, mode)[:, 0]
        top = self.levels - 1
        value = mean + log_scale.exp() * torch.logit(noise[:, 1], eps=1e-7)
        return ((value + 1) / 2 * top).round().clamp(0, top) / top * 2 - 1

    def log_prob(self, action: Tensor) -> Tensor:
        each = discretised_logistic_log_prob(action.unsqueeze(1), self.mean, self.log_scale, self.levels)
        value = torch.logsumexp(self.log_weight + each, 1)  # (B, C, height, width)
        return torch.where(self.group, value, 0.0).flatten(1).sum(1)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("this is the S-agent's policy; the GC-agent copies")

    def tempered(self, temperature: float) -> Logistics:
        """Each logistic narrowed like a normal of its width; the weights take the change of its width into account."""
        weight = self.log_weight / temperature + (1 - 1 / temperature) * self.log_scale
        log_scale = self.log_scale + 0.5 * torch.tensor(temperature).log()
        return Logistics(self.group, self.levels, weight, self.mean, log_scale)


class Levels(Policy):
    """Independent values of a group, each with a chance of its own for every grey level.

    Args:
        group: which values count, bool broadcastable to (B, C, height, width).
        logits: (B, levels, C, height, width); they need no normalisation.
    """

    def __init__(self, group: Tensor, logits: Tensor) -> None:
        self.group, self.log_probs = group, logits.log_softmax(1)

    def sample(self, noise: Tensor) -> Tensor:
        cumulative, top = self.log_probs.exp().cumsum(1), self.log_probs.shape[1] - 1
        return (cumulative <= noise[:, :1] * cumulative[:, -1:]).sum(1).clamp(max=top) / top * 2 - 1

    def log_prob(self, action: Tensor) -> Tensor:
        top = self.log_probs.shape[1] - 1
        level = ((action + 1) / 2 * top).round().long().clamp(0, top).unsqueeze(1)
        return torch.where(self.group, self.log_probs.gather(1, level)[:, 0], 0.0).flatten(1).sum(1)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("this is the S-agent's policy; the GC-agent copies")

    def tempered(self, temperature: float) -> Levels:
        return Levels(self.group, self.log_probs / temperature)


class Copy(Policy):
    """These values, whatever the noise: its divergence from a policy is the negative log-probability of them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def sample(self, noise: Tensor) -> Tensor:
        return self.values

    def log_prob(self, action: Tensor) -> Tensor:
        return action.new_zeros(len(action))

    def kl(self, other: Policy) -> Tensor:
        return -other.log_prob(self.values)

    def tempered(self, temperature: float) -> Copy:
        return self


# The agents


class RevealSAgent(SAgent):
    """What values the hidden pixels have, all at once, from those that are revealed: one evaluation of the network."""

    matrices = ("weight",)

    def __init__(
        self, spec: NetworkSpec, settings: RevealSettings, levels: int, environment: RevealEnvironment
    ) -> None:
        super().__init__()
        self.levels, self.modes = levels, settings.reveal_modes if settings.reveal_values == "logistics" else 0
        self.torso = make_torso(dataclasses.replace(spec, horizon=environment.horizon), 3 * spec.shape[0])
        count = 3 * self.modes if self.modes else levels
        weight = torch.randn(count, self.torso.position_pixels, self.torso.num_features)
        self.weight = nn.Parameter(weight * 0.1 / self.torso.num_features**0.5)
        bias = torch.zeros(count, *spec.shape)
        if self.modes:  # from black to white, each about as wide as the gap to the next
            bias[self.modes : 2 * self.modes] = torch.linspace(-1, 1, self.modes)[:, None, None, None]
            bias[2 * self.modes :] = -(float(max(self.modes, 2)) ** 0.5)
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
        logits, mean, log_scale = numbers.chunk(3, 1)
        return Decision(Logistics(group, self.levels, logits, mean, bounded(log_scale + 2) - 2))


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
