"""Agents whose action is the next canvas: Gaussian diffusion where the GC-agent is fixed, and beyond it where it learns."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from goalgen.agents.gc_agent import GCAgent, View
from goalgen.agents.latent import bounded
from goalgen.agents.networks import ImageHead, NetworkSpec, make_torso
from goalgen.agents.s_agent import Decision, SAgent
from goalgen.environments import BridgeEnvironment, Reading

DATA_STD = 0.5
"""Rough standard deviation of goals around a start, by which the network's input and output are scaled."""


@dataclass
class Look:
    """What the S-agent sees in a canvas."""

    guess: Tensor
    """g_hat (B, C, height, width)"""
    shift: Tensor | None
    """of the action's mean beyond the guess, in units of sigma_{h+1}"""
    log_std: Tensor | None
    """of the action beyond the fixed agent's, before it is bounded"""


def column(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


class BridgeSAgent(SAgent):
    """Guesses the goal from the canvas, and acts as the fixed GC-agent would with the guess as its goal. (Equation 25)

    The first step needs no network: there is nothing on the canvas but x_0, and the guess is x_0 with a learned
    image added. The last canvas is read: what it shows is the guess from it. So H steps are H network evaluations.

    With ``free`` its mean and variance may depart from the fixed agent's, pixel by pixel, as a learned GC-agent's do;
    when training begins they do not.

    The guess is a mixture of the canvas and the network's output, weighted by the noise (Karras et al. 2022, table 1).

    Args:
        spec: network.
        environment: whose schedule it reads (held by reference, owned by the environment).
        free: learn mean and variance of the action beyond the guess.
    """

    def __init__(self, spec: NetworkSpec, environment: BridgeEnvironment, free: bool) -> None:
        super().__init__()
        self.world = (environment,)  # in a tuple, so that its parameters are not listed twice
        self.free = free
        self.torso = make_torso(spec, 2 * spec.shape[0])
        self.guess = ImageHead(self.torso, spec, 1, 0.1)
        self.first = nn.Parameter(torch.zeros(max(spec.num_labels, 1), *spec.shape))
        self.departure = ImageHead(self.torso, spec, 2, 0.0) if free else None
        self.first_departure = nn.Parameter(torch.zeros(2, *spec.shape)) if free else None
        self.log_gain = nn.Parameter(torch.zeros(spec.horizon)) if free else None

    def forward(self, h: int, state: Tensor, label: Tensor | None = None) -> Decision:
        """Policy over the next canvas (B, C, height, width); as proposals, :class:`Reading`."""
        return self._decide(h, h + 1, state, label)

    def skip(self, h: int, to: int, state: Tensor, label: Tensor | None = None) -> Decision:
        if self.free:
            return super().skip(h, to, state, label)
        return self._decide(h, to, state, label)

    def _decide(self, h: int, to: int, state: Tensor, label: Tensor | None) -> Decision:
        (world,) = self.world
        step, after = (torch.tensor([i], device=state.device) for i in (h, to))
        look = self.open(state, label) if h == 0 else self.look(step, state, label)

        def read(canvas: Tensor) -> Tensor:
            return self.look(after, torch.cat([canvas, world.start(state)], 1), label).guess

        return Decision(self.act(step, after, state, look), Reading(look.guess, read if to == world.horizon else None))

    def open(self, state: Tensor, label: Tensor | None) -> Look:
        """What is seen at step 0, where there is nothing to see."""
        (world,) = self.world
        guess = world.start(state) + self.first[torch.zeros(1, dtype=torch.int64) if label is None else label]
        if self.first_departure is None:
            return Look(guess, None, None)
        shift, log_std = self.first_departure.unsqueeze(1)
        return Look(guess, shift, log_std)

    def look(self, h: Tensor, state: Tensor, label: Tensor | None) -> Look:
        """What the network sees in a canvas at steps ``h``, (B,) or (1,), in 1..H: one evaluation."""
        (world,) = self.world
        schedule, start = world.schedule, world.start(state)
        offset = world.canvas(state) - start  # alpha (g - x_0) + noise
        alpha, sigma = column(schedule.alpha(h)), column(schedule.sigma(h))
        scale = torch.rsqrt((alpha * DATA_STD) ** 2 + sigma**2)
        features, _ = self.torso(h - 1, torch.cat([offset * scale, start], 1), label)
        skip = alpha * DATA_STD**2 * scale**2
        size = torch.sqrt(1 - skip * alpha).clamp(min=0.01)  # what the canvas does not tell, in units of the data
        guess = start + skip * offset + size * self.guess(self.torso, h - 1, features)[:, 0]
        if self.departure is None:
            return Look(guess, None, None)
        shift, log_std = self.departure(self.torso, h - 1, features).unbind(1)
        return Look(guess, shift, log_std)

    def act(self, h: Tensor, to: Tensor, state: Tensor, look: Look) -> Independent:
        """The policy of going from steps ``h`` to steps ``to``, both (B,) or (1,), given what was seen."""
        (world,) = self.world
        schedule = world.schedule
        start = world.start(state)
        alpha, next_alpha = column(schedule.alpha(h)), column(schedule.alpha(to))
        next_sigma = column(schedule.sigma(to))
        rho, rest = (column(x) for x in schedule.correlation(h, to))
        if self.log_gain is not None:
            rho = rho * column(self.log_gain[h].exp())
        noise = (world.canvas(state) - start - alpha * (look.guess - start)) / column(schedule.sigma(h))
        mean = start + next_alpha * (look.guess - start) + rho * next_sigma * noise
        std = (next_sigma * rest.sqrt()).expand_as(mean)
        if look.shift is not None and look.log_std is not None:
            mean = mean + next_sigma * look.shift
            std = std * bounded(look.log_std).exp()
        return world.action_space.policy(mean, std)


class BridgeGCAgent(GCAgent):
    """A GC-agent whose canvas is Gaussian at every step, in closed form: training needs no episode. (Equations 9, 10)"""

    learner = "marginals"
    pathwise = True
    follows_schedule = False
    """Whether it is the fixed agent, whose divergence from an S-agent that only guesses the goal is a squared error."""

    def __init__(self, environment: BridgeEnvironment, spec: NetworkSpec) -> None:
        super().__init__(environment, spec.shape)
        self.horizon = environment.horizon

    @abstractmethod
    def marginal(
        self, h: Tensor, environment: BridgeEnvironment, goal: Tensor, start: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mean m_h and standard deviation s_h of the canvas at steps ``h`` (B,) in 1..H, (B, C, height, width) each.

        (Equation 9)

        Args:
            seen: what :meth:`look` found.
        """

    def look(self, goal: Tensor, start: Tensor, label: Tensor | None) -> Tensor | None:
        """What the agent's network sees in a goal: the same at every step."""
        return None

    def correlation(self, h: Tensor, environment: BridgeEnvironment) -> tuple[Tensor, Tensor]:
        """rho_h and 1 - rho_h^2, (B,) each. (Equation 10)"""
        return environment.schedule.correlation(h, h + 1)

    def step(
        self,
        h: Tensor,
        environment: BridgeEnvironment,
        canvas: Tensor,
        goal: Tensor,
        start: Tensor,
        seen: Tensor | None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Independent:
        """q(x_{h+1} | x_h, g) at steps ``h`` (B,) or (1,) in 1..H-1. (Equation 10)

        Args:
            before: the marginal at ``h``, where it is known already.
        """
        mean, std = self.marginal(h + 1, environment, goal, start, seen)
        before_mean, before_std = before or self.marginal(h, environment, goal, start, seen)
        rho, rest = (column(x) for x in self.correlation(h, environment))
        noise = (canvas - before_mean) / before_std
        return environment.action_space.policy(mean + rho * std * noise, std * rest.sqrt())

    def first_step(
        self, environment: BridgeEnvironment, goal: Tensor, start: Tensor, seen: Tensor | None
    ) -> Independent:
        """q(x_1 | x_0, g): the marginal itself, as there is no noise yet to be correlated with."""
        step = torch.ones(1, dtype=torch.int64, device=goal.device)
        return environment.action_space.policy(*self.marginal(step, environment, goal, start, seen))

    def policy(self, view: View) -> Distribution:
        environment = view.environment
        assert isinstance(environment, BridgeEnvironment)
        start = environment.start(view.state)
        h = torch.tensor([view.h], device=view.state.device)
        seen = self.look(view.goal, start, view.label)
        if view.h == 0:
            return self.first_step(environment, view.goal, start, seen)
        return self.step(h, environment, environment.canvas(view.state), view.goal, start, seen)


class FixedBridgeGCAgent(BridgeGCAgent):
    """Gaussian diffusion: nothing to learn but the schedule. (Equation 9 with delta = 0)"""

    follows_schedule = True

    def marginal(
        self, h: Tensor, environment: BridgeEnvironment, goal: Tensor, start: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = column(environment.schedule.alpha(h)), column(environment.schedule.sigma(h))
        mean = start + alpha * (goal - start)
        return mean, sigma.expand_as(mean)


class LearnedBridgeGCAgent(FixedBridgeGCAgent):
    """A mean that depends on the goal, noise by pixel, and its own correlation from step to step. (Equations 9, 10)

    A network looks at the goal once; every step reads its features through gains of its own. When training begins it
    is the fixed agent exactly. What it has to see is plain to see, so its network is a quarter as wide as the S-agent's
    and half as deep.
    """

    follows_schedule = False

    def __init__(self, environment: BridgeEnvironment, spec: NetworkSpec) -> None:
        super().__init__(environment, spec)
        spec = dataclasses.replace(
            spec,
            dropout=0.0,
            width=max(spec.width // 4, 1),
            head_width=max(spec.head_width // 4, 1),
            depth=max(spec.depth // 2, 1),
        )
        self.torso = make_torso(spec, 2 * spec.shape[0])
        self.head = ImageHead(self.torso, spec, 2, 0.0)
        self.gain = nn.Parameter(torch.ones(spec.horizon, self.torso.num_features))
        self.log_odds = nn.Parameter(torch.zeros(spec.horizon))

    def look(self, goal: Tensor, start: Tensor, label: Tensor | None) -> Tensor:
        """Features of the goal, (B, F, positions)."""
        step = torch.zeros(1, dtype=torch.int64, device=goal.device)
        features: Tensor = self.torso(step, torch.cat([goal, start], 1), label)[0]
        return features

    def marginal(
        self, h: Tensor, environment: BridgeEnvironment, goal: Tensor, start: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mean, std = super().marginal(h, environment, goal, start, None)
        assert seen is not None
        delta, log_std = self.head(self.torso, h - 1, seen * self.gain[h - 1].unsqueeze(-1)).unbind(1)
        sigma = column(environment.schedule.sigma(h))
        return mean + sigma * delta, std * bounded(log_std).exp()

    def correlation(self, h: Tensor, environment: BridgeEnvironment) -> tuple[Tensor, Tensor]:
        """The fixed agent's, with learned odds of rho^2 against 1 - rho^2. (Equation 10)"""
        rho, rest = environment.schedule.correlation(h, h + 1)
        factor = torch.exp(0.5 * self.log_odds[h])
        total = (rho * factor) ** 2 + rest
        return rho * factor * torch.rsqrt(total), rest / total
