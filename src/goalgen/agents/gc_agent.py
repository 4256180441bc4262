"""The GC-agent: sees the canvas and the goal, and chooses among what the S-agent proposes.

Three kinds, each a case of equation 6, q(a | x, g) proportional to p(a | x) exp V(f(x, a), g):

- greedy: always the proposal with the largest potential Phi (V = Phi / temperature, temperature -> 0)
- posterior: V = Phi / temperature, one step of lookahead
- value: V learned by reinforcement learning on the soft return

A fourth is a subclass of :class:`GCAgent` (or of :class:`LookaheadGCAgent`) and one call of
:func:`register_gc_agent`; see docs/guide.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from goalgen.agents.s_agent import Decision
from goalgen.environments import ChoiceEnvironment, Environment, action_log_probs
from goalgen.errors import GoalgenError
from goalgen.likelihoods import Likelihood, full_precision


@dataclass
class View:
    """What the GC-agent sees at step ``h`` of an episode."""

    h: int
    state: Tensor
    """(B, *state_shape)"""
    goal: Tensor
    """(B, C, height, width) in [-1, 1]"""
    decision: Decision
    """The S-agent's policy and proposals at this state."""
    environment: Environment
    likelihood: Likelihood
    label: Tensor | None = None
    """(B,) int64, of a model that is conditioned on labels"""


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
        self, h: int, canvas: Tensor, goal: Tensor, environment: ChoiceEnvironment, likelihood: Likelihood
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


class GCAgent(nn.Module, ABC):
    """The interface: a policy given a :class:`View`. ``learner`` names how it learns (goalgen.learners)."""

    learner: str = "imitation"
    pathwise: bool = False
    """Whether its parameters learn from gradients that pass through its actions; a rollout then keeps them."""

    def __init__(self, environment: Environment, shape: tuple[int, int, int]) -> None:
        super().__init__()

    @abstractmethod
    def policy(self, view: View) -> Distribution:
        """q(. | x_h, g), a distribution of the environment's action space."""


class LookaheadGCAgent(GCAgent):
    """Looks at every next state and scores it. Needs a :class:`ChoiceEnvironment`."""

    learner = "potential"

    def __init__(self, environment: Environment, shape: tuple[int, int, int]) -> None:
        super().__init__(environment, shape)
        if not isinstance(environment, ChoiceEnvironment):
            raise GoalgenError(
                f"GC-agent {type(self).__name__} needs an environment with few actions to look through: --environment proposals"
            )
        self.potential = Potential(environment.horizon, shape)

    def potentials(self, view: View) -> tuple[Tensor, Tensor]:
        """Canvases of all next states (B, A, C, height, width) and their Phi_{h+1} (B, A, cells)."""
        environment = view.environment
        assert isinstance(environment, ChoiceEnvironment)
        h = torch.full((len(view.state),), view.h, device=view.state.device)
        states = environment.candidates(h, view.state, view.decision.proposals)  # (B, A, *state_shape)
        canvases = environment.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return canvases, self.potential.by_cell(view.h + 1, canvases, view.goal, environment, view.likelihood)

    @abstractmethod
    def logits(self, view: View) -> Tensor:
        """Unnormalised log q (B, cells, A)."""

    def policy(self, view: View) -> Distribution:
        assert isinstance(view.environment, ChoiceEnvironment)
        return view.environment.action_space.policy(self.logits(view))


class GreedyGCAgent(LookaheadGCAgent):
    """Takes the proposal that comes nearest: argmax of Phi."""

    def logits(self, view: View) -> Tensor:
        phi = self.potentials(view)[1].transpose(1, 2)  # (B, cells, A)
        best = F.one_hot(phi.argmax(-1), phi.shape[-1]).bool()
        return torch.zeros_like(phi).masked_fill(~best, -torch.inf)


class PosteriorGCAgent(LookaheadGCAgent):
    """q proportional to p(a | x) exp(Phi / temperature_h): the exact posterior if the next canvas were the last.

    The temperature of the last step is 1, where this is equation 6 itself (on a grid of cells up to patches of the
    likelihood that lie across cells).
    """

    def __init__(self, environment: Environment, shape: tuple[int, int, int]) -> None:
        super().__init__(environment, shape)
        self.log_temperature = nn.Parameter(torch.zeros(environment.horizon - 1))

    def logits(self, view: View) -> Tensor:
        return self.tempered(view.h, action_log_probs(view.decision.policy), self.potentials(view)[1].transpose(1, 2))

    def tempered(self, h: int, log_p: Tensor, phi: Tensor) -> Tensor:
        """log p + Phi / temperature_h, (B, cells, A)."""
        if h == self.potential.horizon - 1:
            return log_p + phi
        return log_p + phi * torch.exp(-self.log_temperature[h])


class ValueGCAgent(LookaheadGCAgent):
    """q proportional to p(a | x) exp V_{h+1}(f(x, a), g), with V learned on the soft return. (Equations 5, 6)

    V_h = Phi_h + W_h. W is the value of the episode whose rewards are shaped by Phi (equation 8), so learning starts
    at the posterior agent (W = 0) and what is learned is what one-step lookahead does not see: a weight for every
    step and pixel, and a small network of the canvas's difference from the goal and of the goal. With several cells W is
    a sum over cells, as Phi is, so that improvement over p stays exact cell by cell.
    """

    learner = "soft_value"

    def __init__(self, environment: Environment, shape: tuple[int, int, int], width: int = 128) -> None:
        super().__init__(environment, shape)
        pixels = shape[0] * shape[1] * shape[2]
        self.cells = environment.action_space.cells if isinstance(environment, ChoiceEnvironment) else 1
        self.residual = nn.Linear(pixels, width)
        self.goal = nn.Linear(pixels, width)
        self.step = nn.Embedding(environment.horizon, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)
        self.weight = nn.Parameter(torch.zeros(environment.horizon, *shape))
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
        return phi + squares + full_precision(correction)

    def logits(self, view: View) -> Tensor:
        environment = view.environment
        assert isinstance(environment, ChoiceEnvironment)
        canvases, phi = self.potentials(view)
        values = self.values(view.h + 1, canvases, view.goal, environment, phi)
        return action_log_probs(view.decision.policy) + values.transpose(1, 2)


GCAgentFactory = Callable[[Environment, tuple[int, int, int]], GCAgent]

_KINDS: dict[str, GCAgentFactory] = {
    "greedy": GreedyGCAgent,
    "posterior": PosteriorGCAgent,
    "value": ValueGCAgent,
}


def register_gc_agent(name: str, factory: GCAgentFactory) -> None:
    """Make ``name`` a value of ``--gc-agent``; ``factory(environment, shape)`` builds the agent."""
    _KINDS[name] = factory


def gc_agent_kinds() -> list[str]:
    """Names that ``--gc-agent`` takes."""
    return sorted(_KINDS)


def make_gc_agent(kind: str, environment: Environment, shape: tuple[int, int, int]) -> GCAgent:
    """The GC-agent called ``kind``.

    Raises:
        GoalgenError: no agent has this name, or it cannot act in this environment.
    """
    if kind not in _KINDS:
        raise GoalgenError(f"no GC-agent is called {kind!r}; there are: {', '.join(gc_agent_kinds())}")
    return _KINDS[kind](environment, shape)
