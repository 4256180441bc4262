"""A code: Gaussian numbers that nobody sees but the agents. A stage before others, whose networks read it from memory.

It lays an image out, and leaves the canvas as it was: ``--environment code:1+bridge:4``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.environment import Continuous, Environment
from goalgen.family import Draws, Family, Plan, check_least
from goalgen.learning import Clock, Learned, active_units, learn_pathwise
from goalgen.likelihoods import PixelLikelihood, full_precision
from goalgen.networks import bounded, make_trunk
from goalgen.policies import Gaussian, Mixture
from goalgen.rollout import Trajectory
from goalgen.task import Task

MODE_RATE = 4.0
"""Modes of a mixture move so many times faster than weights, as they have some way to go."""

WARMUP_STEPS, WARMUP_SHARE = 500, 0.2
"""The KL is warmed up over so many steps or this share of the run, whichever is over first."""


@dataclass(frozen=True)
class CodeSettings(config.Settings):
    """Numbers that nobody sees but the agents: a stage before others."""

    code_size: int = 32
    """Numbers in a code."""
    code_modes: int = 64
    """Gaussians that the S-agent's policy over codes mixes at every step."""
    code_warmup_steps: int | None = config.of_training(None)
    """Steps over which the weight of the code's KL rises from 0 to 1; unset: 500, or a fifth of the run if that is less."""


class CodeEnvironment(Environment):
    """Nothing changes on the canvas; the actions go into memory."""

    action_space: Continuous

    def __init__(self, shape: tuple[int, int, int], horizon: int, size: int, mixed: bool) -> None:
        super().__init__()
        self.horizon, self.state_shape, self.action_space = horizon, shape, Continuous((1, size), mixed)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        return state


class CodeSAgent(SAgent):
    """p(z | what is remembered, step, label): a mixture of Gaussians placed by a small network. (Equation 27)

    It looks at the canvas once, in as few places as tell a start from another: at its mean over squares.
    """

    def __init__(self, plan: Plan, width: int = 128, squares: int = 7) -> None:
        super().__init__()
        settings: CodeSettings = plan.settings
        size, modes, spec = settings.code_size, settings.code_modes, plan.network
        self.squares, self.modes = squares, modes
        self.step = nn.Embedding(plan.horizon, width)
        self.label = nn.Embedding(spec.num_labels, width) if spec.num_labels else None
        self.memory = nn.Linear(spec.memory, width) if spec.memory else None
        self.canvas = nn.Linear(plan.shape[0] * squares**2, width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, 2 * size + modes)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.mode_mean = nn.Parameter(torch.randn(plan.horizon, modes, size) / MODE_RATE)
        self.mode_log_std = nn.Parameter(torch.full((plan.horizon, modes, size), -0.7 / MODE_RATE))

    def decide(self, seen: Seen) -> Decision:
        small = nn.functional.adaptive_avg_pool2d(seen.state, self.squares).flatten(1)
        x = self.canvas(small) + self.step(seen.h)
        if self.label is not None:
            x = x + self.label(seen.label)
        if self.memory is not None:
            x = x + self.memory(seen.memory)
        x = nn.functional.silu(x)
        x = nn.functional.silu(self.inner(x) + x)
        size = self.mode_mean.shape[-1]
        mean, log_std, logits = full_precision(self.outer(x)).unsqueeze(1).split([size, size, self.modes], -1)
        places, spread = MODE_RATE * self.mode_mean[seen.step], bounded(MODE_RATE * self.mode_log_std[seen.step]).exp()
        return Decision(Mixture(mean, bounded(log_std).exp(), logits, places, spread))


class ReaderGCAgent(GCAgent):
    """q(z | goal, start, what is remembered), Gaussian, told relative to the S-agent's center and scale. (Equation 24)"""

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        spec = dataclasses.replace(plan.network, dropout=0.0)
        self.trunk = make_trunk(spec, 2 * spec.shape[0], max(1, spec.depth if spec.kind == "unet" else spec.depth // 2))
        self.mix = nn.Linear(self.trunk.positions * self.trunk.width, 128)
        self.head = nn.Linear(128, 2 * plan.settings.code_size)
        nn.init.normal_(self.head.weight, std=0.5 / math.sqrt(self.head.in_features))
        nn.init.zeros_(self.head.bias)

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Gaussian:
        middle = self.trunk(seen.h, torch.cat([seen.state, goal], 1), seen.label, seen.memory)
        x = nn.functional.silu(self.mix(nn.functional.silu(middle.tokens.flatten(1))))
        offset, log_ratio = full_precision(self.head(x)).unsqueeze(1).chunk(2, -1)
        prior = decision.policy
        assert isinstance(prior, Mixture)
        center, scale = prior.center, prior.scale
        return Gaussian(center + scale * offset, scale * bounded(log_ratio - 1).exp())


class Code(Family):
    """Learned through the stages after it: the gradient of their cost reaches it through memory."""

    name = "code"
    Settings = CodeSettings
    gc_agents = {"reader": ReaderGCAgent}  # noqa: RUF012 - more may be put in
    pathwise = True
    settings: CodeSettings

    def __init__(self, plan: Plan) -> None:
        settings: CodeSettings = plan.settings
        environment = CodeEnvironment(plan.shape, plan.horizon, settings.code_size, mixed=True)
        likelihood = PixelLikelihood(plan.shape, plan.levels)
        super().__init__(plan, environment, CodeSAgent(plan), self.make_gc_agent(plan, environment), likelihood)

    @classmethod
    def remembered(cls, settings: CodeSettings) -> int:
        return settings.code_size

    @classmethod
    def check(cls, plan: Plan) -> None:
        check_least(plan.settings, code_size=1, code_modes=1, code_warmup_steps=0)

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        return learn_pathwise(self, task, draws["noise"], self.kl_weight(clock))

    def kl_weight(self, clock: Clock) -> float:
        steps = self.settings.code_warmup_steps
        if steps is not None:
            return min(1.0, (clock.step + 1) / max(steps, 1))
        return min(1.0, max((clock.step + 1) / WARMUP_STEPS, clock.done / WARMUP_SHARE))

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """Active units of every step, and how many there are."""
        return {
            "active_units_per_step": active_units(trajectory).tolist(),
            "units_per_step": self.settings.code_size,
        }
