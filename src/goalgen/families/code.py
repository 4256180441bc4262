"""A code: Gaussian numbers that nobody sees but the agents. A stage before others, whose networks read it from memory.

It lays an image out, and leaves the canvas as it was: ``--environment code:1+bridge:3``.
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
from goalgen.family import AfterStep, Draws, Family, Plan, check_from_0_to_1, check_least
from goalgen.learning import Clock, Learned, active_units, learn_pathwise, of_all_processes
from goalgen.likelihoods import PixelLikelihood, full_precision
from goalgen.networks import LARGEST_LOG_STD, NetworkSpec, bounded, make_trunk
from goalgen.policies import Gaussian, Mixture, Policy
from goalgen.rollout import Trajectory
from goalgen.task import Task

MODE_RATE = 4.0
"""Modes of a mixture move so many times faster than weights, as they have some way to go."""

REHEARSED, TIMES = 4096, 4
"""Codes of the GC-agent that are kept; at every step the S-agent learns from so many times a batch of them."""

REVIVE_EVERY, DEAD = 64, 0.1
"""So often, in steps, modes that the kept codes choose less often than this share of an equal one are put where codes are."""


@dataclass(frozen=True)
class CodeSettings(config.Settings):
    """Numbers that nobody sees but the agents: a stage before others."""

    code_size: int = 32
    """Numbers in a code."""
    code_modes: int = 64
    """Gaussians that the S-agent's policy over codes mixes at every step."""
    code_kl_weight: float = config.of_training(0.6)
    """Weight of the code's KL in what is learned from, at the end of the run; it rises to it from 0. Below 1 a code tells more than
    it would be worth in nats, as a discount has it. What is reported as the bound counts all of it."""
    code_warmup_steps: int | None = config.of_training(None)
    """Steps over which that weight rises, if not over the whole run."""


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
        self.squares, self.modes, self.num_labels = squares, modes, spec.num_labels
        self.num_told = plan.shape[0] * squares**2 + spec.memory + spec.num_labels
        self.step = nn.Embedding(plan.horizon, width)
        self.enter = nn.Linear(self.num_told, width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, 2 * size + modes)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.mode_mean = nn.Parameter(torch.randn(plan.horizon, modes, size) / MODE_RATE)
        self.mode_log_std = nn.Parameter(torch.full((plan.horizon, modes, size), -0.7 / MODE_RATE))

    def told(self, seen: Seen) -> Tensor:
        """All that the policy depends on but for the step, as numbers: (B, num_told)."""
        found = [nn.functional.adaptive_avg_pool2d(seen.state, self.squares).flatten(1)]
        if seen.memory is not None:
            found.append(seen.memory)
        if seen.label is not None:
            found.append(nn.functional.one_hot(seen.label, self.num_labels).to(seen.state.dtype))
        return torch.cat(found, 1)

    def decide(self, seen: Seen) -> Decision:
        return Decision(self.policy(self.told(seen), seen.step))

    def policy(self, told: Tensor, step: int) -> Mixture:
        """The policy over a code, given what :meth:`told` gives."""
        x = nn.functional.silu(self.enter(told) + self.step.weight[step])
        x = nn.functional.silu(self.inner(x) + x)
        size = self.mode_mean.shape[-1]
        mean, log_std, logits = full_precision(self.outer(x)).unsqueeze(1).split([size, size, self.modes], -1)
        places, spread = MODE_RATE * self.mode_mean[step], bounded(MODE_RATE * self.mode_log_std[step]).exp()
        return Mixture(mean, bounded(log_std).exp(), logits, places, spread)


def coarser(spec: NetworkSpec) -> NetworkSpec:
    """Half the rows and columns of a U-Net: a code has no use for more places, and a step takes less time."""
    patch, (_, height, width) = 2 * spec.patch, spec.shape
    if spec.kind != "unet" or height % patch or width % patch or min(height, width) < 4 * patch:
        return spec
    return dataclasses.replace(spec, patch=patch)


class ReaderGCAgent(GCAgent):
    """q(z | goal, start, what is remembered), Gaussian, told relative to the S-agent's center and scale. (Equation 24)"""

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        spec = coarser(dataclasses.replace(plan.network, dropout=0.0))
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


@torch.no_grad()
def revive(
    agents: tuple[CodeSAgent, CodeSAgent], told: Tensor, codes: Gaussian, h: int, chosen: Tensor, optimizer: torch.optim.Optimizer
) -> int:  # fmt: skip
    """Put every mode that codes hardly choose where one of them is, as likely as an average mode.

    Args:
        agents: the S-agent and its average.
        told: what goes with the codes, (B, num_told).
        chosen: an order of the codes, in which they are taken.

    Returns:
        The number of modes revived.
    """
    s_agent, modes = agents[0], agents[0].modes
    p = s_agent.policy(told, h)
    placed, variance = (codes.mean - p.center) / p.scale, (codes.std / p.scale).square()
    usage = (p.log_weight - p.costs(placed, variance)).softmax(-1).mean((0, 1))
    dead = (usage < DEAD / modes).nonzero().flatten()[: len(chosen)]
    if not len(dead):
        return 0
    rows = chosen[: len(dead)]
    spread = (placed.var(0) + variance.mean(0)).sqrt()[0] / 2
    for agent in agents:
        agent.mode_mean[h, dead] = placed[rows, 0] / MODE_RATE
        agent.mode_log_std[h, dead] = LARGEST_LOG_STD * torch.atanh(spread.log() / LARGEST_LOG_STD) / MODE_RATE
        weight, bias = agent.outer.weight[-modes:], agent.outer.bias[-modes:]
        weight[dead], bias[dead] = 0.0, bias.logsumexp(0) - math.log(modes)
    for parameter in (s_agent.mode_mean, s_agent.mode_log_std, s_agent.outer.weight, s_agent.outer.bias):
        for moment in optimizer.state.get(parameter, {}).values():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                part = moment[h] if parameter.ndim == 3 else moment[-modes:]
                part[dead] = 0.0
    return len(dead)


class Code(Family):
    """Learned through the stages after it: the gradient of their cost reaches it through memory."""

    name = "code"
    Settings = CodeSettings
    gc_agents = {"reader": ReaderGCAgent}  # noqa: RUF012 - more may be put in
    pathwise = True
    training_buffers = ("rehearsed",)
    settings: CodeSettings
    s_agent: CodeSAgent
    rehearsed: Tensor
    """(H, REHEARSED, numbers): what was told, mean and standard deviation of the GC-agent's codes"""

    def __init__(self, plan: Plan) -> None:
        settings: CodeSettings = plan.settings
        environment = CodeEnvironment(plan.shape, plan.horizon, settings.code_size, mixed=True)
        likelihood = PixelLikelihood(plan.shape, plan.levels)
        s_agent = CodeSAgent(plan)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)
        rehearsed = torch.zeros(plan.horizon, REHEARSED, s_agent.num_told + 2 * settings.code_size)
        self.register_buffer("rehearsed", rehearsed)

    @classmethod
    def remembered(cls, settings: CodeSettings) -> int:
        return settings.code_size

    @classmethod
    def check(cls, plan: Plan) -> None:
        check_least(plan.settings, code_size=1, code_modes=1, code_warmup_steps=0)
        check_from_0_to_1(plan.settings, "code_kl_weight")

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        return learn_pathwise(self, task, draws["noise"], self.kl_weight(clock))

    def layers(self) -> list[nn.Parameter]:
        """Those of the GC-agent: a policy that only tells where in a mixture codes lie follows them better as AdamW moves it."""
        own = {id(parameter) for parameter in self.s_agent.parameters()}
        return [weight for weight in super().layers() if id(weight) not in own]

    def kl_weight(self, clock: Clock) -> float:
        steps = self.settings.code_warmup_steps
        share = clock.done if steps is None else min(1.0, (clock.step + 1) / max(steps, 1))
        return self.settings.code_kl_weight * share

    def rehearse(self, seen: list[Seen], q: list[Policy], clock: Clock) -> Tensor:
        """Divergence of codes of earlier batches, from which the S-agent alone learns: a small network has time for more of them
        than the large ones have."""
        loss = torch.zeros((), device=self.device)
        for h, (at, policy) in enumerate(zip(seen, q, strict=True)):
            assert isinstance(policy, Gaussian)
            told = self.s_agent.told(at)
            new = of_all_processes(torch.cat([told, policy.mean.flatten(1), policy.std.flatten(1)], 1).detach())[
                :REHEARSED
            ]
            places = (clock.step * len(new) + torch.arange(len(new), device=new.device)) % REHEARSED
            self.rehearsed[h] = self.rehearsed[h].index_copy(0, places, new.to(self.rehearsed.dtype))
            kept = min((clock.step + 1) * len(new), REHEARSED)
            count = min(TIMES * len(new), REHEARSED)
            told, old = self.kept(h, (clock.step * count + torch.arange(count, device=new.device)) % kept)
            loss = loss + old.kl(self.s_agent.policy(told, h)).mean()
        return loss

    def kept(self, h: int, rows: Tensor | slice) -> tuple[Tensor, Gaussian]:
        """What was told at step ``h``, and the GC-agent's policies there."""
        size = self.settings.code_size
        told, mean, std = self.rehearsed[h, rows].split([self.s_agent.num_told, size, size], 1)
        return told, Gaussian(mean.unsqueeze(1), std.unsqueeze(1))

    @torch.no_grad()
    def after_step(self, after: AfterStep) -> dict[str, int]:
        """Modes that no code chooses get a second life on top of codes: most are strewn where none come to be."""
        averaged, revived = after.averaged, 0
        assert isinstance(averaged, Code)
        if after.step % REVIVE_EVERY:
            return {}
        for h in range(self.horizon):
            told, codes = self.kept(h, slice(None))
            if (codes.std > 0).all():  # none of its rows is empty any more
                chosen = torch.randperm(len(told), generator=after.streams(f"modes {h}")).to(told.device)
                agents = (self.s_agent, averaged.s_agent)
                revived += revive(agents, told, codes, h, chosen, after.optimizer)
        return {"revived_modes": revived}

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """Active units of every step, and how many there are."""
        return {
            "active_units_per_step": active_units(trajectory).tolist(),
            "units_per_step": self.settings.code_size,
        }
