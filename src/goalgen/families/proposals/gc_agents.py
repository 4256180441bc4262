"""GC-agents that choose among what the S-agent proposes.

Three kinds, each a case of equation 6, q(a | x, g) proportional to p(a | x) exp V(f(x, a), g):

- greedy: always the proposal with the largest potential Phi (V = Phi / temperature, temperature -> 0)
- posterior: V = Phi / temperature, one step of lookahead
- value: V learned by reinforcement learning on the soft return

A fourth is a subclass of :class:`LookaheadGCAgent` and one more entry in ``Proposals.gc_agents``; see docs/guide.md.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, Seen
from goalgen.bound import Bound
from goalgen.environment import ChoiceEnvironment, Environment
from goalgen.errors import GoalgenError
from goalgen.family import LearningGCAgent, Plan
from goalgen.learning import middle_canvases, potential_loss, temperature_loss, value_loss
from goalgen.likelihoods import PixelLikelihood
from goalgen.policies import Categorical
from goalgen.rollout import Trajectory

SCALE_RATE, VALUE_RATE = 10 / 3, 1 / 3
"""Learning rates over the family's: of what is a few numbers (scales, temperatures, weights of pixels), and of a network that
is fitted to returns."""

CACHED_NUMBERS = 1 << 16
"""Numbers of candidate canvases that are scored at once on a CPU."""


class Potential(nn.Module):
    """Phi_h(x, g): log-likelihood of the goal around the canvas at scale sigma_h. (Equation 8)

    For h < H a Gaussian with one sigma per step and pixel; Phi_H is the likelihood itself, so that the
    potentials telescope to the reconstruction.
    """

    def __init__(self, horizon: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.horizon = horizon
        self.log_sigma = nn.Parameter(torch.full((horizon, *shape), -1.0))

    def by_cell(
        self, h: int, canvas: Tensor, goal: Tensor, environment: ChoiceEnvironment, likelihood: PixelLikelihood
    ) -> Tensor:
        """Phi_h of canvases (B, N, C, height, width) for goals (B, C, height, width), by cell: (B, N, cells) nats."""
        size = len(canvas)
        if canvas.device.type == "cpu":  # few enough at once that what is computed in between stays in the cache
            size = max(1, CACHED_NUMBERS // canvas[0].numel())
        parts = zip(canvas.split(size), goal.unsqueeze(1).split(size), strict=True)
        with torch.autocast(canvas.device.type, enabled=False):
            if h == self.horizon:
                return torch.cat([environment.sum_by_cell(likelihood.log_prob_map(g, x)) for x, g in parts])
            log_sigma = self.log_sigma[h]
            weight = -0.5 * torch.exp(-2 * log_sigma)
            phi = torch.cat([environment.sum_by_cell((x - g).square(), weight) for x, g in parts])
            return phi - environment.sum_by_cell(log_sigma)


class LookaheadGCAgent(LearningGCAgent):
    """Looks at every next state and scores it. Needs a :class:`goalgen.environment.ChoiceEnvironment`."""

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        if not isinstance(environment, ChoiceEnvironment):
            raise GoalgenError(f"--gc-agent {plan.gc_agent} needs an environment with few actions to look through")
        self.potential = Potential(environment.horizon, plan.shape)

    def potentials(self, seen: Seen, goal: Tensor, decision: Decision) -> tuple[Tensor, Tensor]:
        """Canvases of all next states (B, A, C, height, width) and their Phi_{h+1} (B, A, cells)."""
        environment = choices(seen.environment)
        states = environment.candidates(seen.rows, seen.state, decision.offer)  # (B, A, *state_shape)
        canvases = environment.canvases(states)
        return canvases, self.potential.by_cell(seen.step + 1, canvases, goal, environment, pixels(seen.likelihood))

    @abstractmethod
    def logits(self, seen: Seen, goal: Tensor, decision: Decision) -> Tensor:
        """Unnormalised log q (B, cells, A)."""

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Categorical:
        return Categorical(self.logits(seen, goal, decision))

    def rates(self) -> dict[nn.Parameter, float]:
        return {self.potential.log_sigma: SCALE_RATE}

    def loss(self, agents: Agents, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the potential's scales at the canvases that were visited."""
        canvases = middle_canvases(trajectory, agents.environment)
        return potential_loss(self.potential.log_sigma, canvases, trajectory.goals), {}


def log_p(decision: Decision) -> Tensor:
    """The S-agent's log-probabilities, (B, cells, A)."""
    assert isinstance(decision.policy, Categorical)
    return decision.policy.log_probs


def choices(environment: Environment) -> ChoiceEnvironment:
    """The environment, which must have few actions."""
    assert isinstance(environment, ChoiceEnvironment)
    return environment


def pixels(likelihood: nn.Module) -> PixelLikelihood:
    """The likelihood, which must be one of pixels."""
    assert isinstance(likelihood, PixelLikelihood)
    return likelihood


class GreedyGCAgent(LookaheadGCAgent):
    """Takes the proposal that comes nearest: argmax of Phi."""

    def logits(self, seen: Seen, goal: Tensor, decision: Decision) -> Tensor:
        phi = self.potentials(seen, goal, decision)[1].transpose(1, 2)  # (B, cells, A)
        best = F.one_hot(phi.argmax(-1), phi.shape[-1]).bool()
        return torch.zeros_like(phi).masked_fill(~best, -torch.inf)


class PosteriorGCAgent(LookaheadGCAgent):
    """q proportional to p(a | x) exp(Phi / temperature_h): the exact posterior if the next canvas were the last.

    The temperature of the last step is 1, where this is equation 6 itself (on a grid of cells up to patches of the
    likelihood that lie across cells).
    """

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        self.log_temperature = nn.Parameter(torch.zeros(environment.horizon - 1))

    def logits(self, seen: Seen, goal: Tensor, decision: Decision) -> Tensor:
        phi = self.potentials(seen, goal, decision)[1]
        return self.tempered(seen.step, log_p(decision), phi.transpose(1, 2))

    def tempered(self, h: int, log_p: Tensor, phi: Tensor) -> Tensor:
        """log p + Phi / temperature_h, (B, cells, A)."""
        if h == self.potential.horizon - 1:
            return log_p + phi
        return log_p + phi * torch.exp(-self.log_temperature[h])

    def rates(self) -> dict[nn.Parameter, float]:
        return {**super().rates(), self.log_temperature: SCALE_RATE}

    def loss(self, agents: Agents, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        loss, info = super().loss(agents, trajectory, terms)
        return loss + temperature_loss(self.log_temperature, agents.environment, trajectory, terms), info


class ValueGCAgent(LookaheadGCAgent):
    """q proportional to p(a | x) exp V_{h+1}(f(x, a), g), with V learned on the soft return. (Equations 5, 6)

    V_h = Phi_h + W_h. W is the value of the episode whose rewards are shaped by Phi (equation 8), so learning starts
    at the posterior agent (W = 0) and what is learned is what one-step lookahead does not see: a weight for every
    step and pixel, and a small network of the canvas's difference from the goal and of the goal. With several cells W is
    a sum over cells, as Phi is, so that improvement over p stays exact cell by cell.
    """

    episodes_per_goal = 4  # it learns from what differs between them

    def __init__(self, plan: Plan, environment: Environment, width: int = 128) -> None:
        super().__init__(plan, environment)
        count = plan.network.pixels
        self.cells = choices(environment).action_space.cells
        self.residual = nn.Linear(count, width)
        self.goal = nn.Linear(count, width)
        self.step = nn.Embedding(environment.horizon, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)
        self.weight = nn.Parameter(torch.zeros(environment.horizon, *plan.shape))
        self.offset = nn.Parameter(torch.zeros(environment.horizon))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def values(self, h: int, canvas: Tensor, goal: Tensor, environment: ChoiceEnvironment, phi: Tensor) -> Tensor:
        """V_h of canvases (B, N, C, height, width), each cell's share: (B, N, cells).

        Args:
            phi: Phi_h of the same canvases, (B, N, cells).
        """
        if h == self.potential.horizon:
            return phi
        with torch.autocast(canvas.device.type, enabled=False):  # candidates differ by less than bfloat16 can tell
            difference = canvas - goal.unsqueeze(1)
            precision = torch.exp(-2 * self.potential.log_sigma[h].detach())
            squares = environment.sum_by_cell(difference.square(), -0.5 * precision * self.weight[h])
            residual = difference.unsqueeze(2)  # (B, N, 1, C, height, width)
            if self.cells > 1:
                residual = residual * environment.cell_mask()  # what one cell's choice can change
            step = torch.tensor(h, device=canvas.device)
            x = self.residual(residual.flatten(3)) + (self.goal(goal.flatten(1)) + self.step(step))[:, None, None]
            x = x + self.inner(F.silu(self.norm(x)))
            correction = self.output(F.silu(x)).squeeze(-1) + self.offset[h]
            return phi + squares + correction

    def logits(self, seen: Seen, goal: Tensor, decision: Decision) -> Tensor:
        canvases, phi = self.potentials(seen, goal, decision)
        values = self.values(seen.step + 1, canvases, goal, choices(seen.environment), phi)
        return log_p(decision) + values.transpose(1, 2)

    def rates(self) -> dict[nn.Parameter, float]:
        slow = dict.fromkeys(self.parameters(), VALUE_RATE)
        return {**slow, **super().rates(), self.weight: SCALE_RATE}

    def loss(self, agents: Agents, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        """... and of V, regressed on the soft returns of its episodes. (Equations 5, 6 and 8)"""
        loss, info = super().loss(agents, trajectory, terms)
        states, goals, environment = (
            middle_canvases(trajectory, agents.environment), trajectory.goals, choices(agents.environment),
        )  # fmt: skip
        if not len(states):
            return loss, info
        values = []
        for h, state in enumerate(states, 1):
            canvas = state.unsqueeze(1)  # (B, 1, C, height, width)
            with torch.no_grad():
                phi = self.potential.by_cell(h, canvas, goals, environment, pixels(agents.likelihood))
            values.append(self.values(h, canvas, goals, environment, phi).sum((1, 2)))
        task, terminal = trajectory.task, -terms.reconstruction
        extra, error = value_loss(torch.stack(values), trajectory.log_ratio, terminal, task.episodes)
        return loss + extra, {"value_error": error}
