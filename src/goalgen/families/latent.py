"""Latents: a Gaussian action decides what the S-agent adds to the canvas. A variational autoencoder at one step, a
hierarchical one at many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.environment import Continuous, Environment
from goalgen.errors import GoalgenError
from goalgen.family import Draws, Family, Plan, check_above_zero, check_least
from goalgen.learning import Clock, Learned, active_units, learn_pathwise
from goalgen.likelihoods import PixelLikelihood, full_precision
from goalgen.networks import ImageHead, Middle, NetworkSpec, Torso, bounded, make_torso, make_trunk
from goalgen.policies import Gaussian, Mixture
from goalgen.rollout import Trajectory
from goalgen.task import Task

MODE_RATE = 4.0
"""Modes of a mixture move so many times faster than weights: from where they were strewn they have some way to go."""

KL_WARMUP_STEPS, KL_WARMUP_SHARE = 500, 0.4
"""The KL is warmed up over so many steps or this share of the run, whichever is over first."""

Decoder = Callable[[Tensor], Tensor]
"""Latents (B, positions, k) to images (B, C, height, width): what the S-agent offers at a state."""


@dataclass(frozen=True)
class LatentSettings(config.Settings):
    """A latent decides what is added to the canvas."""

    latent_size: int = 16
    """Numbers in a latent."""
    latent_modes: int = 1
    """Gaussians that the S-agent's policy mixes at every step, so that it may have gaps where no image is."""
    latent_map: bool = True
    """One latent at every position of the network's coarsest map, rather than one for the image (an mlp has
    one position)."""
    share_steps: bool = True
    """One network, told the step, rather than one for every step."""
    read_start: bool = True
    """The networks of the first step look at the canvas. Not worth their weights where every episode begins from the
    same image; they can do without if they are mlps that serve no other step."""
    recompute: bool = False
    """Keep only the canvases of an episode and compute each step again for its gradient: memory that hardly grows
    with the horizon, for a third more time."""
    step_size: float | None = None
    """alpha_h in x + alpha_h * y, the same at every step unless --learn-step-size is set; unset: 1 for latents, 0.3 for
    proposals."""
    learn_step_size: bool = False
    """Learn alpha_h, one for every step, starting from --step-size."""
    kl_warmup_steps: int | None = config.of_training(None)
    """Steps over which the weight of the KL in the loss rises from 0 to 1, so that every step finds a use for its
    latent before it has to pay for it; unset: 500, or two fifths of the run if that is less."""


class LatentEnvironment(Environment):
    """x_{h+1} = x_h + alpha_h * y(x_h, z), with y drawn by the S-agent's decoder. (Equation 21)

    Args:
        shape: (C, height, width) of a canvas.
        horizon: H. At 1 this is a variational autoencoder.
        latent_shape: (positions, k) of an action.
        step_size: alpha_h, the same at every step.
        learn_step_size: learn alpha_h (kept positive through its logarithm).
        mixed: whether the S-agent's policy is a mixture of Gaussians.
    """

    action_space: Continuous

    def __init__(
        self,
        shape: tuple[int, int, int],
        horizon: int,
        latent_shape: tuple[int, int],
        step_size: float = 1.0,
        learn_step_size: bool = False,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.state_shape = shape
        self.action_space = Continuous(latent_shape, mixed)
        log_alpha = torch.full((horizon,), float(step_size)).log()
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=learn_step_size)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Decoder) -> Tensor:
        """x_h + alpha_h * y(x_h, z), (B, C, height, width)."""
        return state + self.log_alpha[h].exp()[:, None, None, None] * offer(action)


class LatentSAgent(SAgent):
    """Prior p(z | x_h) and decoder y(x_h, z) on one network, which the latent enters in the middle. (Equation 21)

    Args:
        spec: network.
        settings: ``latent_size`` is k, ``latent_modes`` M: Gaussians that the prior mixes, each with a place of its own at
            every step; their weights depend on the canvas. (Equation 27)
        scale: size of what is drawn when training begins. Were it zero, and the encoder's offset too, neither would
            ever receive a gradient.
    """

    def __init__(self, spec: NetworkSpec, settings: LatentSettings, scale: float = 0.5) -> None:
        super().__init__()
        size, modes = settings.latent_size, settings.latent_modes
        count = 1 if settings.share_steps else spec.horizon
        torsos = [make_torso(spec, reads=h > 0 or settings.read_start) for h in range(count)]
        trunk = torsos[0].trunk
        positions = trunk.positions if settings.latent_map else 1
        spread = trunk.positions // positions
        self.latent_shape = (positions, size)
        self.torsos = nn.ModuleList(torsos)
        prior = [nn.Linear(trunk.width, 2 * size) for _ in torsos]
        self.enter = nn.ModuleList(nn.Linear(size, trunk.width * spread) for _ in torsos)
        self.heads = nn.ModuleList(ImageHead(torso, spec, 1, scale) for torso in torsos)
        self.prior = nn.ModuleList(zeroed(layer) for layer in prior)
        self.modes = modes
        if modes > 1:
            self.weigh = nn.ModuleList(zeroed(nn.Linear(trunk.width, modes)) for _ in torsos)
            self.mode_mean = nn.Parameter(torch.randn(spec.horizon, modes, size) / MODE_RATE)
            self.mode_log_std = nn.Parameter(torch.full((spec.horizon, modes, size), -0.7 / MODE_RATE))

    def decide(self, seen: Seen) -> Decision:
        """Policy over latents (B, positions, k), and the decoder at these states."""
        network = seen.step % len(self.torsos)
        torso = self.torsos[network]
        assert isinstance(torso, Torso)
        middle = torso.trunk(seen.h, seen.state, seen.label, seen.memory)
        tokens = middle.tokens if self.latent_shape[0] > 1 else middle.tokens.mean(1, keepdim=True)
        mean, log_std = full_precision(self.prior[network](tokens)).chunk(2, -1)

        def decode(action: Tensor) -> Tensor:
            entered = self.enter[network](action).unflatten(-1, (-1, middle.tokens.shape[-1])).flatten(1, 2)
            features, _ = torso.top(middle, entered)
            return self.heads[network](torso, seen.h, features)[:, 0]

        std = bounded(log_std).exp()
        if self.modes == 1:
            return Decision(Gaussian(mean, std), decode)
        logits, h = full_precision(self.weigh[network](tokens)), seen.step
        places, spread = MODE_RATE * self.mode_mean[h], bounded(MODE_RATE * self.mode_log_std[h]).exp()
        return Decision(Mixture(mean, std, logits, places, spread), decode)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """A layer that says nothing yet."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class EncoderGCAgent(GCAgent):
    """q(z | x_h, g), Gaussian, told relative to the S-agent's prior (as in NVAE, Vahdat and Kautz 2020). (Equation 24)

    Its mean is the prior's mean plus so many of the prior's standard deviations, its own deviation a multiple of the
    prior's: where it says nothing, it *is* the prior, and costs nothing.
    """

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        settings: LatentSettings = plan.settings
        positions, size = environment.action_space.shape
        self.pooled, self.read_start = positions == 1, settings.read_start
        spec = dataclasses.replace(plan.network, dropout=0.0)
        depth = spec.depth if spec.kind == "unet" else max(1, spec.depth // 2)
        channels = [2 * spec.shape[0] if h > 0 or self.read_start else spec.shape[0] for h in range(spec.horizon)]
        trunks = [make_trunk(spec, c, depth) for c in (channels[:1] if settings.share_steps else channels)]
        heads = [nn.Linear(trunk.width, 2 * size) for trunk in trunks]
        for head in heads:
            nn.init.normal_(head.weight, std=0.5 / math.sqrt(head.in_features))
            nn.init.zeros_(head.bias)
        self.trunks, self.heads = nn.ModuleList(trunks), nn.ModuleList(heads)

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Gaussian:
        network = seen.step % len(self.trunks)
        both = torch.cat([seen.state, goal], 1) if seen.step > 0 or self.read_start else goal
        middle: Middle = self.trunks[network](seen.h, both, seen.label, seen.memory)
        tokens = middle.tokens.mean(1, keepdim=True) if self.pooled else middle.tokens
        offset, log_ratio = full_precision(self.heads[network](nn.functional.silu(tokens))).chunk(2, -1)
        prior = decision.policy
        assert isinstance(prior, Gaussian | Mixture)
        center, scale = prior.center, prior.scale
        return Gaussian(center + scale * offset, scale * bounded(log_ratio).exp())


class Latent(Family):
    """Both agents follow one gradient through the whole episode."""

    name = "latent"
    Settings = LatentSettings
    gc_agents = {"encoder": EncoderGCAgent}  # noqa: RUF012 - more may be put in
    pathwise = True
    settings: LatentSettings

    def __init__(self, plan: Plan) -> None:
        settings: LatentSettings = plan.settings
        s_agent = LatentSAgent(plan.network, settings)
        environment = LatentEnvironment(
            plan.shape, plan.horizon, s_agent.latent_shape, settings.step_size or 1.0, settings.learn_step_size,
            mixed=settings.latent_modes > 1,
        )  # fmt: skip
        likelihood = PixelLikelihood(plan.shape, plan.levels)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)

    @classmethod
    def check(cls, plan: Plan) -> None:
        settings: LatentSettings = plan.settings
        check_least(settings, latent_size=1, latent_modes=1, kl_warmup_steps=0)
        check_above_zero(settings, "step_size")
        if not settings.read_start and plan.horizon > 1 and settings.share_steps:
            raise GoalgenError(
                "--no-read-start needs --no-share-steps where there is more than one step: one network reads all"
            )

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        return learn_pathwise(self, task, draws["noise"], self.kl_weight(clock), self.settings.recompute)

    def kl_weight(self, clock: Clock) -> float:
        """Weight of the KL in the loss."""
        steps = self.settings.kl_warmup_steps
        if steps is not None:
            return min(1.0, (clock.step + 1) / max(steps, 1))
        return min(1.0, max((clock.step + 1) / KL_WARMUP_STEPS, clock.done / KL_WARMUP_SHARE))

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """Active units of every step, and how many there are."""
        units = math.prod(self.environment.action_space.shape)
        return {"active_units_per_step": active_units(trajectory).tolist(), "units_per_step": units}
