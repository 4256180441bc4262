"""p(g | x_H): proper likelihoods of a goal given the last state; for images, of discrete pixel levels around a canvas.

Tensors: goals and canvases (..., C, height, width) in [-1, 1], log-probabilities per pixel in nats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 at least: what autocast made half precision is raised, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


LARGEST_SCALE = 100.0
"""Scales that a network reads stay below this, fifty times the range of grey levels. (Equation 19)"""

FAR = 1e6
"""Half-width of a bin without an outer edge. Finite, so that a gradient of nothing times it is nothing."""


def discretised_logistic_log_prob(goal: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log-probability (nats) of each pixel's level under a logistic rounded to ``levels`` grey levels.

    The levels divide [-1, 1] evenly; the first and the last one take the tails, so the probabilities
    of all levels sum to one (Salimans et al. 2017, section 2.1). (Equation 11)

    Args:
        goal: values of levels, k -> 2 k / (levels - 1) - 1, any shape.
        mean: location of the logistic, broadcastable to ``goal``.
        log_scale: its log scale, broadcastable to ``goal``.
        levels: number of grey levels, at least 2.
    """
    half, far = goal.new_full((), 1.0 / (levels - 1)), goal.new_full((), FAR)
    # The two outer bins reach so far that all of their tail is inside. A goal is often broadcast, and this as small as it is.
    up = torch.where(goal > 1 - half, far, half)
    down = torch.where(goal < -1 + half, far, half)
    inverse = torch.exp(-log_scale)
    upper, lower = (goal + up - mean) * inverse, (goal - down - mean) * inverse
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)): exact in the far
    # tails, where the difference of two sigmoids would round to zero.
    inside = torch.log(-torch.expm1(-(up + down) * inverse))
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + inside


def bernoulli_log_prob(goal: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability (nats) of black-and-white pixels with logit ``mean / scale``. (Equation 12)

    The same as :func:`discretised_logistic_log_prob` at two levels.
    """
    return F.logsigmoid(torch.where(goal > 0, mean, -mean) * torch.exp(-log_scale))


class Likelihood(nn.Module, ABC):
    """p(g | x_H): what the GC-agent is paid for. A likelihood of your own writes :meth:`log_prob`."""

    @abstractmethod
    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        """log p(g | x), (B,) nats, of goals (B, ...) given states (B, *state_shape).

        Args:
            hold_scale: pass no gradient to the state through how sure the likelihood is, only through where it expects
                the goal.
        """

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Goals (B, ...) drawn from p(. | x).

        Raises:
            NotImplementedError: this likelihood cannot be drawn from.
        """
        raise NotImplementedError


class PixelLikelihood(Likelihood):
    """Pixels independent given the canvas that a state shows, the scale of each read from the canvas.

    A pixel's log scale is a learned constant plus a small function of the patch of 4 x 4 pixels it lies in, so that
    flat background can be certain where an outline is not. By patches it stays cheap, as the GC-agent asks for it at
    every candidate of the last step.

    Args:
        shape: (C, height, width) of a canvas.
        levels: grey levels of the data; 2 is Bernoulli.
        hidden: units of the scale network; 0 keeps one constant a pixel.
        canvas: what a state shows, (B, *state_shape) to (B, C, height, width); unset: the state is the canvas.
    """

    patch = 4

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        hidden: int = 64,
        canvas: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"a likelihood needs at least 2 grey levels, not {levels}")
        self.levels = levels
        self.canvas = canvas
        self.log_scale_bias = nn.Parameter(torch.full(shape, -1.0))
        self.scale_network: nn.Module | None = None
        if hidden:
            pixels = shape[0] * self.patch**2
            last = nn.Linear(hidden, pixels)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.scale_network = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU(), last)

    def log_scale(self, canvas: Tensor) -> Tensor:
        """Log scale of every pixel, shape of ``canvas`` (..., C, height, width). (Equation 19)"""
        bias = self.log_scale_bias
        if self.scale_network is None:
            return bias.expand_as(canvas)
        flat = canvas.reshape(-1, *canvas.shape[-3:])
        height, width = canvas.shape[-2:]
        padded = F.pad(flat, (0, -width % self.patch, 0, -height % self.patch))
        patches = F.pixel_unshuffle(padded, self.patch).movedim(1, -1).contiguous()  # (N, rows, columns, C patch^2)
        delta = F.pixel_shuffle(full_precision(self.scale_network(patches)).movedim(-1, 1), self.patch)
        delta = delta[..., :height, :width].reshape(canvas.shape)
        # A smooth floor and ceiling: a scale far below one level gains nothing, and at either extreme exp() is not finite.
        # (Far above the ceiling the difference would only be one of rounding.)
        floor, free = math.log(0.05 / (self.levels - 1)), (bias + delta).clamp(max=30.0)
        return floor + F.softplus(free - floor) - F.softplus(free - math.log(LARGEST_SCALE))

    def log_prob_map(self, goal: Tensor, canvas: Tensor, *, hold_scale: bool = False) -> Tensor:
        """log p of every pixel (nats), shape of ``canvas``; ``goal`` must be broadcastable to it.

        Args:
            hold_scale: pass no gradient from the scales back to the canvas. With that gradient the canvas learns to
                tell the scale network, in a texture that has nothing to do with the goal, how sure to be.
        """
        log_scale = self.log_scale(canvas.detach() if hold_scale else canvas)
        if self.levels == 2:
            return bernoulli_log_prob(goal, canvas, log_scale)
        return discretised_logistic_log_prob(goal, canvas, log_scale, self.levels)

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        """log p(g | x) in nats, summed over pixels: (...)."""
        canvas = state if self.canvas is None else self.canvas(state)
        return self.log_prob_map(goal, canvas, hold_scale=hold_scale).sum((-3, -2, -1))

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Goals drawn pixel by pixel, (B, C, height, width) at the levels in [-1, 1]. (Equations 11 and 12)"""
        canvas = state if self.canvas is None else self.canvas(state)
        uniform = torch.rand(canvas.shape, generator=generator).to(canvas.device)
        drawn = canvas + self.log_scale(canvas).exp() * torch.logit(uniform, eps=1e-7)
        if self.levels == 2:  # white with the probability that the logistic lies above 0
            return torch.where(drawn > 0, 1.0, -1.0)
        top = self.levels - 1
        return ((drawn + 1) / 2 * top).round().clamp(0, top) / top * 2 - 1
