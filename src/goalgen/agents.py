"""The two agents, what they see, and the pair of them in their environment: all the weights of a model in one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from goalgen.environment import Environment
from goalgen.likelihoods import Likelihood
from goalgen.policies import Policy


@dataclass(frozen=True)
class Seen:
    """What both agents see at a step of B episodes; the goal is the GC-agent's alone.

    A step is a tensor, so that one step of all episodes, (1,), and a step for each, (B,), are one thing.
    """

    h: Tensor
    """the step, (1,) or (B,) int64"""
    to: Tensor
    """the step that the action leads to, likewise: h + 1 unless steps are skipped"""
    state: Tensor
    """(B, *state_shape)"""
    label: Tensor | None
    """(B,) int64, of a model that is conditioned on labels"""
    environment: Environment
    likelihood: Likelihood
    memory: Tensor | None = None
    """(B, numbers) that stages before have left, for the networks to read"""
    known: tuple[int, int] | None = field(default=None, repr=False)
    """both steps as numbers: reading a tensor would wait for a GPU"""

    @property
    def step(self) -> int:
        """The step as a number, where it is one for all."""
        return int(self.h) if self.known is None else self.known[0]

    @property
    def next_step(self) -> int:
        """The step that the action leads to, likewise."""
        return int(self.to) if self.known is None else self.known[1]

    @property
    def rows(self) -> Tensor:
        """The step of each episode, (B,)."""
        return self.h.expand(len(self.state))


@dataclass
class Decision:
    """What the S-agent says at a state: its policy p(. | x_h), and what it offers to act with."""

    policy: Policy
    offer: Any = None
    """Images to choose from, a decoder, ... : whatever its environment's transition takes."""


class SAgent(nn.Module, ABC):
    """Sees the canvas, never the goal. It acts, and in some worlds it also draws what to act with."""

    @abstractmethod
    def decide(self, seen: Seen) -> Decision:
        """Policy and offer at states (B, ...)."""

    def in_mind(self, decision: Decision) -> Tensor | None:
        """The image (B, C, height, width) in [-1, 1] that it has in mind at a step, for pictures, where it has one."""
        return None


class GCAgent(nn.Module, ABC):
    """Told the goal: a policy given what the S-agent sees and says. The bound holds for any of them.

    A policy is built from what a network or a search gives: :class:`goalgen.policies.Categorical` from logits
    (B, cells, A), for a :class:`goalgen.environment.Discrete` action space; :class:`goalgen.policies.Gaussian` from mean and
    std (B, *shape), for a :class:`goalgen.environment.Continuous` one. It may never act where the S-agent's policy cannot.
    """

    episodes_per_goal = 1
    """Episodes of each goal in a batch, where the user does not say."""

    def __init__(self, plan: Any = None, environment: Environment | None = None) -> None:
        """A family makes its GC-agents from its :class:`goalgen.family.Plan` and its environment."""
        super().__init__()

    @abstractmethod
    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        """q(. | x_h, g).

        Args:
            seen: step, states, environment and likelihood.
            goal: (B, C, height, width) in [-1, 1].
            decision: the S-agent's policy and offer at these states.
        """

    def rates(self) -> dict[nn.Parameter, float]:
        """Parameters that learn faster or slower than the rest, or of a kind of their own: learning rate over that of the
        family, without weight decay."""
        return {}


class Agents(nn.Module):
    """The two agents in their environment.

    Attributes:
        environment: f_h and the action space.
        s_agent: p, the generative model with ``likelihood``.
        gc_agent: q.
        likelihood: p(g | x_H).
        shape: (C, height, width) of the images.
        levels: grey levels of the images.
        num_labels: classes that the agents are told; 0: none.
    """

    def __init__(
        self,
        environment: Environment,
        s_agent: SAgent,
        gc_agent: GCAgent,
        likelihood: Likelihood,
        shape: tuple[int, int, int],
        levels: int,
        num_labels: int = 0,
    ) -> None:
        super().__init__()
        self.environment = environment
        self.s_agent = s_agent
        self.gc_agent = gc_agent
        self.likelihood = likelihood
        self.shape, self.levels, self.num_labels = shape, levels, num_labels

    @property
    def horizon(self) -> int:
        """H."""
        return self.environment.horizon

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def see(
        self,
        h: int | Tensor,
        state: Tensor,
        label: Tensor | None = None,
        to: int | None = None,
        memory: Tensor | None = None,
    ) -> Seen:
        """What there is to see at step ``h``: a number, or a tensor (1,) or (B,).

        Args:
            state: (B, *state_shape).
            label: (B,) int64, of a model that is conditioned on labels.
            to: the step that the next action leads to; unset: the next one.
            memory: (B, numbers), of a model that comes after stages which remember.
        """
        known = None
        if isinstance(h, int):
            known = (h, h + 1 if to is None else to)
            h = torch.tensor([h], device=state.device)
        after = h + 1 if to is None else torch.tensor([to], device=state.device)
        return Seen(h, after, state, label, self.environment, self.likelihood, memory, known)

    def generative_modules(self) -> list[nn.Module]:
        """What sampling needs: environment, S-agent and likelihood."""
        return [self.environment, self.s_agent, self.likelihood]

    def gc_modules(self) -> list[nn.Module]:
        """What training needs besides: the GC-agent."""
        return [self.gc_agent]

    def generative_parameters(self) -> list[nn.Parameter]:
        """What the M-step learns."""
        return [p for module in self.generative_modules() for p in module.parameters() if p.requires_grad]

    def gc_parameters(self) -> list[nn.Parameter]:
        """What the E-step learns."""
        return [p for module in self.gc_modules() for p in module.parameters() if p.requires_grad]
