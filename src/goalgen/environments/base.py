"""What an environment is: a stateless world in which actions build a canvas in H steps.

Conventions: states (B, ...), canvases (B, C, height, width) in [-1, 1], one action a step. Every
method is a function of its arguments alone; randomness comes in as noise, never from a global generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from goalgen.environments.mixture import GaussianMixture


class ActionSpace(Protocol):
    """Type of an action: its shape, the noise that drives it and how a policy turns noise into it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action, without the batch."""

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise (batch, ...) for one step, drawn on the CPU."""

    def sample(self, policy: Distribution, noise: Tensor) -> Tensor:
        """The action (B, *shape) that ``policy`` takes at this noise."""

    def uniform(self, noise: Tensor) -> Tensor:
        """A random action (B, *shape) that no policy has chosen, for chain dropout and checks."""


@dataclass(frozen=True)
class Discrete:
    """``cells`` independent choices, each among ``num_actions``. Action: (B, cells) int64.

    Policies are ``Independent(Categorical(logits=(B, cells, num_actions)), 1)``.
    """

    num_actions: int
    cells: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.cells,)

    def policy(self, logits: Tensor) -> Independent:
        """The distribution with these logits (B, cells, num_actions); they need no normalisation."""
        return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, self.cells, generator=generator)

    def sample(self, policy: Distribution, noise: Tensor) -> Tensor:
        # Inverse of the cumulative distribution: one uniform number a choice, so that the same noise gives nearby
        # policies the same action.
        cumulative = action_probs(policy).cumsum(-1)
        below = cumulative <= noise.unsqueeze(-1) * cumulative[..., -1:]
        return below.sum(-1).clamp(max=self.num_actions - 1)

    def uniform(self, noise: Tensor) -> Tensor:
        return (noise * self.num_actions).long().clamp(max=self.num_actions - 1)


@dataclass(frozen=True)
class Continuous:
    """A Gaussian action of any shape. Action: (B, *shape) float32, reparameterised.

    Where the S-agent's policy mixes several Gaussians (:class:`GaussianMixture`), the noise has one number more at every
    position, to choose among them; a policy that is one Gaussian does not read it.
    """

    size: tuple[int, ...]
    mixed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def policy(self, mean: Tensor, std: Tensor) -> Independent:
        """Independent normals with this mean and standard deviation, both (B, *shape)."""
        return Independent(Normal(mean, std, validate_args=False), len(self.size), validate_args=False)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, *self.size[:-1], self.size[-1] + self.mixed, generator=generator)

    def sample(self, policy: Distribution, noise: Tensor) -> Tensor:
        if isinstance(policy, GaussianMixture):
            return policy.take(noise)
        return policy.mean + policy.stddev * self.uniform(noise)

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[..., : self.size[-1]] if self.mixed else noise


def action_probs(policy: Distribution) -> Tensor:
    """Probabilities (B, cells, A) of a discrete policy."""
    return policy.base_dist.probs  # type: ignore[attr-defined]


def action_log_probs(policy: Distribution) -> Tensor:
    """Log-probabilities (B, cells, A) of a discrete policy; -inf where it never acts."""
    return policy.base_dist.logits  # type: ignore[attr-defined]


class Environment(nn.Module, ABC):
    """A world of H steps. Subclasses set the attributes and write :meth:`transition`.

    ``proposals`` is whatever the S-agent offers at a state beside its policy (images to choose from, a decoder, or
    None): the action set of a world whose actions the S-agent itself draws.

    A subclass is an ``nn.Module`` only so that it may own parameters such as step sizes; it keeps no state
    between calls.
    """

    horizon: int
    state_shape: tuple[int, ...]
    action_space: Discrete | Continuous
    differentiable: bool
    """Whether gradients pass from a state back to the action, the proposals and the state before."""

    def held(self) -> AbstractContextManager[None]:
        """A context in which no weight changes, so that what depends on them alone need be computed only once."""
        return nullcontext()

    def initial(self, canvas: Tensor) -> Tensor:
        """State x_0 (B, *state_shape) whose canvas is the user's initial state."""
        return canvas

    def canvas(self, state: Tensor) -> Tensor:
        """Image (B, C, height, width) that a state shows."""
        return state

    @abstractmethod
    def transition(self, h: Tensor, state: Tensor, action: Tensor, proposals: Any) -> Tensor:
        """x_{h+1} = f_h(x_h, a_h). ``h`` is (B,) int64. (Equation 1)"""


class ChoiceEnvironment(Environment):
    """An environment with few actions and a known transition, so that all next states can be looked at."""

    action_space: Discrete

    @abstractmethod
    def candidates(self, h: Tensor, state: Tensor, proposals: Any) -> Tensor:
        """All next states (B, A, *state_shape); with several cells, each takes action a everywhere."""

    @abstractmethod
    def cell_mask(self) -> Tensor:
        """The pixels that each choice governs, 1 or 0: broadcastable to (cells, C, height, width)."""

    def sum_by_cell(self, pixels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Sum a map (..., C, height, width) over the pixels that each choice governs: (..., cells).

        Args:
            weight: (C, height, width), multiplies the pixels first.
        """
        # A product with the weighted masks: no second tensor of the size of ``pixels`` is ever made.
        mask = self.cell_mask() if weight is None else self.cell_mask() * weight
        return pixels.flatten(-3) @ mask.expand(-1, *pixels.shape[-3:]).to(pixels.dtype).flatten(1).T
