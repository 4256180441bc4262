"""Agents whose action is a latent: the S-agent is a prior and a decoder, the GC-agent an encoder."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from goalgen.agents.gc_agent import GCAgent, View
from goalgen.agents.networks import ImageHead, Middle, NetworkSpec, Torso, make_torso, make_trunk
from goalgen.agents.s_agent import Decision, SAgent
from goalgen.environments import Continuous, GaussianMixture, LatentEnvironment
from goalgen.likelihoods import full_precision

LARGEST_LOG_STD = 5.0
"""Log standard deviations stay within this of their reference, smoothly: no divergence can be infinite. (Equation 24)"""

MODE_RATE = 4.0
"""Modes of a mixture move so many times faster than weights: from where they were strewn they have some way to go."""


def bounded(log_std: Tensor) -> Tensor:
    """A log standard deviation (any shape), smoothly held within +- :data:`LARGEST_LOG_STD`. (Equation 24)"""
    return LARGEST_LOG_STD * torch.tanh(log_std / LARGEST_LOG_STD)


class LatentSAgent(SAgent):
    """Prior p(z | x_h) and decoder y(x_h, z) on one network, which the latent enters in the middle. (Equation 21)

    Args:
        spec: network.
        size: k, numbers in a latent.
        as_map: a latent at every position of the network's coarsest map, rather than one for the image.
        shared: one network for all steps (told the step) rather than one for each.
        modes: M, Gaussians that the prior mixes, each with a place of its own at every step; their weights depend on the
            canvas. (Equation 27)
        read_start: whether the network of the first step looks at the canvas.
        scale: size of what is drawn when training begins. Were it zero, and the encoder's offset too, neither would
            ever receive a gradient.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        size: int,
        as_map: bool = True,
        shared: bool = True,
        modes: int = 1,
        read_start: bool = True,
        scale: float = 0.5,
    ) -> None:
        super().__init__()
        torsos = [make_torso(spec, reads=h > 0 or read_start) for h in range(1 if shared else spec.horizon)]
        trunk = torsos[0].trunk
        positions = trunk.positions if as_map else 1
        spread = trunk.positions // positions
        self.latent_shape = (positions, size)
        self.torsos = nn.ModuleList(torsos)
        prior = [nn.Linear(trunk.width, 2 * size) for _ in torsos]
        self.enter = nn.ModuleList(nn.Linear(size, trunk.width * spread) for _ in torsos)
        self.heads = nn.ModuleList(ImageHead(torso, spec, 1, scale) for torso in torsos)
        for layer in prior:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.prior = nn.ModuleList(prior)
        self.modes = modes
        if modes > 1:
            weights = [nn.Linear(trunk.width, modes) for _ in torsos]
            for layer in weights:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.weigh = nn.ModuleList(weights)
            self.mode_mean = nn.Parameter(torch.randn(spec.horizon, modes, size) / MODE_RATE)
            self.mode_log_std = nn.Parameter(torch.full((spec.horizon, modes, size), -0.7 / MODE_RATE))

    def torso(self, h: int) -> Torso:
        """The network of step ``h``."""
        torso = self.torsos[h % len(self.torsos)]
        assert isinstance(torso, Torso)
        return torso

    def forward(self, h: int, state: Tensor, label: Tensor | None = None) -> Decision:
        """Policy over latents (B, positions, k), and the decoder at these states."""
        step = torch.tensor([h], device=state.device)
        torso, network = self.torso(h), h % len(self.torsos)
        middle = torso.trunk(step, state, label)
        tokens = middle.tokens if self.latent_shape[0] > 1 else middle.tokens.mean(1, keepdim=True)
        mean, log_std = full_precision(self.prior[network](tokens)).chunk(2, -1)

        def decode(action: Tensor) -> Tensor:
            entered = self.enter[network](action).unflatten(-1, (-1, middle.tokens.shape[-1])).flatten(1, 2)
            features, _ = torso.top(middle, entered)
            return self.heads[network](torso, step, features)[:, 0]

        std = bounded(log_std).exp()
        if self.modes == 1:
            return Decision(Continuous(self.latent_shape).policy(mean, std), decode)
        logits = full_precision(self.weigh[network](tokens))
        places, spread = MODE_RATE * self.mode_mean[h], bounded(MODE_RATE * self.mode_log_std[h]).exp()
        return Decision(GaussianMixture(mean, std, logits, places, spread), decode)


def frame(policy: Distribution) -> tuple[Tensor, Tensor]:
    """Center and scale of the S-agent's policy over latents, (B, positions, k) each, relative to which the encoder speaks."""
    if isinstance(policy, GaussianMixture):
        return policy.center, policy.scale
    return policy.mean, policy.stddev


class EncoderGCAgent(GCAgent):
    """q(z | x_h, g), Gaussian, told relative to the S-agent's prior (as in NVAE, Vahdat and Kautz 2020). (Equation 24)

    Its mean is the prior's mean plus so many of the prior's standard deviations, its own deviation a multiple of the
    prior's: where it says nothing, it *is* the prior, and costs nothing.
    """

    learner = "pathwise"
    pathwise = True

    def __init__(
        self, environment: LatentEnvironment, spec: NetworkSpec, shared: bool = True, read_start: bool = True
    ) -> None:
        super().__init__(environment, spec.shape)
        positions, size = environment.action_space.shape
        self.pooled, self.read_start = positions == 1, read_start
        count = 1 if shared else spec.horizon
        spec = dataclasses.replace(spec, dropout=0.0)
        depth = spec.depth if spec.kind == "unet" else max(1, spec.depth // 2)
        channels = spec.shape[0]
        trunks = [make_trunk(spec, 2 * channels if h > 0 or read_start else channels, depth) for h in range(count)]
        heads = [nn.Linear(trunk.width, 2 * size) for trunk in trunks]
        for head in heads:
            nn.init.normal_(head.weight, std=0.5 / math.sqrt(head.in_features))
            nn.init.zeros_(head.bias)
        self.trunks, self.heads = nn.ModuleList(trunks), nn.ModuleList(heads)

    def policy(self, view: View) -> Distribution:
        network = view.h % len(self.trunks)
        step = torch.tensor([view.h], device=view.state.device)
        seen = torch.cat([view.state, view.goal], 1) if view.h > 0 or self.read_start else view.goal
        middle: Middle = self.trunks[network](step, seen, view.label)
        tokens = middle.tokens.mean(1, keepdim=True) if self.pooled else middle.tokens
        offset, log_ratio = full_precision(self.heads[network](nn.functional.silu(tokens))).chunk(2, -1)
        center, scale = frame(view.decision.policy)
        space = view.environment.action_space
        assert isinstance(space, Continuous)
        return space.policy(center + scale * offset, scale * bounded(log_ratio).exp())
