"""What agents say of the values of a group: mixtures of logistics, chances of grey levels, and the copy."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen.likelihoods import discretised_logistic_log_prob
from goalgen.policies import Policy


class ValuePolicy(Policy):
    """What the S-agent says of all values at once, of which those of a group count."""

    group: Tensor
    """which values count, bool broadcastable to (B, C, height, width)"""

    @abstractmethod
    def log_prob_each(self, action: Tensor) -> Tensor:
        """log p of every value (B, C, height, width), or of every pixel (B, 1, height, width) where its channels come together."""

    def log_prob_counted(self, action: Tensor) -> Tensor:
        """... with 0 for those that do not count."""
        return torch.where(self.group, self.log_prob_each(action), 0.0)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_prob_counted(action).flatten(1).sum(1)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("this is the S-agent's policy; the GC-agent copies")


class Logistics(ValuePolicy):
    """Independent values of a group, each a mixture of logistics cut into grey levels (Salimans et al. 2017).

    Args:
        group: which values count, bool broadcastable to (B, C, height, width).
        levels: grey levels.
        logits: (B, M, C, height, width), weights of the logistics; they need no normalisation.
        mean: likewise.
        log_scale: likewise.
    """

    def __init__(self, group: Tensor, levels: int, logits: Tensor, mean: Tensor, log_scale: Tensor) -> None:
        self.group, self.levels = group, levels
        self.log_weight, self.mean, self.log_scale = logits.log_softmax(1), mean, log_scale

    def sample(self, noise: Tensor) -> Tensor:
        """Values at their levels, from two uniform numbers each: one chooses a logistic, one a value."""
        cumulative = self.log_weight.exp().cumsum(1)
        mode = (cumulative <= noise[:, :1] * cumulative[:, -1:]).sum(1, keepdim=True).clamp(max=cumulative.shape[1] - 1)
        mean, log_scale = self.mean.gather(1, mode)[:, 0], self.log_scale.gather(1, mode)[:, 0]
        top = self.levels - 1
        value = mean + log_scale.exp() * torch.logit(noise[:, 1], eps=1e-7)
        return ((value + 1) / 2 * top).round().clamp(0, top) / top * 2 - 1

    def log_prob_each(self, action: Tensor) -> Tensor:
        each = discretised_logistic_log_prob(action.unsqueeze(1), self.mean, self.log_scale, self.levels)
        return torch.logsumexp(self.log_weight + each, 1)

    def tempered(self, temperature: float) -> Logistics:
        """Each logistic narrowed like a normal of its width; the weights take the change of its width into account."""
        weight = self.log_weight / temperature + (1 - 1 / temperature) * self.log_scale
        log_scale = self.log_scale + 0.5 * torch.tensor(temperature).log()
        return Logistics(self.group, self.levels, weight, self.mean, log_scale)


class Pixels(ValuePolicy):
    """Pixels of a group whose channels come together: one choice of a mode for all of them, and means that follow the channels before.

    As PixelCNN++ has it (Salimans et al. 2017, equation 3): in mode m the mean of channel c is mean_c + sum over c' < c of
    lean_cc' v_c', where v are the values themselves.

    Args:
        group: which values count, all channels of a pixel or none, bool broadcastable to (B, C, height, width).
        levels: grey levels.
        logits: (B, M, height, width), weights of the modes; they need no normalisation.
        mean: (B, M, C, height, width).
        log_scale: likewise.
        lean: (B, M, C, C, height, width); of its third and fourth place only what lies below the diagonal counts.
    """

    def __init__(
        self, group: Tensor, levels: int, logits: Tensor, mean: Tensor, log_scale: Tensor, lean: Tensor
    ) -> None:
        self.group, self.levels = group[:, :1], levels
        self.log_weight, self.mean, self.log_scale, self.lean = logits.log_softmax(1), mean, log_scale, lean

    def sample(self, noise: Tensor) -> Tensor:
        """Values at their levels, channel by channel, from two uniform numbers each: the first channel's choose the mode."""
        cumulative = self.log_weight.exp().cumsum(1)
        mode = (cumulative <= noise[:, :1, 0] * cumulative[:, -1:]).sum(1, keepdim=True)  # (B, 1, height, width)
        mode = mode.clamp(max=cumulative.shape[1] - 1).unsqueeze(2)
        mean, log_scale = (self._of(part, mode) for part in (self.mean, self.log_scale))
        lean = self._of(self.lean.flatten(2, 3), mode).unflatten(1, self.lean.shape[2:4])
        top, values = self.levels - 1, torch.zeros_like(mean)
        for c in range(mean.shape[1]):
            center = mean[:, c] + (lean[:, c, :c] * values[:, :c]).sum(1)
            value = center + log_scale[:, c].exp() * torch.logit(noise[:, 1, c], eps=1e-7)
            values[:, c] = ((value + 1) / 2 * top).round().clamp(0, top) / top * 2 - 1
        return values

    @staticmethod
    def _of(part: Tensor, mode: Tensor) -> Tensor:
        """The chosen mode's numbers (B, numbers, height, width) of (B, M, numbers, height, width)."""
        return part.gather(1, mode.expand(-1, -1, part.shape[2], -1, -1))[:, 0]

    def log_prob_each(self, action: Tensor) -> Tensor:
        before = torch.ones(self.lean.shape[2:4], dtype=torch.bool, device=action.device).tril(-1)[:, :, None, None]
        mean = self.mean + (torch.where(before, self.lean, 0.0) * action[:, None, None]).sum(3)
        each = discretised_logistic_log_prob(action.unsqueeze(1), mean, self.log_scale, self.levels).sum(2)
        return torch.logsumexp(self.log_weight + each, 1).unsqueeze(1)

    def tempered(self, temperature: float) -> Pixels:
        """... as :class:`Logistics`; the width of a mode is that of all its channels."""
        weight = self.log_weight / temperature + (1 - 1 / temperature) * self.log_scale.sum(2)
        log_scale = self.log_scale + 0.5 * torch.tensor(temperature).log()
        return Pixels(self.group, self.levels, weight, self.mean, log_scale, self.lean)


def to_level(values: Tensor, levels: int) -> Tensor:
    """Which of so many levels values in [-1, 1] have, int64."""
    top = levels - 1
    return ((values + 1) / 2 * top).round().long().clamp(0, top)


class Levels(ValuePolicy):
    """Independent values of a group, each with a chance of its own for every grey level.

    Args:
        group: which values count, bool broadcastable to (B, C, height, width).
        logits: (B, levels, C, height, width); they need no normalisation.
    """

    def __init__(self, group: Tensor, logits: Tensor) -> None:
        self.group, self.log_probs = group, logits.log_softmax(1)

    def sample(self, noise: Tensor) -> Tensor:
        cumulative, top = self.log_probs.exp().cumsum(1), self.log_probs.shape[1] - 1
        return (cumulative <= noise[:, :1] * cumulative[:, -1:]).sum(1).clamp(max=top) / top * 2 - 1

    def log_prob_each(self, action: Tensor) -> Tensor:
        level = to_level(action, self.log_probs.shape[1]).unsqueeze(1)
        return self.log_probs.gather(1, level)[:, 0]

    def tempered(self, temperature: float) -> Levels:
        return Levels(self.group, self.log_probs / temperature)


@dataclass(frozen=True)
class Places:
    """Some values of a batch of images, as rows: a value a row, or all channels of a pixel."""

    batch: int
    shape: tuple[int, int, int]
    image: Tensor
    """which of the batch a row is of, (N,) int64"""
    value: Tensor
    """which values of the flattened image are in a row, (N, C') int64"""

    def take(self, images: Tensor) -> Tensor:
        """Rows (N, ..., C', 1, 1) of images (B, ..., C, height, width), as images of a pixel."""
        flat = images.flatten(-3).movedim(-1, 1)  # (B, values, ...)
        return flat[self.image[:, None], self.value].movedim(1, -1)[..., None, None]

    def put(self, rows: Tensor) -> Tensor:
        """Images (B, C, height, width) with rows (N, C', 1, 1) in their places, and 0 elsewhere."""
        flat = rows.new_zeros(self.batch, math.prod(self.shape))
        return flat.index_put((self.image[:, None], self.value), rows.flatten(1)).unflatten(1, self.shape)


class Counted(Policy):
    """What the S-agent says of the values of a group, and of no others: a policy of rows, as if each were an image of a pixel."""

    def __init__(self, places: Places, each: ValuePolicy) -> None:
        self.places, self.each = places, each

    def sample(self, noise: Tensor) -> Tensor:
        """Values of the group at their levels, 0 elsewhere; from noise of all values."""
        return self.places.put(self.each.sample(self.places.take(noise)))

    def log_prob(self, action: Tensor) -> Tensor:
        rows = self.each.log_prob(self.places.take(action))
        return rows.new_zeros(self.places.batch).index_add(0, self.places.image, rows)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("this is the S-agent's policy; the GC-agent copies")

    def tempered(self, temperature: float) -> Counted:
        each = self.each.tempered(temperature)
        assert isinstance(each, ValuePolicy)
        return Counted(self.places, each)


class Copy(Policy):
    """These values, whatever the noise: its divergence from a policy is the negative log-probability of them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def sample(self, noise: Tensor) -> Tensor:
        return self.values

    def log_prob(self, action: Tensor) -> Tensor:
        return action.new_zeros(len(action))

    def kl(self, other: Policy) -> Tensor:
        return -other.log_prob(self.values)

    def tempered(self, temperature: float) -> Copy:
        return self
