"""A family: a kind of world, the two agents that act in it, how they learn, and everything else that is peculiar to it.

A family of your own subclasses :class:`Family` and is made known by one call of :func:`goalgen.register`. Nothing else in the
package knows its name: training, saving, sampling and measuring ask what is written here. See docs/guide.md.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from goalgen.agents import Agents, GCAgent, SAgent, Seen
from goalgen.bound import Bound, bound
from goalgen.config import Settings
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.learning import Clock, Learned
from goalgen.likelihoods import Likelihood
from goalgen.networks import NetworkSpec, layer_weights, matrices
from goalgen.policies import Policy
from goalgen.rollout import Samples, Trajectory, draw_noise, even_path, rollout
from goalgen.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Streams = Callable[[str], torch.Generator]
"""Source of all randomness: the generator of what its name says, such as "actions"."""

Lesson = TypeVar("Lesson")

Draws = dict[str, Tensor]
"""What is drawn at random for a batch before it is learned from: tensors (T, B, ...), "noise" among them."""


@dataclass(frozen=True)
class Plan:
    """What a model is to be."""

    shape: tuple[int, int, int]
    """(C, height, width) of the images"""
    levels: int
    """grey levels of the images"""
    network: NetworkSpec
    """network of the agents; it knows horizon and labels too"""
    settings: Any
    """the family's own settings"""
    gc_agent: str
    """name of the GC-agent, one of the family's"""

    @property
    def horizon(self) -> int:
        """H."""
        return self.network.horizon


@dataclass(frozen=True)
class AfterStep:
    """What there is to work with after a step of the optimiser."""

    step: int
    """optimiser steps taken, this one included"""
    seen: dict[str, Tensor]
    """of the batch, see :class:`goalgen.learning.Learned`"""
    averaged: Family
    """the same model with averaged weights"""
    optimizer: torch.optim.Optimizer
    streams: Streams


class LearningGCAgent(GCAgent):
    """A GC-agent whose learning is its own affair, where no gradient of J reaches it."""

    @abstractmethod
    def loss(self, agents: Agents, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of its learning on its return -J, and scalars for the log.

        Args:
            trajectory: episodes that it acted in, without gradient through its policies.
            terms: J of these.
        """


class Family(Agents, ABC):
    """One kind of model. Subclasses set the class attributes and build the parts in ``__init__(plan)``.

    It is a module, so that its weights are those of the model, and that distributed training wraps it whole.
    """

    name: ClassVar[str]
    """what ``--environment`` calls it"""
    Settings: ClassVar[type[Settings]] = Settings
    """its own settings, a frozen dataclass; every field is an option of the command line"""
    gc_agents: ClassVar[dict[str, Callable[[Plan, Environment], GCAgent]]]
    """what ``--gc-agent`` may be, the default first; each is made from the plan and the environment"""
    network: ClassVar[str] = "mlp"
    """network of its agents where the user names none"""
    sizes: ClassVar[dict[str, tuple[int, int, int]]] = {}
    """width, depth and head width by network, where they are not those of :data:`goalgen.networks.SIZES`"""
    stageable: ClassVar[bool] = True
    """whether it may be one stage of several"""
    pathwise: ClassVar[bool] = False
    """whether its GC-agents learn by the gradient that passes through them, as a stage before others"""
    learns_apart: ClassVar[bool] = False
    """whether, as a stage before others, it learns by :meth:`learn` as if it were the last, where no gradient of J reaches it"""
    training_buffers: ClassVar[tuple[str, ...]] = ()
    """buffers that only training needs: checkpoints have them, saved models do not"""
    least_validation: ClassVar[int] = 1
    """examples, at least, in a held-out estimate of the bound; few images are gone through again"""

    def __init__(
        self, plan: Plan, environment: Environment, s_agent: SAgent, gc_agent: GCAgent, likelihood: Likelihood
    ) -> None:
        labels = plan.network.num_labels
        super().__init__(environment, s_agent, gc_agent, likelihood, plan.shape, plan.levels, labels)
        self.settings = plan.settings

    @classmethod
    def check(cls, plan: Plan) -> None:
        """Refuse settings that make no model.

        Raises:
            GoalgenError: naming the setting, its value and what it may be.
        """

    @classmethod
    def remembered(cls, settings: Any) -> int:
        """Numbers of every action that go into memory, for the stages after it to read; 0: none, or all of an action."""
        return 0

    @classmethod
    def make_gc_agent(cls, plan: Plan, environment: Environment) -> GCAgent:
        """The GC-agent that the plan names."""
        return cls.gc_agents[plan.gc_agent](plan, environment)

    @property
    def bound_is_exact(self) -> bool:
        """Whether the bound is the negative log-likelihood itself, so that more trajectories would say nothing new."""
        return False

    @property
    def can_skip(self) -> bool:
        """Whether the S-agent can go several steps in one action, for sampling in fewer steps."""
        return False

    @property
    def drafts(self) -> bool:
        """Whether, as a last stage, what its S-agent has in mind at its first step is an image worth showing: samples may end there."""
        return False

    @property
    def can_correlate(self) -> bool:
        """Whether samples may draw less noise and carry along more (see :meth:`goalgen.policies.Policy.correlated`)."""
        return False

    def path(self, steps: int | None) -> list[int]:
        """Steps to stop at for samples of so many actions; unset: all the model was trained with.

        Raises:
            GoalgenError: the model takes every step, or has not so many.
        """
        if steps is None:
            return list(range(self.horizon + 1))
        if not self.can_skip:
            raise GoalgenError(
                f"this model takes every step it was trained with ({self.horizon}): --steps is for one whose S-agent can "
                "skip some, such as --environment bridge --gc-agent fixed"
            )
        return even_path(self.horizon, steps)

    # -- learning --------------------------------------------------------------------------------------------------

    def draw(self, batch: int, streams: Streams) -> Draws:
        """What a batch of ``batch`` goals is learned with; for most the noise of a whole episode, (H, batch, ...)."""
        return {"noise": draw_noise(self.environment, batch, streams("actions"))}

    @abstractmethod
    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        """Loss of one batch, from which both agents learn.

        Args:
            task: B episodes with goals.
            draws: from :meth:`draw`, on the device of the weights.
            clock: where the run stands.
        """

    def forward(self, lesson: Callable[[], Lesson]) -> Lesson:
        """What ``lesson`` returns: :meth:`learn` or one of its updates, under the name by which distributed training calls them."""
        return lesson()

    def kl_weight(self, clock: Clock) -> float:
        """Weight of its KL in the loss, as a stage before others."""
        return 1.0

    def rehearse(self, seen: list[Seen], q: list[Policy], clock: Clock) -> Tensor | float:
        """As a stage before others: loss of what else its S-agent learns, of steps that it saw and the GC-agent's policies there."""
        return 0.0

    def estimate(self, task: Task, streams: Streams) -> Bound:
        """J of held-out goals, without bias. Here of whole episodes; a family may know something cheaper. (Equation 3)"""
        noise = draw_noise(self.environment, len(task), streams("actions")).to(self.device)
        return bound(self, rollout(self, task, noise))

    def parameter_groups(self, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser: what weight decay falls on, the rest, and what has :meth:`rates` of its own.

        Args:
            rate: peak learning rate; of each group it is "peak".
            weight_decay: of the weights of linear and convolutional layers.
        """
        own, decayed = self.rates(), {id(p) for p in matrices(self)}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in [*self.generative_parameters(), *self.gc_parameters()]:
            decay = weight_decay if parameter not in own and id(parameter) in decayed else 0.0
            groups.setdefault((decay, rate * own.get(parameter, 1.0)), []).append(parameter)
        return [{"params": p, "weight_decay": decay, "peak": peak} for (decay, peak), p in groups.items()]

    def rates(self) -> dict[nn.Parameter, float]:
        """Parameters that learn at a rate of their own, see :meth:`goalgen.agents.GCAgent.rates`."""
        return self.gc_agent.rates()

    def layers(self) -> list[nn.Parameter]:
        """What Muon may move as matrices: weights of linear and convolutional layers. Those with :meth:`rates` of their own it won't."""
        return [weight for weight in layer_weights(self) if weight.requires_grad]

    def after_step(self, after: AfterStep) -> dict[str, int]:
        """Whatever is to happen once the weights have moved. Returns counts for the log, which adds them up."""
        return {}

    # -- what it says of itself ------------------------------------------------------------------------------------

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """Further numbers for ``goalgen evaluate``, JSON values, from episodes of the GC-agent told test images."""
        return {}

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Figure]:
        """Further pictures for ``goalgen plot``, by file name, from the weights of a run's last checkpoint."""
        return {}

    def files(self, samples: Samples) -> list[dict[str, bytes]]:
        """What is written beside the picture of each of B samples: contents by extension, such as {".svg": ...}."""
        return []

    @property
    def files_steps(self) -> tuple[int, int]:
        """The first step that :meth:`files` tells of, and the one whose canvas is what they show."""
        return 0, self.horizon


def check_least(settings: Any, **least: int) -> None:
    """Refuse whole numbers below what they must be at least; None passes.

    Raises:
        GoalgenError: naming the option.
    """
    for name, smallest in least.items():
        _must(settings, name, partial(operator.le, smallest), f"at least {smallest}")


def check_most(settings: Any, most: int, *names: str) -> None:
    """Refuse whole numbers above ``most``; None passes.

    Raises:
        GoalgenError: naming the option.
    """
    for name in names:
        _must(settings, name, lambda value: value <= most, f"at most {most:,}")


def check_share(settings: Any, *names: str) -> None:
    """Refuse shares that are not at least 0 and below 1; None passes.

    Raises:
        GoalgenError: naming the option.
    """
    for name in names:
        _must(settings, name, lambda value: 0 <= value < 1, "at least 0 and below 1")


def check_from_0_to_1(settings: Any, *names: str) -> None:
    """Refuse numbers that are not at least 0 and at most 1; None passes.

    Raises:
        GoalgenError: naming the option.
    """
    for name in names:
        _must(settings, name, lambda value: 0 <= value <= 1, "from 0 to 1")


def check_above_zero(settings: Any, *names: str) -> None:
    """Refuse numbers that are not above 0 and finite; None passes.

    Raises:
        GoalgenError: naming the option.
    """
    for name in names:
        _must(settings, name, lambda value: value > 0 and math.isfinite(value), "above 0 and finite")


def _must(settings: Any, name: str, holds: Callable[[Any], bool], words: str) -> None:
    value = getattr(settings, name)
    if value is not None and not holds(value):
        raise GoalgenError(f"--{name.replace('_', '-')} must be {words}, not {str(value)[:40]}")
