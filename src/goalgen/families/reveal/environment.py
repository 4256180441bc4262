"""The world of reveals: orders and groups of pixels, the canvas on which they are shown, and the likelihood of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.likelihoods import Likelihood
from goalgen.rng import generator

Order = Literal["spread", "raster", "random", "learned"]


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


def group_ends(order: Order, count: int, groups: int, first: float = 0.0) -> list[int]:
    """How many of ``count`` positions are revealed after each group: a share ``first`` of them, then by every other the same factor
    more, to which the first group comes at least; in raster order as many in all groups.

    Raises:
        GoalgenError: there are not so many positions.
    """
    if not 1 <= groups <= count:
        raise GoalgenError(f"--horizon must be 1 to {count}, the number of pixels, not {groups}")
    begin, ends = max(first * count, count ** (1 / groups)), list[int]()
    for h in range(1, groups + 1):
        if order == "raster" or h == groups:
            wanted = count * h / groups
        else:
            wanted = begin * (count / begin) ** ((h - 1) / (groups - 1))
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
        first: share of positions in the first group, see :func:`group_ends`.
    """

    action_space: Values

    def __init__(
        self, shape: tuple[int, int, int], groups: int, order: Order = "spread", follow: bool = True, first: float = 0.0
    ) -> None:
        super().__init__()
        channels, height, width = shape
        positions = position_order(order, height, width)
        group = torch.empty(height * width, dtype=torch.int64)  # in which each position is revealed
        begin = 0
        ends = group_ends(order, height * width, groups, first)
        for h, end in enumerate(ends):
            group[positions[begin:end]] = h
            begin = end
        self.register_buffer("ends", torch.tensor(ends))  # saved, so that weights of other groups are refused
        self.ends: Tensor
        self.horizon = groups * channels if follow else groups
        self.groups, self.follow = groups, follow
        self.register_buffer("of_position", group.view(height, width), persistent=False)  # the group of each
        self.of_position: Tensor
        step = group.expand(channels, -1)
        if follow:
            step = step * channels + torch.arange(channels)[:, None]
        self.shape, self.state_shape, self.action_space = shape, (3 * channels, height, width), Values(shape)
        self.register_buffer("step", step.reshape(shape), persistent=False)  # of every value
        self.step: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *given: Any) -> None:
        saved = state_dict.get(f"{prefix}ends", self.ends)
        if saved.shape != self.ends.shape or (
            not self.ends.is_meta and not torch.equal(saved.to(self.ends), self.ends)
        ):
            given[-1].append(f"{prefix}ends: the weights are of other groups of pixels")
        super()._load_from_state_dict(state_dict, prefix, *given)

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


@dataclass(frozen=True)
class GroupAndValues:
    """A group of ``groups``, and an image of values of which those of the group count. Action: (B, 1 + C height width) in [-1, 1].

    Group k is said by the middle of the k-th of equal parts of [-1, 1], so that one box holds every action.
    """

    groups: int
    image: tuple[int, int, int]
    normal = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (1 + math.prod(self.image),)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers (batch, 1 + 2 C height width): one chooses a group, two a value."""
        return torch.rand(batch, 1 + 2 * math.prod(self.image), generator=generator)

    def split_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Of the group, (B,), and of the values, (B, 2, C, height, width)."""
        return noise[:, 0], noise[:, 1:].unflatten(1, (2, *self.image))

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[:, : self.shape[0]] * 2 - 1

    def join(self, group: Tensor, values: Tensor) -> Tensor:
        """The action of groups (B,) and values (B, C, height, width)."""
        said = (2 * group.to(values.dtype) + 1) / self.groups - 1
        return torch.cat([said.unsqueeze(1), values.flatten(1)], 1)

    def split(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Groups (B,) int64 and values (B, C, height, width) of an action."""
        group = ((action[:, 0] + 1) / 2 * self.groups).long().clamp(0, self.groups - 1)
        return group, action[:, 1:].unflatten(1, self.image)


class ChosenOrderEnvironment(RevealEnvironment):
    """An action says which group comes next, and what values it has. (Equation 34)

    The groups are those of the spread order. Where channels follow, a group is chosen with its first channel, and stays for the rest.
    """

    action_space: GroupAndValues  # type: ignore[assignment]

    def __init__(
        self,
        shape: tuple[int, int, int],
        groups: int,
        order: Order = "learned",
        follow: bool = True,
        first: float = 0.0,
    ) -> None:
        super().__init__(shape, groups, order, follow, first)
        self.action_space = GroupAndValues(groups, shape)
        member = self.of_position.flatten()[:, None] == torch.arange(groups)
        self.register_buffer("member", member, persistent=False)  # (positions, G): whether a position is in a group
        self.member: Tensor

    def by_group(self, images: Tensor) -> Tensor:
        """Sums over the positions of every group, and over channels: (B, G) of (B, channels, height, width)."""
        return images.sum(1).flatten(1) @ self.member.to(images.dtype)

    def group(self, h: Tensor) -> Tensor:
        """Which values may be written at steps ``h``: all, or those of one channel. Bool (B or 1, C, height, width)."""
        channels = self.shape[0]
        channel = torch.arange(channels, device=h.device)
        now = channel == h[:, None] % channels if self.follow else torch.ones_like(channel, dtype=torch.bool)[None]
        return now[:, :, None, None].expand(-1, *self.shape)

    def choices_before(self, h: Tensor) -> Tensor:
        """Groups that were chosen before steps ``h``, (B,)."""
        channels = self.shape[0] if self.follow else 1
        return (h + channels - 1) // channels

    def shown(self, state: Tensor) -> Tensor:
        """Which channels of every group are on the canvas, bool (B, C, G)."""
        known = state[:, self.shape[0] : 2 * self.shape[0]].flatten(2)
        return (known @ self.member.to(known.dtype)) > 0

    def among_those_left(self, h: Tensor, state: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, G) with -inf for the groups that may not come now: those shown, or all but the one whose channels follow."""
        shown, channels = self.shown(state), self.shape[0]
        possible = ~shown[:, 0]
        if self.follow and channels > 1:
            channel = (h % channels).expand(len(state))
            at = channel[:, None, None].expand(-1, 1, self.groups)
            begun = shown.gather(1, (at - 1).clamp(min=0))[:, 0] & ~shown.gather(1, at)[:, 0]
            possible = torch.where((channel == 0)[:, None], possible, begun)
        # States that no policy leads to, such as a random agent's, have to be answered too.
        possible = possible | ~possible.any(1, keepdim=True)
        return scores.masked_fill(~possible, -torch.inf)

    def along(self, h: Tensor, image: Tensor, start: Tensor, order: Tensor) -> Tensor:
        """The state at steps ``h`` of episodes from ``start`` that reveal ``image`` in orders (B, G), (B, 3 C, height, width)."""
        place = order.argsort(1)[:, self.of_position]  # (B, height, width)
        step = place.unsqueeze(1).expand(-1, self.shape[0], -1, -1)
        if self.follow:
            step = step * self.shape[0] + torch.arange(self.shape[0], device=step.device)[:, None, None]
        known = step < h[:, None, None, None]
        return torch.cat([torch.where(known, image, start), known.to(image.dtype), start], 1)

    def count_known(self, states: Tensor) -> Tensor:
        """Values on the canvas of states (T, B, 3 C, height, width), (T, B)."""
        return states[:, :, self.shape[0] : 2 * self.shape[0]].sum((2, 3, 4))

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        canvas, known, start = state.chunk(3, 1)
        choice, values = self.action_space.split(action)
        written = self.group(h) & (self.of_position == choice[:, None, None]).unsqueeze(1)
        return torch.cat([torch.where(written, values, canvas), torch.where(written, 1.0, known), start], 1)


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
