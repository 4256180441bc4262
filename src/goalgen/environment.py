"""What an environment is: a stateless world in which actions build a canvas in H steps.

Conventions: states (B, ...), canvases (B, C, height, width) in [-1, 1], one action a step. Every
method is a function of its arguments alone; randomness comes in as noise, never from a global generator.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class ActionSpace(Protocol):
    """Type of an action: its shape, and the noise that drives it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action, without the batch."""

    @property
    def normal(self) -> bool:
        """Whether the noise is standard normal, or else uniform between 0 and 1."""

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise (batch, ...) for one step, drawn on the CPU, from which a policy takes its action."""

    def uniform(self, noise: Tensor) -> Tensor:
        """A random action (B, *shape) that no policy has chosen, for chain dropout and checks."""


@dataclass(frozen=True)
class Discrete:
    """``cells`` independent choices, each among ``num_actions``. Action: (B, cells) int64.

    Policies are :class:`goalgen.policies.Categorical` with logits (B, cells, num_actions).
    """

    num_actions: int
    cells: int = 1
    normal = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.cells,)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, self.cells, generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        return (noise * self.num_actions).long().clamp(max=self.num_actions - 1)

    @property
    def count(self) -> int:
        """How many joint actions there are."""
        return int(self.num_actions**self.cells)

    def every(self) -> Tensor:
        """All joint actions, (count, cells)."""
        return torch.tensor(list(itertools.product(range(self.num_actions), repeat=self.cells)))


@dataclass(frozen=True)
class Continuous:
    """Real numbers of any shape. Action: (B, *shape) float32.

    Policies are :class:`goalgen.policies.Gaussian` with mean and std (B, *shape). Where the S-agent's mixes several
    (:class:`goalgen.policies.Mixture`), the noise has one number more at every position, to choose among them.
    """

    size: tuple[int, ...]
    mixed: bool = False
    normal = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, *self.size[:-1], self.size[-1] + self.mixed, generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[..., : self.size[-1]] if self.mixed else noise


class Environment(nn.Module, ABC):
    """A world of H steps. Subclasses set the attributes and write :meth:`transition`.

    ``offer`` is whatever the S-agent offers at a state beside its policy (images to choose from, a decoder, or
    None): the action set of a world whose actions the S-agent itself draws.

    A subclass is an ``nn.Module`` only so that it may own parameters such as step sizes; it keeps no state
    between calls.
    """

    horizon: int
    state_shape: tuple[int, ...]
    action_space: ActionSpace
    black_box: bool = False
    """No gradient passes through a transition: an episode takes every state as it comes (see :mod:`goalgen.rollout`)."""

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        """(C, height, width) of the canvases that it starts from and shows; where the state is more, say so here."""
        return self.state_shape

    def held(self) -> AbstractContextManager[None]:
        """A context in which no weight changes, so that what depends on them alone need be computed only once."""
        return nullcontext()

    def initial(self, canvas: Tensor) -> Tensor:
        """State x_0 (B, *state_shape) whose canvas is the user's initial state."""
        return canvas

    def canvas(self, state: Tensor) -> Tensor:
        """Image (B, C, height, width) that a state shows."""
        return state

    def canvases(self, states: Tensor) -> Tensor:
        """What states (T, B, *state_shape) show, (T, B, C, height, width)."""
        return self.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    def sight(self, state: Tensor) -> Tensor:
        """What of states (B, *state_shape) is seen by agents that read rows of numbers, (B, numbers): all, unless said otherwise."""
        return state.flatten(1)

    def ended(self, state: Tensor) -> Tensor:
        """Episodes that are over before the last step, bool (B,): whatever is done there, nothing changes any more."""
        return torch.zeros(len(state), dtype=torch.bool, device=state.device)

    @abstractmethod
    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        """x_{h+1} = f_h(x_h, a_h). ``h`` is (B,) int64. (Equation 1)"""


class ChoiceEnvironment(Environment):
    """An environment with few actions and a known transition, so that all next states can be looked at."""

    action_space: Discrete

    @abstractmethod
    def candidates(self, h: Tensor, state: Tensor, offer: Any) -> Tensor:
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
