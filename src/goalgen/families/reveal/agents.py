"""Both agents of reveals, and the settings that shape them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.families.reveal.environment import Order, RevealEnvironment
from goalgen.families.reveal.policies import Copy, Levels, Logistics, Pixels
from goalgen.likelihoods import full_precision
from goalgen.networks import NetworkSpec, bounded, draw, make_torso


@dataclass(frozen=True)
class RevealSettings(config.Settings):
    """An action writes the values of a group of pixels; --horizon is the number of groups, 1 to all pixels."""

    reveal_order: Order = "spread"
    """spread: evenly over the image, from a few pixels to many; raster: row by row; random: a fixed random order; learned: the
    GC-agent chooses which of the groups of "spread" comes next, and the S-agent learns to."""
    reveal_channels: Literal["follow", "together"] = "follow"
    """follow: the channels of a group one after the other, a step each, so that each sees those before; together: all in one step;
    of logistics, those of a pixel then have their mode in common, and their means follow the channels before."""
    reveal_values: Literal["auto", "logistics", "levels"] = "auto"
    """The S-agent's policy for a value: a mixture of logistics cut into grey levels, or a chance for each level (images with few
    colours). Unset: levels where that takes no more numbers, as for black and white."""
    reveal_modes: int = 10
    """Logistics in a mixture."""

    def logistics(self, levels: int, channels: int) -> int:
        """In the mixture for a value of so many grey levels; 0: a chance for each level instead."""
        if self.reveal_values != "auto":
            return self.reveal_modes if self.reveal_values == "logistics" else 0
        apart = self.reveal_channels == "follow" or channels == 1  # chances of levels do not tie channels together
        return 0 if apart and levels <= 3 * self.reveal_modes else self.reveal_modes


class RevealSAgent(SAgent):
    """What values the hidden pixels have, all at once, from those that are revealed: one evaluation of the network."""

    matrices = ("weight",)

    def __init__(
        self, spec: NetworkSpec, settings: RevealSettings, levels: int, environment: RevealEnvironment
    ) -> None:
        super().__init__()
        self.levels, self.modes = levels, settings.logistics(levels, spec.shape[0])
        self.torso = make_torso(dataclasses.replace(spec, horizon=environment.horizon), 3 * spec.shape[0])
        self.joint = bool(self.modes) and spec.shape[0] > 1 and settings.reveal_channels == "together"
        more = spec.shape[0] if self.joint else 0  # how a mean leans on the channels before
        count = (3 + more) * self.modes if self.modes else levels
        weight = torch.randn(count, self.torso.position_pixels, self.torso.num_features)
        self.weight = nn.Parameter(weight * 0.1 / self.torso.num_features**0.5)
        bias = torch.zeros(count, *spec.shape)
        if self.modes:  # from black to white, each about as wide as the gap to the next
            bias[self.modes : 2 * self.modes] = torch.linspace(-1, 1, self.modes)[:, None, None, None]
            bias[2 * self.modes : 3 * self.modes] = -(float(max(self.modes, 2)) ** 0.5)
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
        logits, mean, log_scale = numbers[:, : 3 * self.modes].chunk(3, 1)
        log_scale = bounded(log_scale + 2) - 2
        if not self.joint:
            return Decision(Logistics(group, self.levels, logits, mean, log_scale))
        lean = (
            numbers[:, 3 * self.modes :].unflatten(1, (self.modes, -1)).transpose(2, 3)
        )  # (B, M, C, C, height, width)
        return Decision(Pixels(group, self.levels, logits.sum(2), mean, log_scale, lean.tanh()))


class CopyGCAgent(GCAgent):
    """Writes what its goal has."""

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Copy:
        return Copy(goal)
