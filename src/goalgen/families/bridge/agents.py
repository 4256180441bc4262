"""Agents whose action is the next canvas: Gaussian diffusion where the GC-agent is fixed, and beyond it where it learns."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.environment import Environment
from goalgen.families.bridge.environment import BridgeEnvironment, Reading
from goalgen.family import Plan
from goalgen.networks import ImageHead, NetworkSpec, bounded, make_torso
from goalgen.policies import Gaussian

DATA_STD = 0.5
"""Rough standard deviation of goals around a start, by which the network's input and output are scaled."""


@dataclass
class Look:
    """What the S-agent sees in a canvas."""

    guess: Tensor
    """g_hat (B, C, height, width)"""
    shift: Tensor | None = None
    """of the action's mean beyond the guess, in units of sigma_{h+1}"""
    log_std: Tensor | None = None
    """of the action beyond the fixed agent's, before it is bounded"""


@dataclass
class Told:
    """What the GC-agent knows all through an episode."""

    world: BridgeEnvironment
    goal: Tensor
    """(B, C, height, width)"""
    start: Tensor
    """x_0, likewise"""
    features: Tensor | None
    """what its network sees in the goal: (B, F, positions)"""


def column(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def world_of(seen: Seen) -> BridgeEnvironment:
    """The environment, which must be a bridge."""
    assert isinstance(seen.environment, BridgeEnvironment)
    return seen.environment


class Onward(Gaussian):
    """The policy of going on: a guess, and the noise that is on the canvas carried along. (Equation 10)

    Args:
        mean: of the next canvas, (B, C, height, width).
        std: likewise.
        noise: what is taken for noise on the canvas, in units of its standard deviation; likewise.
        rho: how much of it is carried along, (B, 1, 1, 1).
        sigma: standard deviation of the noise on the next canvas, likewise.
    """

    def __init__(self, mean: Tensor, std: Tensor, noise: Tensor, rho: Tensor, sigma: Tensor) -> None:
        super().__init__(mean, std)
        self.noise, self.rho, self.sigma = noise, rho, sigma

    def tempered(self, temperature: float) -> Onward:
        return Onward(self.mean, self.std * temperature**0.5, self.noise, self.rho, self.sigma)

    def correlated(self, share: float) -> Onward:
        """With rho^2 nearer to 1 by this share of the way; at 1 it is DDIM (Song et al. 2021). The first noise is always drawn."""
        taken = share * (self.rho > 0).to(self.rho.dtype)
        rho = torch.sqrt(self.rho**2 + taken * (1 - self.rho**2))
        mean = self.mean + (rho - self.rho) * self.sigma * self.noise
        return Onward(mean, self.std * (1 - taken).sqrt(), self.noise, rho, self.sigma)


class BridgeSAgent(SAgent):
    """Guesses the goal from the canvas, and acts as the fixed GC-agent would with the guess as its goal. (Equation 25)

    Where there is nothing to see at first but x_0, always the same, the first step needs no network: the guess is x_0 with a
    learned image added. With ``first`` the network looks then, too, and what memory tells is a draft. The last canvas is read:
    what it shows is the guess from it. So H steps are H network evaluations, or H + 1.

    With ``free`` its mean and variance may depart from the fixed agent's, pixel by pixel, as a learned GC-agent's do;
    when training begins they do not.

    The guess is a mixture of the canvas and the network's output, weighted by the noise (Karras et al. 2022, table 1).

    Args:
        spec: network.
        free: learn mean and variance of the action beyond the guess.
        first: the network looks at step 0, too.
        clamp: keep the guess within the range of grey levels, but for the gradient in training.
    """

    def __init__(self, spec: NetworkSpec, free: bool, first: bool = False, clamp: bool = False) -> None:
        super().__init__()
        self.free, self.clamp, self.looks_first = free, clamp, first
        self.after_first = 0 if first else 1
        """the step that the network knows as its first"""
        horizon, spec = spec.horizon, dataclasses.replace(spec, horizon=spec.horizon + 1 - self.after_first)
        self.torso = make_torso(spec, 2 * spec.shape[0])
        self.guess = ImageHead(self.torso, spec, 1, 0.1)
        self.first = None if first else nn.Parameter(torch.zeros(max(spec.num_labels, 1), *spec.shape))
        self.departure = ImageHead(self.torso, spec, 2, 0.0) if free else None
        self.first_departure = nn.Parameter(torch.zeros(2, *spec.shape)) if free and not first else None
        self.log_gain = nn.Parameter(torch.zeros(horizon)) if free else None

    def decide(self, seen: Seen) -> Decision:
        """Policy over the canvas at ``seen.to`` (B, C, height, width); as offer, :class:`Reading`."""
        world = world_of(seen)
        look = self.open(seen) if seen.step == 0 and not self.looks_first else self.look(seen)

        def read(canvas: Tensor) -> Tensor:
            state = torch.cat([canvas, world.start(seen.state)], 1)
            return self.look(dataclasses.replace(seen, h=seen.to, state=state, known=None)).guess

        return Decision(self.act(seen, look), Reading(look.guess, read if seen.next_step == world.horizon else None))

    def in_mind(self, decision: Decision) -> Tensor:
        guess: Tensor = decision.offer.guess
        return guess

    def open(self, seen: Seen) -> Look:
        """What is seen at step 0, where there is nothing to see."""
        assert self.first is not None
        label = torch.zeros(1, dtype=torch.int64) if seen.label is None else seen.label
        guess = world_of(seen).start(seen.state) + self.first[label]
        if self.first_departure is None:
            return Look(guess)
        shift, log_std = self.first_departure.unsqueeze(1)
        return Look(guess, shift, log_std)

    def look(self, seen: Seen) -> Look:
        """What the network sees in canvases at steps 1..H, or 0..H: one evaluation."""
        world, h = world_of(seen), seen.h
        told = h - self.after_first
        start = world.start(seen.state)
        offset = world.canvas(seen.state) - start  # alpha (g - x_0) + noise
        alpha, sigma = column(world.schedule.alpha(h)), column(world.schedule.sigma(h))
        scale = torch.rsqrt((alpha * DATA_STD) ** 2 + sigma**2)
        features, _ = self.torso(told, torch.cat([offset * scale, start], 1), seen.label, seen.memory)
        skip = alpha * DATA_STD**2 * scale**2
        size = torch.sqrt(1 - skip * alpha).clamp(min=0.01)  # what the canvas does not tell, in units of the data
        guess = start + skip * offset + size * self.guess(self.torso, told, features)[:, 0]
        if self.clamp and not self.training:
            guess = guess.clamp(-1, 1)
        if self.departure is None:
            return Look(guess)
        shift, log_std = self.departure(self.torso, told, features).unbind(1)
        return Look(guess, shift, log_std)

    def act(self, seen: Seen, look: Look) -> Gaussian:
        """The policy of going on to the canvas at ``seen.to``, given what was seen."""
        world = world_of(seen)
        schedule, start = world.schedule, world.start(seen.state)
        alpha, next_alpha = column(schedule.alpha(seen.h)), column(schedule.alpha(seen.to))
        next_sigma = column(schedule.sigma(seen.to))
        rho, rest = (column(x) for x in schedule.correlation(seen.h, seen.to))
        if self.log_gain is not None:
            rho = rho * column(self.log_gain[seen.h].exp())
        noise = (world.canvas(seen.state) - start - alpha * (look.guess - start)) / column(schedule.sigma(seen.h))
        mean = start + next_alpha * (look.guess - start) + rho * next_sigma * noise
        std = (next_sigma * rest.sqrt()).expand_as(mean)
        if look.shift is not None and look.log_std is not None:
            mean = mean + next_sigma * look.shift
            std = std * bounded(look.log_std).exp()
        return Onward(mean, std, noise, rho, next_sigma)


class BridgeGCAgent(GCAgent):
    """A GC-agent whose canvas is Gaussian at every step, in closed form: training needs no episode. (Equations 9, 10)"""

    follows_schedule = False
    """Whether it is the fixed agent, whose divergence from an S-agent that only guesses the goal is a squared error."""

    @abstractmethod
    def marginal(self, h: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """Mean m_h and standard deviation s_h of the canvas at steps ``h`` (B,) in 1..H, (B, C, height, width) each.

        (Equation 9)
        """

    def look(self, seen: Seen, goal: Tensor) -> Told:
        """What it knows of an episode from its start and goal, whatever the step."""
        world = world_of(seen)
        return Told(world, goal, world.start(seen.state), None)

    def correlation(self, h: Tensor, world: BridgeEnvironment) -> tuple[Tensor, Tensor]:
        """rho_h and 1 - rho_h^2, (B,) each. (Equation 10)"""
        return world.schedule.correlation(h, h + 1)

    def step(self, h: Tensor, canvas: Tensor, told: Told, before: tuple[Tensor, Tensor] | None = None) -> Gaussian:
        """q(x_{h+1} | x_h, g) at steps ``h`` (B,) or (1,) in 1..H-1. (Equation 10)

        Args:
            before: the marginal at ``h``, where it is known already.
        """
        mean, std = self.marginal(h + 1, told)
        before_mean, before_std = before or self.marginal(h, told)
        rho, rest = (column(x) for x in self.correlation(h, told.world))
        noise = (canvas - before_mean) / before_std
        return Gaussian(mean + rho * std * noise, std * rest.sqrt())

    def first_step(self, told: Told) -> Gaussian:
        """q(x_1 | x_0, g): the marginal itself, as there is no noise yet to be correlated with."""
        return Gaussian(*self.marginal(torch.ones(1, dtype=torch.int64, device=told.goal.device), told))

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Gaussian:
        told = self.look(seen, goal)
        if seen.step == 0:
            return self.first_step(told)
        return self.step(seen.h, told.world.canvas(seen.state), told)


class FixedBridgeGCAgent(BridgeGCAgent):
    """Gaussian diffusion: nothing to learn but the schedule. (Equation 9 with delta = 0)"""

    follows_schedule = True

    def marginal(self, h: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        schedule = told.world.schedule
        mean = told.start + column(schedule.alpha(h)) * (told.goal - told.start)
        return mean, column(schedule.sigma(h)).expand_as(mean)


class LearnedBridgeGCAgent(FixedBridgeGCAgent):
    """A mean that depends on the goal, noise by pixel, and its own correlation from step to step. (Equations 9, 10)

    A network looks at the goal once; every step reads its features through gains of its own. When training begins it
    is the fixed agent exactly. What it has to see is plain to see, so its network is a quarter as wide as the S-agent's
    and half as deep.
    """

    follows_schedule = False

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        full = plan.network
        spec = dataclasses.replace(
            full,
            dropout=0.0,
            width=max(full.width // 4, 1),
            head_width=max(full.head_width // 4, 1),
            depth=max(full.depth // 2, 1),
        )
        self.torso = make_torso(spec, 2 * spec.shape[0])
        self.head = ImageHead(self.torso, spec, 2, 0.0)
        self.gain = nn.Parameter(torch.ones(spec.horizon, self.torso.num_features))
        self.log_odds = nn.Parameter(torch.zeros(spec.horizon))

    def look(self, seen: Seen, goal: Tensor) -> Told:
        told = super().look(seen, goal)
        step = torch.zeros(1, dtype=torch.int64, device=goal.device)
        told.features = self.torso(step, torch.cat([goal, told.start], 1), seen.label, seen.memory)[0]
        return told

    def marginal(self, h: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        mean, std = super().marginal(h, told)
        assert told.features is not None
        read = told.features * self.gain[h - 1].unsqueeze(-1)
        delta, log_std = self.head(self.torso, h - 1, read).unbind(1)
        return mean + column(told.world.schedule.sigma(h)) * delta, std * bounded(log_std).exp()

    def correlation(self, h: Tensor, world: BridgeEnvironment) -> tuple[Tensor, Tensor]:
        """The fixed agent's, with learned odds of rho^2 against 1 - rho^2. (Equation 10)"""
        rho, rest = world.schedule.correlation(h, h + 1)
        factor = torch.exp(0.5 * self.log_odds[h])
        total = (rho * factor) ** 2 + rest
        return rho * factor * torch.rsqrt(total), rest / total
