"""Both agents of reveals, and the settings that shape them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.families.reveal.environment import Order, RevealEnvironment
from goalgen.families.reveal.policies import Copy, Counted, Levels, Logistics, Pixels, Places, ValuePolicy, to_level
from goalgen.likelihoods import full_precision
from goalgen.networks import NetworkSpec, bounded, draw, make_torso
from goalgen.policies import Policy


@dataclass(frozen=True)
class RevealSettings(config.Settings):
    """An action writes the values of a group of pixels; --horizon is the number of groups, 1 to all pixels."""

    reveal_order: Order = "spread"
    """spread: evenly over the image, from a few pixels to many; raster: row by row; random: a fixed random order; learned: the
    GC-agent chooses which of the groups of "spread" comes next, and the S-agent learns to."""
    reveal_first: float = 1 / 64
    """Share of the pixels in the first group, unless in raster order: so far from each other they say little of each other. Every
    other group makes what is revealed more by the same factor. 0: the first group, too, comes to no more than this factor."""
    reveal_channels: Literal["follow", "together"] = "follow"
    """follow: the channels of a group one after the other, a step each, so that each sees those before; together: all in one step;
    of logistics, those of a pixel then have their mode in common, and their means follow the channels before."""
    reveal_values: Literal["auto", "logistics", "levels"] = "auto"
    """The S-agent's policy for a value: a mixture of logistics cut into grey levels, or a chance for each level (images with few
    colours). Unset: levels where that takes no more numbers, as for black and white."""
    reveal_modes: int = 10
    """Logistics in a mixture."""
    reveal_foresight: float = 0.5
    """How much values that come later count in what is learned at a step of a fixed order, up to four for each of the group, when
    training begins; at its end nothing, and never in the bound. 0: no values but those of the group."""

    def logistics(self, levels: int, channels: int) -> int:
        """In the mixture for a value of so many grey levels; 0: a chance for each level instead."""
        if self.reveal_values != "auto":
            return self.reveal_modes if self.reveal_values == "logistics" else 0
        apart = self.reveal_channels == "follow" or channels == 1  # chances of levels do not tie channels together
        return 0 if apart and levels <= 3 * self.reveal_modes else self.reveal_modes


NAME = 16
"""Numbers of a value's embedding."""


class RevealSAgent(SAgent):
    """What values the hidden pixels have, all at once, from those that are revealed: one evaluation of the network."""

    matrices = ("weight",)

    def __init__(
        self, spec: NetworkSpec, settings: RevealSettings, levels: int, environment: RevealEnvironment
    ) -> None:
        super().__init__()
        self.levels, self.modes = levels, settings.logistics(levels, spec.shape[0])
        self.named = not self.modes and levels > 2
        seen = (NAME if self.named else 1) + 2
        self.torso = make_torso(dataclasses.replace(spec, horizon=environment.horizon), seen * spec.shape[0])
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
        if self.named:
            # Which of many levels a value has is told and said by a vector of its own, so that one is easily said again.
            self.names = nn.Parameter(torch.randn(spec.shape[0], levels, NAME))
            self.by_name = nn.Parameter(torch.zeros(NAME, *weight.shape[1:]))
        # Of the values that one row of the head's weight says: which they are, at every position. An mlp's rows say one value each.
        patch = self.torso.top.patch
        rows = torch.arange(self.torso.position_pixels).view(-1, 1)
        rows = rows.view(spec.shape[0], -1).T if self.joint else rows
        pixels = torch.arange(math.prod(spec.shape)).double().view(1, *spec.shape)
        places = F.pixel_unshuffle(pixels, patch)[0].flatten(1).long() if patch else pixels.view(-1, 1).long()
        self.register_buffer("rows", rows, persistent=False)  # (rows, values a row)
        self.register_buffer(
            "places", places[rows].transpose(1, 2), persistent=False
        )  # (rows, positions, values a row)
        self.rows: Tensor
        self.places: Tensor

    def decide(self, seen: Seen) -> Decision:
        """Of the values of the group alone: of a head that says many numbers of every value, most would be for nothing."""
        environment = seen.environment
        assert isinstance(environment, RevealEnvironment)
        return Decision(self.say_of(environment.group(seen.h), self.look(seen), environment.shape))

    def say_of(self, group: Tensor, features: Tensor, shape: tuple[int, int, int]) -> Policy:
        """The policy of the values of ``group``, bool (B or 1, C, height, width), all channels of a pixel or none if they come together."""
        if self.torso.top.patch == 0:
            return self.say(group, self.numbers(features, shape))
        counts = group.flatten(1).expand(len(features), -1)
        found = [counts[:, at[:, 0]].nonzero(as_tuple=True) for at in self.places]  # by row of the head
        image, position = (torch.cat(part) for part in zip(*found, strict=True))
        by_position = features.transpose(1, 2)  # (B, positions, F)
        # Chosen at once: every choice of its own would have a gradient as large as all features.
        chosen = by_position.flatten(0, 1).index_select(0, image * by_position.shape[1] + position)
        head, said, value = self.head(), [], []
        parts = chosen.split([len(which) for which, _ in found])
        for row, at, part, (_, here) in zip(self.rows, self.places, parts, found, strict=True):
            numbers = F.linear(part, head[:, row].flatten(0, 1))  # (N, count times values a row)
            said.append(full_precision(numbers).unflatten(1, (-1, len(row))))
            value.append(at[here])
        where = Places(len(features), shape, image, torch.cat(value))
        bias = self.bias.flatten(1).T.index_select(0, where.value.flatten()).unflatten(0, where.value.shape)
        together = (torch.cat(said) + bias.transpose(1, 2))[..., None, None]  # (N, count, values a row, 1, 1)
        every = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=features.device)
        return Counted(where, self.say(every, together))

    def decide_all(self, seen: Seen) -> ValuePolicy:
        """Of all values, those that the step cannot write as well."""
        environment = seen.environment
        assert isinstance(environment, RevealEnvironment)
        return self.say(environment.group(seen.h), self.numbers(self.look(seen), environment.shape))

    def look(self, seen: Seen) -> Tensor:
        """Features (B, F, positions) of what is revealed."""
        canvas, known, start = seen.state.chunk(3, 1)
        features, _ = self.torso(
            seen.h, torch.cat([self.read(canvas, known), known, start], 1), seen.label, seen.memory
        )
        return features

    def read(self, canvas: Tensor, known: Tensor) -> Tensor:
        """Known values as the network sees them, (B, numbers, height, width), 0 for the others."""
        if not self.named:
            return canvas * known
        level = to_level(canvas, self.levels)
        level = level + self.levels * torch.arange(level.shape[1], device=level.device).view(-1, 1, 1)
        names = F.embedding(level, self.names.flatten(0, 1))  # (B, C, height, width, NAME)
        return (names * known.unsqueeze(-1)).permute(0, 1, 4, 2, 3).flatten(1, 2)

    def head(self) -> Tensor:
        """Numbers that are linear in a position's features, (count, values of a position, F)."""
        if not self.named:
            return self.weight
        by_name = self.by_name.unflatten(1, (len(self.names), -1))
        return self.weight + torch.einsum("cle,ecpf->lcpf", self.names, by_name).flatten(1, 2)

    def numbers(self, features: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """That say all values, (B, count, C, height, width)."""
        return full_precision(self.torso.assemble(draw(features, self.head()), shape)) + self.bias

    def say(self, group: Tensor, numbers: Tensor) -> ValuePolicy:
        """The policy of such numbers."""
        if not self.modes:
            return Levels(group, numbers)
        logits, mean, log_scale = numbers[:, : 3 * self.modes].chunk(3, 1)
        log_scale = bounded(log_scale + 2) - 2
        if not self.joint:
            return Logistics(group, self.levels, logits, mean, log_scale)
        # (B, M, C, C, height, width)
        lean = numbers[:, 3 * self.modes :].unflatten(1, (self.modes, -1)).transpose(2, 3)
        return Pixels(group, self.levels, logits.sum(2), mean, log_scale, lean.tanh())


class CopyGCAgent(GCAgent):
    """Writes what its goal has."""

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Copy:
        return Copy(goal)
