"""The world of stages: the environments, agents and policies of families in sequence, as one of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goalgen.agents import Decision, GCAgent, SAgent, Seen
from goalgen.composite import Composite
from goalgen.environment import ActionSpace, Discrete, Environment
from goalgen.family import Family
from goalgen.likelihoods import Likelihood
from goalgen.policies import Policy
from goalgen.rollout import advance
from goalgen.task import Task

# One action space and one policy for actions of several shapes


@dataclass(frozen=True)
class Flat:
    """Actions of several spaces as rows of numbers, the shorter ones filled up. Action: (B, size) float."""

    spaces: tuple[ActionSpace, ...]
    normal = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (max(prod(space.shape) for space in self.spaces),)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise (batch, numbers), as much as the space that wants most."""
        sizes = [space.noise(1, torch.Generator()).numel() for space in self.spaces]
        return torch.randn(batch, max(sizes), generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        return noise[:, : self.shape[0]]


@dataclass
class Packed(Policy):
    """A stage's policy over the rows that its actions are packed into."""

    policy: Policy
    space: ActionSpace
    flat: Flat

    def __post_init__(self) -> None:
        self.kl_is_upper_bound = self.policy.kl_is_upper_bound

    def sample(self, noise: Tensor) -> Tensor:
        like = self.space.noise(1, torch.Generator())
        own = noise[:, : like.numel()].unflatten(1, like.shape[1:])
        action = self.policy.sample(own if self.space.normal else torch.special.ndtr(own)).flatten(1)
        return F.pad(action.to(noise.dtype), (0, self.flat.shape[0] - action.shape[1]))

    def unpack(self, action: Tensor) -> Tensor:
        """The stage's own action."""
        return unpack(self.space, action)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.policy.log_prob(self.unpack(action))

    def kl(self, other: Policy) -> Tensor:
        return self.policy.kl(unpacked(other))

    def kl_along(self, other: Policy, action: Tensor) -> Tensor:
        return self.policy.kl_along(unpacked(other), self.unpack(action))

    def tempered(self, temperature: float) -> Packed:
        return Packed(self.policy.tempered(temperature), self.space, self.flat)

    def correlated(self, share: float) -> Policy:
        return Packed(self.policy.correlated(share), self.space, self.flat)


def unpack(space: ActionSpace, rows: Tensor) -> Tensor:
    """Actions (B, *shape) of a stage from rows (B, numbers); what is no choice, as rows drawn at random, is the nearest."""
    own = rows[:, : prod(space.shape)].unflatten(1, space.shape)
    if isinstance(space, Discrete):
        return own.round().long().clamp(0, space.num_actions - 1)
    if isinstance(space, Composite):
        most = torch.tensor(space.sizes, device=own.device) - 1
        return space.canonical(torch.minimum(own.round().long().clamp(min=0), most))
    return own


def unpacked(policy: Policy) -> Policy:
    """A stage's own policy."""
    return policy.policy if isinstance(policy, Packed) else policy


# The world and the agents, each a sequence of those of the stages


@dataclass
class Offer:
    """What a stage's S-agent offers, and what it saw."""

    stage: int
    seen: Seen
    offer: Any
    to: int
    """the step of the whole episode that the action leads to"""
    policy: Policy
    guess: Tensor | None
    """what that S-agent has in mind"""


class StagesEnvironment(Environment):
    """The environments of the stages, one after the other. (Equation 29)

    Args:
        stages: the families. They are kept aside, as their weights are listed with the families themselves.
        shape: (C, height, width) of a canvas.
        known: numbers in memory before each stage, and after the last.
        told: numbers of it that the networks of each stage read.
    """

    action_space: ActionSpace

    def __init__(
        self, stages: Sequence[Family], shape: tuple[int, int, int], known: Sequence[int], told: Sequence[int]
    ) -> None:
        super().__init__()
        self.stages, self.shape, self.known, self.told = tuple(stages), shape, tuple(known), tuple(told)
        self.ends = list(accumulate(stage.horizon for stage in stages))
        self.horizon = self.ends[-1]
        self.room = max(prod(stage.environment.state_shape) for stage in stages)
        self.state_shape = (self.room + known[-1],)
        self.black_box = all(stage.environment.black_box for stage in stages)
        spaces = tuple(stage.environment.action_space for stage in stages)
        self.action_space = spaces[0] if all(space == spaces[0] for space in spaces) else Flat(spaces)

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return self.shape

    def held(self) -> AbstractContextManager[None]:
        stack = ExitStack()
        for stage in self.stages:
            stack.enter_context(stage.environment.held())
        return stack  # type: ignore[return-value]

    def place(self, step: int) -> tuple[int, int]:
        """The stage of a step, and the first step of that stage."""
        stage = next(k for k, end in enumerate(self.ends) if step < end)
        return stage, self.ends[stage - 1] if stage else 0

    def pack(self, state: Tensor, memory: Tensor | None) -> Tensor:
        """A stage's state and memory as rows."""
        flat = F.pad(state.flatten(1), (0, self.room - state[0].numel()))
        return flat if memory is None else torch.cat([flat, memory], 1)

    def own(self, stage: int, state: Tensor) -> Tensor:
        """The state of a stage, of its own shape."""
        shape = self.stages[stage].environment.state_shape
        return state[:, : prod(shape)].unflatten(1, shape)

    def task(self, stage: int, task: Task, state: Tensor) -> Task:
        """The task of a stage that begins in these states: what it starts from, and what of memory it reads."""
        memory = self.memory(state)
        known = memory[:, : self.told[stage]] if self.told[stage] and memory is not None else None
        return replace(task, start=self.canvas(state), memory=known)

    def memory(self, state: Tensor) -> Tensor | None:
        """What is remembered, (B, numbers), zeros where nothing has been yet; None where no stage remembers."""
        return state[:, self.room :] if state.shape[1] > self.room else None

    def initial(self, canvas: Tensor) -> Tensor:
        memory = canvas.new_zeros(len(canvas), self.state_shape[0] - self.room)
        return self.pack(self.stages[0].environment.initial(canvas), memory)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, : prod(self.shape)].unflatten(1, self.shape)

    def seen_in_stage(self, seen: Seen) -> tuple[int, Seen]:
        """The stage of a step, and what its agents see there."""
        stage, first = self.place(seen.step)
        state, memory = self.own(stage, seen.state), self.memory(seen.state)
        memory = memory[:, : self.told[stage]] if self.told[stage] and memory is not None else None
        return stage, self.stages[stage].see(seen.step - first, state, seen.label, seen.next_step - first, memory)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Offer) -> Tensor:
        """One step of a stage; after its last one, the state in which the next begins."""
        environment = self.stages[offer.stage].environment
        own = offer.policy.unpack(action) if isinstance(offer.policy, Packed) else action
        after, memory = advance(offer.seen, own, offer.offer), self.memory(state)
        if size := self.stages[offer.stage].remembered(self.stages[offer.stage].settings):
            assert memory is not None
            begin = self.known[offer.stage] + size * offer.seen.step
            memory = torch.cat([memory[:, :begin], own.flatten(1), memory[:, begin + size :]], 1)
        if offer.to == self.ends[offer.stage] < self.horizon:
            after = self.stages[offer.stage + 1].environment.initial(environment.canvas(after))
        return self.pack(after, memory)


class StagesSAgent(SAgent):
    """The S-agent of the stage in hand; one that learns apart has no use for a gradient here."""

    def decide(self, seen: Seen) -> Decision:
        world = world_of(seen)
        stage, own = world.seen_in_stage(seen)
        family = world.stages[stage]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not family.learns_apart):
            decision = family.s_agent.decide(own)
        policy = decision.policy
        if isinstance(world.action_space, Flat):
            policy = Packed(policy, family.environment.action_space, world.action_space)
        guess = family.s_agent.in_mind(decision)
        return Decision(policy, Offer(stage, own, decision.offer, seen.next_step, policy, guess))

    def in_mind(self, decision: Decision) -> Tensor | None:
        guess: Tensor | None = decision.offer.guess
        return guess


class StagesGCAgent(GCAgent):
    """The GC-agent of the stage in hand; no gradient passes into one that does not learn by it."""

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        world, offer = world_of(seen), decision.offer
        family = world.stages[offer.stage]
        with torch.set_grad_enabled(torch.is_grad_enabled() and family.pathwise):
            q = family.gc_agent.policy(offer.seen, goal, Decision(unpacked(decision.policy), offer.offer))
        if isinstance(world.action_space, Flat):
            return Packed(q, family.environment.action_space, world.action_space)
        return q


def world_of(seen: Seen) -> StagesEnvironment:
    """The environment, which must be stages."""
    assert isinstance(seen.environment, StagesEnvironment)
    return seen.environment


class LastLikelihood(Likelihood):
    """p(g | x_H): the last stage's."""

    def __init__(self, environment: StagesEnvironment) -> None:
        super().__init__()
        self.world = (environment,)  # in a tuple: it is listed elsewhere

    def _of(self, state: Tensor) -> tuple[Likelihood, Tensor]:
        (world,) = self.world
        return world.stages[-1].likelihood, world.own(len(world.stages) - 1, state)

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        likelihood, own = self._of(state)
        return likelihood.log_prob(goal, own, hold_scale=hold_scale)

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        likelihood, own = self._of(state)
        return likelihood.draw(own, generator)
