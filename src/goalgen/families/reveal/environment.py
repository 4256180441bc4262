"""The world of reveals: orders and groups of pixels, the canvas on which they are shown, and the likelihood of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.likelihoods import Likelihood
from goalgen.rng import generator

Order = Literal["spread", "raster", "random"]


def position_order(order: Order, height: int, width: int) -> Tensor:
    """Positions in the order in which they are revealed, (height * width,) int64, each a row times the width plus a column."""
    count = height * width
    if order == "raster":
        return torch.arange(count)
    if order == "random":
        return torch.randperm(count, generator=generator(0, "reveal order"))
    rank = torch.zeros(1, 1, dtype=torch.int64)  # ordered dither (Bayer 1973): every beginning of it is spread evenly
    while min(rank.shape) < max(height, width):
        rank = torch.cat([torch.cat([4 * rank, 4 * rank + 2], 1), torch.cat([4 * rank + 3, 4 * rank + 1], 1)])
    return rank[:height, :width].flatten().argsort()


def group_ends(order: Order, count: int, groups: int) -> list[int]:
    """How many of ``count`` positions are revealed after each group; groups grow geometrically unless in raster order.

    Raises:
        GoalgenError: there are not so many positions.
    """
    if not 1 <= groups <= count:
        raise GoalgenError(f"--horizon must be 1 to {count}, the number of pixels, not {groups}")
    ends: list[int] = []
    for h in range(1, groups + 1):
        wanted = count * h / groups if order == "raster" else count ** (h / groups)
        least = ends[-1] + 1 if ends else 1
        ends.append(min(max(round(wanted), least), count - (groups - h)))
    return ends


@dataclass(frozen=True)
class Values:
    """An image of values, of which those of the group in question count. Action: (B, C, height, width) in [-1, 1]."""

    shape: tuple[int, int, int]
    normal = False

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Two uniform numbers a value, (batch, 2, C, height, width)."""
        return torch.rand(batch, 2, *self.shape, generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[:, 0] * 2 - 1


class RevealEnvironment(Environment):
    """x_{h+1} shows what x_h shows, and the values of group h as the action has them. (Equation 28)

    A state is the canvas, what of it is revealed (1 or 0), and the initial state: (B, 3 C, height, width).

    Args:
        shape: (C, height, width) of a canvas.
        groups: of positions.
        follow: the channels of a group are revealed one after the other.
    """

    action_space: Values

    def __init__(self, shape: tuple[int, int, int], groups: int, order: Order = "spread", follow: bool = True) -> None:
        super().__init__()
        channels, height, width = shape
        positions = position_order(order, height, width)
        group = torch.empty(height * width, dtype=torch.int64)  # in which each position is revealed
        begin = 0
        for h, end in enumerate(group_ends(order, height * width, groups)):
            group[positions[begin:end]] = h
            begin = end
        self.horizon = groups * channels if follow else groups
        step = group.expand(channels, -1)
        if follow:
            step = step * channels + torch.arange(channels)[:, None]
        self.shape, self.state_shape, self.action_space = shape, (3 * channels, height, width), Values(shape)
        self.register_buffer("step", step.reshape(shape), persistent=False)  # of every value
        self.step: Tensor

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def sizes(self) -> Tensor:
        """Values revealed at every step, (H,)."""
        step = self.step.flatten()  # torch.bincount wants numbers, and a model may be built without them
        return step.new_zeros(self.horizon).scatter_add(0, step, torch.ones_like(step))

    def group(self, h: Tensor) -> Tensor:
        """Which values are revealed at steps ``h``, (B,) or (1,): bool (B, C, height, width)."""
        return self.step == h[:, None, None, None]

    def initial(self, canvas: Tensor) -> Tensor:
        return torch.cat([canvas, torch.zeros_like(canvas), canvas], 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, : self.shape[0]]

    def at(self, h: Tensor, image: Tensor, start: Tensor) -> Tensor:
        """The state at steps ``h`` of an episode from ``start`` that has revealed ``image``, (B, 3 C, height, width)."""
        known = self.step < h[:, None, None, None]
        return torch.cat([torch.where(known, image, start), known.to(image.dtype).expand_as(image), start], 1)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        canvas, known, start = state.chunk(3, 1)
        group = self.group(h)
        return torch.cat([torch.where(group, action, canvas), torch.where(group, 1.0, known), start], 1)


class Shown(Likelihood):
    """p(g | x_H): all of the goal is on the canvas, and nothing left to chance."""

    def __init__(self, levels: int, environment: RevealEnvironment) -> None:
        super().__init__()
        self.levels, self.canvas = levels, environment.canvas

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        off = (goal - self.canvas(state)).abs().flatten(1).amax(1) > 1 / (self.levels - 1)
        return torch.where(off, -torch.inf, 0.0).to(state.dtype)

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return self.canvas(state)
